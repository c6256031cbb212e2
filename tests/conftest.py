"""What test modules share: the environment of `make test`, a Ray session, one small run of the stages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pipelines.env import environment
from ray_app.artifacts import Run, execute
from ray_app.config import Config
from tests.runs import small_config, write_inputs

if TYPE_CHECKING:
    from tests.postgres import Server

ROOT = Path(__file__).parents[1]
NEEDED = ("PATH", "TORCH_EXTENSIONS_DIR", "NUMBA_CACHE_DIR", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Of what `pipelines.env` sets: what a plain `pytest` must have too, so that DeepSpeed compiles nothing."""
os.environ.update({name: value for name, value in environment(ROOT).items() if name in NEEDED})


class SmallRun(NamedTuple):
    """A run whose stages up to `mix` are finished, the config it was made with, and the files it read."""

    config: Config
    run: Run
    inputs: Path


@contextmanager
def private_ray() -> Iterator[None]:
    """A Ray session of 4 logical CPUs; one that is there already is used and left alone."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with private_ray():
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """60 users, 80 items, 3,000 ratings through prepare, swing, encode, reason and mix.

    Copy the run's folder before you add a stage to it: all tests share this one.
    """
    from pipelines import encode, mix, prepare, reason, swing

    inputs = tmp_path_factory.mktemp("inputs")
    write_inputs(inputs)
    config, run = small_config(inputs), Run(tmp_path_factory.mktemp("small") / "run")
    with private_ray():
        for stage in (prepare, swing, encode, reason, mix):
            execute(run, stage.spec(config, run))
    return SmallRun(config, run, inputs)


@pytest.fixture(scope="session")
def trained_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """`small_run` trained by one worker, without any checkpoint. Copy it before you add to it."""
    from pipelines import train

    root = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(small_run.run.folder.root, root)
    run = Run(root)
    with private_ray():
        execute(run, train.spec(small_run.config, run))
    return small_run._replace(run=run)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty place on a real S3 server process."""
    from tests.s3 import BUCKET, s3_server

    with s3_server(tmp_path_factory.mktemp("s3")):
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A real PostgreSQL server."""
    from tests.postgres import binaries, postgres_server

    if (programs := binaries()) is None:
        pytest.skip("needs PostgreSQL's server (Debian: apt-get install postgresql)")
    with postgres_server(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind that a store may be on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the synthetic bundle: to read only."""
    from tests.bundles import make_bundle

    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(folder)
    return folder


@pytest.fixture
def bundle(published: Path, tmp_path: Path):
    """A copy of the synthetic bundle, for a test whose feedback goes into its store."""
    from ray_app.bundle import Bundle

    shutil.copytree(published, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")
