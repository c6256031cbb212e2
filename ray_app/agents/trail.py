"""What happened on the way to an answer: each step as it is taken, and the whole trail behind the answer.

A step is told twice, when it begins (`ms` is None) and when it is done, to whoever watches. The trail keeps
the finished ones, every candidate with its signals, and what became of the items that were shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ray_app.agents.explanation import holds
from ray_app.agents.interface import Dossier, Proposal, Review, SecondLook, Slate
from ray_app.records import (
    Candidate,
    Context,
    Item,
    Look,
    Recommendation,
    Shown,
    Trail,
    TrailStep,
    Verdict,
)

Watch = Callable[[TrailStep], None]
Facts = dict[str, int | float | str]


class Walk:
    """One request on its way: times it, tells `watch` its steps, and remembers what a trail needs."""

    def __init__(self, watch: Watch | None = None) -> None:
        self.steps: list[TrailStep] = []
        self.first: dict[str, Verdict] = {}
        """Item id -> the first decision with the reasons first written for it."""
        self.again: dict[str, Verdict] = {}
        """Item id -> the decision whose reasons were written again."""
        self.looks: dict[str, list[SecondLook]] = {}
        self._watch = watch or (lambda _: None)
        self._began = time.monotonic()
        self._proposal: Proposal | None = None
        self._targets: list[Item] = []
        self._verdicts: list[Verdict] = []

    @contextmanager
    def step(self, agent: str, work: str) -> Iterator[Facts]:
        """A step of an agent; facts that are put into what this yields are told when it is done."""
        facts: Facts = {}
        began = time.monotonic()
        step = TrailStep(
            number=len(self.steps), agent=agent, work=work, began_ms=_ms(began - self._began), ms=None
        )
        self.steps.append(step)
        self._watch(step)
        try:
            yield facts
        finally:
            step = step.model_copy(update={"ms": _ms(time.monotonic() - began), "facts": facts})
            self.steps[step.number] = step
        self._watch(step)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def timings(self) -> dict[str, float]:
        """Milliseconds spent waiting for each agent, and in total."""
        found: dict[str, float] = {}
        for step in self.steps:
            found[step.agent] = round(found.get(step.agent, 0.0) + (step.ms or 0.0), 2)
        return found | {"total": _ms(self.seconds)}

    def considered(self, slate: Slate, proposal: Proposal, verdicts: list[Verdict]) -> None:
        """All candidates; no verdicts where the student never decided."""
        self._targets, self._proposal, self._verdicts = slate.targets, proposal, verdicts

    def trail(self, best: Dossier, reviews: list[Review], answer: Recommendation) -> Trail:
        """The whole of it, once the answer is there."""
        shown = [
            self._shown(context, review, entry.explanation.rewritten)
            for context, review, entry in zip(best.contexts, reviews, answer.items, strict=True)
        ]
        lead = self._verdicts[0] if self._verdicts else None
        return Trail(
            steps=self.steps,
            candidates=self._candidates([context.target.item_id for context in best.contexts]),
            expert=lead.expert if lead else "",
            gate=lead.gate if lead else {},
            shown=shown,
        )

    def _candidates(self, shown: list[str]) -> list[Candidate]:
        proposal = self._proposal
        if proposal is None:
            return []
        places = {item_id: place for place, item_id in enumerate(shown, 1)}
        found = []
        for at, item in enumerate(self._targets):
            verdict = self._verdicts[at] if self._verdicts else None
            found.append(
                Candidate(
                    item_id=item.item_id,
                    title=item.title,
                    interest=float(proposal.scores[at]),
                    signals={name: float(values[at]) for name, values in proposal.signals.items()},
                    logit=verdict.logit if verdict else None,
                    p_yes=verdict.p_yes if verdict else None,
                    place=places.get(item.item_id),
                )
            )
        return found

    def _shown(self, context: Context, review: Review, rewritten: int) -> Shown:
        name = context.target.item_id
        first, again = self.first.get(name), self.again.get(name)
        last = (again or first or review.verdict).reasoning
        answer = review.verdict.p_yes >= 0.5
        return Shown(
            item_id=name,
            before=first.p_yes if first else review.verdict.p_yes,
            after=review.verdict.p_yes,
            triggers=review.reflection.triggers if review.reflection else [],
            looks=[
                Look(
                    without=look.without,
                    segments=look.segments,
                    reweighed=look.reweighed,
                    reasoned=look.reasoned,
                )
                for look in self.looks.get(name, [])
            ],
            written=first.reasoning if first else [],
            written_again=again.reasoning if again else None,
            failed=[step for step in last if not holds(step, context, answer)],
            rewritten=rewritten,
        )


def spread(values: list[float]) -> Facts:
    """The highest and lowest of some probabilities, for a step's facts."""
    if not values:
        return {}
    return {"highest": round(float(np.max(values)), 3), "lowest": round(float(np.min(values)), 3)}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
