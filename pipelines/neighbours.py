"""Rows of neighbours computed by Ray Data tasks and streamed to disk.

The index is put into the object store once; every worker of a node maps the same pages. A task takes its
share of the rows and returns their neighbours; blocks go to disk as they arrive, so neither the driver nor
the object store ever holds the whole table. A lost worker costs its tasks, which Ray runs again: they are
pure functions of the index and the row numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

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
            [_to_arrow(compute(shared, listed[task])) for task in batch["task"].to_pylist()]
        )

    dataset = ray.data.from_items(
        [{"task": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
    ).map_batches(work, batch_size=1, batch_format="pyarrow")
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows = _from_arrow(table)
        spool.add(rows)
        arrived(len(rows.mains))


def imbalance(work: np.ndarray, tasks: list[np.ndarray]) -> float:
    """Cost of the costliest task over the mean, in kernel steps (int64[n]): the same on every machine."""
    loads = np.array([work[task].sum() for task in tasks])
    return round(float(loads.max() / loads.mean()), 3) if loads.any() else 1.0


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
