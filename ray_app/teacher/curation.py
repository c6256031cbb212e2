"""Which verified traces stay: within the budget, the shortest of a row, and nothing said before.

Traces are taken in order of their rows, so the outcome is the same however they were made. What curation
rejected earlier counts as verified when it is done again: a second pass changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_app.records import Trace
from ray_app.teacher.diversity import NEAR, Seen, SelfSimilarity, signature

OVER_BUDGET, LONGER, NEAR_DUPLICATE = "over_budget", "longer", "near_duplicate"
CURATED = (OVER_BUDGET, LONGER, NEAR_DUPLICATE)
"""Why a verified trace is not kept."""


class Curator:
    """Takes the traces of one row after another. Memory grows with the kept traces: 2 kB each."""

    def __init__(self, keep: int, token_budget: int):
        self._keep = keep
        self._budget = token_budget
        self._seen = Seen()
        self._before, self._after = SelfSimilarity(), SelfSimilarity()
        self._verified = self._repeated = 0

    def curate(self, traces: Sequence[Trace]) -> list[Trace]:
        """The row's traces in the order given, `accepted` and `reason` as they are in the end."""
        verdicts: dict[int, str] = {}
        kept = 0
        verified = [trace for trace in traces if trace.accepted or trace.reason in CURATED]
        for trace in sorted(verified, key=lambda trace: (trace.tokens, trace.path)):
            mark = signature(text(trace))
            self._verified += 1
            self._before.add(mark)
            near = self._seen.nearest(mark) >= NEAR
            self._repeated += near
            if trace.tokens > self._budget:
                verdicts[trace.path] = OVER_BUDGET
            elif near:
                verdicts[trace.path] = NEAR_DUPLICATE
            elif kept >= self._keep:
                verdicts[trace.path] = LONGER
            else:
                verdicts[trace.path] = ""
                kept += 1
                self._seen.add(mark)
                self._after.add(mark)
        return [_decided(trace, verdicts) for trace in traces]

    def report(self) -> dict[str, float]:
        """`near_duplicates` among verified traces, and the self-similarity of those and of the kept."""
        return {
            "near_duplicates_verified": round(self._repeated / max(1, self._verified), 4),
            "self_similarity_verified": round(self._before.value(), 4),
            "self_similarity": round(self._after.value(), 4),
        }


def text(trace: Trace) -> str:
    """A trace's steps as one text."""
    return " ".join(step.text for step in trace.steps)


def near_duplicates(texts: Sequence[str]) -> float:
    """Share of texts that are near-duplicates of an earlier one."""
    seen, repeated = Seen(), 0
    for one in texts:
        mark = signature(one)
        repeated += seen.nearest(mark) >= NEAR
        seen.add(mark)
    return repeated / max(1, len(texts))


def _decided(trace: Trace, verdicts: dict[int, str]) -> Trace:
    if trace.path not in verdicts:
        return trace
    reason = verdicts[trace.path]
    if trace.reason == reason and trace.accepted == (not reason):
        return trace
    return trace.model_copy(update={"accepted": not reason, "reason": reason})
