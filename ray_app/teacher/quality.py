"""What came out of the teacher, in numbers for the report."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ray_app.prompts.cards import CITATION
from ray_app.records import Context, Trace
from ray_app.teacher.leaks import told_apart
from ray_app.teacher.verification import conclusion

TEXTS, ENOUGH = 5000, 40
"""Texts of each mode that are kept to be told apart, and how many it takes."""
SAMPLES = 20
"""Traces shown of each kind."""
BIN = 10
"""Words per bar of the histogram of lengths."""
SIDES = ("label", "popularity", "cluster", "feature")
"""What a stratum's name is made of."""


class Quality:
    """Takes traces one by one; `report()` sums them up. Memory grows with distinct words, not rows."""

    def __init__(self) -> None:
        self._rows: dict[int, bool] = {}
        self._by: dict[str, Counter[tuple[str, bool]]] = {
            name: Counter() for name in ("template", "round", "stratum", "verdict", "mode")
        }
        self._texts: dict[str, list[tuple[int, str]]] = {}
        self._rejects: Counter[str] = Counter()
        self._tokens = Counter[str]()
        self._words: Counter[int] = Counter()
        self._coverage = 0.0
        self._grams: dict[int, set[tuple[str, ...]]] = {1: set(), 2: set()}
        self._gram_total: Counter[int] = Counter()

    def add(self, trace: Trace, stratum: str) -> None:
        """Count one trace, accepted or not; `stratum` is the row's."""
        self._rows[trace.row_id] = self._rows.get(trace.row_id, False) or trace.accepted
        verdict = "Yes" if trace.verdict else "No"
        values = (trace.template, str(trace.rounds), stratum, verdict, trace.mode)
        for counter, value in zip(self._by.values(), values, strict=True):
            counter[value, trace.accepted] += 1
        self._tokens["all"] += trace.tokens
        if not trace.accepted:
            self._rejects[trace.reason] += 1
            return
        self._tokens["accepted"] += trace.tokens
        words = CITATION.sub("[e]", " ".join(step.text for step in trace.steps)).lower().split()
        self._words[len(words)] += 1
        self._remember(trace)
        self._coverage += trace.scores.get("coverage", 0.0)
        for n, seen in self._grams.items():
            grams = list(zip(*(words[i:] for i in range(n)), strict=False))
            seen.update(grams)
            self._gram_total[n] += len(grams)

    def _remember(self, trace: Trace) -> None:
        """The text without what it concludes, for telling modes apart."""
        texts = self._texts.setdefault(trace.mode, [])
        if len(texts) < TEXTS:
            steps = trace.steps[:-1] if conclusion(trace.steps) is not None else trace.steps
            texts.append((trace.row_id, CITATION.sub("[e]", " ".join(step.text for step in steps))))

    def report(self) -> dict[str, Any]:
        """Counts and shares.

        `acceptance`: rows with an accepted trace / rows. `path_acceptance`: accepted traces / traces.
        `distinct_n`: distinct n-grams / n-grams over accepted traces, citations made equal (Li et al.,
        2016). `template_balance`: entropy of the accepted traces' templates / that of equal shares.
        `by_<side>`: by each side of the strata. `told_apart`: AUC of a classifier that tells traces of a
        mode from blind ones by their steps; what it finds of reflected ones, which were told nothing, is
        that their rows are harder.
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
            **{f"by_{side}": _table(_side(self._by["stratum"], at)) for at, side in enumerate(SIDES)},
            "tokens": self._tokens["all"],
            "tokens_per_accepted": round(self._tokens["all"] / max(1, accepted), 1),
            "words": _spread(self._words),
            "lengths": _histogram(self._words),
            "told_apart": self._told_apart(),
            "coverage": round(self._coverage / max(1, accepted), 4),
            **{f"distinct_{n}": _share(len(seen), self._gram_total[n]) for n, seen in self._grams.items()},
            "template_balance": _balance(self._by["template"]),
        }

    def _told_apart(self) -> dict[str, float]:
        blind = self._texts.get("blind", [])
        others = {mode: texts for mode, texts in sorted(self._texts.items()) if mode != "blind"}
        return {
            mode: round(told_apart(blind, texts), 3)
            for mode, texts in others.items()
            if min(len(blind), len(texts)) >= ENOUGH and "hinted" in others
        }


class Samples:
    """A few accepted and rejected traces, the same for the same traces, with as many reasons as there are."""

    def __init__(self) -> None:
        self._best: dict[str, list[tuple[int, dict[str, Any]]]] = {}

    def add(self, trace: Trace, context: str) -> None:
        """`context` is the JSON of the trace's context."""
        kind = trace.reason or trace.mode
        digest = hashlib.blake2b(f"{trace.row_id}/{trace.path}".encode(), digest_size=8).digest()
        order, kept = int.from_bytes(digest), self._best.setdefault(kind, [])
        if len(kept) >= SAMPLES and order >= kept[-1][0]:
            return
        kept.append((order, _sample(trace, Context.model_validate_json(context))))
        kept.sort(key=lambda entry: entry[0])
        del kept[SAMPLES:]

    def report(self) -> dict[str, list[dict[str, Any]]]:
        """`accepted` and `rejected`, taken from the modes and the reasons in turn."""
        accepted = [kept for kept in self._best.values() if kept[0][1]["accepted"]]
        rejected = [kept for kept in self._best.values() if not kept[0][1]["accepted"]]
        return {"accepted": _in_turn(accepted), "rejected": _in_turn(rejected)}


def _in_turn(kinds: Iterable[list[tuple[int, dict[str, Any]]]]) -> list[dict[str, Any]]:
    turns = sorted(
        ((turn, entry["reason"], entry["mode"], order), entry)
        for kept in kinds
        for turn, (order, entry) in enumerate(kept)
    )
    return [entry for _, entry in turns[:SAMPLES]]


def _sample(trace: Trace, context: Context) -> dict[str, Any]:
    titles = {f"[{entry.id}]": entry.title for entry in context.evidence}
    facts = trace.model_dump(
        include={"row_id", "path", "mode", "rounds", "template", "tokens", "accepted", "reason", "label"}
    )
    cited = {name: titles.get(f"[{name}]", "?") for step in trace.steps for name in step.citations}
    return facts | {
        "verdict": trace.verdict,
        "title": context.target.title,
        "steps": [step.text for step in trace.steps],
        "cited": cited,
    }


def _side(counter: Counter[tuple[str, bool]], at: int) -> Counter[tuple[str, bool]]:
    side: Counter[tuple[str, bool]] = Counter()
    for (stratum, good), count in counter.items():
        parts = stratum.split("/", len(SIDES) - 1)
        side[parts[at] if at < len(parts) else stratum, good] += count
    return side


def _histogram(lengths: Counter[int]) -> dict[str, int]:
    """`40-49` -> accepted traces with so many words, from the shortest to the longest."""
    bins = Counter({})
    for length, count in lengths.items():
        bins[length // BIN] += count
    span = range(min(bins, default=0), max(bins, default=-1) + 1)
    return {f"{at * BIN}-{at * BIN + BIN - 1}": bins[at] for at in span}


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
