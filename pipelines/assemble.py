"""Put a bundle together as of one moment: `final` for the service, `test` to measure what is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ray_app.agents.synthesis import DEFAULT, Weights
from ray_app.artifacts import Folder, Run
from ray_app.bundle import SYNTHESIS, TREES, seal
from ray_app.collab.features import Histories
from ray_app.config import Config
from ray_app.student.experts import GLOBAL


def assemble(
    config: Config, run: Run, target: Path, moment: str, version: str, synthesis: Weights = DEFAULT
) -> dict[str, Any]:
    """Write the bundle into `target` (see `ray_app.bundle` for its layout); its manifest comes last.

    moment: name of a Swing snapshot; only interactions before its cut enter. Experts that did not beat the
    global adapter (`student.publishing`) stay out. synthesis: what stage reflect fitted, whose own
    bundle is put together without. Returns the manifest.
    """
    prepare, swing, encode = (run.stage(name).local() for name in ("prepare", "swing", "encode"))
    student = run.stage("train").local() / "student"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    snapshots = json.loads((swing / "snapshots.json").read_bytes())
    rows = next(entry["rows"] for entry in snapshots if entry["name"] == moment)
    write_histories(prepare, encode, rows, target)
    for name in ("items.parquet", "users.parquet"):
        shutil.copy(prepare / name, target / name)
    shutil.copy(encode / f"state-{moment}.npz", target / "state.npz")
    shutil.copy(encode / "latent" / f"{moment}.npy", target / "latent.npy")
    shutil.copytree(swing / moment, target / "swing")
    for name in ("projector.pt", "clusters.npz", "calibration.json", TREES):
        shutil.copy(student / name, target / name)
    Folder(target).write_json(SYNTHESIS, synthesis.as_dict())
    if (student / "model").exists():
        shutil.copytree(student / "model", target / "model")
    table = json.loads((student.parent / "experts.json").read_bytes())
    experts = [row["expert"] for row in table if row["published"]]
    for name in (GLOBAL, *experts):
        shutil.copytree(student / "adapters" / name, target / "adapters" / f"{name}@{version}")
    times = pl.read_parquet(prepare / "interactions.parquet", columns=["timestamp"])["timestamp"]
    facts = {
        "version": version,
        "cut": int(times[rows - 1]),
        "moment": moment,
        "experts": experts,
        "config": config.model_dump(mode="json"),
    }
    return seal(target, facts)


def write_histories(prepare: Path, encode: Path, rows: int, target: Path) -> None:
    """Every user's first `rows` interactions in time, as CSR by user."""
    frame = pl.read_parquet(prepare / "interactions.parquet").head(rows)
    n_users = pl.read_parquet(prepare / "users.parquet", columns=["user"]).height
    histories = Histories.build(
        frame["user"].to_numpy(),
        frame["item"].to_numpy(),
        frame["label"].to_numpy(),
        np.load(encode / "rolling.npy", mmap_mode="r")[:rows, 4],
        frame["timestamp"].to_numpy(),
        n_users,
    )
    ratings = frame["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    arrays = {name: getattr(histories, name) for name in Histories.__dataclass_fields__}
    with open(target / "histories.npz", "wb") as file:
        np.savez(file, ratings=ratings[histories.rows], **arrays)
