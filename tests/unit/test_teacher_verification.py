"""Verification catches each fault, and only that."""

import pytest
from teacher_contexts import context, evidence, usual

from ray_app.prompts.parse import parse_answer, to_step
from ray_app.teacher.verification import MAX_WORDS, REASONS, check, conclusion, step_problem

GOOD = """Answer: Yes
Reasoning:
1. The user liked [e1], which shares Comedy with the target.
2. However, [e2] was disliked, and similar users did not like the target [e4].
3. Similar users enjoyed [e3], so the user would enjoy it."""
BARE = GOOD.replace(", so the user would enjoy it.", ".\n4. So the user would enjoy it.")


def reason_for(text: str, label: bool = True) -> str:
    return check(parse_answer(text), usual(), label).reason


def test_a_true_trace_is_accepted_with_its_scores():
    accepted, reason, scores = check(parse_answer(GOOD), usual(), True)
    assert (accepted, reason) == (True, "")
    assert scores == {"words": 33.0, "steps": 3.0, "coverage": 0.8, "grounded": 1.0}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", ""),
        ("would enjoy it", "would not enjoy it", "inconsistent"),
        ("So the user", "As similar users liked it, the user", "uncited_step"),
        ("So the user", "For its Comedy the user", "uncited_step"),
        ("So the user", "With 9 of 10 the user", "uncited_step"),
        ("So the user would enjoy it", "It is a fine film", "uncited_step"),
        ("So the user", "So, seeing [e2], the user", ""),
    ],
)
def test_a_last_step_without_citation_may_only_conclude(old, new, fault):
    assert reason_for(BARE.replace(old, new) if old else BARE) == fault


def test_a_conclusion_alone_is_no_reasoning():
    assert (
        reason_for("Answer: Yes\nReasoning:\n1. So after all I think the user would enjoy it.")
        == "uncited_step"
    )


@pytest.mark.parametrize(
    ("fault", "old", "new"),
    [
        ("no_verdict", "Answer: Yes", "Answer: Now"),
        ("no_verdict", "Answer: Yes", "I do not know"),
        ("uncited_step", "[e1]", "it"),
        ("uncited_step", "[e1]", "[h1]"),
        ("unknown_evidence", "[e1]", "[e9]"),
        ("sign_conflict", "liked [e1]", "disliked [e1]"),
        ("sign_conflict", "liked [e1]", "did not like [e1]"),
        ("sign_conflict", "[e2] was disliked", "[e2] was liked"),
        ("sign_conflict", "users enjoyed [e3]", "users didn't really enjoy [e3]"),
        ("unsupported_feature", "shares Comedy", "shares War"),
        ("unsupported_feature", "shares Comedy", "shares Drama"),
        ("unsupported_feature", "shares Comedy", "shares comedy and sci-fi"),
        ("inconsistent", "would enjoy", "would not enjoy"),
        ("inconsistent", "would enjoy", "is unlikely to enjoy"),
        ("inconsistent", ", so the user would enjoy it", " very much"),
        ("too_long", "very", "very " * MAX_WORDS),
    ],
)
def test_each_planted_fault_is_named(fault, old, new):
    text = GOOD.replace("Similar users enjoyed", "very clearly, similar users enjoyed")
    assert old in text
    assert reason_for(text) == ""
    assert reason_for(text.replace(old, new)) == fault
    assert fault in REASONS


def test_the_verdict_is_held_against_the_label():
    assert reason_for(GOOD, label=False) == "wrong_verdict"


def test_an_answer_without_reasons_is_too_short():
    assert reason_for("Answer: Yes\nReasoning:") == "too_short"
    assert reason_for("Answer: Yes\nReasoning:\n1. liked [e1]") == "too_short"


@pytest.mark.parametrize(
    "text",
    [
        "Both [e1] and [e3] were well received, unlike [e2], which was rated low.",
        "The user liked [e1] but did not like [e2].",
        "[e2] is a Drama the user disliked, although [e1] was enjoyed.",
        "The target is a Comedy that similar users did not enjoy [e4].",
        "[e1] shares Comedy; the user would not like [e2] again.",
    ],
)
def test_true_steps_hold(text):
    assert step_problem(to_step(text), usual()) == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("The user liked [e1] but also enjoyed [e2].", "sign_conflict"),
        ("[e1], [e2] and [e3] were liked.", "sign_conflict"),
        ("Everything was disliked: [e1].", "sign_conflict"),
        ("[e1] and [e3] share Comedy.", "unsupported_feature"),
        ("[e4] shows that similar users avoid War, and disliked it.", "unsupported_feature"),
        ("Similar users liked [e1].", "ungrounded"),
        ("The user liked [e3].", "ungrounded"),
        ("The wider audience disliked the target [e4].", "ungrounded"),
        ("Similar users liked the target [e3].", "ungrounded"),
        ("The user liked [e1], a 4 of 5.", "ungrounded"),
        ("Very many similar users disliked the target [e4].", "ungrounded"),
        ("The target is a person, but would you like to buy it? [e1]", "claims_nothing"),
        ("This is the first one [e2].", "claims_nothing"),
    ],
)
def test_false_steps_do_not(text, problem):
    assert step_problem(to_step(text), usual()) == problem


def test_a_feature_that_is_a_sign_word_is_no_sign():
    entry = evidence("e1", "history", -1, features=["Popular"], shared=["Popular"])
    named = context(entry)
    assert step_problem(to_step("The user disliked [e1], which shares Popular."), named) == ""


@pytest.mark.parametrize(
    ("text", "forecast"),
    [
        ("so the user would enjoy it [e1]", True),
        ("so the user wouldn't like it [e1]", False),
        ("the user will probably not enjoy it", False),
        ("the user should avoid it", False),
        ("it is a poor match", False),
        ("it is not a good fit", False),
        ("It would not be liked at first, but the user would enjoy it in the end", True),
        ("so no feature is shared", None),
        ("therefore: no.", False),
        ("[e1] was liked", None),
    ],
)
def test_the_conclusion_is_read_from_the_last_step(text, forecast):
    assert conclusion([to_step("the user would enjoy it"), to_step(text)]) is forecast
