"""From rows to traces: blind paths first, reflection where all of them fail, then given up.

No prompt ever holds the label. A row is reflected upon only if none of its paths was accepted, whatever
the reason, and is not told which it was; `mode` and `rounds` of a trace keep this provenance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_app.config import PromptConfig, ReasonConfig
from ray_app.engines.interface import Engine, Generation, GenerationRequest
from ray_app.prompts.parse import parse_answer
from ray_app.prompts.teacher import TEMPLATES, reflection_prompt, teacher_prompt
from ray_app.records import Context, Trace
from ray_app.teacher.verification import check

SHINGLE = 3
NEAR = 0.8
"""Two texts of a row with this Jaccard similarity of word trigrams count as one."""


@dataclass(frozen=True)
class Row:
    """A training row to reason about."""

    row_id: int
    context: Context
    label: bool


@dataclass
class Outcome:
    """All traces of a batch, accepted or not, and the rows that the engine could not serve."""

    traces: list[Trace] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    """row_id -> the engine's error."""


class Refiner:
    """Turns rows into verified traces with one engine. Pure in (rows, config, seed, engine)."""

    def __init__(self, engine: Engine, config: ReasonConfig, prompt: PromptConfig, seed: int):
        self._engine = engine
        self._config = config
        self._prompt = prompt
        self._seed = seed

    def run(self, rows: Sequence[Row]) -> Outcome:
        """Traces of all rows that were served; a row with a round of which nothing was served is `failed`.

        Raises EngineError if the engine has died.
        """
        outcome = Outcome()
        doubted: dict[int, str] = {}
        pending = list(rows)
        for round in range(self._config.rounds + 1):
            if not pending:
                break
            requests = [
                request for row in pending for request in self._requests(row, round, doubted.get(row.row_id))
            ]
            answers = self._answers(requests)
            unresolved = []
            for row in pending:
                traces, first, error = self._judge(row, round, answers[row.row_id])
                outcome.traces += traces
                if not traces:
                    outcome.failed[row.row_id] = error
                elif not any(trace.accepted for trace in traces):
                    doubted[row.row_id] = first
                    unresolved.append(row)
            pending = unresolved
        outcome.traces = [trace for trace in outcome.traces if trace.row_id not in outcome.failed]
        return outcome

    def _requests(self, row: Row, round: int, previous: str | None) -> list[GenerationRequest]:
        """The paths of a row, spread over the templates in rotation."""
        paths, config = self._config.paths, self._config
        requests = []
        for place in range(min(paths, len(TEMPLATES))):
            template = TEMPLATES[(row.row_id + round + place) % len(TEMPLATES)]
            prompt = (
                teacher_prompt(row.context, template, self._prompt)
                if previous is None
                else reflection_prompt(row.context, template, previous, self._prompt)
            )
            requests.append(
                GenerationRequest(
                    id=f"{row.row_id}/{round}/{place}",
                    prompt=prompt,
                    context=row.context,
                    template=template,
                    n=len(range(place, paths, len(TEMPLATES))),
                    temperature=config.temperature,
                    max_tokens=config.max_tokens,
                    seed=derived_seed(self._seed, row.row_id, round, place),
                    round=round,
                    previous=previous or "",
                )
            )
        return requests

    def _answers(
        self, requests: list[GenerationRequest]
    ) -> dict[int, list[tuple[GenerationRequest, Generation]]]:
        answers: dict[int, list[tuple[GenerationRequest, Generation]]] = {}
        for start in range(0, len(requests), self._config.batch_size):
            batch = requests[start : start + self._config.batch_size]
            for request, generation in zip(batch, self._engine.generate(batch), strict=True):
                answers.setdefault(int(request.id.split("/")[0]), []).append((request, generation))
        return answers

    def _judge(
        self, row: Row, round: int, answers: list[tuple[GenerationRequest, Generation]]
    ) -> tuple[list[Trace], str, str]:
        """The round's traces, the text to doubt next (that of the first path), and an engine error."""
        traces: list[Trace] = []
        first = error = ""
        for request, generation in answers:
            error = generation.error or error
            for text, tokens in zip(generation.texts, generation.tokens, strict=True):
                first = first or text
                path = round * self._config.paths + len(traces)
                traces.append(self._trace(row, request, path, text, tokens))
        return _mark_duplicates(traces), first, error

    def _trace(self, row: Row, request: GenerationRequest, path: int, text: str, tokens: int) -> Trace:
        parsed = parse_answer(text)
        result = check(parsed, row.context, row.label)
        return Trace(
            row_id=row.row_id,
            path=path,
            steps=parsed.steps,
            verdict=bool(parsed.verdict),
            label=row.label,
            mode="reflected" if request.round else "blind",
            rounds=request.round,
            template=request.template,
            engine=self._engine.name,
            model=self._engine.model,
            tokens=tokens,
            scores=result.scores,
            accepted=result.accepted,
            reason=result.reason,
        )


def derived_seed(*parts: int) -> int:
    """A seed below 2^31 from several numbers, the same everywhere."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 2**31


def _mark_duplicates(traces: list[Trace]) -> list[Trace]:
    """The same traces; an accepted one that repeats an earlier accepted one is rejected as duplicate."""
    kept: list[set[tuple[str, ...]]] = []
    marked = []
    for trace in traces:
        if trace.accepted:
            shingles = _shingles(" ".join(step.text for step in trace.steps))
            if any(len(shingles & other) >= NEAR * len(shingles | other) for other in kept):
                trace = trace.model_copy(update={"accepted": False, "reason": "duplicate"})
            else:
                kept.append(shingles)
        marked.append(trace)
    return marked


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
