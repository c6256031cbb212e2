"""What came out of the teacher, in numbers for the report."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from ray_app.prompts.cards import CITATION
from ray_app.records import Trace


class Quality:
    """Takes traces one by one; `report()` sums them up. Memory grows with distinct words, not rows."""

    def __init__(self) -> None:
        self._rows: dict[int, bool] = {}
        self._by: dict[str, Counter[tuple[str, bool]]] = {
            name: Counter() for name in ("template", "round", "stratum", "verdict")
        }
        self._rejects: Counter[str] = Counter()
        self._tokens = Counter[str]()
        self._words: Counter[int] = Counter()
        self._coverage = 0.0
        self._grams: dict[int, set[tuple[str, ...]]] = {1: set(), 2: set()}
        self._gram_total: Counter[int] = Counter()

    def add(self, trace: Trace, stratum: str) -> None:
        """Count one trace, accepted or not; `stratum` is the row's."""
        self._rows[trace.row_id] = self._rows.get(trace.row_id, False) or trace.accepted
        values = (trace.template, str(trace.rounds), stratum, "Yes" if trace.verdict else "No")
        for counter, value in zip(self._by.values(), values, strict=True):
            counter[value, trace.accepted] += 1
        self._tokens["all"] += trace.tokens
        if not trace.accepted:
            self._rejects[trace.reason] += 1
            return
        self._tokens["accepted"] += trace.tokens
        words = CITATION.sub("[e]", " ".join(step.text for step in trace.steps)).lower().split()
        self._words[len(words)] += 1
        self._coverage += trace.scores.get("coverage", 0.0)
        for n, seen in self._grams.items():
            grams = list(zip(*(words[i:] for i in range(n)), strict=False))
            seen.update(grams)
            self._gram_total[n] += len(grams)

    def report(self) -> dict[str, Any]:
        """Counts and shares.

        `acceptance`: rows with an accepted trace / rows. `path_acceptance`: accepted traces / traces.
        `distinct_n`: distinct n-grams / n-grams over accepted traces, citations made equal (Li et al.,
        2016). `template_balance`: entropy of the accepted traces' templates / that of equal shares.
        """
        traces = sum(self._by["template"].values())
        accepted = sum(count for (_, good), count in self._by["template"].items() if good)
        rows = len(self._rows)
        return {
            "rows": rows,
            "traces": traces,
            "accepted": accepted,
            "acceptance": _share(sum(self._rows.values()), rows),
            "path_acceptance": _share(accepted, traces),
            "rejects": dict(sorted(self._rejects.items())),
            **{f"by_{name}": _table(counter) for name, counter in self._by.items()},
            "tokens": self._tokens["all"],
            "tokens_per_accepted": round(self._tokens["all"] / max(1, accepted), 1),
            "words": _spread(self._words),
            "coverage": round(self._coverage / max(1, accepted), 4),
            **{f"distinct_{n}": _share(len(seen), self._gram_total[n]) for n, seen in self._grams.items()},
            "template_balance": _balance(self._by["template"]),
        }


def _share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 4)


def _table(counter: Counter[tuple[str, bool]]) -> dict[str, dict[str, float]]:
    table = {}
    for value in sorted({value for value, _ in counter}):
        good, bad = counter[value, True], counter[value, False]
        table[value] = {"traces": good + bad, "accepted": good, "acceptance": _share(good, good + bad)}
    return table


def _spread(lengths: Counter[int]) -> dict[str, float]:
    ordered = sorted(lengths.elements())
    if not ordered:
        return {}
    return {
        "mean": round(sum(ordered) / len(ordered), 1),
        "p50": float(ordered[len(ordered) // 2]),
        "p95": float(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]),
        "max": float(ordered[-1]),
    }


def _balance(counter: Counter[tuple[str, bool]]) -> float:
    templates = {value for value, _ in counter}
    counts = [counter[value, True] for value in templates if counter[value, True]]
    if len(templates) < 2 or not counts:
        return 1.0
    shares = [count / sum(counts) for count in counts]
    return round(-sum(share * math.log(share) for share in shares) / math.log(len(templates)), 4)
