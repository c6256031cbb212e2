"""The agents on a small real bundle: retrieval, Swing, reasoning, and the whole sequence."""

from __future__ import annotations

import asyncio
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from ray_app.agents.interface import Dossier, Proposal, Slate, UserView
from ray_app.agents.orchestrator import PATIENCE, Orchestrator, ranking
from ray_app.agents.reasoning import ReasoningAgent
from ray_app.agents.retrieval import CACHE_S, FRESH_S, DataRetrievalAgent
from ray_app.agents.swing import SwingAgent
from ray_app.agents.synthesis import NEUTRAL
from ray_app.bundle import Bundle
from ray_app.collab.evidence import NO_PEERS
from ray_app.data.store import Store
from ray_app.errors import DataError, NotFoundError
from ray_app.prompts.student import decide_prompt, decide_prompts
from ray_app.prompts.teacher import TEMPLATES
from ray_app.records import Interaction, Item
from ray_app.student import calibration
from tests.bundles import START, LinearStudent, store_url
from tests.pages import make_front

LATER = START + 400 * 86_400


@pytest.fixture
def retrieval(bundle: Bundle) -> DataRetrievalAgent:
    return DataRetrievalAgent(bundle, Store(store_url(bundle.path)))


def run(waiting):
    return asyncio.run(waiting)


def orchestrator(bundle: Bundle, student: LinearStudent, **changed) -> Orchestrator:
    return make_front(bundle, student, **changed).orchestrator


def made(retrieval: DataRetrievalAgent, view: UserView, proposal: Proposal) -> tuple[Slate, Dossier]:
    """What deciding about the proposed items reads, and everything about them."""
    slate = run(retrieval.assemble(view, proposal))
    return slate, slate.dossier(list(range(len(slate))), run(retrieval.gather(view, proposal)))


def feedback(item_id: str, label: int = 1, user_id: str = "u3", timestamp: int = LATER) -> Interaction:
    return Interaction(user_id=user_id, item_id=item_id, timestamp=timestamp, label=label)


def unseen(bundle: Bundle, user_id: str) -> str:
    code = bundle.user_codes[user_id]
    seen = bundle.histories.items[slice(*bundle.histories.indptr[[code, code + 1]])]
    return next(item.item_id for at, item in enumerate(bundle.items) if at not in seen)


class TestRetrieval:
    def test_history_is_what_the_bundle_holds(self, bundle, retrieval):
        view = run(retrieval.fetch("u3", None))
        assert (view.code, len(view.history)) == (3, 18)
        assert view.like_rate == pytest.approx(bundle.like_rate(view.history))

    def test_feedback_is_in_the_next_view_though_the_last_one_is_cached(self, bundle, retrieval):
        async def before_and_after():
            before = await retrieval.fetch("u3", None)
            added = await retrieval.record(feedback(unseen(bundle, "u3")), "feedback", "k1")
            return before, added, await retrieval.fetch("u3", None)

        before, added, after = run(before_and_after())
        assert added
        assert len(after.history) == len(before.history) + 1
        assert bundle.items[after.history.items[-1]].item_id == unseen(bundle, "u3")

    def test_a_known_key_changes_nothing(self, bundle, retrieval):
        async def twice():
            one = feedback(unseen(bundle, "u3"))
            return [await retrieval.record(one, "feedback", "k1") for _ in range(2)]

        assert run(twice()) == [True, False]

    def test_an_old_bundle_is_asked_as_of_a_day_after_its_last_event(self, bundle, retrieval):
        run(retrieval.record(feedback(unseen(bundle, "u3")), "feedback", None))
        view = run(retrieval.fetch("u3", None))
        assert view.now == bundle.cut + FRESH_S
        assert view.history.timestamps.max() <= view.now

    def test_views_expire(self, bundle):
        now = [float(bundle.cut + 10)]
        agent = DataRetrievalAgent(bundle, Store(store_url(bundle.path)), clock=lambda: now[0])
        first = run(agent.fetch("u3", None))
        Store(store_url(bundle.path)).add(
            feedback(unseen(bundle, "u3"), timestamp=bundle.cut + 5), event="elsewhere"
        )
        assert len(run(agent.fetch("u3", None)).history) == len(first.history)
        now[0] += CACHE_S + 1
        assert len(run(agent.fetch("u3", None)).history) == len(first.history) + 1

    def test_a_user_made_by_feedback_has_a_history(self, retrieval):
        run(retrieval.record(feedback("i7", user_id="newcomer"), "feedback", None))
        view = run(retrieval.fetch("newcomer", None))
        assert (view.code, len(view.history)) == (-1, 1)

    def test_what_is_asked_about_is_left_out_of_the_history(self, bundle, retrieval):
        whole = run(retrieval.fetch("u3", None))
        rated = bundle.items[whole.history.items[0]].item_id
        view = run(retrieval.fetch("u3", rated))
        assert len(view.history) == len(whole.history) - 1
        assert view.target == whole.history.items[0]

    @pytest.mark.parametrize(("user", "item"), [("nobody", None), ("u3", "nothing"), ("\ud800", None)])
    def test_unknown_ids_are_named(self, retrieval, user, item):
        with pytest.raises(NotFoundError, match="does not exist"):
            run(retrieval.fetch(user, item))

    def test_an_unusable_user_id_is_refused(self, retrieval):
        with pytest.raises(DataError, match="user id"):
            run(retrieval.record(feedback("i7", user_id=" "), "feedback", None))

    def test_profile_is_newest_first_with_items(self, retrieval):
        profile = run(retrieval.profile("u3", 5))
        times = [rated.timestamp for rated in profile.history]
        assert times == sorted(times, reverse=True)
        assert len(times) == 5
        assert profile.count == 18

    def test_items_are_found_by_title_in_any_case(self, retrieval):
        assert {item.title for item in run(retrieval.items(50, "FILM-NOIR tale 11"))} == {"Film-Noir Tale 11"}


