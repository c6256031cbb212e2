"""Judges of reasoning: true and false sentences about a known context."""

from __future__ import annotations

import numpy as np
import pytest

from ray_app.config import EngineConfig
from ray_app.engines.evidence import EvidenceEngine
from ray_app.engines.interface import GenerationRequest
from ray_app.engines.phrases import STYLES
from ray_app.evaluation.reasons import coherence, coverage, groundedness
from ray_app.prompts.parse import parse_answer, to_step
from ray_app.records import Context, Evidence, Item, Step

VOCABULARY = frozenset({"Comedy", "Drama", "War", "Thriller", "Romance", "Science Fiction"})


def evidence(id: str, kind: str, title: str, features: list[str], sign: int, **more: object) -> Evidence:
    fields = {"rating": 5.0 if sign > 0 else 2.0, "support": 1, "weight": 1.0, "shared": []} | more
    return Evidence.model_validate(
        {"id": id, "kind": kind, "item_id": id, "title": title, "features": features, "sign": sign} | fields
    )


CONTEXT = Context(
    user_id="u",
    timestamp=0,
    history_count=31,
    like_rate=0.62,
    target=Item(item_id="t", title="The Target (1999)", features=["Comedy", "Romance"], year=1999),
    profile=[],
    evidence=[
        evidence("e1", "history", "Loved Ones", ["Comedy", "War"], 1, shared=["Comedy"]),
        evidence("e2", "history", "Dull, the 2nd", ["Drama"], -1),
        evidence("e3", "neighbour", "Near", ["Romance"], 1, shared=["Romance"], rating=4.2, support=9),
        evidence("e4", "crowd", "The Target (1999)", ["Comedy", "Romance"], -1, rating=0.375, support=40),
    ],
)


def problems(text: str) -> list[str]:
    return [problem for _, problem in groundedness(CONTEXT, [to_step(text)], VOCABULARY).problems]


@pytest.mark.parametrize(
    "text",
    [
        "The user liked [e1], which shares Comedy with the target.",
        "The user liked “Loved Ones”, a Comedy about War.",
        "Although the user disliked [e2], similar users enjoyed [e3].",
        "[e2] was disliked and [e3] was enjoyed.",
        "The user did not like [e2], a Drama.",
        "The user rated [e1] 5/5 and [e2] two stars.",
        "Similar users rated “Near” 4.2 on average, from 9 ratings.",
        "Only 38% of 40 people cared for the target [e4], which was not popular.",
        "The target, from 1999, is a Comedy and not a film like [e2].",
        "With 31 ratings and 62% likes, the user likes [e1].",
        "With no feature in common, [e2] was not enjoyed.",
        "The user liked [e1], so overall the user would not avoid this.",
        "( [e1] <r1> <-> ) The user liked [e1].",
        "“Dull, the…” was avoided.",
        "The user liked [e1], which shares Comedy but adds War.",
        "The user disliked [e2], a 2 of 5 that shares no feature but has Drama.",
        "Some similar users liked [e3], and the wider audience disliked the target [e4].",
        "Although the user disliked [e2], similar users liked [e3].",
        "The wider audience disliked the target with its Romance, 4 of 10 in favour [e4].",
        "In [e3] some similar users, unlike the audience, liked it.",
    ],
)
def test_a_true_statement_has_no_problem(text: str):
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("The user liked [e9].", "no evidence e9"),
        ("The user liked “Unheard Of”.", "no title “Unheard Of” in the evidence"),
        ("The user disliked [e1].", "e1 is liked, not the opposite"),
        ("The user liked [e1] and [e2].", "e2 is disliked, not the opposite"),
        ("[e1] was not enjoyed.", "e1 is liked, not the opposite"),
        ("Similar users liked [e3] but avoided “Loved Ones”.", "e1 is liked, not the opposite"),
        ("[e1] shares War with the target.", "War is not shared by the cited evidence"),
        ("The user liked [e1], a Thriller.", "Thriller is not a feature of the cited evidence"),
        ("The target is a Science Fiction tale.", "Science Fiction is not a feature of the target"),
        ("The user rated [e1] 4.", "no number 4 in the cited evidence"),
        ("Similar users gave [e3] 4.5 on average.", "no number 4.5 in the cited evidence"),
        ("The target was not popular, with 60% positive [e4].", "no number 60% in the cited evidence"),
        ("With no feature in common, [e1] was liked.", "e1 shares Comedy"),
        (
            "The user liked [e1], which shares Comedy but adds Drama.",
            "Drama is not added by the cited evidence",
        ),
        ("The user liked [e1], which has War but adds Comedy.", "Comedy is not added by the cited evidence"),
        ("Similar users liked [e3], but it adds Romance.", "Romance is not added by the cited evidence"),
        ("The user liked [e1], which shares Comedy and Comedy.", "Comedy is named 2 times"),
        ("The user liked [e1], which shares War but adds Comedy.", "War is not shared by the cited evidence"),
        ("Similar users liked [e1].", "e1 is no opinion of similar users"),
        ("The user liked [e1], and similar users disliked [e2].", "e2 is no opinion of similar users"),
        ("The user enjoyed [e3].", "e3 is no opinion of the user"),
        ("The wider audience liked [e3].", "e3 is no opinion of the audience"),
        ("The target was disliked by similar users [e4].", "e4 is no opinion of similar users"),
        ("Similar users liked the target [e3].", "e3 is not about the target"),
        ("The target itself was liked, see [e1].", "e1 is not about the target"),
        ("A few similar users liked [e3].", "e3 has some ratings"),
    ],
)
def test_a_false_statement_is_found(text: str, problem: str):
    assert problem in problems(text)


