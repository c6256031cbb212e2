"""Metrics: closed labels, and dashboards and alerts that ask for what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_app.telemetry import METRICS, STAGES, bounded

ROOT = Path(__file__).resolve().parents[2]
BOARDS = sorted((ROOT / "configs" / "grafana").glob("*.json"))
SUFFIX = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
OURS = {f"ray_{name}{suffix}": metric for name, metric in METRICS.items() for suffix in SUFFIX[metric.kind]}
RAYS = {
    "ray_serve_deployment_replica_healthy": {"deployment"},
    "ray_serve_deployment_queued_queries": {"deployment"},
    "ray_node_cpu_utilization": {"instance"},
    "ray_node_mem_used": {"instance"},
    "ray_node_mem_total": {"instance"},
    "ray_node_gpus_utilization": {"instance"},
    "up": {"job", "instance"},
}
"""Ray's own metrics that are asked for, with their labels."""
WORDS = {
    "sum",
    "max",
    "avg",
    "by",
    "rate",
    "increase",
    "last_over_time",
    "histogram_quantile",
    "ignoring",
    "group_left",
    "le",
}


def rules() -> list[dict[str, Any]]:
    file = ROOT / "configs" / "prometheus" / "alerts.yml"
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.stem}: {panel['title']}", target["expr"]) for target in panel["targets"]]
    return found


def test_a_value_out_of_the_set_counts_as_other():
    assert bounded("rationale_stage_seconds", {"stage": "swing"}) == {"stage": "swing"}
    assert bounded("rationale_stage_seconds", {"stage": "user-4711"}) == {"stage": "other"}


def test_a_wrong_label_is_an_error():
    with pytest.raises(KeyError, match="has labels stage, not user"):
        bounded("rationale_stage_seconds", {"user": "1"})


def test_the_number_of_series_is_bounded():
    """Per process; a histogram's buckets are counted as one."""
    series = 0
    for metric in METRICS.values():
        product = 1
        for values in metric.labels.values():
            product *= len(values) + 1
        series += product
    assert series < 200


def test_the_stages_are_the_pipelines():
    from pipelines.common import STAGES as stages

    assert list(STAGES) == stages


@pytest.mark.parametrize(("where", "query"), queries(), ids=[where for where, _ in queries()])
def test_queries_ask_for_metrics_and_labels_that_exist(where: str, query: str):
    names = set(re.findall(r"\b(ray_\w+|up)\b", query))
    assert names
    labels: set[str] = set()
    for name in names:
        assert name in OURS or name in RAYS, name
        labels |= set(OURS[name].labels) if name in OURS else RAYS[name]
    asked = {
        label.strip()
        for part in re.findall(r"(?:by|ignoring) \(([^)]*)\)", query)
        for label in part.split(",")
    }
    asked |= set(re.findall(r"[{,]\s*(\w+)=", query))
    assert asked - {"le"} <= labels
    for label, values in re.findall(r'(\w+)=~?"([^"]+)"', query):
        known = [OURS[name].labels[label] for name in names if name in OURS and label in OURS[name].labels]
        assert not known or all(one in known[0] for one in values.split("|"))
    assert query.count("(") == query.count(")")
    rest = re.sub(r'"[^"]*"|\{[^}]*\}|\[\w+\]', "", query)
    for name in names:
        rest = re.sub(rf"\b{name}\b", "", rest)
    assert set(re.findall(r"[a-z_]+", rest)) <= WORDS | labels


def test_every_metric_of_ours_is_shown_somewhere():
    asked = " ".join(query for _, query in queries())
    assert [name for name in METRICS if f"ray_{name}" not in asked] == []


@pytest.mark.parametrize("path", BOARDS, ids=[path.stem for path in BOARDS])
def test_dashboards_can_be_imported(path: Path):
    board = json.loads(path.read_text())
    assert board["uid"] and board["title"] and board["schemaVersion"] >= 36
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    assert board["templating"]["list"][0]["type"] == "datasource"


def test_alerts_say_what_to_do():
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "action"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))


def test_prometheus_reads_the_rules_and_the_targets():
    folder = ROOT / "configs" / "prometheus"
    settings = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert all((folder / name).is_file() for name in settings["rule_files"])
    (job,) = settings["scrape_configs"]
    assert job["job_name"] == "ray"
