"""The reason stage on Ray, over real prepare, swing and encode: traces, faults, and kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pyarrow.parquet as pq
import pytest
import ray

from pipelines import encode, prepare, reason, swing
from pipelines.reason_journal import journal_name
from ray_app.artifacts import Run, execute
from ray_app.config import Config, validate
from ray_app.errors import DataError, EngineError
from ray_app.records import TRACES, Context, Trace
from ray_app.teacher.selection import MIN_EARLIER
from ray_app.teacher.verification import bare, check, step_problem
from tests.runs import write_inputs

pytestmark = pytest.mark.slow
N_USERS, N_ITEMS, N_ROWS = 60, 50, 3000


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True
    )
    yield
    ray.shutdown()


def configure(inputs, **reasoning) -> Config:
    paths = {table: str(inputs / f"{table}.csv") for table in ("interactions", "items")}
    cache = {"cache": str(inputs / "cache")}
    tree = {
        "data": {"source": "files", **paths, **cache},
        "swing": {"snapshots": 1, "min_behavior": 1},
        "ray": {"num_cpus": 4},
        "reason": {"fraction": 0.2, "shard_rows": 100, "batch_size": 32, **reasoning},
    }
    return validate(tree, "test")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Users who like one of five genres, in files."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, N_USERS, N_ITEMS, N_ROWS, fond=None)
    return folder


@pytest.fixture(scope="module")
def encoded(inputs, tmp_path_factory):
    """A run whose stages before `reason` are finished."""
    config, run = configure(inputs), Run(tmp_path_factory.mktemp("base") / "run")
    for stage in (prepare, swing, encode):
        execute(run, stage.spec(config, run))
    return run


@pytest.fixture
def fresh(encoded, tmp_path):
    """A copy of that run, to reason in."""
    shutil.copytree(encoded.folder.root, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def finished(encoded, inputs):
    config = configure(inputs, engine={"replicas": 2})
    return encoded, execute(encoded, reason.spec(config, encoded))


def shards(run: Run) -> dict[str, bytes]:
    folder = run.stage("reason")
    return {name: folder.read(name) for name in folder.names("shards")}


def test_shards_hold_verified_traces_of_training_rows(finished):
    run, manifest = finished
    folder = run.stage("reason")
    names = folder.names("shards")
    counts = manifest["counts"]
    assert names == [f"shards/{n:05d}.parquet" for n in range(5)]
    assert counts["rows"] == round(0.2 * 0.8 * N_ROWS) == 480
    assert counts["dead"] == 0
    assert counts["acceptance"] > 0.5
    assert counts["accepted"] == counts["blind"] + counts["reflected"]
    rows = pl.read_parquet(run.stage("prepare").path("interactions.parquet"))
    seen = set()
    for name in names:
        assert pq.read_schema(folder.path(name)).equals(TRACES)
        for row in pl.read_parquet(folder.path(name)).iter_rows(named=True):
            trace = Trace.model_validate_json(row["trace"])
            context = Context.model_validate_json(row["context"])
            known = rows.row(row["row_id"], named=True)
            assert known["split"] == "train"
            assert trace.label == bool(known["label"])
            assert context.timestamp == known["timestamp"]
            assert context.history_count >= MIN_EARLIER
            assert (trace.accepted, trace.path, trace.reason) == (row["accepted"], row["path"], row["reason"])
            reasons = trace.steps[:-1] if bare(trace.steps, context) else trace.steps
            assert len(reasons) > 0
            assert all(step_problem(step, context) == "" for step in reasons)
            assert not trace.accepted or trace.verdict == trace.label
            assert (trace.row_id, trace.path) not in seen
            seen.add((trace.row_id, trace.path))
    assert len(seen) == counts["traces"]


def test_the_quality_report_adds_up(finished):
    run, manifest = finished
    report = run.stage("reason").read_json("quality.json")
    for table in ("by_template", "by_round", "by_stratum", "by_verdict"):
        assert sum(entry["traces"] for entry in report[table].values()) == report["traces"]
    assert report["accepted"] + sum(report["rejects"].values()) == report["traces"]
    assert report["coverage_of_data"]["strata"] >= report["coverage_of_data"]["strata_random"]
    assert report["template_balance"] > 0.95
    assert sum(report["lengths"].values()) == report["accepted"]
    page = run.stage("reason").read("quality.html").decode()
    assert all(f"<td>{count:,}</td>" in page for count in report["rejects"].values())
    assert all(sample["title"] for kind in report["samples"].values() for sample in kind)
    assert manifest["counts"]["rejects"] == report["rejects"]


def test_an_up_to_date_stage_is_skipped_and_how_it_is_made_does_not_matter(finished, inputs):
    run, _ = finished
    config = configure(inputs, batch_size=7, engine={"replicas": 1})
    assert execute(run, reason.spec(config, run))["skipped"]


def test_kill_minus_nine_and_resume_give_the_same_shards(finished, fresh, inputs, tmp_path):
    run, _ = finished
    shutil.rmtree(fresh.stage("reason").root, ignore_errors=True)
    # One engine, one row at a time: slow enough to be killed in the midst, and it must not matter.
    config = configure(inputs, batch_size=1)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config.model_dump()))
    command = [sys.executable, "-m", "pipelines.reason", "--config", str(file), "--run", fresh.folder.uri]
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_JOB_ID")
    }
    folder = fresh.stage("reason")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not folder.exists("shards/00001.parquet"):
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not folder.exists("manifest.json")
    assert len(folder.names("shards")) < 5
    # A worker that takes a shard writes its journal; curation, which comes last, may touch the shard itself.
    finished_shards = [journal_name(int(name[7:12])) for name in folder.names("shards")]
    before = {name: os.stat(folder.path(name)).st_mtime_ns for name in finished_shards}

    begin, done = time.monotonic(), len(finished_shards)
    manifest = execute(fresh, reason.spec(config, fresh))
    print(f"\nkill -9 of the driver: {5 - done} shards left, done in {time.monotonic() - begin:.1f} s")
    assert manifest["resumed"]
    assert shards(fresh) == shards(run)
    after = {name: os.stat(folder.path(name)).st_mtime_ns for name in before}
    assert after == before, "finished shards were made again"


class Teacher:
    """An endpoint that answers every prompt with the same true-or-false sentence about [e1].

    Prompts about `refused` are always refused; prompts about `shaky` only once each.
    """

    def __init__(self, refused: str, shaky: str):
        self.asked = 0
        failed: set[str] = set()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                prompt = body["messages"][0]["content"]
                target = prompt.split('Target item: "', 1)[1].split('"')[0]
                teacher.asked += 1
                bad = target == refused or (target == shaky and prompt not in failed)
                failed.add(prompt)
                text = "Answer: Yes\nReasoning:\n1. The user liked [e1], so the user would enjoy it."
                answer = {"choices": [{"message": {"content": text}}] * body["n"]}
                content = json.dumps({"error": "no"} if bad else answer).encode()
                self.send_response(422 if bad else 200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def test_rows_that_cannot_be_served_are_tried_again_then_kept_with_their_reason(fresh, inputs):
    items = pl.read_parquet(fresh.stage("prepare").path("items.parquet"))
    refused, shaky = items["title"][0], items["title"][1]
    teacher = Teacher(refused, shaky)
    engine = {"kind": "openai", "model": "fixed", "base_url": teacher.url, "timeout_s": 10}
    config = configure(inputs, engine=engine, fraction=0.05, rounds=0, paths=1)
    counts = execute(fresh, reason.spec(config, fresh))["counts"]
    chosen, _, _ = reason.choose(config, fresh)
    rows = pl.read_parquet(fresh.stage("prepare").path("interactions.parquet"))
    item_of = dict(zip(rows["row_id"], rows["item"], strict=True))
    folder = fresh.stage("reason")

    def rows_in(names):
        frames = [pl.read_parquet(folder.path(name)) for name in names]
        return pl.concat(frames).to_dicts()

    dead = rows_in(folder.names("dead"))
    assert {row["row_id"] for row in dead} == {row for row, _ in chosen if item_of[row] == 0}
    assert {(row["attempts"], row["reason"]) for row in dead} == {(2, 'status 422: {"error": "no"}')}
    again = rows_in([name for name in folder.names("shards") if "-retry" in name])
    assert {row["row_id"] for row in again} == {row for row, _ in chosen if item_of[row] == 1}
    assert counts["dead"] == len(dead) > 0
    assert counts["rows"] == len(chosen) - len(dead)
    for row in rows_in(folder.names("shards")):
        trace, context = Trace.model_validate_json(row["trace"]), Context.model_validate_json(row["context"])
        true = trace.label and context.evidence[0].sign > 0
        assert (trace.accepted or trace.reason == "near_duplicate") == true
        assert check_again(trace, context) == (true, "" if true else trace.reason)

    asked = teacher.asked
    shutil.rmtree(folder.root)
    execute(fresh, reason.spec(config, fresh))
    assert teacher.asked - asked == 2 * len(dead), "answers of the first run came from the cache"
    teacher.server.shutdown()


def check_again(trace: Trace, context: Context) -> tuple[bool, str]:
    from ray_app.prompts.parse import Parsed

    return check(Parsed(trace.verdict, trace.steps), context, trace.label)[:2]


def test_an_engine_that_cannot_start_or_serve_is_one_clear_error(fresh, inputs):
    missing = configure(inputs, engine={"kind": "vllm", "model": "/no/such/model"})
    with pytest.raises(EngineError, match=r"^model folder /no/such/model does not exist: correct"):
        execute(fresh, reason.spec(missing, fresh))
    nobody = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    many_rows = configure(inputs, engine=nobody, batch_size=4)
    with pytest.raises(EngineError, match=r"^http://127.0.0.1:9/v1.* cannot be reached.*: start the server$"):
        execute(fresh, reason.spec(many_rows, fresh))
    assert not fresh.stage("reason").exists(reason.shard_name(0))
    assert not fresh.stage("reason").exists("manifest.json")


class Planted:
    """Contexts whose target says what came of it."""

    def __init__(self, config: Config, run_uri: str):
        self._source = reason.open_contexts(config, run_uri)

    def build(self, row_ids):
        labels = self._source.labels  # pyright: ignore[reportAttributeAccessIssue]
        built = self._source.build(row_ids)
        return [
            about.model_copy(
                update={
                    "target": about.target.model_copy(
                        update={"description": f"Last seen, rated {5 if labels[row] else 2}."}
                    )
                }
            )
            for row, about in zip(row_ids, built, strict=True)
        ]


def test_a_label_planted_in_the_context_stops_the_stage(fresh, inputs):
    # One shard: every row of a shard is looked at before it is written.
    config = configure(inputs, shard_rows=400, batch_size=400, fraction=0.16)
    with pytest.raises(
        DataError, match=r'^the prompts give the answer away: \d+ rows have ".+", of which \d+% are'
    ):
        execute(fresh, reason.spec(config, fresh, Planted))
    assert not fresh.stage("reason").names("shards")


def test_too_small_a_fraction_is_named(fresh, inputs):
    config = configure(inputs, fraction=1e-6)
    with pytest.raises(DataError, match=r"reason\.fraction 1e-06 asks for 0"):
        execute(fresh, reason.spec(config, fresh))
