"""Stage encode: the collaborative vectors of every row, from what was known before it.

Writes user.npy, item.npy, pair.npy (float32 [rows, width]), rolling.npy (float64 [rows, 5], see
`collab.rolling`), latent/<snapshot>.npy and state-<moment>.npz for `valid`, `test` and `final`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl

from pipelines.common import stage_main
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.collab import features, latent
from ray_app.collab.features import Catalogue, Histories, dimensions
from ray_app.collab.opinions import Crowd
from ray_app.collab.rolling import roll
from ray_app.config import Config
from ray_app.swing.snapshots import FINAL, load_snapshot, snapshot_for


def spec(config: Config, run: Run) -> StageSpec:
    return StageSpec(
        name="encode",
        body=lambda folder: encode_stage(config, run, folder),
        # Whoever has vectors of another layout must not go on with them.
        keys={"collab": config.collab.model_dump(), "seed": config.seed, "layout": dimensions(0, 0)},
        reads=["prepare", "swing"],
    )


def catalogue_of(items: pl.DataFrame) -> Catalogue:
    return Catalogue.build(items["features"].to_list(), items["year"].to_list())


def encode_stage(config: Config, run: Run, folder: Folder) -> dict[str, Any]:
    prepare, swing = run.stage("prepare"), run.stage("swing")
    rows = pl.read_parquet(prepare.path("interactions.parquet"))
    items = pl.read_parquet(prepare.path("items.parquet"))
    n_users = pl.read_parquet(prepare.path("users.parquet"), columns=["user"]).height
    users, targets, timestamps, labels = (
        rows[name].to_numpy() for name in ("user", "item", "timestamp", "label")
    )
    catalogue = catalogue_of(items)
    prior = config.collab.prior

    def rolled(count: int) -> tuple[np.ndarray, Any]:
        part = slice(0, count)
        return roll(
            users[part],
            targets[part],
            timestamps[part],
            labels[part],
            n_users,
            items.height,
            catalogue.indptr,
            catalogue.features,
            len(catalogue.vocabulary),
            prior,
        )

    rolling, final = rolled(len(users))
    snapshots = swing.read_json("snapshots.json")
    for name, cut in ((s["name"], s["cut"]) for s in snapshots if s["name"] in ("valid", "test", FINAL)):
        state = final if cut is None else rolled(int(np.searchsorted(timestamps, cut)))[1]
        with folder.replacing(f"state-{name}.npz") as local, open(local, "wb") as file:
            state.save(file)
    histories = Histories.build(users, targets, labels, rolling[:, 4], timestamps, n_users)
    crowd = Crowd.of(histories, items.height)
    start, end = histories.before(users, timestamps)
    rate = global_rates(timestamps, labels)
    at = snapshot_for(snapshots, timestamps)
    width = features.dimensions(len(catalogue.vocabulary), config.collab.dimensions)
    vectors = {name: np.zeros((len(users), size), np.float32) for name, size in width.items()}
    previous = None
    for number in range(-1, len(snapshots)):
        if number < 0:
            table = None
            item_vectors = np.zeros((items.height, config.collab.dimensions), np.float32)
        else:
            snapshot = snapshots[number]
            known = slice(0, snapshot["rows"])
            item_vectors = previous = latent.item_vectors(
                users[known],
                targets[known],
                n_users,
                items.height,
                config.collab.dimensions,
                catalogue.matrix,
                previous,
                config.seed,
            )
            save(folder, f"latent/{snapshot['name']}.npy", item_vectors)
            table, _ = load_snapshot(swing, snapshot["name"])
        sees = np.flatnonzero(at == number)
        encoded = features.encode(
            histories,
            users[sees],
            start[sees],
            end[sees],
            targets[sees],
            timestamps[sees],
            rolling[sees, :3],
            rate[sees],
            catalogue,
            item_vectors,
            table,
            crowd,
            prior,
            config.collab.window,
        )
        for name, values in encoded.items():
            vectors[name][sees] = values
    for name, values in vectors.items():
        if not np.isfinite(values).all():
            raise FloatingPointError(f"encode made non-finite {name} vectors")
        save(folder, f"{name}.npy", values)
    save(folder, "rolling.npy", rolling)
    folder.write("catalogue.json", json.dumps({"features": catalogue.vocabulary}).encode())
    return {"rows": len(users), **{f"{name}_width": size for name, size in width.items()}}


def global_rates(timestamps: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [n]: smoothed share of positives among all rows with an earlier timestamp."""
    earlier = np.searchsorted(timestamps, timestamps)
    positives = np.concatenate([[0], np.cumsum(labels, dtype=np.int64)])[earlier]
    return (positives + 1) / (earlier + 2)


def save(folder: Folder, name: str, values: np.ndarray) -> None:
    with folder.replacing(name) as local, open(local, "wb") as file:
        np.save(file, values, allow_pickle=False)


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
