"""Explanations: false sentences go, words become a person's, and the text leads to the decision."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_contexts import context, contexts, evidence, usual

from ray_app.agents.explanation import explain
from ray_app.agents.interface import DETAILS
from ray_app.agents.wording import fact, shown
from ray_app.engines.phrases import STYLES
from ray_app.prompts.parse import to_step
from ray_app.records import Verdict


def verdict(p: float, *sentences: str) -> Verdict:
    return Verdict(p_yes=p, logit=0.0, expert="global", reasoning=[to_step(text) for text in sentences])


def test_true_sentences_are_kept_and_addressed_to_the_person():
    made = explain(
        usual(), verdict(0.8, "The user liked [e1], which shares Comedy with the target."), "standard"
    )
    assert made.text == (
        "You liked “Title e1”, which shares Comedy with this item, so overall you would like it."
    )
    assert (made.rewritten, made.coherent) == (0, True)
    assert made.sentences[0].citations == ["e1"]


@pytest.mark.parametrize(
    "false",
    [
        "The user disliked [e1], which shares Comedy with the target.",
        "The user liked [e1], which shares Sci-Fi with the target.",
        "The user liked [e99].",
        "The user likes everything.",
        "The user liked [e1], so the user would not like it.",
    ],
)
def test_a_false_sentence_is_written_anew_and_counted(false):
    made = explain(usual(), verdict(0.8, false), "standard")
    assert (made.rewritten, made.coherent) == (1, True)
    assert made.sentences[0].citations == ["e1"]
    assert "“Title e1”" in made.text


def test_a_sentence_about_evidence_that_was_used_already_goes():
    made = explain(usual(), verdict(0.8, "The user liked [e1].", "Earlier [e1] was liked."), "detailed")
    assert (len(made.sentences), made.rewritten) == (1, 0)


def test_the_students_conclusion_is_kept_if_it_is_the_decisions():
    reasons = ("The user liked [e1].", "Given this past, the user would enjoy it.")
    kept = explain(usual(), verdict(0.8, *reasons), "standard")
    assert kept.text == "You liked “Title e1”. Given this past, you would enjoy it."
    assert (kept.rewritten, kept.coherent) == (0, True)
    against = explain(usual(), verdict(0.2, "The user disliked [e2].", reasons[1]), "standard")
    assert against.text == "You disliked “Title e2”, so overall you would not like it."
    assert explain(usual(), verdict(0.8, *reasons), "brief").text.count(".") == 1


@pytest.mark.parametrize(
    "lost",
    [
        "The user would enjoy it." + " Yes" * 150,
        "The user would enjoy it. Yes Yes Yes.",
        "So" + " so" * 40 + " the user would enjoy it.",
    ],
)
def test_a_model_that_has_lost_its_thread_is_not_shown(lost):
    made = explain(usual(), verdict(0.8, "The user liked [e1].", lost), "standard")
    assert made.text == "You liked “Title e1”, so overall you would like it."
    assert made.coherent


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ("The user liked [e1], a 5 of 5 that shares Comedy but.", "but."),
        ("Among similar users liked [e3], and it shares Sci-Fi.", "Among"),
    ],
)
def test_a_sentence_that_breaks_off_or_has_no_subject_is_written_anew(broken, fault):
    made = explain(usual(), verdict(0.8, broken), "standard")
    assert (made.rewritten, made.coherent) == (1, True)
    assert fault not in made.text


def test_reasons_that_go_on_and_on_are_told_from_the_evidence():
    step = "The user liked [e1] " + "and it was a film of that year " * 25
    made = explain(usual(), verdict(0.8, step), "standard")
    assert made.coherent and made.rewritten == len(made.sentences)
    assert "film of that year" not in made.text


def test_without_reasons_the_evidence_is_told():
    made = explain(usual(), verdict(0.8), "standard")
    assert (len(made.sentences), made.rewritten, made.coherent) == (3, 3, True)
    assert made.sentences[0].citations == ["e1"]


def test_a_decision_that_no_evidence_speaks_for_is_said_to_be_one():
    against = context(evidence("e1", "history", -1, features=["Comedy"], shared=["Comedy"]))
    made = explain(against, verdict(0.7), "standard")
    assert made.text.endswith("All signals together still say that you would like it.")
    assert not made.text.startswith("However")
    assert made.coherent


def test_without_any_evidence_it_says_so():
    made = explain(context(), verdict(0.53), "standard")
    assert "53%" in made.text
    assert made.sentences[0].citations == []


@pytest.mark.parametrize(("detail", "sentences"), [("brief", 1), ("standard", 3), ("detailed", 4)])
def test_detail_sets_the_length(detail, sentences):
    reasons = [
        "The user liked [e1].",
        "Similar users liked [e3].",
        "However, the user disliked [e2].",
        "The wider audience liked the target [e5].",
    ]
    made = explain(usual(), verdict(0.8, *reasons), detail)
    assert len(made.sentences) == sentences
    assert ("Evidence:" in made.text) == (detail == "detailed")


def test_brief_prefers_what_speaks_for_the_decision():
    made = explain(usual(), verdict(0.8, "However, the user disliked [e2].", "The user liked [e1]."), "brief")
    assert made.sentences[0].citations == ["e1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "In [e4] a few similar users disliked the target itself.",
            "A few similar users disliked this item itself.",
        ),
        (
            "However, in [e5] the wider audience liked the target.",
            "However, the wider audience liked this item.",
        ),
        (
            "The target was liked by some similar users [e4], so the user would like it.",
            "This item was liked by some similar users, so you would like it.",
        ),
        (
            "One reason is [e4], as similar users liked the target.",
            "One reason is the verdict of similar users, as similar users liked this item.",
        ),
        (
            "As [e5] shows, many raters in all liked the target.",
            "As the general verdict shows, many raters in all liked this item.",
        ),
        (
            "The community at large liked the target, see [e5].",
            "The community at large liked this item.",
        ),
        (
            "The user's own choice [e1] was liked, sharing Comedy.",
            "Your own choice “Title e1” was liked, sharing Comedy.",
        ),
        (
            "For this user, [e1] was liked and it shares Comedy.",
            "For you, “Title e1” was liked and it shares Comedy.",
        ),
        (
            "( [e1] <r5> <+> <=> Comedy ) The user liked [e1].",
            "You liked “Title e1”.",
        ),
    ],
)
def test_words_of_the_student_become_a_persons(text, expected):
    assert shown(text, usual()) == expected


def test_titles_are_data():
    tricky = evidence("e1", "history", 1, title="The user, the target [e2] “and” Sci-Fi")
    assert shown("The user liked [e1].", context(tricky)) == (
        "You liked “The user, the target [e2] and Sci-Fi”."
    )


def test_features_of_two_words_are_shown_as_two():
    two = context(evidence("e1", "history", 1, features=["Film Noir"], shared=["Film Noir"]))
    target = two.target.model_copy(update={"features": ["Film Noir"]})
    made = shown("The user liked [e1] with its Film_Noir.", two.model_copy(update={"target": target}))
    assert made == "You liked “Title e1” with its Film Noir."


def test_facts_carry_the_numbers():
    _, _, neighbour, peers, crowd = usual().evidence
    assert fact(neighbour) == "“Title e3”: similar users' average 4.0 from 9 ratings, shares Sci-Fi"
    assert fact(peers) == "similar users on this item: average 2.0 from 4 ratings"
    assert fact(crowd) == "everyone on this item: 70% of 120 ratings were positive"


def test_every_phrase_of_the_writer_reads_as_english():
    """No ids, no user in the third person, no doubled words, in any style."""
    texts = [
        phrase.format(
            e=f"[{name}]",
            liked="liked",
            was="was liked",
            a="a 5 of 5",
            link="shares Comedy but adds Drama",
            target="the target with its Comedy",
            favour=", 7 of 10 in favour",
        )
        for style in STYLES.values()
        for name, phrases in (
            ("e1", style.own),
            ("e3", style.neighbour),
            ("e4", style.peers),
            ("e5", style.crowd),
        )
        for phrase in phrases
    ]
    for text in texts:
        made = shown(text, usual())
        assert not re.search(r"\[e\d|\buser\b|the target|\b(\w+) \1\b| [,.]|\bIn some\b", made), made
        assert made[0].isupper() or made[0] == "“"


WRITTEN = st.text(max_size=60) | st.sampled_from(["The user liked [e1].", "The user would like it.", "No No"])


@settings(max_examples=150, deadline=None)
@given(
    contexts(),
    st.floats(0, 1),
    st.lists(
        st.builds(lambda text, times: " ".join([text] * times), WRITTEN, st.integers(1, 60)), max_size=3
    ),
    st.sampled_from(DETAILS),
)
def test_whatever_the_student_writes_the_explanation_is_coherent(made, p, texts, detail):
    explanation = explain(made, verdict(p, *texts), detail)
    assert explanation.coherent
    assert explanation.sentences
    assert all(made.cited(name) for step in explanation.sentences for name in step.citations)