class TestSwing:
    def test_candidates_are_new_to_the_user_and_ranked(self, bundle, retrieval):
        view = run(retrieval.fetch("u3", None))
        found = run(SwingAgent(bundle).propose(view, 12))
        assert len(found.items) == len(set(found.items.tolist())) == 12
        assert not set(found.items.tolist()) & set(view.history.items.tolist())
        assert np.all(np.diff(found.scores) <= 0)

    def test_as_many_as_there_are(self, bundle, retrieval):
        view = run(retrieval.fetch("u3", None))
        assert len(run(SwingAgent(bundle).propose(view, 1000)).items) == len(bundle.items) - 18

    def test_neighbours_weigh_by_recency_and_trends_by_age(self, bundle, retrieval):
        view = run(retrieval.fetch("u3", None))
        agent, table = SwingAgent(bundle), bundle.gatherer.swing
        items, scores = agent.candidates(view.history, NO_PEERS, 40)
        by_hand, trend = np.zeros(len(bundle.items)), np.zeros(len(bundle.items))
        for at, (item, label) in enumerate(zip(view.history.items, view.history.labels, strict=True)):
            if label:
                neighbours, near, _ = table.of(int(item))
                for neighbour, score in zip(neighbours, near, strict=True):
                    by_hand[neighbour] += 0.5 ** ((17 - at) / 20) * score
        past = bundle.histories
        for item, label, time in zip(past.items, past.labels, past.timestamps, strict=True):
            trend[item] += label * 0.5 ** ((bundle.cut - time) / (7 * 86400))
        expected = by_hand / by_hand.max() + 2 * trend / trend.max()
        assert scores == pytest.approx(expected[items], rel=1e-5)
        assert expected[items[0]] == expected[[i for i in range(40) if i not in view.history.items]].max()

    def test_a_user_without_history_gets_what_is_liked_most_of_late(self, bundle, retrieval):
        view = run(retrieval.fetch("u29", None))
        found = run(SwingAgent(bundle).propose(view, 5))
        past = bundle.histories
        weight = past.labels * 0.5 ** ((bundle.cut - past.timestamps) / (7 * 86400))
        assert found.items.tolist() == np.argsort(-np.bincount(past.items, weight))[:5].tolist()

    def test_estimates_come_from_rates(self, bundle, retrieval):
        view = run(retrieval.fetch("u3", None))
        proposal = Proposal(NO_PEERS, np.array([4], np.int32), np.zeros(1, np.float32))
        verdict = run(SwingAgent(bundle).estimate(made(retrieval, view, proposal)[1]))[0]
        rate = bundle.statistics(np.array([4], np.int32))[0, 1]
        expected = expit(logit(rate) + logit(view.like_rate) - logit(bundle.state.global_rate))
        assert verdict.p_yes == pytest.approx(expected)
        assert verdict.expert == "swing"

    def test_a_decision_reads_the_same_before_and_after_its_evidence_is_gathered(self, bundle, retrieval):
        """Every item, so that some stand among the candidates that a prompt names."""
        view = run(retrieval.fetch("u3", None))
        peers = SwingAgent(bundle).signals(view.history, view.now, view.code)
        everything = np.arange(len(bundle.items), dtype=np.int32)
        slate, dossier = made(retrieval, view, Proposal(peers, everything, np.zeros(len(everything))))
        prompt = bundle.config.prompt.model_copy(update={"titles": True})
        together = decide_prompts((slate.context(at) for at in range(len(slate))), prompt)
        assert together == [decide_prompt(whole, prompt) for whole in dossier.contexts]
        named = {item.item_id for item in slate.pool}
        assert any(context.target.item_id in named for context in dossier.contexts)
        assert len(slate.pool) == slate.named + 1


