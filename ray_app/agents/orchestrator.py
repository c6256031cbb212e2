"""The sequence of the agents for one request, its deadline, its timings and what happens when one fails.

    retrieval -> swing -> retrieval (contexts) -> reasoning: decide about all, write about the best k
      -> reflection <-> reasoning, for what is in doubt -> explanation

If the student's engine dies before it has decided, Swing's order and plain rates answer; if it dies
later, its decisions stay. Either way reasons are written from the evidence, and the answer says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ray_app.agents.interface import Detail, Dossier, Review, SecondLook, Team
from ray_app.config import ServeConfig
from ray_app.errors import EngineError
from ray_app.records import Recommendation, RecommendedItem, Verdict

HURRY = 0.5
"""Reflection takes no further round once this share of the deadline has gone by."""


def ranking(interest: np.ndarray, p_yes: Sequence[float] | np.ndarray) -> list[int]:
    """Places in descending interest * sqrt(P(yes)); equals stay in their order.

    The two say different things: Swing's candidate score how near an item is to what the user turns to,
    P(yes) whether they would like it. Ranked by P(yes) alone, the catalogue's best-rated items win,
    whoever asks. The root was chosen with `agents.swing`'s constants, at moments before the test rows.
    """
    return np.argsort(-(np.maximum(interest, 1e-9) * np.sqrt(p_yes)), kind="stable").tolist()


class Timings:
    """Milliseconds spent waiting for each agent."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def of(self, agent: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.ms[agent] = round(self.ms.get(agent, 0.0) + 1000 * (time.monotonic() - began), 2)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def finished(self) -> dict[str, float]:
        return self.ms | {"total": round(1000 * self.seconds, 2)}


class Orchestrator:
    """Answers requests with a team. Holds no state between them."""

    def __init__(self, team: Team, config: ServeConfig, versions: dict[str, str]):
        self._team = team
        self._config = config
        self._versions = versions

    async def recommend(
        self, user_id: str, k: int, detail: Detail = "standard", high_stakes: bool = False
    ) -> Recommendation:
        """The best k items that the user has not rated, with reasons.

        Raises NotFoundError, OverloadedError, and TimeoutError after `serve.deadline_s`.
        """
        return await self._answer(user_id, None, k, detail, high_stakes)

    async def explain(
        self, user_id: str, item_id: str, detail: Detail = "standard", high_stakes: bool = False
    ) -> Recommendation:
        """The decision about one item, whatever it is, with reasons. Raises as `recommend` does.

        For an item that the user has rated, that rating is left out of the evidence.
        """
        return await self._answer(user_id, item_id, 1, detail, high_stakes)

    async def _answer(
        self, user_id: str, item_id: str | None, k: int, detail: Detail, high_stakes: bool
    ) -> Recommendation:
        team, clock = self._team, Timings()
        async with asyncio.timeout(self._config.deadline_s):
            with clock.of("retrieval"):
                view = await team.fetch(user_id, item_id)
            with clock.of("swing"):
                proposal = await team.propose(view, max(k, self._config.candidates))
            with clock.of("retrieval"):
                dossier = await team.assemble(view, proposal)
            best, reviews, trouble = await self._decide(dossier, proposal.scores, k, high_stakes, clock)
            with clock.of("explanation"):
                texts = await team.present(best, [review.verdict for review in reviews], detail)
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
        return Recommendation(
            user_id=user_id,
            items=items,
            degraded=bool(trouble),
            degraded_reason=trouble,
            versions=self._versions,
            timings_ms=clock.finished(),
        )

    async def _decide(
        self, dossier: Dossier, interest: np.ndarray, k: int, high_stakes: bool, clock: Timings
    ) -> tuple[Dossier, list[Review], str]:
        """The best k, their reviewed decisions in order, and what went wrong if anything did."""
        try:
            with clock.of("reasoning"):
                verdicts = await self._team.decide(dossier)
        except EngineError as error:
            best = dossier.take(list(range(min(k, len(dossier)))))
            with clock.of("swing"):
                verdicts = await self._team.estimate(best)
            trouble = f"the student did not answer ({error}): Swing's order, rates for scores"
            return best, [Review(verdict, None) for verdict in verdicts], trouble
        order = ranking(interest, [verdict.p_yes for verdict in verdicts])[:k]
        best, verdicts, interest = dossier.take(order), [verdicts[at] for at in order], interest[order]
        try:
            with clock.of("reasoning"):
                verdicts = await self._team.write(best, verdicts, 0)
            reviews = await self._doubt(best, verdicts, high_stakes, clock)
            order = ranking(interest, [review.verdict.p_yes for review in reviews])
            return best.take(order), [reviews[at] for at in order], ""
        except EngineError as error:
            trouble = f"the student stopped answering ({error}): reasons were written from the evidence"
            return best, [Review(verdict, None) for verdict in verdicts], trouble

    async def _doubt(
        self, dossier: Dossier, verdicts: list[Verdict], high_stakes: bool, clock: Timings
    ) -> list[Review]:
        """Decisions after reflection; reasons of those that turned, or never led there, written anew."""
        with clock.of("reflection"):
            triggers = await self._team.triggers(dossier, verdicts, high_stakes)
        doubted = [at for at, causes in enumerate(triggers) if causes]
        if not doubted:
            return [Review(verdict, None) for verdict in verdicts]
        looks: list[list[SecondLook]] = [[] for _ in verdicts]
        for round in range(1, self._config.reflection_rounds + 1):
            if clock.seconds > HURRY * self._config.deadline_s:
                break
            with clock.of("reasoning"):
                found = await self._team.reconsider(dossier.take(doubted), round)
            for at, look in zip(doubted, found, strict=True):
                looks[at].append(look)
        with clock.of("reflection"):
            reviews = await self._team.synthesise(dossier, verdicts, triggers, looks)
        again = [
            at
            for at, (before, review) in enumerate(zip(verdicts, reviews, strict=True))
            if (before.p_yes >= 0.5) != (review.verdict.p_yes >= 0.5) or "inconsistent" in triggers[at]
        ]
        if again:
            with clock.of("reasoning"):
                rewritten = await self._team.write(
                    dossier.take(again), [reviews[at].verdict for at in again], 1
                )
            for at, verdict in zip(again, rewritten, strict=True):
                reviews[at] = Review(verdict, reviews[at].reflection)
        return reviews
