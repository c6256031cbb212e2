"""From rows to traces: blind paths first, reflection where all of them fail, a hint as the last resort.

Blind and reflecting prompts never hold the label. A row is reflected upon only if none of its paths was
accepted, whatever the reason, and is not told which it was. With `reason.hints`, a row that still has no
trace is told its outcome (rationalisation, Zelikman et al., 2022). What the engine then writes is stripped of
phrases that give the hint away, and counts only if the engine, shown those steps without their conclusion
and not told, comes to the outcome by itself (Rec-SAVER's re-derivation). `mode` and `rounds` of a trace
keep this provenance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_app.config import PromptConfig, ReasonConfig
from ray_app.engines.interface import Engine, Generation, GenerationRequest
from ray_app.errors import EngineError
from ray_app.prompts.parse import parse_answer
from ray_app.prompts.teacher import (
    TEMPLATES,
    VERDICT_FORM,
    answer_form,
    hint_prompt,
    rederive_prompt,
    reflection_prompt,
    teacher_prompt,
)
from ray_app.records import Context, Trace
from ray_app.teacher.curation import text as text_of
from ray_app.teacher.diversity import NEAR, signature, similarity
from ray_app.teacher.leaks import strip
from ray_app.teacher.verification import check, conclusion

REDERIVE_TOKENS = 16
NOT_REDERIVED = {"accepted": False, "reason": "not_rederived"}


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
        for round in range(self._config.rounds + 1 + self._config.hints):
            if not pending:
                break
            requests = [
                request for row in pending for request in self._requests(row, round, doubted.get(row.row_id))
            ]
            answers = self._answers(requests)
            judged = {row.row_id: self._judge(row, round, answers[row.row_id]) for row in pending}
            if self._hinting(round):
                self._rederive(pending, {row_id: traces for row_id, (traces, _, _) in judged.items()})
            unresolved = []
            for row in pending:
                traces, first, error = judged[row.row_id]
                traces = _mark_duplicates(traces)
                outcome.traces += traces
                if not traces:
                    outcome.failed[row.row_id] = error
                elif not any(trace.accepted for trace in traces):
                    doubted[row.row_id] = first
                    unresolved.append(row)
            pending = unresolved
            if len(rows) > 1 and len(outcome.failed) == len(rows):
                reason = next(iter(outcome.failed.values()))
                raise EngineError(
                    f"none of {len(rows)} rows could be served; the first failed with: {reason}"
                )
        outcome.traces = [trace for trace in outcome.traces if trace.row_id not in outcome.failed]
        return outcome

    def _hinting(self, round: int) -> bool:
        return round > self._config.rounds

    def _requests(self, row: Row, round: int, previous: str | None) -> list[GenerationRequest]:
        """The paths of a row, spread over the templates in rotation."""
        paths, config = self._config.paths, self._config
        requests = []
        for place in range(min(paths, len(TEMPLATES))):
            template = TEMPLATES[(row.row_id + round + place) % len(TEMPLATES)]
            if self._hinting(round):
                prompt = hint_prompt(row.context, template, row.label, previous or "", self._prompt)
            elif previous is None:
                prompt = teacher_prompt(row.context, template, self._prompt)
            else:
                prompt = reflection_prompt(row.context, template, previous, self._prompt)
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
                    hint=row.label if self._hinting(round) else None,
                    previous=previous or "",
                    form=self._form(row, round),
                )
            )
        return requests

    def _form(self, row: Row, round: int) -> str:
        if not self._config.form:
            return ""
        return answer_form(row.context, (row.label,) if self._hinting(round) else (True, False))

    def _answers(
        self, requests: list[GenerationRequest]
    ) -> dict[int, list[tuple[GenerationRequest, Generation]]]:
        answers: dict[int, list[tuple[GenerationRequest, Generation]]] = {}
        for request, generation in zip(requests, self._generated(requests), strict=True):
            answers.setdefault(int(request.id.split("/")[0]), []).append((request, generation))
        return answers

    def _generated(self, requests: list[GenerationRequest]) -> list[Generation]:
        size = self._config.batch_size
        batches = (requests[start : start + size] for start in range(0, len(requests), size))
        return [generation for batch in batches for generation in self._engine.generate(batch)]

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
        return traces, first, error

    def _rederive(self, rows: Sequence[Row], traces: dict[int, list[Trace]]) -> None:
        """Reject, in place, the hinted traces whose steps do not lead the engine to the outcome unaided."""
        contexts = {row.row_id: row.context for row in rows}
        asked, requests = [], []
        for row_id, place, trace in (
            (row_id, place, trace)
            for row_id, found in traces.items()
            for place, trace in enumerate(found)
            if trace.accepted
        ):
            # The last step says the answer where it forecasts; it is what must be found again.
            concludes = conclusion(trace.steps) is not None
            reasons = tuple(step.text for step in (trace.steps[:-1] if concludes else trace.steps))
            if not reasons:
                traces[row_id][place] = trace.model_copy(update=NOT_REDERIVED)
                continue
            asked.append((row_id, place))
            requests.append(
                GenerationRequest(
                    id=f"{row_id}/rederive/{trace.path}",
                    prompt=rederive_prompt(contexts[row_id], reasons, self._prompt),
                    context=contexts[row_id],
                    template=trace.template,
                    n=1,
                    temperature=0.0,
                    max_tokens=REDERIVE_TOKENS,
                    seed=derived_seed(self._seed, row_id, trace.path),
                    reasons=reasons,
                    form=VERDICT_FORM if self._config.form else "",
                )
            )
        for (row_id, place), generation in zip(asked, self._generated(requests), strict=True):
            trace = traces[row_id][place]
            verdict = parse_answer(generation.texts[0]).verdict if generation.texts else None
            cost = trace.tokens + sum(generation.tokens)
            update = {"tokens": cost} | ({} if verdict == trace.label else NOT_REDERIVED)
            traces[row_id][place] = trace.model_copy(update=update)

    def _trace(self, row: Row, request: GenerationRequest, path: int, text: str, tokens: int) -> Trace:
        hinted = request.hint is not None
        parsed = parse_answer(strip(text) if hinted else text)
        result = check(parsed, row.context, row.label)
        return Trace(
            row_id=row.row_id,
            path=path,
            steps=parsed.steps,
            verdict=bool(parsed.verdict),
            label=row.label,
            mode="hinted" if hinted else "reflected" if request.round else "blind",
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
    kept: list[np.ndarray] = []
    marked = []
    for trace in traces:
        if trace.accepted:
            mark = signature(text_of(trace))
            if any(similarity(mark, other) >= NEAR for other in kept):
                trace = trace.model_copy(update={"accepted": False, "reason": "duplicate"})
            else:
                kept.append(mark)
        marked.append(trace)
    return marked
