import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import ray

from pipelines.prepare import spec
from ray_app import records
from ray_app.artifacts import Run, execute
from ray_app.config import Config
from ray_app.data.store import Store
from ray_app.errors import DataError
from ray_app.records import Interaction

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inputs(tmp_path) -> Path:
    """30 rows of 3 users and 5 items at 30 times, in files."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [f"u{n % 3},i{n % 5},{1000 + n},{n % 5 + 1}" for n in range(30)]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp,rating\n" + "\n".join(rows) + "\n")
    items = [f'i{n},"Film {n}, The ({1990 + n})",Drama|Crime' for n in range(5)]
    (folder / "items.csv").write_text("item_id,title,features\n" + "\n".join(items) + "\n")
    return folder


def config(inputs: Path, **data: object) -> Config:
    paths = {table: str(inputs / f"{table}.csv") for table in ("interactions", "items")}
    return Config.model_validate({"data": {"source": "files", **paths, **data}})


def prepared(config: Config, run: Run) -> dict:
    return execute(run, spec(config, run))


def test_the_stage_writes_its_tables_in_their_schemas(inputs, tmp_path):
    run = Run(tmp_path / "run")
    manifest = prepared(config(inputs), run)
    assert manifest["counts"] == {
        "users": 3,
        "items": 5,
        "interactions": 30,
        "train": 24,
        "valid": 3,
        "test": 3,
        "evaluated_on": "test",
        "rejected": 0,
        "years_unread": 0,
        "positive_share": 0.4,
    }
    folder = run.stage("prepare")
    for name, schema in {
        "interactions": records.INTERACTIONS,
        "items": records.ITEMS,
        "users": records.USERS,
        "rejects/interactions": records.REJECTS,
    }.items():
        assert pq.read_schema(folder.path(f"{name}.parquet")).equals(schema)
    first = records.item_record(pl.read_parquet(folder.path("items.parquet")).row(0, named=True))
    assert (first.title, first.year, first.features) == ("The Film 0", 1990, ["Drama", "Crime"])


def test_it_is_skipped_until_an_input_or_a_key_changes(inputs, tmp_path):
    run = Run(tmp_path / "run")
    prepared(config(inputs), run)
    assert prepared(config(inputs), run)["skipped"] is True
    assert "skipped" not in prepared(config(inputs, positive_rating=3), run)
    with open(inputs / "interactions.csv", "a") as file:
        file.write("u0,i0,2000,5\n")
    assert prepared(config(inputs, positive_rating=3), run)["counts"]["interactions"] == 31


def test_rejects_are_written_even_when_they_stop_the_run(inputs, tmp_path):
    with open(inputs / "interactions.csv", "a") as file:
        file.write("u0,i99,2000,5\nu0,i0\n")
    run = Run(tmp_path / "run")
    with pytest.raises(
        DataError, match=r"2 of 32 rows rejected \(1 .*, 1 .*\), more than .*rejects/interactions"
    ):
        prepared(config(inputs), run)
    rejects = pl.read_parquet(run.stage("prepare").path("rejects/interactions.parquet"))
    assert rejects.select("line", "reason").rows() == [(32, "unknown item_id"), (33, "malformed line")]
    assert not run.stage("prepare").exists("manifest.json")
    assert prepared(config(inputs, max_reject_rate=0.1), run)["counts"]["rejected"] == 2


def test_a_split_column_is_followed_and_an_absent_test_must_be_allowed(inputs, tmp_path):
    frame = pl.read_csv(inputs / "interactions.csv").with_columns(
        split=pl.when(pl.col("timestamp") < 1020).then(pl.lit("train")).otherwise(pl.lit("valid"))
    )
    frame.write_csv(inputs / "interactions.csv")
    run = Run(tmp_path / "run")
    with pytest.raises(DataError, match="split test has 0 of 30 interactions"):
        prepared(config(inputs), run)
    counts = prepared(config(inputs, allow_empty_test=True), run)["counts"]
    assert (counts["train"], counts["valid"], counts["test"], counts["evaluated_on"]) == (20, 10, 0, "valid")


@pytest.mark.slow
def test_a_folder_is_read_through_ray_and_gives_what_one_file_gives(inputs, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    whole = pl.read_csv(inputs / "interactions.csv")
    whole[:10].write_parquet(parts / "a.parquet")
    whole[10:20].write_csv(parts / "b.csv")
    whole[20:].write_parquet(parts / "c.parquet")
    with open(parts / "b.csv", "a") as file:
        file.write("u0,i0\n")
    one, many = Run(tmp_path / "one"), Run(tmp_path / "many")
    prepared(config(inputs), one)
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    try:
        settings = config(inputs, interactions=str(parts), max_reject_rate=0.1)
        assert prepared(settings, many)["counts"]["rejected"] == 1
        (parts / "d.parquet").write_bytes(b"not parquet")
        with pytest.raises(DataError, match=r"^d.parquet is not a Parquet file"):
            prepared(settings, Run(tmp_path / "bad"))
    finally:
        ray.shutdown()
    for name in ("interactions", "items", "users"):
        left, right = (pl.read_parquet(run.stage("prepare").path(f"{name}.parquet")) for run in (one, many))
        assert left.equals(right)
    rejects = pl.read_parquet(many.stage("prepare").path("rejects/interactions.parquet"))
    assert rejects.select("line", "reason", "row").rows() == [(12, "malformed line", "u0,i0")]


@pytest.mark.slow
def test_movielens_100k_is_fetched_and_whole(tmp_path):
    run = Run(tmp_path / "run")
    counts = prepared(Config(), run)["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (943, 1682, 100_000)
    assert counts["rejected"] == 0
    assert counts["positive_share"] == 0.5537
    items = pl.read_parquet(run.stage("prepare").path("items.parquet")).to_dicts()
    assert records.item_record(items[63]).title == "The Shawshank Redemption"
    assert records.item_record(items[1411]).year == 1995


@pytest.mark.slow
def test_the_command_line_ends_in_one_line_for_a_user_error(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {source: files, interactions: gone.csv, items: gone.csv}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines.prepare",
            "--config",
            f"{tmp_path}/c.yaml",
            "--run",
            f"{tmp_path}/run",
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: input gone.csv does not exist: correct the path")
    )


def test_what_the_service_collected_is_in_the_next_run_and_not_doubled_in_the_store(
    inputs, tmp_path, database
):
    run, learning = Run(tmp_path / "run"), config(inputs, store_feedback="own")
    learning = learning.model_copy(update={"serve": learning.serve.model_copy(update={"store": database})})
    assert "feedback" not in prepared(learning, run)["counts"], "there is no store yet"

    def publish(version: str) -> dict[str, int]:
        names = ("items", "users", "interactions")
        frames = (pl.read_parquet(run.stage("prepare").path(f"{name}.parquet")) for name in names)
        store.load(*frames, version=version)
        return store.counts()

    store = Store(database)
    assert publish("v1")["interactions"] == 30
    liked = Interaction(user_id="new", item_id="i3", timestamp=5000, label=1)
    store.add(liked, event="page", key="k1")
    assert "skipped" not in prepared(learning, run)
    manifest = prepared(learning, run)
    assert manifest["skipped"]
    counts = manifest["counts"]
    assert (counts["interactions"], counts["feedback"], counts["users"], counts["rejected"]) == (31, 1, 4, 0)
    last = pl.read_parquet(run.stage("prepare").path("interactions.parquet")).row(-1, named=True)
    assert (last["timestamp"], last["label"], last["rating"]) == (5000, 1, None)
    assert publish("v2") == {"users": 4, "items": 5, "interactions": 31, "feedback": 1}
    assert store.history("new") == [liked]
    assert prepared(learning, run)["skipped"], "the rows of the bundle are no feedback"
    store.close()
