"""cluster.yaml is what Ray's launcher takes."""

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_cluster_file_is_valid_against_rays_schema():
    schema = json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    kinds = cluster["available_node_types"]
    assert kinds[cluster["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert {"teacher", "trainer", "serve"} < set(kinds)


def test_no_node_starts_ray_without_the_token():
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in cluster[name] if "ray start" in line]
        assert starts
        assert all("RAY_AUTH_MODE=token" in line for line in starts)
