"""Reflection: its triggers, its questions and its synthesis, on contexts made by hand."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from teacher_contexts import context, evidence, usual

from ray_app.agents.interface import Dossier, SecondLook
from ray_app.agents.reflection import ReflectionAgent, conflicting, inconsistent, signal, synthesis
from ray_app.config import ServeConfig
from ray_app.prompts.parse import to_step
from ray_app.prompts.teacher import QUESTIONS
from ray_app.records import Verdict

PROBABILITY = st.floats(0.0, 1.0)


def verdict(p: float, *sentences: str, **more) -> Verdict:
    facts = {"logit": 0.0, "expert": "expert-1", "gate": {"expert-0": 0.2, "expert-1": 0.8}}
    return Verdict(p_yes=p, reasoning=[to_step(text) for text in sentences], **(facts | more))


def triggers(made, one: Verdict, high_stakes: bool = False) -> list[str]:
    agent = ReflectionAgent(ServeConfig())
    return asyncio.run(agent.triggers(Dossier([made], {}), [one], high_stakes))[0]


def review(made, one: Verdict, causes: list[str], *looks: SecondLook):
    agent = ReflectionAgent(ServeConfig())
    return asyncio.run(agent.synthesise(Dossier([made], {}), [one], [causes], [list(looks)]))[0]


def test_a_sure_and_consistent_decision_is_not_doubted():
    assert triggers(usual(), verdict(0.8, "The user liked [e1], so the user would like it.")) == []


@pytest.mark.parametrize(("p", "doubted"), [(0.59, True), (0.41, True), (0.61, False), (0.39, False)])
def test_low_confidence_on_either_side(p, doubted):
    assert ("low_confidence" in triggers(usual(), verdict(p))) == doubted


def test_high_stakes_are_what_the_request_says():
    assert triggers(usual(), verdict(0.9), high_stakes=True) == ["high_stakes"]


def test_conflict_is_others_against_own_taste_in_such_items():
    own = evidence("e1", "history", -1, shared=["Comedy"])
    assert conflicting(context(own, evidence("e2", "peers", 1)))
    assert conflicting(context(own, evidence("e2", "history", 1, weight=0.9)))
    assert not conflicting(context(own, evidence("e2", "peers", -1)))
    assert not conflicting(context(own, evidence("e2", "crowd", 1))), "the crowd is not similar users"
    assert not conflicting(context(own, evidence("e2", "history", 1, weight=0.05))), "only recent"
    mixed = [evidence("e3", "neighbour", -1, weight=0.5), evidence("e2", "peers", 1, weight=0.6)]
    assert not conflicting(context(own, *mixed)), "the others do not agree among themselves"


def test_signal_is_the_weighted_mean_of_signs():
    entries = [evidence("e1", "peers", 1, weight=3.0), evidence("e2", "neighbour", -1, weight=1.0)]
    assert signal(entries) == pytest.approx(0.5)
    assert signal([]) == 0.0


@pytest.mark.parametrize(
    ("sentence", "answer", "expected"),
    [
        ("The user liked [e1], so the user would like it.", True, False),
        ("The user liked [e1], so the user would not like it.", True, True),
        ("The user disliked [e2].", True, True),
        ("The user disliked [e2].", False, False),
        ("The user liked [e99].", True, True),
    ],
)
def test_reasons_that_do_not_lead_to_the_decision(sentence, answer, expected):
    assert inconsistent(usual(), [to_step(sentence)], answer) is expected


def test_a_decision_without_reasons_is_not_inconsistent():
    assert not inconsistent(usual(), [], True)


def test_synthesis_by_hand():
    look = SecondLook({"history": 0.4, "pool": 0.5}, {"expert-0": 0.3}, 0.7)
    z = 0.55 * logit(0.6) + 0.05 * (logit(0.4) + logit(0.5)) + 0.1 * logit(0.3) + 0.25 * logit(0.7)
    assert synthesis(0.6, [look]) == pytest.approx(expit(z))
    others_stay = 0.95 * logit(0.6) + 0.05 * logit(0.4)
    assert synthesis(0.6, [SecondLook({"history": 0.4}, {})]) == pytest.approx(expit(others_stay))


@given(PROBABILITY, st.lists(PROBABILITY, max_size=4), st.lists(PROBABILITY, max_size=2))
def test_synthesis_lies_within_what_was_seen(before, without, segments):
    look = SecondLook(
        {str(at): p for at, p in enumerate(without)}, {str(at): p for at, p in enumerate(segments)}
    )
    seen = [before, *without, *segments]
    assert min(seen) - 2e-6 <= synthesis(before, [look]) <= max(seen) + 2e-6


def test_every_question_is_answered_from_numbers():
    look = SecondLook({"history": 0.45}, {"expert-0": 0.3}, 0.52, 0.61)
    made = review(usual(), verdict(0.55, "The user liked [e1]."), ["low_confidence"], look)
    reflection = made.reflection
    assert reflection is not None
    assert list(reflection.questions) == [QUESTIONS[0], QUESTIONS[1], QUESTIONS[2], QUESTIONS[3]]
    assumptions, segment, missing, opposite = reflection.questions.values()
    assert "Without the history P(yes) falls from 0.55 to 0.45" in assumptions
    assert "hangs on that part" in assumptions
    assert "Reasoned out before it is answered P(yes) rises from 0.55 to 0.61." in assumptions
    assert "expert-0 does (gate weight 0.20) P(yes) falls from 0.55 to 0.30" in segment
    assert "Weighed by boosted trees P(yes) falls from 0.55 to 0.52." in missing
    assert "pass over [e3], [e2], [e5], [e4]" in missing
    assert "[e2], [e4] speak for the opposite, with 28%" in opposite
    assert (reflection.before, reflection.rounds) == (0.55, 1)
    assert made.verdict.p_yes == reflection.after < 0.55


def test_without_time_the_doubts_are_told_and_the_decision_stays():
    made = review(usual(), verdict(0.55), ["low_confidence"])
    assert made.reflection is not None
    assert (made.verdict.p_yes, made.reflection.rounds) == (0.55, 0)


def test_what_is_not_doubted_stays_as_it_is():
    one = verdict(0.8)
    assert review(usual(), one, []) == type(review(usual(), one, []))(one, None)
