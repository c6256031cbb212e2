"""What describes clusters to others: KubeRay's manifests, Ray's launcher files, the container file."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from ray_app.config import load
from tests.kuberay import KINDS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "kuberay"
LAUNCHERS = ("cluster.yaml", "cluster-onprem.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


ALL = [(path.stem, document) for path in sorted(FOLDER.glob("*.yaml")) for document in documents(path.stem)]
CLUSTERS = {
    "pipeline": documents("pipeline")[0]["spec"]["rayClusterSpec"],
    "service": documents("service")[0]["spec"]["rayClusterConfig"],
}
each_cluster = pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


# KubeRay


@pytest.mark.parametrize(
    "document", [one for _, one in ALL], ids=[f"{name}-{one['kind']}" for name, one in ALL]
)
def test_manifests_have_the_shape_of_their_kind(document: dict[str, Any]):
    jsonschema.validate(document, KINDS[document["kind"]])


def test_a_misspelt_or_misplaced_field_is_noticed():
    good = documents("service")[0]
    for spoil in (
        lambda one: one["spec"].update(rayClusterSpec=one["spec"].pop("rayClusterConfig")),
        lambda one: one["spec"]["rayClusterConfig"]["authOptions"].update(secret="x"),
        lambda one: one["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"].update(backend="embedded"),
        lambda one: one["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].pop("maxReplicas"),
    ):
        bad = copy.deepcopy(good)
        spoil(bad)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, KINDS["RayService"])


@each_cluster
def test_clusters_demand_the_token_of_the_secret(cluster: dict[str, Any]):
    """The operator wants Ray's version with it, 2.52 or newer."""
    assert cluster["authOptions"] == {"mode": "token", "secretName": "rationale-token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)


def test_secrets_carry_no_values():
    secrets = [one for _, one in ALL if one["kind"] == "Secret"]
    assert {one["metadata"]["name"] for one in secrets} == {"rationale-token", "rationale-storage"}
    assert all(not any(one.get("stringData", {}).values()) and "data" not in one for one in secrets)
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert not re.search(r"AKIA[0-9A-Z]{16}|[0-9a-f]{40,}|BEGIN [A-Z ]*PRIVATE KEY", text)


@each_cluster
def test_heads_have_no_work(cluster: dict[str, Any]):
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@each_cluster
def test_groups_are_labelled_and_their_bounds_in_order(cluster: dict[str, Any]):
    for group in cluster["workerGroupSpecs"]:
        assert group["labels"]["rationale/role"] == group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        # The operator refuses both at once, and labels inside rayStartParams.
        assert not group["rayStartParams"].keys() & {"num-cpus", "num-gpus", "resources", "labels"}


def test_the_teacher_may_vanish_and_the_trainer_may_not():
    market = {
        group["groupName"]: group["labels"]["rationale/market"]
        for group in CLUSTERS["pipeline"]["workerGroupSpecs"]
    }
    assert market == {"data": "on-demand", "teacher": "spot", "trainer": "on-demand"}


@each_cluster
def test_pods_run_closed(cluster: dict[str, Any]):
    """No root, no new privileges, limits equal to requests, shared memory for Ray's objects."""
    for pod in pods(cluster):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"] == container["resources"]["requests"]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts == {volume["name"] for volume in spec["volumes"]} >= {"shm"}


@each_cluster
def test_pods_are_those_of_the_network_policy(cluster: dict[str, Any]):
    chosen = documents("network-policy")[0]["spec"]["podSelector"]["matchLabels"]
    for pod in pods(cluster):
        assert chosen.items() <= pod["metadata"]["labels"].items()
    submitter = documents("pipeline")[0]["spec"]["submitterPodTemplate"]
    assert chosen.items() <= submitter["metadata"]["labels"].items()


def test_from_outside_only_the_api_the_dashboard_and_the_metrics_can_be_reached():
    policy = documents("network-policy")[0]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    doors = {}
    for rule in policy["ingress"]:
        for peer in rule["from"]:
            names = peer.get("namespaceSelector", {}).get("matchLabels", {})
            doors[names.get("kubernetes.io/metadata.name", "own pods")] = [
                p["port"] for p in rule.get("ports", [])
            ]
    assert doors == {"own pods": [], "kuberay": [8265], "gateway": [8000], "monitoring": [8080]}


def test_volumes_that_are_claimed_are_defined():
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for cluster in CLUSTERS.values()
        for pod in pods(cluster)
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claimed == {one["metadata"]["name"] for one in documents("volumes")}
    assert all(one["spec"]["accessModes"] == ["ReadWriteMany"] for one in documents("volumes"))


def test_the_service_survives_its_head():
    options = CLUSTERS["service"]["gcsFaultToleranceOptions"]
    assert options["backend"] == "rocksdb"
    assert options["storage"]["accessModes"] == ["ReadWriteOnce"]
    # The operator refuses Redis' settings beside it.
    assert not options.keys() & {"redisAddress", "redisPassword", "redisUsername", "externalStorageNamespace"}


def test_the_service_is_that_of_the_serve_file():
    embedded = yaml.safe_load(documents("service")[0]["spec"]["serveConfigV2"])
    assert embedded == yaml.safe_load((ROOT / "configs" / "serve" / "production.yaml").read_text())


def test_groups_have_room_for_what_the_config_asks():
    """A teacher replica and all trainers fit into their groups; reasoning replicas into the service's."""
    config = load(ROOT / "configs" / "production.yaml")
    gpus = {}
    for cluster in CLUSTERS.values():
        for group in cluster["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            gpus[group["groupName"]] = (int(limits.get("nvidia.com/gpu", 0)), group["maxReplicas"])
    per_pod, most = gpus["teacher"]
    assert per_pod >= config.reason.engine.tensor_parallel
    assert per_pod * most >= config.reason.engine.tensor_parallel * config.reason.engine.replicas
    assert gpus["trainer"][0] * gpus["trainer"][1] >= config.train.workers
    assert gpus["serve"][1] >= config.serve.reasoning_max_replicas * config.serve.reasoning_gpus


def test_the_jobs_driver_runs_on_a_data_node():
    job = documents("pipeline")[0]["spec"]
    wanted = json.loads(job["entrypointResources"])
    (data,) = (one for one in CLUSTERS["pipeline"]["workerGroupSpecs"] if one["groupName"] == "data")
    assert all(int(data["resources"][name]) >= count for name, count in wanted.items())
    assert data["minReplicas"] >= 1


def test_runtime_environments_carry_code_and_settings_only():
    job = yaml.safe_load(documents("pipeline")[0]["spec"]["runtimeEnvYAML"])
    service = yaml.safe_load(documents("service")[0]["spec"]["serveConfigV2"])["applications"][0][
        "runtime_env"
    ]
    for environment in (job, service):
        assert environment.keys() <= {"working_dir", "env_vars"}


# Ray's launcher


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_are_what_rays_launcher_takes(name: str):
    """Through its own checks: filled with the provider's defaults, then held against its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / name).read_text())))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_start_demands_the_token_and_the_head_listens_on_loopback(name: str):
    cluster = yaml.safe_load((ROOT / name).read_text())
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.rationale/token" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["file_mounts"] == {"~/.rationale/token": "./.local/token"}


def test_launcher_groups_have_labels_that_ray_takes():
    from ray._private.label_utils import validate_node_labels

    kinds = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    assert set(kinds) == {"head", "data", "teacher", "trainer", "serve"}
    for name, kind in kinds.items():
        assert kind["labels"]["rationale/role"] == name
        validate_node_labels(kind["labels"])
    assert kinds["teacher"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_head_of_your_own_machines_has_no_work():
    cluster = yaml.safe_load((ROOT / "cluster-onprem.yaml").read_text())
    assert "--num-cpus=0 --num-gpus=0" in cluster["head_start_ray_commands"][1]


# The container file


def test_the_image_holds_dependencies_and_no_code():
    text = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert copied == ["requirements/", "pyproject.toml"]
    assert "--no-deps -r requirements/cpu.txt" in text
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["ray", "ray"]  # both targets


def test_the_image_is_of_the_lock_s_python():
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^FROM python:(\d+\.\d+)-", text, re.MULTILINE) == ["3.11"]


def test_cluster_packages_are_pinned_and_agree_with_the_lock():
    """s3fs and fsspec are released together and have to be of one version."""
    lock, more = pins("cpu"), pins("cluster")
    assert all(version.startswith("==") for version in more.values())
    assert more["s3fs"] == lock["fsspec"]
    assert more["boto3"] == more["botocore"]
    # botocore takes no newer python-dateutil; nothing else may differ.
    other = {name for name, version in more.items() if lock.get(name, version) != version}
    assert other <= {"python-dateutil"}


def pins(name: str) -> dict[str, str]:
    """Package -> its specifier, of a requirements file."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    found = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    return {pin.name: str(pin.specifier) for pin in found}
