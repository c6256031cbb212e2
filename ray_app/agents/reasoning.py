"""The reasoning agent: the student decides, writes its reasons and looks again, through the gate's experts.

logit  = sum over adapters a of the gate's choice of weight_a * logit_a
P(yes) = calibration of the chosen name (logit)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from ray_app.agents.interface import Dossier, SecondLook, Slate
from ray_app.bundle import Bundle
from ray_app.collab.evidence import NO_PEERS
from ray_app.engines.student import Scoring, StudentEngine, Writing
from ray_app.prompts.grammar import reasoning_grammar
from ray_app.prompts.parse import before_conclusion, parse_reasoning
from ray_app.prompts.student import SECTIONS, decide_prompt, decide_prompts, explain_prompt
from ray_app.prompts.teacher import TEMPLATES
from ray_app.records import Context, Verdict
from ray_app.student.calibration import apply
from ray_app.student.experts import GLOBAL, Choice


class ReasoningAgent:
    """Raises EngineError when the engine has died. All items of a slate or dossier belong to one user."""

    def __init__(self, bundle: Bundle, engine: StudentEngine):
        self._bundle = bundle
        self._engine = engine

    async def decide(self, slate: Slate) -> list[Verdict]:
        """A calibrated decision per item, by the adapters that the gate chooses for the user."""
        if not len(slate):
            return []
        choice = self.choose(slate)
        contexts = (slate.context(at) for at in range(len(slate)))
        prompts = decide_prompts(contexts, self._bundle.config.prompt)
        logits = await self._blend(slate, list(enumerate(prompts)), choice.weights)
        missed = self._bundle.missed(slate.vectors["user"][0])
        return [
            Verdict(
                p_yes=apply(self._bundle.calibration, choice.name, float(logit)),
                logit=float(logit),
                expert=choice.name,
                missed=missed,
                gate=choice.gate,
            )
            for logit in logits
        ]

    async def write(self, dossier: Dossier, verdicts: list[Verdict], attempt: int = 0) -> list[Verdict]:
        """The verdicts with the lead expert's reasons for them, each attempt in another of the styles that
        the student has learnt: written again, reasons must be able to come out otherwise.

        Cards are forced to be true copies of the evidence; what the sentences say is the student's.
        """
        if not len(dossier):
            return []
        style = TEMPLATES[attempt % len(TEMPLATES)]
        answers = [verdict.p_yes >= 0.5 for verdict in verdicts]
        requests = self._requests(dossier, answers, self.choose(dossier).lead, style)
        texts = await self._engine.write(requests)
        reasons = ([step for _, step in parse_reasoning(text).steps] for text in texts)
        return [
            verdict.model_copy(update={"reasoning": steps})
            for verdict, steps in zip(verdicts, reasons, strict=True)
        ]

    async def reconsider(self, dossier: Dossier, round: int) -> list[SecondLook]:
        """Decide again with `round` sections left out at a time, as the next segment's expert would, by
        boosted trees on the same signals and, once, after reasoning (`prompt.reason_first`).

        Only sections that a prompt has are left out, so an item may have fewer looks than another.
        """
        choice, n = self.choose(dossier), len(dossier)
        segment = self._segment(choice, round)
        whole = [self._prompt(context) for context in dossier.contexts]
        looks = [
            (at, " and ".join(left_out), prompt)
            for at in range(n)
            for left_out in combinations(SECTIONS, round)
            if (prompt := self._prompt(dossier.contexts[at], left_out)) != whole[at]
        ]
        again, others = await asyncio.gather(
            self._blend(dossier, [(at, prompt) for at, _, prompt in looks], choice.weights),
            self._blend(dossier, list(enumerate(whole)) if segment else [], {segment: 1.0}),
        )
        found = [SecondLook({}, {}, float(p)) for p in self._bundle.trees.p_yes(dossier.vectors)]
        for (at, name, _), logit in zip(looks, again, strict=True):
            found[at].without[name] = apply(self._bundle.calibration, choice.name, float(logit))
        for at, logit in enumerate(others):
            found[at].segments[segment] = apply(self._bundle.calibration, segment, float(logit))
        if self._bundle.config.prompt.reason_first and round == 1:
            reasoned = await self._reason_first(dossier, choice.lead)
            found = [replace(look, reasoned=p) for look, p in zip(found, reasoned, strict=True)]
        return found

    async def _reason_first(self, dossier: Dossier, lead: str) -> list[float | None]:
        """P(yes) at the end of reasons that the lead expert writes without an answer; None where it comes to
        no end."""
        requests = self._requests(dossier, [None] * len(dossier), lead, TEMPLATES[0])
        texts = await self._engine.write(requests)
        found: list[float | None] = [None] * len(dossier)
        ended = [(at, text) for at, whole in enumerate(texts) if (text := before_conclusion(whole))]
        if ended:
            logits = await self._engine.score(
                [Scoring(requests[at].prompt + text, requests[at].vectors, lead) for at, text in ended]
            )
            for (at, _), logit in zip(ended, logits, strict=True):
                found[at] = apply(self._bundle.calibration, lead, float(logit))
        return found

    def _requests(
        self, dossier: Dossier, answers: Sequence[bool | None], lead: str, style: str
    ) -> list[Writing]:
        """What has the lead expert write reasons for these answers, or towards one where it is None."""
        config = self._bundle.config
        return [
            Writing(
                prompt=explain_prompt(context, answer, config.prompt, style),
                vectors=_vectors(dossier, at),
                adapter=lead,
                grammar=reasoning_grammar(context, answer),
                max_tokens=config.serve.reasoning_tokens,
            )
            for at, (context, answer) in enumerate(zip(dossier.contexts, answers, strict=True))
        ]

    async def rethink(self, dossier: Dossier, others: Dossier) -> list[float]:
        """P(yes) of the same items from what would be known otherwise, in one call of the engine.

        The adapters are those of the dossier: what differs is the evidence, not who reads it.
        """
        choice = self.choose(dossier)
        prompts = [(at, self._prompt(context)) for at, context in enumerate(others.contexts)]
        logits = await self._blend(others, prompts, choice.weights)
        return [apply(self._bundle.calibration, choice.name, float(logit)) for logit in logits]

    async def warm(self) -> None:
        """Decide and write once, about one item for nobody, so that the first request does not wait for what
        is compiled or loaded when it is first used. Raises EngineError if that fails."""
        bundle, item = self._bundle, np.zeros(1, np.int32)
        history, now = bundle.history("", []), bundle.cut + 1
        count, rate, _ = bundle.statistics(item)[0]
        told = ("", history, now, 0, count, rate, bundle.like_rate(history), NO_PEERS, item)
        context, vectors = bundle.gatherer.context(*told), bundle.vectors(history, item, now)
        slate = Slate(context, [], 0, [context.target], np.array([[count, rate]]), vectors)
        await self.write(slate.dossier([0], [context]), await self.decide(slate))

    async def healthy(self) -> None:
        """Generate a token; raises EngineError if that fails."""
        await self._engine.healthy()

    def choose(self, about: Slate | Dossier) -> Choice:
        """The gate's choice of experts for the user that it is about."""
        return self._bundle.choice(about.vectors["user"][0])

    def _segment(self, choice: Choice, round: int) -> str:
        """Another segment's adapter, the likeliest first; the global one last; empty if there is none."""
        ranked = sorted(choice.gate, key=lambda name: -choice.gate[name])
        others = [name for name in ranked if name in self._bundle.experts and name not in choice.weights]
        if GLOBAL not in choice.weights:
            others.append(GLOBAL)
        return others[(round - 1) % len(others)] if others else ""

    def _prompt(self, context: Context, without: tuple[str, ...] = ()) -> str:
        return decide_prompt(context, self._bundle.config.prompt, without)

    async def _blend(
        self, about: Slate | Dossier, prompts: list[tuple[int, str]], weights: dict[str, float]
    ) -> np.ndarray:
        """Blended logits float [n] of (item's place, prompt) pairs, in one call of the engine."""
        requests = [
            Scoring(prompt, _vectors(about, at), adapter) for adapter in weights for at, prompt in prompts
        ]
        if not requests:
            return np.empty(0, np.float32)
        logits = (await self._engine.score(requests)).reshape(len(weights), len(prompts))
        return np.array(list(weights.values())) @ logits


def _vectors(about: Slate | Dossier, at: int) -> dict[str, np.ndarray]:
    return {name: values[at] for name, values in about.vectors.items()}
