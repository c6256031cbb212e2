"""Run folders on S3, against a real server process: what other processes see, errors, stages, resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import boto3
import numpy as np
import polars as pl
import pytest

from pipelines import encode, prepare, swing
from pipelines.checks import Patient, storage
from ray_app.artifacts import Folder, Run, execute, is_current
from ray_app.config import Config
from ray_app.errors import ArtifactError, ConfigError
from tests.conftest import SmallRun, private_ray
from tests.s3 import BUCKET

NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
pytestmark = pytest.mark.slow


@pytest.fixture
def place(s3: str) -> str:
    return f"{s3}/{uuid4().hex}"


def test_what_another_process_writes_and_removes_is_seen_at_once(place):
    folder, other = Folder(place), boto3.client("s3")
    name = f"{place.removeprefix(f's3://{BUCKET}/')}/shards"
    folder.write("shards/0.json", b"0")
    assert folder.names() == ["shards/0.json"]
    other.put_object(Bucket=BUCKET, Key=f"{name}/1.json", Body=b"1")
    assert folder.names() == ["shards/0.json", "shards/1.json"]
    other.delete_object(Bucket=BUCKET, Key=f"{name}/0.json")
    assert folder.names() == ["shards/1.json"]
    assert not folder.exists("shards/0.json")


def test_tables_are_read_by_polars_where_the_folder_says_they_are(place):
    folder = Folder(place)
    with folder.replacing("shards/a.parquet") as local:
        pl.DataFrame({"n": [1, 2]}).write_parquet(local)
    assert pl.read_parquet(folder.path("shards/a.parquet"))["n"].to_list() == [1, 2]
    assert pl.scan_parquet(folder.path("shards/*.parquet")).collect().height == 2


def test_a_bucket_that_is_not_there_is_one_line(s3):
    with pytest.raises(ArtifactError, match=r"^bucket nowhere of run s3://nowhere/run does not exist"):
        Run("s3://nowhere/run").reach()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "connect"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
            "redential",
        ),
    ],
    ids=["no server", "no keys"],
)
def test_storage_out_of_reach_is_one_line_of_the_command(s3, tmp_path, changed, reason):
    environment = {key: value for key, value in {**os.environ, **changed}.items() if value}
    command = [sys.executable, "-m", "pipelines.prepare", "--run", f"s3://{BUCKET}/run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: run s3://{BUCKET}/run cannot be reached (")
    assert reason in done.stderr


def test_doctor_writes_and_removes_its_probe(s3, place):
    found = list(storage(Patient(Path(), Config(), place)))
    assert [one.state for one in found] == ["ok", "ok"]
    assert Folder(place).names() == []


def test_stages_on_s3_make_what_they_make_on_disk(place, small_run: SmallRun):
    run = Run(f"{place}/run")
    with private_ray():
        for stage in (prepare, swing, encode):
            execute(run, stage.spec(small_run.config, run))
    for stage in (prepare, swing, encode):
        spec = stage.spec(small_run.config, run)
        assert is_current(run, spec)
        assert execute(run, spec)["skipped"]
    local = small_run.run
    for table in ("interactions", "items", "users"):
        ours, theirs = (one.stage("prepare").path(f"{table}.parquet") for one in (run, local))
        assert pl.read_parquet(ours).equals(pl.read_parquet(theirs))
    for name in ("user.npy", "item.npy"):
        ours, theirs = (np.load(one.stage("encode").local() / name) for one in (run, local))
        assert np.array_equal(ours, theirs)


def test_a_scheme_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"^s3://b/run .* not installed: pip install .*cluster\.txt$"):
        Run("s3://b/run")
    with pytest.raises(ConfigError, match=r"^nope://b/run is on no storage that is known here"):
        Run("nope://b/run")