def test_what_the_target_has_is_not_added_though_the_evidence_forgets_that_it_is_shared():
    forgets = evidence("e1", "history", "Loved Ones", ["Comedy", "Romance", "War"], 1, shared=["Comedy"])
    context = CONTEXT.model_copy(update={"evidence": [forgets]})
    told = [
        to_step("The user liked [e1], which shares Comedy but adds War."),
        to_step("It adds Romance [e1]."),
    ]
    found = groundedness(context, told, VOCABULARY)
    assert found.problems == ((1, "Romance is not added by the cited evidence"),)


def test_words_and_numbers_inside_a_quoted_title_are_no_claims():
    assert problems("“Dull, the 2nd” was disliked, and “Loved Ones” was liked.") == []


def test_groundedness_counts_statements_and_leaves_a_bare_conclusion_out():
    steps = [
        to_step("The user liked [e1]."),
        to_step("The user liked [e2]."),
        to_step("Overall, the answer is No."),
        to_step("So the user would not enjoy it."),
    ]
    result = groundedness(CONTEXT, steps, VOCABULARY)
    assert (result.statements, result.grounded, result.share) == (2, 1, 0.5)
    assert result.problems == ((1, "e2 is disliked, not the opposite"),)


def test_coverage_by_hand():
    steps = [
        to_step("The user liked [e1], which shares Comedy with the target."),
        to_step("Similar users enjoyed [e3]."),
        to_step("It is a fine film in every way."),
        to_step("Overall, the answer is Yes."),
    ]
    # Factors: liked Comedy, liked War, disliked Drama, target Comedy, target Romance, neighbour e3.
    recall, precision = coverage(CONTEXT, steps, VOCABULARY)
    assert recall == pytest.approx(3 / 6)
    # Of three statements before the conclusion, the third claims nothing that can be checked.
    assert precision == pytest.approx(2 / 3)


def test_a_false_statement_covers_nothing():
    recall, precision = coverage(CONTEXT, [to_step("The user disliked [e1], a Comedy.")], VOCABULARY)
    assert (recall, precision) == (0.0, 0.0)


def test_no_steps_cover_nothing_and_are_in_no_order():
    assert coverage(CONTEXT, [], VOCABULARY) == (0.0, 0.0)
    assert groundedness(CONTEXT, [], VOCABULARY).share == 0.0
    assert coherence([], None, True) == {"verdict_agreement": 0.0, "internal_consistency": 1.0, "order": 0.0}


def texts(*lines: str) -> list[Step]:
    return [to_step(line) for line in lines]


