"""Faults of the teacher's stage with real processes: no row is lost and none is there twice.

Each test prints how long it took to recover; `docs/reliability.md` holds a table of them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import polars as pl
import psutil
import pytest
import ray

from pipelines import encode, prepare, reason, swing
from ray_app.artifacts import Run, execute
from ray_app.config import Config, validate
from tests.runs import write_inputs

pytestmark = pytest.mark.heavy
USERS, ITEMS, ROWS = 60, 50, 3000
ANSWER = "Answer: Yes\nReasoning:\n1. The user liked [e1], so the user would enjoy it."


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    ray.init(address="local", num_cpus=4, include_dashboard=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, USERS, ITEMS, ROWS, fond=None)
    return folder


def configure(inputs: Path, **reasoning) -> Config:
    tree = {
        "data": {
            "source": "files",
            "cache": str(inputs / "cache"),
            **{table: str(inputs / f"{table}.csv") for table in ("interactions", "items")},
        },
        "swing": {"snapshots": 1, "min_behavior": 1},
        "ray": {"num_cpus": 4},
        "reason": {"fraction": 0.1, "shard_rows": 60, "batch_size": 20, **reasoning},
    }
    return validate(tree, "test")


@pytest.fixture(scope="module")
def encoded(inputs, tmp_path_factory) -> Run:
    config, run = configure(inputs), Run(tmp_path_factory.mktemp("base") / "run")
    for stage in (prepare, swing, encode):
        execute(run, stage.spec(config, run))
    return run


@pytest.fixture
def fresh(encoded, tmp_path) -> Run:
    shutil.copytree(encoded.folder.root, tmp_path / "run")
    return Run(tmp_path / "run")


def served(run: Run) -> list[int]:
    """Rows that have traces, once per shard that has them."""
    folder = run.stage("reason")
    names = folder.names("shards")
    return [row for name in names for row in pl.read_parquet(folder.path(name))["row_id"].unique().to_list()]


def dead(run: Run) -> dict[int, tuple[str, int]]:
    folder = run.stage("reason")
    rows = [row for name in folder.names("dead") for row in pl.read_parquet(folder.path(name)).to_dicts()]
    return {row["row_id"]: (row["reason"], row["attempts"]) for row in rows}


def nothing_lost(config: Config, run: Run) -> None:
    """Each chosen row has traces in one shard, or is a dead letter."""
    chosen = sorted(row for row, _ in reason.choose(config, run)[0])
    assert sorted([*served(run), *dead(run)]) == chosen


class Deadly:
    """Contexts that end their own process, or hang, over a row named in a file."""

    def __init__(self, config: Config, run_uri: str):
        self._source = reason.open_contexts(config, run_uri)
        self._orders = Path(run_uri) / "orders.json"

    def build(self, row_ids):
        orders = json.loads(self._orders.read_text())
        deadly = orders["row"] in row_ids
        with open(self._orders.parent / "log", "a") as log:
            log.write(json.dumps([deadly, len(row_ids), time.time()]) + "\n")
        if deadly and orders["how"] == "hang":
            time.sleep(600)
        if deadly and len(deaths(self._orders.parent)) <= orders["times"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._source.build(row_ids)


def order(config: Config, run: Run, how: str, times: int = 99) -> int:
    """Make a row in the midst of the second shard deadly."""
    row = sorted(row for row, _ in reason.choose(config, run)[0])[85]
    Path(run.folder.root, "orders.json").write_text(json.dumps({"row": row, "how": how, "times": times}))
    return row


def batches(folder: Path) -> list[tuple[bool, int, float]]:
    """Of each batch that was begun: is the deadly row in it, its rows, and when."""
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def deaths(folder: Path) -> list[int]:
    """How many rows were in each batch with the deadly row."""
    return [rows for deadly, rows, _ in batches(folder) if deadly]


def tell_recovery(what: str, run: Run) -> None:
    """Print how long after each deadly batch the next one was begun."""
    begun = batches(Path(run.folder.root))
    waits = [after[2] - before[2] for before, after in pairwise(begun) if before[0]]
    print(f"\n{what}: next batch begun after {', '.join(f'{wait:.1f}' for wait in waits)} s")


def test_an_engine_actor_that_is_killed_is_replaced_and_no_trace_changes(fresh, encoded, inputs, capfd):
    config = configure(inputs)
    order(config, fresh, "kill", times=1)
    counts = execute(fresh, reason.spec(config, fresh, Deadly))["counts"]
    folder = Path(fresh.folder.root)
    assert deaths(folder) == [20, 1]
    assert counts["dead"] == 0
    nothing_lost(config, fresh)
    assert "the engine's process was lost" in capfd.readouterr().out
    with capfd.disabled():
        tell_recovery("kill -9 of the engine's process", fresh)
    undisturbed = Run(Path(fresh.folder.root).parent / "undisturbed")
    shutil.copytree(encoded.folder.root, undisturbed.folder.root)
    execute(undisturbed, reason.spec(config, undisturbed))
    for name in undisturbed.stage("reason").names("shards"):
        assert fresh.stage("reason").read(name) == undisturbed.stage("reason").read(name)


def test_a_row_that_always_kills_the_engine_is_quarantined_alone(fresh, inputs):
    config = configure(inputs)
    row = order(config, fresh, "kill")
    counts = execute(fresh, reason.spec(config, fresh, Deadly))["counts"]
    assert deaths(Path(fresh.folder.root)) == [20, 1, 1], "once in its batch, twice alone"
    assert dead(fresh) == {row: ("the engine's process was lost 2 times over this row alone", 2)}
    assert counts["dead"] == 1
    nothing_lost(config, fresh)
    assert fresh.stage("reason").read_json("quality.json")["engines_lost"] == 3
    tell_recovery("a row that always kills the engine", fresh)


def test_a_row_over_which_the_engine_hangs_is_found_by_the_stall_limit(fresh, inputs):
    config = configure(inputs, stall_s=8)
    row = order(config, fresh, "hang")
    execute(fresh, reason.spec(config, fresh, Deadly))
    assert set(dead(fresh)) == {row}
    nothing_lost(config, fresh)
    tell_recovery("the engine hangs, stall_s 8", fresh)


def test_a_full_disk_is_one_clear_error_and_the_stage_goes_on_once_there_is_room(encoded, inputs, tmp_path):
    config = configure(inputs, batch_size=60, engine={"replicas": 1})
    disk = tmp_path / "disk"
    disk.mkdir()
    # Pages of 4 kB: what is there already, and room for a shard or two.
    files = [file for file in Path(encoded.folder.root).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size // 4096 + 1 for file in files) * 4 + 200
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs takes root")
    shutil.copytree(encoded.folder.root, disk / "run")
    fresh, folder = Run(disk / "run"), disk / "run" / "reason"
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config.model_dump()))
    command = [sys.executable, "-m", "pipelines.reason", "--config", str(file), "--run", fresh.folder.uri]
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_JOB_ID")
    }
    try:
        full = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=400
        )
        assert full.returncode == 2
        (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
        assert "No space left on device: mend that, then run the stage again" in line
        before = served(fresh)
        assert 0 < len(before) < 240
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        begin = time.monotonic()
        manifest = execute(fresh, reason.spec(config, fresh))
        assert manifest["resumed"]
        print(f"\ndisk full: {240 - len(before)} rows left, done in {time.monotonic() - begin:.1f} s")
        nothing_lost(config, fresh)
        assert not [name for name in os.listdir(folder / "shards") if name.startswith(".partial")]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def endpoint(behave) -> Iterator[str]:
    """A chat-completions server; `behave(n, request)` gives a status and a body, or None to hang."""
    asked = iter(range(10**9))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = behave(next(asked), body)
            if answer is None:
                time.sleep(5)
                return
            status, content = answer
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def good(body: dict) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": ANSWER}}] * body["n"]}).encode()


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ((500, b'{"error": "boom"}'), "status 500"),
        ((200, b"<html>rubbish</html>"), "not a chat completion"),
        (None, "timeout"),
    ],
)
def test_a_server_that_turns_bad_ends_the_stage_and_resuming_asks_only_what_is_left(
    fresh, inputs, tmp_path, bad, told
):
    from ray_app.errors import EngineError

    turned = threading.Event()

    def behave(number, body):
        return bad if turned.is_set() or number >= 100 else good(body)

    with endpoint(behave) as url:
        engine = {"kind": "openai", "model": "m", "base_url": url, "timeout_s": 60 if bad else 1}
        config = configure(inputs, engine=engine, paths=1, rounds=0, shard_rows=60, batch_size=20)
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"cache": str(tmp_path / "c")})}
        )
        begin = time.monotonic()
        with pytest.raises(EngineError, match=rf"^none of 20 rows could be served; the first .*{told}"):
            execute(fresh, reason.spec(config, fresh))
        ended = time.monotonic() - begin
        done = served(fresh)
        assert len(done) == 100, "what was served before is kept"
    with endpoint(lambda number, body: good(body)) as url:
        engine |= {"base_url": url}
        config = configure(inputs, engine=engine, paths=1, rounds=0, shard_rows=60, batch_size=20)
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"cache": str(tmp_path / "c")})}
        )
        begin = time.monotonic()
        assert execute(fresh, reason.spec(config, fresh))["resumed"]
    left = time.monotonic() - begin
    print(f"\nserver, {told}: the stage ended after {ended:.1f} s, the other 140 rows took {left:.1f} s")
    nothing_lost(config, fresh)
    assert set(done) < set(served(fresh))
    assert dead(fresh) == {}


def test_a_node_that_is_killed_costs_no_row(fresh, inputs):
    ray.shutdown()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second = cluster.add_node(num_cpus=2)
    try:
        ray.init(address=cluster.address)
        cluster.wait_for_nodes()
        config = configure(inputs, batch_size=1, shard_rows=30, engine={"replicas": 3})
        folder = fresh.stage("reason")

        def kill():
            deadline = time.monotonic() + 300
            while not folder.names("shards") and time.monotonic() < deadline:
                time.sleep(0.02)
            raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
            for process in [*raylet.children(recursive=True), raylet]:
                process.kill()
            killed.append(time.monotonic())

        killed: list[float] = []
        killer = threading.Thread(target=kill)
        killer.start()
        counts = execute(fresh, reason.spec(config, fresh))["counts"]
        killer.join()
        print(f"\na node is killed: all rows done {time.monotonic() - killed[0]:.1f} s later")
        assert len([node for node in ray.nodes() if node["Alive"]]) == 1
        nothing_lost(config, fresh)
        assert counts["dead"] == 0
    finally:
        ray.shutdown()
        cluster.shutdown()
        ray.init(address="local", num_cpus=4, include_dashboard=False)
