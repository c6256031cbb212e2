"""A run's accepted traces against the data, without the numbers that stage reason wrote of them.

    python -m bench.traces --run runs/local [--json FILE]

Verdicts are held against the labels of stage prepare, and steps against their evidence by the evaluation's
reader with the features of all items. Evidence itself is held against the ratings table: titles, the
user's own ratings, which must be earlier than the row, and how many rated the target earlier. What those
thought of it is a smoothed share (`records.Evidence.rating`), so a thin one may stand on the other side of
a half than the bare share: `crowds_turned` counts them.
Near-duplicates are counted by the exact Jaccard similarity of word trigrams over all pairs of traces,
where the stage estimates it. Last, how well a classifier tells hinted from blind traces by their steps
without the conclusion.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.common import open_run, parser
from ray_app.artifacts import Run
from ray_app.errors import cli
from ray_app.evaluation.reasons import groundedness
from ray_app.prompts.cards import CITATION
from ray_app.records import Context, Evidence, Trace
from ray_app.teacher.curation import text
from ray_app.teacher.diversity import NEAR, SHINGLE


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--json")
    arguments = options.parse_args()
    _, run = open_run(arguments)
    summary = json.dumps(audit(run), indent=2)
    print(summary)
    if arguments.json:
        Path(arguments.json).write_text(summary)


def audit(run: Run) -> dict[str, Any]:
    """Counts over the accepted traces of a run, and the first few faults."""
    data = Ratings(run)
    folder = run.stage("reason")
    columns = ["accepted", "trace", "context"]
    frames = (pl.read_parquet(folder.path(name), columns=columns) for name in folder.names("shards"))
    traces, faults, verdicts, statements, grounded, entries = [], [], 0, 0, 0, 0
    crowds: list[bool] = []
    for _, trace, context in (row for frame in frames for row in frame.filter("accepted").iter_rows()):
        trace, context = Trace.model_validate_json(trace), Context.model_validate_json(context)
        traces.append(trace)
        verdicts += trace.verdict == bool(data.labels[trace.row_id])
        found = groundedness(context, trace.steps, data.vocabulary)
        statements, grounded = statements + found.statements, grounded + found.grounded
        cited = [context.cited(name) for name in {one for step in trace.steps for one in step.citations}]
        entries += len(cited)
        crowds += [data.turned(trace.row_id, entry) for entry in cited if entry and entry.kind == "crowd"]
        problems = [problem for _, problem in found.problems]
        problems += [data.problem(trace.row_id, entry) if entry else "no such evidence" for entry in cited]
        faults += [f"row {trace.row_id}, path {trace.path}: {problem}" for problem in problems if problem]
    texts = [text(trace) for trace in traces]
    return {
        "accepted": len(traces),
        "verdict_is_label": verdicts,
        "statements": statements,
        "grounded_statements": grounded,
        "entries_cited": entries,
        "crowds_cited": len(crowds),
        "crowds_turned": sum(crowds),
        "faults": len(faults),
        "first_faults": faults[:5],
        "near_duplicates": repeated(texts) / max(1, len(texts)),
        "hinted": sum(trace.mode == "hinted" for trace in traces),
    }


class Ratings:
    """The ratings table by the ids that contexts use."""

    def __init__(self, run: Run):
        prepared = run.stage("prepare")
        items = pl.read_parquet(prepared.path("items.parquet"))
        rows = pl.read_parquet(prepared.path("interactions.parquet")).join(items, on="item").sort("timestamp")
        self.labels = dict(zip(rows["row_id"], rows["label"], strict=True))
        self.vocabulary = frozenset(name for features in items["features"] for name in features)
        self._titles = dict(zip(items["item_id"], items["title"], strict=True))
        self._features = dict(zip(items["item_id"], map(set, items["features"]), strict=True))
        self._row: dict[int, tuple[int, str, int]] = {}
        self._rated: dict[tuple[int, str], tuple[int, float, int]] = {}
        self._times: dict[str, list[int]] = defaultdict(list)
        self._likes: dict[str, list[int]] = defaultdict(lambda: [0])
        columns = ("row_id", "user", "item_id", "timestamp", "rating", "label")
        for row_id, user, item, time, rating, label in rows.select(columns).iter_rows():
            self._row[row_id] = user, item, time
            self._rated[user, item] = time, rating, label
            self._times[item].append(time)
            self._likes[item].append(self._likes[item][-1] + label)

    def problem(self, row_id: int, entry: Evidence) -> str:
        """What an entry says that the table does not, seen from a row; empty if it is true."""
        user, target, moment = self._row[row_id]
        if entry.kind in ("history", "neighbour"):
            if self._titles.get(entry.item_id) != entry.title:
                return f"{entry.id} is not called {entry.title!r}"
            both = self._features[entry.item_id] & self._features[target]
            if set(entry.shared) != both:
                return f"{entry.id} shares {sorted(both)}, not {entry.shared}"
        if entry.kind == "history":
            time, rating, label = self._rated.get((user, entry.item_id), (moment, 0.0, 0))
            if time >= moment:
                return f"{entry.id} was not rated before"
            return (
                "" if (rating, bool(label)) == (entry.rating, entry.sign > 0) else f"{entry.id} was {rating}"
            )
        if entry.kind == "crowd" and (earlier := bisect_left(self._times[target], moment)) != entry.support:
            return f"{entry.id}: {earlier} rated the target before, not {entry.support}"
        return ""

    def turned(self, row_id: int, crowd: Evidence) -> bool:
        """Whether the earlier raters' bare share is not on the side of a half that the entry says."""
        _, target, moment = self._row[row_id]
        earlier = bisect_left(self._times[target], moment)
        return (self._likes[target][earlier] / max(1, earlier) >= 0.5) != (crowd.sign > 0)


def repeated(texts: Sequence[str]) -> int:
    """Texts whose trigrams have a Jaccard similarity of NEAR or more with those of an earlier text."""
    from scipy.sparse import csr_matrix

    places: dict[str, int] = {}
    columns, ends = [], [0]
    for one in texts:
        words = CITATION.sub("[e]", one).lower().split()
        grams = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
        columns += [places.setdefault(gram, len(places)) for gram in grams]
        ends.append(len(columns))
    matrix = csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=(len(texts), len(places)))
    sizes, count = np.diff(ends), 0
    for begin, end in pairwise([*range(0, len(texts), 500), len(texts)]):
        common = (matrix[begin:end] @ matrix[:end].T).toarray()
        alike = common >= NEAR * (sizes[begin:end, None] + sizes[None, :end] - common)
        count += sum(row[:at].any() for at, row in enumerate(alike, begin))
    return int(count)


if __name__ == "__main__":
    cli(main)
