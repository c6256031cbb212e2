"""Three nodes on this machine: stages spread over them, one node killed while it works, the same result.

A node is a raylet with an object store and workers of its own; the driver is on the head, which has no
CPUs for tasks. A kill is SIGKILL of the raylet and of all its workers, as of a machine that is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from pipelines import encode, reason, swing, train
from ray_app.artifacts import Run, StageSpec, execute
from ray_app.config import Config, validate
from tests.conftest import SmallRun

pytestmark = pytest.mark.heavy
WAIT_S = 240.0


class Nodes:
    """A head without CPUs and some workers; `one_killed` ends the first that is busy."""

    def __init__(self, count: int):
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 128 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self.add() for _ in range(count)]
        environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}}
        ray.init(address=self.cluster.address, log_to_driver=False, runtime_env=environment)
        self.killed_at: float | None = None

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=3, object_store_memory=128 << 20)

    def end(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()

    def busy(self, marks: tuple[str, ...]) -> dict[int, list[psutil.Process]]:
        """Place of each node with a worker that does what one of `marks` names -> its processes."""
        found = {}
        for at, node in enumerate(self.workers):
            (raylet,) = node.all_processes["raylet"]
            family = psutil.Process(raylet.process.pid).children(recursive=True)
            names = [" ".join(_cmdline(one)[:1]) for one in family]
            if any(mark in name for name in names for mark in marks):
                found[at] = [psutil.Process(raylet.process.pid), *family]
        return found

    @contextmanager
    def one_killed(
        self, *marks: str, after_s: float = 0.0, when: Callable[[], bool] = lambda: True
    ) -> Iterator[None]:
        """Kill a node `after_s` after its workers are busy and `when` says so; fails if that never is."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.1):
                if self.busy(marks) and when():
                    time.sleep(after_s)
                    for at, family in self.busy(marks).items():
                        for process in family:
                            with suppress(ProcessLookupError):
                                os.kill(process.pid, signal.SIGKILL)
                        self.cluster.remove_node(self.workers.pop(at), allow_graceful=False)
                        self.killed_at = time.monotonic()
                        return

        self.killed_at = None
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join(30)
        assert self.killed_at is not None, f"no node was ever seen at work on {marks}"
        self.workers.append(self.add())


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module", params=[2, 3])
def nodes(request) -> Iterator[Nodes]:
    found = Nodes(request.param)
    yield found
    found.end()


@pytest.fixture(scope="module")
def config(small_run: SmallRun) -> Config:
    tree = small_run.config.model_dump()
    tree["train"] |= {"max_failures": 3, "checkpoint_every_s": 0.5}
    tree["reason"] |= {"shard_rows": 20}
    return validate(tree, "nodes")


def timed(run: Run, spec: StageSpec) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    manifest = execute(run, spec, force=True)
    return manifest, time.monotonic() - began


def copy(small_run: SmallRun, tmp_path: Path) -> Run:
    shutil.copytree(small_run.run.folder.root, tmp_path / "run")
    return Run(tmp_path / "run")


def tell(stage: str, nodes: Nodes, calm_s: float, struck_s: float) -> None:
    print(json.dumps({"stage": stage, "nodes": len(nodes.workers), "s": [round(calm_s), round(struck_s)]}))


def test_swing_is_the_same_with_a_node_killed(nodes, config, small_run, tmp_path):
    run = copy(small_run, tmp_path)
    _, calm = timed(run, swing.spec(config, run))
    with nodes.one_killed("ray::", after_s=0.5):
        _, struck = timed(run, swing.spec(config, run))
    tell("swing", nodes, calm, struck)
    ours, theirs = (one.stage("swing").local() for one in (run, small_run.run))
    arrays = sorted(path.relative_to(theirs) for path in theirs.rglob("*.npy"))
    assert arrays
    for name in arrays:
        assert np.array_equal(np.load(ours / name), np.load(theirs / name)), name
    execute(run, encode.spec(config, run), force=True)
    user = "user.npy"
    assert np.array_equal(*(np.load(one.stage("encode").local() / user) for one in (run, small_run.run)))


def test_no_trace_is_lost_or_doubled_with_a_node_killed(nodes, config, small_run, tmp_path):
    run = copy(small_run, tmp_path)
    calm_counts, calm = timed(run, reason.spec(config, run))
    with nodes.one_killed("ShardWorker", "MapWorker", after_s=1.0):
        counts, struck = timed(run, reason.spec(config, run))
    tell("reason", nodes, calm, struck)
    assert counts["counts"]["rows"] == calm_counts["counts"]["rows"]
    assert counts["counts"]["accepted"] == calm_counts["counts"]["accepted"]
    assert counts["counts"]["dead"] == 0
    rows = pl.scan_parquet(run.stage("reason").path("shards/*.parquet")).select("row_id", "path").collect()
    assert rows.is_unique().all()


def test_training_goes_on_with_a_node_killed_at_its_start_or_after_a_checkpoint(
    nodes, config, small_run, tmp_path
):
    run = copy(small_run, tmp_path)
    calm_counts, calm = timed(run, train.spec(config, run))
    checkpoints = run.stage("train").local() / "checkpoints" / train.SNAPSHOT
    for moment, when in (("start", lambda: True), ("checkpoint", checkpoints.exists)):
        with nodes.one_killed("RayTrainWorker", when=when):
            counts, struck = timed(run, train.spec(config, run))
        tell(f"train, at the {moment}", nodes, calm, struck)
        assert counts["counts"]["valid_auc"] == pytest.approx(calm_counts["counts"]["valid_auc"], abs=0.02)
        assert counts["counts"]["trainable"] == calm_counts["counts"]["trainable"]
