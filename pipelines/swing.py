"""swing: item neighbours and user indexes as of several moments, computed with Ray Data.

Reads `prepare`. Writes `snapshots.json` and per snapshot a folder with the item neighbours (`items.*.npy`)
and the user index (`users.*`); `final` also has both as tables with external ids (`items.parquet`,
`users.parquet`). A snapshot's `done.json` is written last, so a killed run goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray
import ray.data

from pipelines.common import stage_main
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.config import Config
from ray_app.swing.items import ItemGraph, item_rows
from ray_app.swing.snapshots import FINAL, plan
from ray_app.swing.table import NeighbourTable, Rows
from ray_app.swing.users import UserIndex, strengths, user_rows

DONE = "done.json"
MAX_TASKS = 64
ROWS_PER_TASK = 64
"""A task has at least about this many rows: below, Ray's own cost per task shows."""

Compute = Callable[[Any, np.ndarray], Rows]

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


def spec(config: Config, run: Run) -> StageSpec:
    return StageSpec(
        name="swing",
        body=partial(_body, config, run.stage("prepare")),
        keys={"swing": config.swing.model_dump(), "seed": config.seed},
        reads=["prepare"],
        resumes=True,
    )


def _body(config: Config, prepared: Folder, folder: Folder) -> dict[str, Any]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = pl.read_parquet(prepared.path("interactions.parquet"))
    item_ids = pl.read_parquet(prepared.path("items.parquet"), columns=["item_id"])["item_id"]
    user_ids = pl.read_parquet(prepared.path("users.parquet"), columns=["user_id"])["user_id"]
    snapshots = plan(rows["timestamp"].to_numpy(), rows["split"].to_numpy(), config.swing.snapshots)

    finished = []
    for entry in snapshots:
        target = folder.folder(entry["name"])
        if not target.exists(DONE):
            target.clear()
            known = rows if entry["cut"] is None else rows.filter(pl.col("timestamp") < entry["cut"])
            target.write_json(
                DONE, _snapshot(config, target, known, user_ids, item_ids, entry["name"] == FINAL)
            )
        finished.append(target.read_json(DONE))
    folder.write_json("snapshots.json", snapshots)
    return {
        "snapshots": len(snapshots),
        "item_pairs": finished[-1]["item_pairs"],
        "user_pairs": finished[-1]["user_pairs"],
        "task_imbalance": max(done["task_imbalance"] for done in finished),
    }


def _snapshot(
    config: Config,
    target: Folder,
    known: pl.DataFrame,
    user_ids: pl.Series,
    item_ids: pl.Series,
    with_tables: bool,
) -> dict[str, Any]:
    """Write one snapshot's files from the interactions before its cut; return what `done.json` says."""
    users, items = known["user"].to_numpy(), known["item"].to_numpy()
    n_users, n_items = len(user_ids), len(item_ids)
    graph = ItemGraph.build(users, items, n_users, n_items, config.swing)
    tasks = graph.split(_parts(n_items), config.swing.max_users_per_item)
    parts = _on_ray(partial(item_rows, config=config.swing, seed=config.seed), graph, tasks)
    table = NeighbourTable.assemble(n_items, parts)
    table.save(target.uri, "items")

    labels, timestamps = known["label"].to_numpy(), known["timestamp"].to_numpy()
    index = UserIndex.build(
        users,
        items,
        strengths(labels),
        timestamps,
        int(timestamps.max()),
        n_users,
        n_items,
        config.swing,
        ratings=known["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
        labels=labels,
        seed=config.seed,
    )
    index.save(target.uri, "users")
    done = {
        "item_pairs": table.pairs,
        "task_imbalance": _imbalance(parts, [graph.item_ids[ranks] for ranks in tasks], n_items),
    }
    if with_tables:
        near = NeighbourTable.assemble(n_users, _on_ray(user_rows, index, index.split(_parts(n_users))))
        _write_table(target, "items.parquet", table, item_ids, ("item_id", "score", "common_users"))
        _write_table(target, "users.parquet", near, user_ids, ("user_id", "similarity", "common_items"))
        done["user_pairs"] = near.pairs
    return done


def _parts(rows: int) -> int:
    return min(MAX_TASKS, max(1, rows // ROWS_PER_TASK))


def _on_ray(compute: Compute, shared: Any, tasks: list[np.ndarray]) -> list[Rows]:
    """Rows of every task, each computed by a Ray Data task that maps `shared` from the object store."""
    compute(shared, np.empty(0, np.int32))  # compile the kernel once, not in every worker at the same time
    reference = ray.put((shared, tasks))

    def work(batch: pa.Table) -> pa.Table:
        common, listed = ray.get(reference)
        return _to_arrow([compute(common, listed[task]) for task in batch["task"].to_pylist()])

    dataset = ray.data.from_items(
        [{"task": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
    ).map_batches(work, batch_size=1, batch_format="pyarrow")
    return [_from_arrow(table) for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow")]


def _to_arrow(parts: list[Rows]) -> pa.Table:
    tables = []
    for part in parts:
        offsets = np.concatenate([[0], np.cumsum(part.lengths)]).astype(np.int32)
        lists = [
            pa.ListArray.from_arrays(offsets, values) for values in (part.indices, part.scores, part.common)
        ]
        tables.append(pa.Table.from_arrays([pa.array(part.mains), *lists, pa.array(part.work)], schema=ROWS))
    return pa.concat_tables(tables)


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


def _imbalance(parts: list[Rows], tasks: list[np.ndarray], n: int) -> float:
    """Cost of the costliest task over the mean, in kernel steps: the same on every machine."""
    work = np.zeros(n, np.int64)
    for part in parts:
        work[part.mains] = part.work
    loads = np.array([work[task].sum() for task in tasks])
    return round(float(loads.max() / loads.mean()), 3) if loads.any() else 1.0


def _write_table(
    target: Folder, name: str, table: NeighbourTable, ids: pl.Series, columns: tuple[str, str, str]
) -> None:
    """Neighbours with external ids: <id>, neighbour_id, <score>, <common>."""
    main, score, common = columns
    owners = np.repeat(np.arange(len(ids), dtype=np.int32), np.diff(table.indptr))
    frame = pl.DataFrame(
        {
            main: ids.gather(owners),
            "neighbour_id": ids.gather(table.indices),
            score: table.scores,
            common: table.common,
        }
    )
    with target.replacing(name) as local:
        frame.write_parquet(local)


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
