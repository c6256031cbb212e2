"""The sequence of the agents for one request, its deadline, its timings and what happens when one fails.

    retrieval -> swing -> retrieval -> reasoning: decide about all
      -> retrieval (evidence of the best k) -> reasoning: write about them
      -> reflection <-> reasoning, for what is in doubt -> explanation
      -> retrieval, reasoning: what each would be without the ratings that its reasons cite

If the student's engine dies or is silent before it has decided, Swing's order and plain rates answer; if it
is later, its decisions stay. Either way reasons are written from the evidence, and the answer says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from ray_app.agents.counterfactual import cited_history, counterfactual, told
from ray_app.agents.interface import (
    Asked,
    Detail,
    Dossier,
    Proposal,
    Review,
    SecondLook,
    Slate,
    Team,
    UserView,
)
from ray_app.agents.trail import Walk, Watch, spread
from ray_app.config import ServeConfig
from ray_app.errors import EngineError
from ray_app.records import Explanation, Recommendation, RecommendedItem, Verdict

PATIENCE = {"decide": 0.6, "write": 0.8, "reconsider": 0.8, "rethink": 0.95}
"""Share of the deadline by which the student has to have done that, or the answer does without."""
HURRY = 0.5
"""Reflection takes no further round, and nothing is scored without its evidence, once this share of the
deadline has gone by."""


def ranking(interest: np.ndarray, p_yes: Sequence[float] | np.ndarray) -> list[int]:
    """Places in descending interest * sqrt(P(yes)); equals stay in their order.

    The two say different things: Swing's candidate score how near an item is to what the user turns to,
    P(yes) whether they would like it. Ranked by P(yes) alone, the catalogue's best-rated items win,
    whoever asks. The root was chosen with `agents.swing`'s constants, at moments before the test rows.
    """
    return np.argsort(-(np.maximum(interest, 1e-9) * np.sqrt(p_yes)), kind="stable").tolist()


@dataclass(frozen=True)
class Question:
    """A request: about one item, or for the best k."""

    user_id: str | None
    item_id: str | None = None
    k: int = 1
    detail: Asked = "standard"
    high_stakes: bool = False
    opinions: Mapping[str, int] = field(default_factory=dict)
    """Item id -> 0 or 1: ratings that the request brings along; they are not stored."""

    @property
    def level(self) -> Detail:
        return "detailed" if self.detail == "trail" else self.detail


class Orchestrator:
    """Answers requests with a team. Holds no state between them."""

    def __init__(self, team: Team, config: ServeConfig, versions: dict[str, str]):
        self._team = team
        self._config = config
        self._versions = versions

    async def recommend(
        self, user_id: str, k: int, detail: Asked = "standard", high_stakes: bool = False
    ) -> Recommendation:
        """The best k items that the user has not rated, with reasons. Raises as `answer` does."""
        return await self.answer(Question(user_id, None, k, detail, high_stakes))

    async def explain(
        self, user_id: str, item_id: str, detail: Asked = "standard", high_stakes: bool = False
    ) -> Recommendation:
        """The decision about one item, whatever it is, with reasons. Raises as `answer` does.

        For an item that the user has rated, that rating is left out of the evidence.
        """
        return await self.answer(Question(user_id, item_id, 1, detail, high_stakes))

    async def answer(self, question: Question, watch: Watch | None = None) -> Recommendation:
        """The answer; `watch` is told each step when it begins and when it is done.

        Raises NotFoundError, OverloadedError, and TimeoutError after `serve.deadline_s`.
        """
        team, walk = self._team, Walk(watch)
        async with asyncio.timeout(self._config.deadline_s):
            with walk.step("retrieval", "fetch") as facts:
                view = await team.fetch(question.user_id, question.item_id, dict(question.opinions))
                facts["ratings"] = len(view.history)
            with walk.step("swing", "propose") as facts:
                proposal = await team.propose(view, max(question.k, self._config.candidates))
                facts |= {"candidates": len(proposal.items), "similar_users": len(proposal.peers.users)}
            with walk.step("retrieval", "assemble") as facts:
                slate = await team.assemble(view, proposal)
                facts["ratings_behind"] = int(slate.crowd[:, 0].sum())
            best, reviews, trouble = await self._decide(view, slate, proposal, question, walk)
            with walk.step("explanation", "present") as facts:
                texts = await team.present(best, [review.verdict for review in reviews], question.level)
                facts["rewritten"] = sum(text.rewritten for text in texts)
            if question.level != "brief" and not trouble:
                texts, trouble = await self._without(view, best, reviews, texts, walk)
            missed = next((review.verdict.missed for review in reviews if review.verdict.missed), "")
            if missed and not trouble:
                trouble = f"the adapter of {missed} is missing or damaged: the global one decided instead"
        items = [
            RecommendedItem(
                item=context.target,
                score=review.verdict.p_yes,
                confidence=review.verdict.confidence,
                verdict=review.verdict,
                reflection=review.reflection,
                explanation=text,
                evidence=context.evidence,
            )
            for context, review, text in zip(best.contexts, reviews, texts, strict=True)
        ]
        answer = Recommendation(
            user_id=question.user_id or "",
            items=items,
            degraded=bool(trouble),
            degraded_reason=trouble,
            versions=self._versions,
            timings_ms=walk.timings(),
        )
        if question.detail == "trail":
            answer.trail = walk.trail(best, reviews, answer)
        return answer

    @asynccontextmanager
    async def _patience(self, work: str, walk: Walk) -> AsyncIterator[None]:
        """Raises EngineError once this work's share of the deadline is spent."""
        until = PATIENCE[work] * self._config.deadline_s
        try:
            async with asyncio.timeout(max(0.0, until - walk.seconds)):
                yield
        except TimeoutError as error:
            raise EngineError(f"nothing came within {until:.1f} s of the request") from error

    async def _decide(
        self, view: UserView, slate: Slate, proposal: Proposal, question: Question, walk: Walk
    ) -> tuple[Dossier, list[Review], str]:
        """The best k, their reviewed decisions in order, and what went wrong if anything did."""
        team, k, interest = self._team, question.k, proposal.scores
        walk.considered(slate, proposal, [])
        try:
            with walk.step("reasoning", "decide") as facts:
                async with self._patience("decide", walk):
                    verdicts = await team.decide(slate)
                facts |= {"items": len(verdicts)} | spread([verdict.p_yes for verdict in verdicts])
        except EngineError as error:
            best = await self._gathered(view, slate, proposal, list(range(min(k, len(slate)))), walk)
            with walk.step("swing", "estimate"):
                verdicts = await team.estimate(best)
            trouble = f"the student did not answer ({error}): Swing's order, rates for scores"
            return best, [Review(verdict, None) for verdict in verdicts], trouble
        walk.considered(slate, proposal, verdicts)
        order = ranking(interest, [verdict.p_yes for verdict in verdicts])[:k]
        best = await self._gathered(view, slate, proposal, order, walk)
        verdicts, interest = [verdicts[at] for at in order], interest[order]
        try:
            with walk.step("reasoning", "write") as facts:
                async with self._patience("write", walk):
                    verdicts = await team.write(best, verdicts, 0)
                facts["items"] = len(verdicts)
            walk.first = _by_item(best, verdicts)
            reviews = await self._doubt(best, verdicts, question.high_stakes, walk)
            order = ranking(interest, [review.verdict.p_yes for review in reviews])
            return best.take(order), [reviews[at] for at in order], ""
        except EngineError as error:
            trouble = f"the student stopped answering ({error}): reasons were written from the evidence"
            return best, [Review(verdict, None) for verdict in verdicts], trouble

    async def _gathered(
        self, view: UserView, slate: Slate, proposal: Proposal, places: list[int], walk: Walk
    ) -> Dossier:
        """The items at these places with the evidence for and against each."""
        with walk.step("retrieval", "gather") as facts:
            contexts = await self._team.gather(view, proposal.take(places))
            facts["evidence"] = sum(len(context.evidence) for context in contexts)
        return slate.dossier(places, contexts)

    async def _doubt(
        self, dossier: Dossier, verdicts: list[Verdict], high_stakes: bool, walk: Walk
    ) -> list[Review]:
        """Decisions after reflection; reasons of those that turned, or never led there, written anew."""
        team = self._team
        with walk.step("reflection", "triggers") as facts:
            triggers = await team.triggers(dossier, verdicts, high_stakes)
            doubted = [at for at, causes in enumerate(triggers) if causes]
            facts["doubted"] = len(doubted)
        if not doubted:
            return [Review(verdict, None) for verdict in verdicts]
        looks: list[list[SecondLook]] = [[] for _ in verdicts]
        for round in range(1, self._config.reflection_rounds + 1):
            if walk.seconds > HURRY * self._config.deadline_s:
                break
            with walk.step("reasoning", "reconsider") as facts:
                async with self._patience("reconsider", walk):
                    found = await team.reconsider(dossier.take(doubted), round)
                facts |= {"items": len(doubted), "round": round}
            for at, look in zip(doubted, found, strict=True):
                looks[at].append(look)
        walk.looks = {
            context.target.item_id: own for context, own in zip(dossier.contexts, looks, strict=True)
        }
        with walk.step("reflection", "synthesise") as facts:
            reviews = await team.synthesise(dossier, verdicts, triggers, looks)
            turned = [
                (before.p_yes >= 0.5) != (review.verdict.p_yes >= 0.5)
                for before, review in zip(verdicts, reviews, strict=True)
            ]
            facts["turned"] = sum(turned)
        again = [at for at, turns in enumerate(turned) if turns or "inconsistent" in triggers[at]]
        if again:
            with walk.step("reasoning", "write") as facts:
                part = dossier.take(again)
                async with self._patience("write", walk):
                    rewritten = await team.write(part, [reviews[at].verdict for at in again], 1)
                facts["items"] = len(again)
            walk.again = _by_item(part, rewritten)
            for at, verdict in zip(again, rewritten, strict=True):
                reviews[at] = Review(verdict, reviews[at].reflection)
        return reviews

    async def _without(
        self, view: UserView, best: Dossier, reviews: list[Review], texts: list[Explanation], walk: Walk
    ) -> tuple[list[Explanation], str]:
        """The explanations with what each decision would be without the ratings it cites, all in one call;
        and what went wrong if anything did."""
        cited = [
            cited_history(text, context.evidence) for text, context in zip(texts, best.contexts, strict=True)
        ]
        places = [at for at, entries in enumerate(cited) if entries]
        if not places or walk.seconds > HURRY * self._config.deadline_s:
            return texts, ""
        items = [best.contexts[at].target.item_id for at in places]
        with walk.step("retrieval", "without"):
            others = await self._team.without(view, items, [[e.item_id for e in cited[at]] for at in places])
        try:
            with walk.step("reasoning", "rethink") as facts:
                async with self._patience("rethink", walk):
                    p_yes = await self._team.rethink(best.take(places), others)
                facts["items"] = len(places)
        except EngineError as error:
            return (
                texts,
                f"the student stopped answering ({error}): no decision was made without its evidence",
            )
        texts = list(texts)
        for at, after in zip(places, p_yes, strict=True):
            reflection = reviews[at].reflection
            before = reflection.before if reflection else reviews[at].verdict.p_yes
            found = counterfactual(cited[at], before, after, reflection, self._config.counterfactual)
            if found:
                texts[at] = told(texts[at], found)
        return texts, ""


def _by_item(dossier: Dossier, verdicts: list[Verdict]) -> dict[str, Verdict]:
    pairs = zip(dossier.contexts, verdicts, strict=True)
    return {context.target.item_id: verdict for context, verdict in pairs}