class TestReasoning:
    @pytest.fixture
    def both(self, bundle, retrieval):
        view = run(retrieval.fetch("u3", None))
        return made(retrieval, view, run(SwingAgent(bundle).propose(view, 4)))

    @pytest.fixture
    def slate(self, both):
        return both[0]

    @pytest.fixture
    def dossier(self, both):
        return both[1]

    def test_decisions_are_the_blend_of_the_gate_calibrated(self, bundle, slate):
        student = LinearStudent()
        agent = ReasoningAgent(bundle, student)
        choice = agent.choose(slate)
        verdicts = run(agent.decide(slate))
        assert len(student.scored) == 4 * len(choice.weights)
        each = run(LinearStudent().score(student.scored)).reshape(len(choice.weights), 4)
        expected = np.array(list(choice.weights.values())) @ each
        slope, offset = bundle.calibration.get(choice.name, bundle.calibration["global"])
        assert [v.logit for v in verdicts] == pytest.approx(expected.tolist())
        assert [v.p_yes for v in verdicts] == pytest.approx(expit(slope * expected + offset).tolist())
        assert {v.expert for v in verdicts} == {choice.name}

    def test_reasons_are_written_by_the_lead_expert_within_the_grammar(self, bundle, slate, dossier):
        student = LinearStudent()
        agent = ReasoningAgent(bundle, student)
        verdicts = run(agent.write(dossier, run(agent.decide(slate)), 0))
        assert {request.adapter for request in student.written} == {agent.choose(dossier).lead}
        assert all(request.grammar for request in student.written)
        assert all(verdict.reasoning[0].citations for verdict in verdicts)

    def test_reasons_written_again_are_in_another_style(self, bundle, slate, dossier):
        student = LinearStudent()
        agent = ReasoningAgent(bundle, student)
        for attempt in range(3):
            run(agent.write(dossier, run(agent.decide(slate)), attempt))
        prompts = [request.prompt for request in student.written]
        styles = [re.search(r"\nStyle: (\w+)", prompt).group(1) for prompt in prompts]
        assert styles == [style for style in TEMPLATES[:3] for _ in range(len(dossier))]
        told = {prompt.replace(f"Style: {style}", "") for prompt, style in zip(prompts, styles, strict=True)}
        assert len(told) == len(dossier)

    def test_a_second_look_leaves_sections_out_and_asks_another_expert(self, bundle, slate, dossier):
        agent = ReasoningAgent(bundle, LinearStudent())
        before, looks = run(agent.decide(slate)), run(agent.reconsider(dossier, 1))
        assert set(looks[0].without) == {"history", "similar", "pool"}
        assert looks[0].without["history"] < before[0].p_yes
        assert looks[0].without["pool"] == pytest.approx(before[0].p_yes)
        assert not set(looks[0].segments) & set(agent.choose(dossier).weights)

    def test_it_reasons_before_it_answers_where_the_config_says_so(self, bundle, dossier):
        prompt = bundle.config.prompt.model_copy(update={"reason_first": True})
        student = LinearStudent()
        agent = ReasoningAgent(
            replace(bundle, config=bundle.config.model_copy(update={"prompt": prompt})), student
        )
        first, second = (run(agent.reconsider(dossier, round)) for round in (1, 2))
        plain = run(ReasoningAgent(bundle, LinearStudent()).reconsider(dossier, 1))
        assert [replace(look, reasoned=None) for look in first] == plain
        assert {look.reasoned for look in second} == {None}
        lead, asked = agent.choose(dossier).lead, [r for r in student.scored if "Reasoning:" in r.prompt]
        assert len(asked) == len(student.written) == len(dossier)
        assert all("Answer:" not in request.prompt and request.prompt.endswith(" (") for request in asked)
        logits = run(LinearStudent().score(asked))
        expected = [calibration.apply(bundle.calibration, lead, float(logit)) for logit in logits]
        assert [look.reasoned for look in first] == expected

    def test_later_rounds_leave_more_out(self, bundle, dossier):
        agent = ReasoningAgent(bundle, LinearStudent())
        assert set(run(agent.reconsider(dossier, 2))[0].without) == {
            "history and similar",
            "history and pool",
            "similar and pool",
        }
        assert run(agent.reconsider(dossier, 4))[0].without == {}

    def test_nothing_to_decide(self, bundle, slate, dossier):
        agent = ReasoningAgent(bundle, LinearStudent())
        assert run(agent.decide(replace(slate, targets=[]))) == []
        assert run(agent.write(dossier.take([]), [], 0)) == []