def test_verdict_agreement_needs_a_verdict_that_is_the_decision():
    steps = texts("The user liked [e1].")
    assert [coherence(steps, verdict, True)["verdict_agreement"] for verdict in (True, False, None)] == [
        1,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("steps", "consistent"),
    [
        (texts("The user liked [e1].", "But [e2] was disliked."), 1),
        (texts("The user liked [e1].", "Yet the user avoided [e1]."), 0),
        (texts("The user liked “Near”.", "“near” was not enjoyed."), 0),
        (texts("The user liked [e1], so the user would not avoid it."), 1),
    ],
)
def test_internal_consistency_is_one_sign_per_evidence(steps: list[Step], consistent: int):
    assert coherence(steps, True, True)["internal_consistency"] == consistent


@pytest.mark.parametrize(
    ("steps", "ordered"),
    [
        (texts("The user liked [e1].", "Overall, yes."), 1),
        (texts("Overall, yes.", "The user liked [e1]."), 0),
        (texts("1. The user liked [e1].", "2. Overall, yes."), 1),
        (texts("1. The user liked [e1].", "3. Overall, yes."), 0),
        (texts("The user liked [e1].", " "), 0),
    ],
)
def test_order_puts_the_conclusion_last_and_numbers_in_sequence(steps: list[Step], ordered: int):
    assert coherence(steps, True, True)["order"] == ordered


def random_context(rng: np.random.Generator) -> Context:
    genres = sorted(VOCABULARY)
    target = [str(name) for name in rng.choice(genres, 3, replace=False)]
    entries = []
    for number in range(1, 9):
        kind = ["history"] * 4 + ["neighbour"] * 2 + ["peers", "crowd"]
        own = [str(name) for name in rng.choice(genres, 2, replace=False)]
        about_target = number > 6
        features = target if about_target else own
        shared = [] if about_target else [name for name in own if name in target]
        sign = int(rng.choice([-1, 1]))
        title = "Target" if about_target else f"Item {number}"
        entries.append(
            evidence(
                f"e{number}", kind[number - 1], title, features, sign, shared=shared, rating=0.5, support=7
            )
        )
    return CONTEXT.model_copy(
        update={"target": Item(item_id="t", title="Target", features=target), "evidence": entries}
    )


def written(context: Context, number: int) -> list[Step]:
    template = list(STYLES)[number % len(STYLES)]
    request = GenerationRequest(str(number), "", context, template, 1, 0.7, 300, number)
    return parse_answer(EvidenceEngine(EngineConfig.model_validate({})).generate([request])[0].texts[0]).steps


def test_what_the_evidence_writer_writes_is_judged_true_coherent_and_precise():
    rng = np.random.default_rng(0)
    for number in range(120):
        context = random_context(rng)
        steps = written(context, number)
        assert groundedness(context, steps, VOCABULARY).problems == ()
        assert coherence(steps, True, True) == {
            "verdict_agreement": 1.0,
            "internal_consistency": 1.0,
            "order": 1.0,
        }
        assert coverage(context, steps, VOCABULARY)[1] == 1.0


def test_the_same_texts_against_evidence_of_the_opposite_sign_are_judged_false():
    rng = np.random.default_rng(1)
    statements = grounded = 0
    for number in range(120):
        context = random_context(rng)
        steps = written(context, number)
        flipped = [entry.model_copy(update={"sign": -entry.sign}) for entry in context.evidence]
        result = groundedness(context.model_copy(update={"evidence": flipped}), steps, VOCABULARY)
        statements, grounded = statements + result.statements, grounded + result.grounded
    assert grounded / statements < 0.01


def test_truth_is_counted_by_the_kind_of_evidence_that_is_cited_first():
    steps = [
        to_step("The user liked [e1]."),
        to_step("The user liked [e2], like [e3]."),
        to_step("Similar users enjoyed [e3]."),
        to_step("The target is a Comedy."),
        to_step("So the user would like it."),
    ]
    found = groundedness(CONTEXT, steps, VOCABULARY)
    assert found.kinds == {"history": (1, 2), "neighbour": (1, 1)}
    assert (found.grounded, found.statements) == (3, 4)
