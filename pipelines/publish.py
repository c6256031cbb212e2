"""Stage publish: the versioned bundle that the service loads, with the report, and its rows in the store.

The version is the fingerprint of what the bundle is made from. The store (`<run>/store.sqlite` unless
`serve.store` names another) is outside the stage's folder: feedback in it outlives every bundle.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import polars as pl

from pipelines.assemble import assemble
from pipelines.common import stage_main
from pipelines.report import write_report
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.bundle import REPORT, synthesis_weights
from ray_app.config import Config
from ray_app.data.store import Store
from ray_app.swing.snapshots import FINAL


def spec(config: Config, run: Run) -> StageSpec:
    return StageSpec(
        name="publish",
        body=lambda folder: publish_stage(config, run, folder),
        keys={"serve": config.serve.model_dump()},
        reads=["prepare", "swing", "encode", "train", "reflect", "evaluate"],
    )


def version_of(run: Run) -> str:
    stages = ("prepare", "swing", "encode", "train", "reflect", "evaluate")
    made_from = [run.done(name)["fingerprint"] for name in stages]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]


def store_url(config: Config, run: Run) -> str:
    return config.serve.store or f"sqlite:///{run.folder.local() / 'store.sqlite'}"


def publish_stage(config: Config, run: Run, folder: Folder) -> dict[str, Any]:
    version = version_of(run)
    target = folder.local() / "bundle"
    manifest = assemble(config, run, target, FINAL, version, synthesis_weights(run.stage("reflect")))
    write_report(config, run, target / REPORT)
    prepare = run.stage("prepare")
    frames = (pl.read_parquet(prepare.path(f"{name}.parquet")) for name in ("items", "users", "interactions"))
    store = Store(store_url(config, run))
    try:
        store.load(*frames, version=version)
        counts = store.counts()
    finally:
        store.close()
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return {
        "version": version,
        "experts": len(manifest["experts"]),
        "megabytes": round(size / 2**20, 1),
        **counts,
    }


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
