"""The swing stage on Ray: what it writes, that it sees only the past, that kill -9 costs nothing."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipelines import neighbours
from pipelines.swing import spec
from ray_app.artifacts import Folder, Run, StageSpec, execute
from ray_app.config import validate
from ray_app.records import INTERACTIONS, ITEMS, USERS
from ray_app.swing.items import ItemGraph, item_centric_rows, item_neighbours, pointer
from ray_app.swing.snapshots import load_snapshot, snapshot_for
from ray_app.swing.spool import Spool
from ray_app.swing.table import NeighbourTable
from ray_app.swing.users import user_neighbours

pytestmark = pytest.mark.slow

N_USERS, N_ITEMS, N_ROWS = 150, 130, 4000
CONFIG = validate({"swing": {"snapshots": 3, "max_users_per_item": 25}, "ray": {"num_cpus": 4}}, "test")


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True
    )
    yield
    ray.shutdown()


def interactions(later_seed=0):
    """4000 rows with ties in time; those of the test split depend on `later_seed`."""
    early, late = np.random.default_rng(1), np.random.default_rng(later_seed)
    n_late = N_ROWS // 10
    draw = [(early, N_ROWS - n_late), (late, n_late)]
    user = np.concatenate([rng.integers(0, N_USERS, n) for rng, n in draw])
    item = np.concatenate([(N_ITEMS * rng.random(n) ** 2).astype(int) for rng, n in draw])
    rating = np.concatenate([rng.integers(1, 6, n) for rng, n in draw])
    split = np.repeat(["train", "valid", "test"], [N_ROWS - 2 * n_late, n_late, n_late])
    return {
        "row_id": np.arange(N_ROWS),
        "user": user.astype(np.int32),
        "item": item.astype(np.int32),
        "timestamp": 1_000_000 + np.arange(N_ROWS) // 4 * 3600,
        "rating": rating.astype(np.float32),
        "label": (rating >= 4).astype(np.int8),
        "split": split,
    }


def prepared(path, later_seed=0):
    """A run whose `prepare` is finished."""
    run = Run(path)

    def body(folder: Folder):
        items = [
            {"item": i, "item_id": f"m{i}", "title": f"M {i}", "features": [], "keywords": []}
            for i in range(N_ITEMS)
        ]
        users = [{"user": u, "user_id": f"u{u}", "profile": "{}"} for u in range(N_USERS)]
        for name, table in {
            "interactions": pa.table(interactions(later_seed), schema=INTERACTIONS),
            "items": pa.Table.from_pylist(items, schema=ITEMS),
            "users": pa.Table.from_pylist(users, schema=USERS),
        }.items():
            with folder.replacing(f"{name}.parquet") as local:
                pq.write_table(table, local)
        return {}

    execute(run, StageSpec(name="prepare", body=body, keys={"seed": later_seed}))
    return run


def contents(run, under=""):
    folder = run.stage("swing")
    return {name: folder.read(name) for name in folder.names(under) if name != "manifest.json"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = prepared(tmp_path_factory.mktemp("swing") / "run")
    return run, execute(run, spec(CONFIG, run))


def test_snapshots_are_listed_in_time_order_and_load(finished):
    run, manifest = finished
    listed = run.stage("swing").read_json("snapshots.json")
    assert [entry["name"] for entry in listed] == ["s0", "s1", "s2", "valid", "test", "final"]
    assert [entry["rows"] for entry in listed] == [800, 1600, 2400, 3200, 3600, 4000]
    assert manifest["counts"]["snapshots"] == 6
    assert manifest["counts"]["task_imbalance"] <= 1.3
    chosen = snapshot_for(listed, interactions()["timestamp"])
    assert np.unique(chosen).tolist() == [-1, 0, 1, 2, 3, 4]
    for entry in listed:
        items, users = load_snapshot(run.stage("swing"), entry["name"])
        assert items.pairs > 0
        assert len(users.user_items) <= entry["rows"]


def test_ray_computes_what_one_process_does(finished):
    run, manifest = finished
    rows = interactions()
    for name, known in {"s1": 1600, "final": N_ROWS}.items():
        items, _ = load_snapshot(run.stage("swing"), name)
        alone = item_neighbours(
            rows["user"][:known], rows["item"][:known], N_USERS, N_ITEMS, CONFIG.swing, seed=CONFIG.seed
        )
        for array in ("indptr", "indices", "scores", "common"):
            np.testing.assert_array_equal(getattr(items, array), getattr(alone, array))
    assert manifest["counts"]["item_pairs"] == alone.pairs


def test_final_tables_carry_external_ids(finished):
    run, manifest = finished
    folder = run.stage("swing").folder("final")
    items, index = load_snapshot(run.stage("swing"), "final")
    table = pl.read_parquet(folder.path("items.parquet"))
    assert table.columns == ["item_id", "neighbour_id", "score", "common_users"]
    first = table.filter(pl.col("item_id") == "m5")
    assert first["neighbour_id"].to_list() == [f"m{i}" for i in items.of(5)[0]]
    assert first["score"].to_list() == pytest.approx(items.of(5)[1].tolist())
    table, near = pl.read_parquet(folder.path("users.parquet")), user_neighbours(index)
    assert table.columns == ["user_id", "neighbour_id", "similarity", "common_items"]
    assert table.height == near.pairs == manifest["counts"]["user_pairs"]
    assert table.filter(pl.col("user_id") == "u9")["neighbour_id"].to_list() == [
        f"u{u}" for u in near.of(9)[0]
    ]


def test_rows_at_or_after_the_cut_change_nothing(finished, tmp_path):
    run, _ = finished
    other = prepared(tmp_path / "run", later_seed=99)
    execute(other, spec(CONFIG, other))
    for name in ("s0", "s1", "s2", "valid", "test"):
        assert contents(run, name) == contents(other, name)
    assert contents(run, "final") != contents(other, "final")


def test_kill_minus_nine_and_resume_give_the_same_bytes(finished, tmp_path):
    run, _ = finished
    killed = prepared(tmp_path / "run")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG.model_dump()))
    command = [
        sys.executable,
        "-m",
        "pipelines.swing",
        "--config",
        str(config),
        "--run",
        str(tmp_path / "run"),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    folder = killed.stage("swing")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not folder.exists("s0/done.json"):
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.4))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not folder.exists("manifest.json")
    before = {
        name: os.stat(folder.path(name)).st_mtime_ns for name in folder.names() if name.endswith("done.json")
    }

    manifest = execute(killed, spec(CONFIG, killed))
    assert manifest["resumed"]
    assert contents(killed) == contents(run)
    assert before == {name: os.stat(folder.path(name)).st_mtime_ns for name in before}, (
        "finished work was repeated"
    )


def test_a_row_that_is_several_tasks_worth_is_cut_and_comes_out_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(9000, dtype=np.int32), 3)
    items = np.where(np.arange(len(users)) % 3, 1 + rng.integers(0, 599, len(users)), 0).astype(np.int32)
    config = CONFIG.swing.model_copy(update={"max_users_per_item": 1 << 30})
    graph = ItemGraph.build(users, items, 9000, 600, config)
    everything = np.arange(600, dtype=np.int32)
    alone = NeighbourTable.assemble(600, [item_centric_rows(graph, everything, config, seed=7)])
    monkeypatch.setattr("ray_app.swing.items.ONE_TASK_STEPS", 0)

    for hot, least, most in ((9001, 3, 9), (9000, 1, 1.3)):
        monkeypatch.setattr("ray_app.swing.items.HOT_USERS", hot)
        spool, heard = Spool(600), []
        assert least <= neighbours.stream_items(spool, graph, config, 7, heard.append) <= most
        assert sum(heard) == 600
        rows = next(spool.chunks())
        np.testing.assert_array_equal(pointer(rows.lengths), alone.indptr)
        for array in ("indices", "scores", "common"):
            np.testing.assert_array_equal(getattr(rows, array), getattr(alone, array))


def test_a_lost_worker_costs_its_tasks_only(finished, tmp_path, monkeypatch):
    """The first worker to start an item task dies in it by SIGKILL, as a lost machine's would."""
    run, _ = finished
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    real = neighbours.item_rows

    def dying(graph, ranks, *, config, seed):
        if len(ranks):
            (attempts / f"{ranks[0]}-{uuid.uuid4().hex}").touch()
            with contextlib.suppress(FileExistsError):
                (tmp_path / "killed").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return real(graph, ranks, config=config, seed=seed)

    monkeypatch.setattr(neighbours, "item_rows", dying)
    monkeypatch.setattr(neighbours, "ROWS_PER_TASK", 10)
    hurt = prepared(tmp_path / "run")
    config = validate(CONFIG.model_dump() | {"swing": CONFIG.swing.model_dump() | {"snapshots": 1}}, "test")
    execute(hurt, spec(config, hurt))
    assert (tmp_path / "killed").exists()
    tasks = 4 * (N_ITEMS // 10)  # of the snapshots s0, valid, test and final
    assert tasks < len(list(attempts.iterdir())) <= tasks + 2
    for name in ("valid", "test", "final"):
        for file in ("items.indptr.npy", "items.indices.npy", "items.scores.npy", "items.common.npy"):
            assert hurt.stage("swing").read(f"{name}/{file}") == run.stage("swing").read(f"{name}/{file}")
