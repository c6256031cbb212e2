"""The trail behind an answer, visitors without an account, and what a decision hangs on."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from teacher_contexts import evidence

from ray_app.agents.counterfactual import cited_history, counterfactual, told
from ray_app.agents.interface import Dossier, Proposal
from ray_app.agents.orchestrator import Orchestrator, Question, ranking
from ray_app.agents.reasoning import ReasoningAgent
from ray_app.agents.retrieval import DataRetrievalAgent
from ray_app.bundle import Bundle
from ray_app.collab.evidence import SIGNALS, find_peers
from ray_app.data.store import Store
from ray_app.errors import EngineError, NotFoundError
from ray_app.records import Evidence, Explanation, Reflection, Step
from tests.bundles import LinearStudent, store_url
from tests.pages import make_front


def rated(name: str, kind: str = "history", **more) -> Evidence:
    return evidence(name, kind, 1, **more)


def run(waiting):
    return asyncio.run(waiting)


@pytest.fixture
def retrieval(bundle: Bundle) -> DataRetrievalAgent:
    return DataRetrievalAgent(bundle, Store(store_url(bundle.path)))


def asked(bundle: Bundle, student: LinearStudent | None = None, watch=None, config=None, **question):
    front = make_front(bundle, student or LinearStudent())
    orchestrator: Orchestrator = front.orchestrator
    orchestrator._config = config or orchestrator._config
    return run(orchestrator.answer(Question(**({"user_id": "u3", "k": 3} | question)), watch))


def sensitive(bundle: Bundle, least: float = 0.0):
    return bundle.config.serve.model_copy(update={"counterfactual": least})


class TestTrail:
    def test_it_is_there_only_when_it_is_asked_for(self, bundle):
        assert asked(bundle, detail="detailed").trail is None
        assert asked(bundle, detail="trail").items[0].explanation.detail == "detailed"

    def test_candidates_come_with_the_signals_their_interest_is_made_of(self, bundle):
        answer = asked(bundle, detail="trail")
        found = answer.trail.candidates
        assert len(found) == len(bundle.items) - 18
        for one in found:
            if sum(one.signals.values()) > 0:
                assert one.interest == pytest.approx(sum(one.signals.values()), rel=1e-5)
        assert answer.trail.expert == answer.items[0].verdict.expert
        assert answer.trail.gate == answer.items[0].verdict.gate

    def test_places_follow_from_interest_and_p_yes(self, bundle):
        answer = asked(bundle, LinearStudent(scale=3), detail="trail")
        found = answer.trail.candidates
        order = ranking(np.array([one.interest for one in found]), [one.p_yes for one in found])[:3]
        assert {found[at].item_id for at in order} == {one.item_id for one in found if one.place}
        by_place = {one.place: one.item_id for one in found if one.place}
        assert [by_place[place] for place in (1, 2, 3)] == [entry.item.item_id for entry in answer.items]

    def test_doubts_are_told_with_their_looks(self, bundle):
        answer = asked(bundle, LinearStudent(scale=0.05), detail="trail")
        for entry, shown in zip(answer.items, answer.trail.shown, strict=True):
            assert (shown.before, shown.after) == (entry.reflection.before, entry.reflection.after)
            assert shown.after == entry.score
            assert set(shown.looks[0].without) >= {"history"}
            assert shown.written

    def test_false_sentences_are_kept_in_the_trail(self, bundle):
        answer = asked(bundle, LinearStudent(lies=True), detail="trail")
        for shown in answer.trail.shown:
            assert shown.failed
            assert shown.rewritten
            assert all(step in (shown.written_again or shown.written) for step in shown.failed)

    def test_reasons_of_a_turned_verdict_were_written_twice(self, bundle):
        answer = asked(bundle, LinearStudent(scale=0.05), detail="trail", k=22)
        turned = [one for one in answer.trail.shown if (one.before >= 0.5) != (one.after >= 0.5)]
        assert turned
        assert all(one.written_again is not None for one in turned)

    def test_without_the_student_candidates_have_no_decision(self, bundle):
        trail = asked(bundle, LinearStudent(dies=("score",)), detail="trail").trail
        assert {one.p_yes for one in trail.candidates} == {None}
        assert [one.work for one in trail.steps] == [
            "fetch", "propose", "assemble", "decide", "gather", "estimate", "present"
        ]  # fmt: skip

    def test_steps_are_told_when_they_begin_and_when_they_are_done(self, bundle):
        seen = []
        answer = asked(bundle, watch=seen.append, detail="trail")
        assert [step.work for step in answer.trail.steps][:4] == ["fetch", "propose", "assemble", "decide"]
        assert answer.trail.steps[4].work == "gather"
        assert [step for step in seen if step.ms is not None] == answer.trail.steps
        began = [step.number for step in seen if step.ms is None]
        assert began == list(range(len(answer.trail.steps)))
        assert answer.trail.steps[0].facts == {"ratings": 18}
        spent = sum(step.ms for step in answer.trail.steps if step.agent == "retrieval")
        assert answer.timings_ms["retrieval"] == pytest.approx(spent, abs=0.05)


class TestVisitors:
    def test_named_items_are_the_history(self, bundle, retrieval):
        view = run(retrieval.fetch(None, None, {"i4": 1, "i7": 0}))
        assert [bundle.items[code].item_id for code in view.history.items] == ["i4", "i7"]
        assert view.history.labels.tolist() == [1.0, 0.0]
        assert (view.code, view.user.user_id) == (-1, "")
        assert view.like_rate == pytest.approx(bundle.like_rate(view.history))
        rates = bundle.statistics(view.history.items)[:, 1]
        assert view.history.residuals == pytest.approx(view.history.labels - rates)

    def test_they_are_not_recommended_and_not_stored(self, bundle):
        before = Store(store_url(bundle.path)).counts()
        answer = asked(bundle, user_id=None, opinions={"i4": 1, "i8": 1, "i7": 0}, k=40)
        shown = {entry.item.item_id for entry in answer.items}
        assert len(shown) == len(bundle.items) - 3
        assert not shown & {"i4", "i8", "i7"}
        assert answer.user_id == ""
        assert Store(store_url(bundle.path)).counts() == before

    def test_what_is_liked_decides_what_is_proposed(self, bundle):
        tastes = {genre: {f"i{n}": 1 for n in range(genre, 24, 4)} for genre in (1, 3)}
        first = {
            genre: asked(bundle, user_id=None, opinions=opinions, k=8) for genre, opinions in tastes.items()
        }
        ids = {genre: [entry.item.item_id for entry in answer.items] for genre, answer in first.items()}
        assert ids[1] != ids[3]
        own = {entry.title for entry in first[1].items[0].evidence if entry.kind == "history"}
        assert own <= {bundle.items[bundle.item_code(name)].title for name in tastes[1]}

    def test_an_unknown_user_needs_opinions(self, bundle, retrieval):
        with pytest.raises(NotFoundError, match="'nobody'"):
            run(retrieval.fetch("nobody", None, {}))
        assert len(run(retrieval.fetch("nobody", None, {"i4": 1})).history) == 1

    def test_a_known_users_opinions_come_last_and_replace_older_ones(self, bundle, retrieval):
        known = run(retrieval.fetch("u3"))
        oldest = bundle.items[known.history.items[0]].item_id
        view = run(retrieval.fetch("u3", None, {oldest: 1}))
        assert len(view.history) == len(known.history)
        assert view.history.items[-1] == known.history.items[0]
        assert len(run(retrieval.fetch("u3")).history) == 18

    def test_unknown_items_are_named(self, retrieval):
        with pytest.raises(NotFoundError, match="'nothing'"):
            run(retrieval.fetch(None, None, {"nothing": 1}))


class TestCounterfactual:
    def explanation(self, *citations: str, text: str = "Reasons.") -> Explanation:
        sentences = [Step(text=text, citations=[name]) for name in citations]
        return Explanation(text=text, detail="standard", sentences=sentences, coherent=True)

    def test_only_own_ratings_count_and_each_once(self):
        known = [rated("e1"), rated("e2", kind="peers"), rated("e3")]
        found = cited_history(self.explanation("e3", "e2", "e1", "e3"), known)
        assert [entry.id for entry in found] == ["e3", "e1"]

    @pytest.mark.parametrize(
        ("titles", "before", "after", "text"),
        [
            (["Alien"], 0.81, 0.66, "Without “Alien” this would drop from .81 to .66."),
            (["Alien", "Heat"], 0.3, 0.45, "Without “Alien” and “Heat” this would rise from .30 to .45."),
            (["A", "B", "C"], 0.999, 0.5, "Without “A”, “B” and “C” this would drop from 1.00 to .50."),
        ],
    )
    def test_the_line_says_what_moves_and_how_far(self, titles, before, after, text):
        cited = [rated(f"e{n}", title=title) for n, title in enumerate(titles)]
        assert counterfactual(cited, before, after, None, 0.05).text == text

    def test_small_moves_are_not_told(self):
        assert counterfactual([rated("e1")], 0.60, 0.56, None, 0.05) is None
        assert counterfactual([rated("e1")], 0.60, 0.54, None, 0.05) is not None

    def test_after_a_reflection_it_speaks_of_the_first_estimate(self):
        doubts = Reflection(triggers=["conflict"], questions={}, before=0.6, after=0.7, rounds=1)
        text = counterfactual([rated("e1", title="Alien")], 0.6, 0.4, doubts, 0.05).text
        assert text == "Without “Alien” the first estimate would drop from .60 to .40."

    def test_the_line_stands_before_the_list_of_rated(self):
        found = counterfactual([rated("e1", title="Alien")], 0.8, 0.6, None, 0.05)
        text = told(self.explanation("e1", text="Reasons.\nEvidence:\n- one"), found).text
        assert text == f"Reasons. {found.text}\nEvidence:\n- one"

    def test_it_is_what_the_student_says_of_a_user_who_never_rated_the_item(self, bundle, retrieval):
        student = LinearStudent()
        answer = asked(bundle, student, config=sensitive(bundle))
        entry = next(one for one in answer.items if one.explanation.counterfactual)
        found = entry.explanation.counterfactual
        names = [one.item_id for one in entry.evidence if one.id in found.evidence]
        view = run(retrieval.fetch("u3"))
        keep = ~np.isin(view.history.items, [bundle.item_code(name) for name in names])
        assert keep.sum() == len(view.history) - len(names)
        less = view.without([bundle.item_code(name) for name in names])
        peers = find_peers(bundle.gatherer.index, less.history, less.now, less.code, SIGNALS)
        proposal = Proposal(peers, np.array([bundle.item_code(entry.item.item_id)], np.int32), np.zeros(1))
        assert not {e.item_id for e in run(retrieval.gather(less, proposal))[0].evidence} & set(names)
        others = run(retrieval.without(view, [entry.item.item_id], [names]))
        agent = ReasoningAgent(bundle, LinearStudent())
        whole = run(retrieval.assemble(view, proposal)).dossier([0], run(retrieval.gather(view, proposal)))
        assert run(agent.rethink(whole, others)) == pytest.approx([found.after])
        assert not {e.item_id for e in others.contexts[0].profile} & set(names)

    def test_all_shown_items_are_scored_again_in_one_call(self, bundle):
        calls = []

        class Counting(LinearStudent):
            async def score(self, requests):
                calls.append(len(requests))
                return await super().score(requests)

        asked(bundle, Counting(scale=3), k=5, detail="brief")
        brief = len(calls)
        asked(bundle, Counting(scale=3), k=5)
        assert len(calls) == 2 * brief + 1

    def test_brief_answers_and_degraded_ones_have_none(self, bundle):
        config = sensitive(bundle)
        for answer in (
            asked(bundle, detail="brief", config=config),
            asked(bundle, LinearStudent(dies=("write",)), config=config),
        ):
            assert {entry.explanation.counterfactual for entry in answer.items} == {None}

    def test_a_student_that_dies_meanwhile_costs_only_the_line(self, bundle):
        async def dead(*_):
            raise EngineError("the student engine has stopped: closed")

        answer = run(make_front(bundle, LinearStudent(), rethink=dead).orchestrator.recommend("u3", 3))
        assert len(answer.items) == 3
        assert "without its evidence" in answer.degraded_reason

    def test_joined_dossiers_keep_their_order(self, bundle, retrieval):
        view = run(retrieval.fetch("u3"))
        peers = find_peers(bundle.gatherer.index, view.history, view.now, view.code, SIGNALS)
        proposal = Proposal(peers, np.array([4, 9], np.int32), np.zeros(2))
        slate, contexts = run(retrieval.assemble(view, proposal)), run(retrieval.gather(view, proposal))
        whole = slate.dossier([0, 1], contexts)
        again = Dossier.joined([whole.take([1]), whole.take([0])])
        assert [context.target.item_id for context in again.contexts] == ["i9", "i4"]
        assert np.array_equal(again.vectors["pair"], whole.vectors["pair"][::-1])
