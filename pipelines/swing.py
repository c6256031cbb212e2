"""swing: item neighbours and user indexes as of several moments, computed with Ray Data.

Reads `prepare`. Writes `snapshots.json` and per snapshot a folder with the item neighbours (`items.*.npy`)
and the user index (`users.*`); `final` also has both as tables with external ids (`items.parquet`,
`users.parquet`). A snapshot's `done.json` is written last, so a killed run goes on with the next one.

With --interactions it needs no run: it computes the neighbours of one CSV or Parquet file.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import polars as pl
import ray.data

from pipelines import swing_file
from pipelines.common import parser, run_stage
from pipelines.neighbours import parts, stream, stream_items
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.config import Config
from ray_app.errors import cli
from ray_app.swing.items import ItemGraph
from ray_app.swing.snapshots import FINAL, plan
from ray_app.swing.spool import ITEM_COLUMNS, USER_COLUMNS, Spool
from ray_app.swing.users import UserIndex, strengths, user_rows

DONE = "done.json"


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
    labels, timestamps = known["label"].to_numpy(), known["timestamp"].to_numpy()
    weights = {"strengths": strengths(labels), "timestamps": timestamps}
    graph = ItemGraph.build(users, items, n_users, n_items, config.swing, **weights)
    near = Spool(n_items)
    balance = stream_items(near, graph, config.swing, config.seed)
    near.save(target.uri, "items")

    index = UserIndex.build(
        users,
        items,
        now=int(timestamps.max()),
        n_users=n_users,
        n_items=n_items,
        config=config.swing,
        ratings=known["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
        labels=labels,
        seed=config.seed,
        **weights,
    )
    index.save(target.uri, "users")
    done = {"item_pairs": near.pairs, "task_imbalance": balance}
    if with_tables:
        with target.replacing("items.parquet") as local:
            near.write_parquet(local, item_ids, ITEM_COLUMNS)
        alike = Spool(n_users)
        stream(alike, user_rows, index, index.split(parts(n_users)))
        with target.replacing("users.parquet") as local:
            alike.write_parquet(local, user_ids, USER_COLUMNS)
        done["user_pairs"] = alike.pairs
    return done


def main() -> None:
    arguments = parser(__doc__ or "")
    swing_file.add_arguments(arguments)
    options = arguments.parse_args()
    if swing_file.is_asked_for(options, arguments):
        swing_file.run(options)
    else:
        run_stage(spec, options)


if __name__ == "__main__":
    cli(main)
