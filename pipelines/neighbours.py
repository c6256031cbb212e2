"""Rows of neighbours computed by Ray Data tasks and streamed to disk.

The index is put into the object store once; every worker of a node maps the same pages. A task takes its
part of the rows and returns their neighbours; blocks go to disk as they arrive, so neither the driver nor
the object store ever holds the whole table. A lost worker costs its tasks, which Ray runs again: they are
pure functions of the index and the row numbers.

Without a cap on users one popular item's row may be several tasks' worth. Such a row is cut into shares,
whose sums the driver adds up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from ray_app.config import SwingConfig
from ray_app.swing.items import ItemGraph, Share, item_rows, rows_of_sums, share_sums
from ray_app.swing.spool import Spool
from ray_app.swing.table import Rows

TASKS_PER_CPU, MIN_TASKS = 4, 64
ROWS_PER_TASK = 64
"""A task has at least about this many rows: below, Ray's own cost per task shows."""

Compute = Callable[[Any, np.ndarray], Rows]
"""Neighbours of rows int32[r] from an index; the same whatever else is asked for."""

ROWS = pa.schema(
    [
        ("main", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("common", pa.list_(pa.int32())),
        ("work", pa.int64()),
    ]
)
"""What a task returns: one row per user or item."""


def parts(rows: int) -> int:
    """Into how many tasks to split so many rows."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return min(max(MIN_TASKS, TASKS_PER_CPU * cpus), max(1, rows // ROWS_PER_TASK))


def stream_items(
    spool: Spool,
    graph: ItemGraph,
    config: SwingConfig,
    seed: int,
    arrived: Callable[[int], Any] = lambda rows: None,
) -> float:
    """Fill the spool with the Swing rows of every item. Returns the `imbalance` of the tasks."""
    n, cap = parts(graph.n_items), config.max_users_per_item
    tasks = graph.split(n, cap)
    stream(spool, partial(item_rows, config=config, seed=seed), graph, tasks, arrived)
    loads = [spool.work[graph.item_ids[ranks]].sum() for ranks in tasks]
    if cut := graph.split_shares(n, cap):
        loads += _stream_hot(spool, graph, cut, config, seed, arrived)
    return imbalance(loads)


def _stream_hot(
    spool: Spool,
    graph: ItemGraph,
    tasks: list[list[Share]],
    config: SwingConfig,
    seed: int,
    arrived: Callable[[int], Any],
) -> list[int]:
    """Fill the spool with rows computed in shares; returns the steps of each task.

    The driver holds 8 * n_items bytes for a share of a row that is not complete.
    """
    reference = ray.put((graph, tasks))

    def work(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shared, listed = ray.get(reference)
        shares = [share for task in batch["item"] for share in listed[task]]
        sums, steps = zip(*(share_sums(shared, share, config, seed=seed) for share in shares), strict=True)
        return {"share": np.array(shares), "sums": np.stack(sums), "steps": np.array(steps)}

    steps, waiting = {}, defaultdict(dict)
    for batch in _tasks(len(tasks), work, "numpy").iter_batches(batch_size=None, batch_format="numpy"):
        columns = (batch[name] for name in ("share", "sums", "steps"))
        for (rank, number, shares), sums, taken in zip(*columns, strict=True):
            steps[rank, number, shares] = int(taken)
            waiting[rank][number] = sums
            if len(waiting[rank]) == shares:
                # in their order, not that of arrival: floating-point sums depend on it
                row = np.sum([waiting[rank][at] for at in range(shares)], axis=0)
                del waiting[rank]
                spool.add(rows_of_sums(graph, np.array([rank], np.int32), row[None], config, seed=seed))
                arrived(1)
    return [sum(steps[share] for share in task) for task in tasks]


def stream(
    spool: Spool,
    compute: Compute,
    index: Any,
    tasks: list[np.ndarray],
    arrived: Callable[[int], Any] = lambda rows: None,
) -> None:
    """Fill the spool with the rows of every task; `arrived` hears how many rows each block brought."""
    compute(index, np.empty(0, np.int32))  # compile the kernel once, not in every worker at the same time
    reference = ray.put((index, tasks))

    def work(batch: pa.Table) -> pa.Table:
        shared, listed = ray.get(reference)
        return pa.concat_tables(
            [_to_arrow(compute(shared, listed[task])) for task in batch["item"].to_pylist()]
        )

    for table in _tasks(len(tasks), work, "pyarrow").iter_batches(batch_size=None, batch_format="pyarrow"):
        rows = _from_arrow(table)
        spool.add(rows)
        arrived(len(rows.mains))


def imbalance(loads: Sequence[int]) -> float:
    """Cost of the costliest task over the mean, in kernel steps: the same on every machine."""
    return round(float(np.max(loads) / np.mean(loads)), 3) if np.any(loads) else 1.0


def _tasks(n: int, work: Callable[[Any], Any], batch_format: str) -> ray.data.Dataset:
    """What `work` makes of each of the numbers 0..n-1 (column `item`), one a task."""
    numbers = ray.data.from_items(list(range(n)), override_num_blocks=n)
    return numbers.map_batches(work, batch_size=1, batch_format=batch_format)


def _to_arrow(rows: Rows) -> pa.Table:
    offsets = np.concatenate([[0], np.cumsum(rows.lengths)]).astype(np.int32)
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (rows.indices, rows.scores, rows.common)]
    return pa.Table.from_arrays([pa.array(rows.mains), *lists, pa.array(rows.work)], schema=ROWS)


def _from_arrow(table: pa.Table) -> Rows:
    columns = table.select(ROWS.names).combine_chunks()
    indices, scores, common = (columns[name].combine_chunks() for name in ("indices", "scores", "common"))
    return Rows(
        columns["main"].to_numpy(),
        indices.value_lengths().to_numpy(zero_copy_only=False),
        indices.flatten().to_numpy(),
        scores.flatten().to_numpy(),
        common.flatten().to_numpy(),
        columns["work"].to_numpy(),
    )
