"""Where the service finds what it serves, and the Serve config files that are shipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.serve.config import AutoscalingConfig

from ray_app.config import ServeConfig
from ray_app.errors import ConfigError
from serve.settings import settings

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "local.yaml")
AGENTS = {"Ingress", "Retrieval", "Swing", "Reasoning", "Reflection", "Explanation"}


def test_bundle_and_store_lie_in_the_run(tmp_path):
    found = settings({"config": CONFIG, "run": str(tmp_path)})
    assert found.bundle == f"{tmp_path}/publish/bundle"
    assert found.store == f"sqlite:///{tmp_path}/store.sqlite"


def test_a_bundle_of_its_own(tmp_path):
    assert settings({"config": CONFIG, "run": str(tmp_path), "bundle": "/b"}).bundle == "/b"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"config": CONFIG}, "'run' is missing"),
        ({"run": "runs/local"}, "'config' is missing"),
        ({"config": CONFIG, "run": "runs/local", "port": "1"}, "unknown argument 'port'"),
        ({"config": "nowhere.yaml", "run": "runs/local"}, "nowhere.yaml does not exist"),
        ({"config": CONFIG, "run": "memory://runs/far"}, "set serve.store"),
    ],
)
def test_wrong_arguments_are_named(args, words):
    with pytest.raises(ConfigError, match=words):
        settings(args)


@pytest.fixture(params=["local", "production"])
def served(request):
    return yaml.safe_load((ROOT / "configs" / "serve" / f"{request.param}.yaml").read_text())


def test_shipped_files_are_valid_and_name_real_deployments(served):
    from ray.serve.schema import ServeDeploySchema

    from serve import app

    schema = ServeDeploySchema.model_validate(served)
    (application,) = schema.applications
    assert application.import_path == f"{app.__name__}:{app.build.__name__}"
    assert set(application.args) <= {"config", "run", "bundle"}
    assert {deployment.name for deployment in application.deployments} <= AGENTS


def test_shipped_files_are_read_where_our_code_is_not(served, tmp_path):
    """By the dashboard of a cluster's head."""
    (tmp_path / "served.yaml").write_text(yaml.safe_dump(served))
    read = "import yaml; from ray.serve.schema import ServeDeploySchema as S; "
    read += "S.model_validate(yaml.safe_load(open('served.yaml')))"
    subprocess.run([sys.executable, "-c", read], cwd=tmp_path, check=True, timeout=120)


def test_serve_builds_a_file_from_the_application(tmp_path):
    names = {"RATIONALE_RUN": str(tmp_path / "run")}
    command = [
        str(Path(sys.executable).parent / "serve"),
        "build",
        "serve.app:app",
        "-o",
        f"{tmp_path}/o.yaml",
    ]
    subprocess.run(command, cwd=ROOT, env=os.environ | names, check=True, timeout=120)
    (application,) = yaml.safe_load((tmp_path / "o.yaml").read_text())["applications"]
    assert application["import_path"] == "serve.app:app"
    assert {deployment["name"] for deployment in application["deployments"]} == AGENTS


def test_the_local_file_stays_on_loopback():
    served = yaml.safe_load((ROOT / "configs" / "serve" / "local.yaml").read_text())
    assert served["http_options"]["host"] == "127.0.0.1"


def test_reasoning_is_fixed_or_scales_as_configured():
    from serve.deployments import reasoning

    assert reasoning(ServeConfig(reasoning_replicas=2)).num_replicas == 2
    scaled = reasoning(ServeConfig(reasoning_replicas=1, reasoning_max_replicas=4, reasoning_gpus=1))
    limits = scaled._deployment_config.autoscaling_config
    assert limits is not None
    assert (limits.min_replicas, limits.max_replicas) == (1, 4)
    assert scaled.ray_actor_options is not None
    assert scaled.ray_actor_options["num_gpus"] == 1
    threads = reasoning(ServeConfig(reasoning_threads=2)).ray_actor_options
    assert threads is not None
    assert threads["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": "2"}
    assert limits.policy.get_policy().__name__ == "queued_work"


@pytest.mark.parametrize(
    ("replicas", "at_work", "queued", "wanted"),
    [
        (1, 0.0, 0.0, 1),
        (1, 8.0, 0.0, 1),
        (1, 9.0, 0.0, 2),
        (2, 3.0, 1.0, 3),  # a request waits: one more, however few there are
        (1, 40.0, 24.0, 4),  # five by the sum, four by the limit
        (4, 9.0, 0.0, 2),
        (4, 40.0, 9.0, 4),
    ],
)
def test_replicas_follow_the_work_at_hand_and_the_queue(replicas, at_work, queued, wanted):
    from serve.scaling import queued_work

    context = SimpleNamespace(
        current_num_replicas=replicas,
        total_num_requests=at_work,
        total_queued_requests=queued,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        config=AutoscalingConfig(min_replicas=1, max_replicas=4, target_ongoing_requests=8),
    )
    assert queued_work(context) == (wanted, {})


def test_the_policy_travels_without_the_projects_code():
    from serve.deployments import reasoning

    scaled = reasoning(ServeConfig(reasoning_max_replicas=4))
    limits = scaled._deployment_config.autoscaling_config
    assert limits is not None
    unpickle = "import pickle, sys; print(pickle.load(sys.stdin.buffer).__name__)"
    told = subprocess.run(
        [sys.executable, "-c", unpickle],
        input=limits.policy._serialized_policy_def,
        cwd="/",
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        check=True,
    )
    assert told.stdout.decode().strip() == "queued_work"


def test_every_hop_has_a_bounded_queue():
    from serve.deployments import Swing, reasoning, small

    for deployment in (reasoning(ServeConfig()), small(Swing, "Swing", ServeConfig())):
        assert deployment.max_queued_requests == ServeConfig().max_queued
        assert deployment.max_ongoing_requests == ServeConfig().max_ongoing