class TestSequence:
    def test_ranking_is_by_interest_times_the_root_of_p_yes_and_stable(self):
        assert ranking(np.array([1.0, 0.5, 0.25, 0.5]), [0.16, 0.81, 0.81, 0.81]) == [1, 3, 0, 2]

    def test_an_answer_is_ranked_explained_and_timed(self, bundle, retrieval):
        answer = run(orchestrator(bundle, LinearStudent()).recommend("u3", 5))
        proposal = run(SwingAgent(bundle).propose(run(retrieval.fetch("u3", None)), 60))
        interest = dict(zip(proposal.items.tolist(), proposal.scores.tolist(), strict=True))
        relevance = [
            interest[bundle.item_code(entry.item.item_id)] * entry.score**0.5 for entry in answer.items
        ]
        assert len(relevance) == 5
        assert relevance == sorted(relevance, reverse=True)
        assert not answer.degraded
        assert all(entry.explanation.coherent for entry in answer.items)
        assert set(answer.timings_ms) >= {
            "retrieval",
            "swing",
            "reasoning",
            "reflection",
            "explanation",
            "total",
        }

    def test_the_best_of_all_candidates_are_shown(self, bundle):
        steady = replace(bundle, synthesis=NEUTRAL)
        few = run(orchestrator(steady, LinearStudent()).recommend("u3", 3))
        all_of_them = run(orchestrator(steady, LinearStudent()).recommend("u3", 22))
        assert {e.item.item_id for e in few.items} == {e.item.item_id for e in all_of_them.items[:3]}

    def test_evidence_is_gathered_for_what_is_shown_alone(self, bundle, retrieval):
        asked = []

        async def gather(view, proposal):
            asked.append(len(proposal.items))
            return await retrieval.gather(view, proposal)

        run(orchestrator(bundle, LinearStudent(), gather=gather).recommend("u3", 3))
        assert asked == [3]

    def test_users_of_a_lost_expert_are_told_so_and_nobody_else(self, bundle):
        serve = bundle.config.serve
        gate = serve.gate.model_copy(update={"single": 0.0, "margin": 0.0})  # always the nearest cluster
        serve = serve.model_copy(update={"gate": gate})
        bundle = replace(bundle, config=bundle.config.model_copy(update={"serve": serve}))
        left = replace(bundle, experts=["expert-0"], lost=["expert-1"])
        found = set()
        for name in list(bundle.user_codes)[:20]:
            view = bundle.history(name, [])
            user = bundle.vectors(view, np.zeros(1, np.int32), bundle.cut + 1)["user"][0]
            asks = "expert-1" in bundle.choice(user).weights
            answer = run(orchestrator(left, LinearStudent()).recommend(name, 1))
            assert answer.degraded == bool(answer.degraded_reason)
            if answer.degraded:
                assert "the adapter of expert-1 is missing or damaged" in answer.degraded_reason
                assert answer.items[0].verdict.expert == "global"
            found.add((asks, answer.degraded))
        assert found == {(True, True), (False, False)}

    def test_low_confidence_is_reconsidered(self, bundle):
        answer = run(orchestrator(bundle, LinearStudent(scale=0.05)).recommend("u3", 3))
        doubted = [e.reflection for e in answer.items if e.reflection]
        assert all("low_confidence" in reflection.triggers for reflection in doubted)
        assert len(doubted) == 3
        assert all(reflection.rounds == 1 for reflection in doubted)
        assert all(e.score == pytest.approx(e.reflection.after) for e in answer.items)

    def test_high_stakes_are_reconsidered_however_sure(self, bundle):
        student = LinearStudent(scale=3)
        answer = run(orchestrator(bundle, student).recommend("u3", 1, high_stakes=True))
        assert "high_stakes" in answer.items[0].reflection.triggers

    def test_false_sentences_are_written_anew(self, bundle):
        answer = run(orchestrator(bundle, LinearStudent(lies=True)).recommend("u3", 3))
        assert [e.explanation.rewritten for e in answer.items] == [1, 1, 1]
        assert all(e.explanation.coherent for e in answer.items)

    def test_without_the_student_swing_answers_and_says_so(self, bundle, retrieval):
        answer = run(orchestrator(bundle, LinearStudent(dies=("score",))).recommend("u3", 3))
        order = run(SwingAgent(bundle).propose(run(retrieval.fetch("u3", None)), 60)).items[:3]
        assert answer.degraded
        assert "died" in answer.degraded_reason
        assert [e.item.item_id for e in answer.items] == [bundle.items[at].item_id for at in order]
        assert all(e.explanation.coherent and e.explanation.rewritten for e in answer.items)

    def test_decisions_stay_when_the_student_dies_while_writing(self, bundle):
        whole = run(orchestrator(bundle, LinearStudent(scale=3)).recommend("u3", 3))
        answer = run(orchestrator(bundle, LinearStudent(scale=3, dies=("write",))).recommend("u3", 3))
        assert answer.degraded
        assert {e.item.item_id for e in answer.items} == {e.item.item_id for e in whole.items}

    def test_one_item_is_explained_even_if_it_was_rated(self, bundle, retrieval):
        view = run(retrieval.fetch("u3", None))
        rated = bundle.items[view.history.items[0]].item_id
        answer = run(orchestrator(bundle, LinearStudent()).explain("u3", rated, "detailed"))
        assert [e.item.item_id for e in answer.items] == [rated]
        own = [e for e in answer.items[0].evidence if e.kind == "history"]
        assert rated not in {entry.item_id for entry in own}

    def test_feedback_changes_the_next_answer(self, bundle):
        front = make_front(bundle, LinearStudent())

        async def answers():
            first = await front.orchestrator.recommend("u3", 1)
            top = first.items[0].item.item_id
            await front.record(feedback(top, 0), "page", None)
            return top, await front.orchestrator.recommend("u3", 22)

        top, second = run(answers())
        assert top not in {e.item.item_id for e in second.items}

    def test_a_late_answer_is_given_up(self, bundle):
        async def slow(*_):
            await asyncio.sleep(60)

        late = orchestrator(bundle, LinearStudent(), fetch=slow)
        late._config = bundle.config.serve.model_copy(update={"deadline_s": 0.05})
        with pytest.raises(TimeoutError):
            run(late.recommend("u3", 3))

    @pytest.mark.parametrize(
        ("work", "expert"), [("decide", "swing"), ("write", None), ("reconsider", None), ("rethink", None)]
    )
    def test_a_silent_student_is_done_without_while_there_is_time(self, bundle, monkeypatch, work, expert):
        called_off = []

        async def silent(*_):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                called_off.append(work)
                raise

        patient = orchestrator(bundle, LinearStudent(), **{work: silent})
        patient._config = bundle.config.serve.model_copy(update={"deadline_s": 120.0})
        monkeypatch.setitem(PATIENCE, work, 0.005)
        answer = run(patient.recommend("u3", 3, "standard", True))
        assert answer.degraded
        assert "nothing came within" in answer.degraded_reason
        assert called_off == [work]
        assert len(answer.items) == 3
        assert all(entry.explanation.text for entry in answer.items)
        assert {entry.verdict.expert == "swing" for entry in answer.items} == {expert == "swing"}

    def test_what_compiles_is_done_before_the_first_request(self, bundle, retrieval):
        student = LinearStudent()
        retrieval.warm()
        SwingAgent(bundle).warm()
        run(ReasoningAgent(bundle, student).warm())
        assert (len(student.scored), len(student.written)) == (1, 1)

    def test_nothing_left_to_recommend_is_an_empty_answer(self, bundle):
        front = make_front(bundle, LinearStudent())

        async def exhaust():
            for item in bundle.items:
                await front.record(feedback(item.item_id, user_id="u29"), "page", None)
            return await front.orchestrator.recommend("u29", 3)

        assert run(exhaust()).items == []


def test_a_record_that_crosses_a_handle_comes_back_as_it_was():
    item = Item(item_id="i", title="t", features=["a"], year=1999)
    again = pickle.loads(pickle.dumps(item))
    assert (type(again), again) == (Item, item)
    assert again.model_copy(update={"title": "u"}).title == "u"
    assert Item.model_validate(again.model_dump()) == item
