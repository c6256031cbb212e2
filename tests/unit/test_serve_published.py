"""What the service tells about the run that it serves, all of it from the bundle."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from fastapi.testclient import TestClient

from ray_app.bundle import REPORT, Bundle
from ray_app.evaluation.report import render
from serve.ingress import make_api
from tests.bundles import LinearStudent
from tests.pages import make_front
from tests.reports import invented_metrics, invented_samples


def client_of(bundle: Bundle) -> TestClient:
    return TestClient(make_api(make_front(bundle, LinearStudent())), raise_server_exceptions=False)


@pytest.fixture
def client(bundle: Bundle) -> TestClient:
    """A service whose bundle has a report."""
    render(invented_metrics(), invented_samples(2), bundle.path / REPORT)
    return client_of(bundle)


def test_the_run_is_told_with_its_metrics_stages_and_plots(client, bundle):
    told = client.get("/v1/run").json()
    assert told["versions"]["bundle"] == "b1"
    assert told["cut"] == bundle.cut
    report, wanted = told["report"], invented_metrics()
    assert report["run"]["name"] == "invented-for-the-test"
    assert report["champion"] == "student"
    assert report["exposed"]["scorers"]["student"]["auc"] == wanted["exposed"]["scorers"]["student"]["auc"]
    assert [stage["stage"] for stage in report["stages"]] == [one["stage"] for one in wanted["stages"]]
    sections = {plot["section"] for plot in report["plots"]}
    assert sections == {"exposed", "catalogue", "calibration", "curves", "stages"}


def test_every_plot_is_an_svg_file_without_scripts_that_knows_both_themes(client):
    plots = client.get("/v1/run").json()["report"]["plots"]
    for plot in plots:
        answer = client.get(f"/v1/run/plots/{plot['name']}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        names = [one.tag.rpartition("}")[2] for one in ElementTree.fromstring(answer.text).iter()]
        assert names[:2] == ["svg", "style"]
        assert "script" not in names
        assert "prefers-color-scheme: dark" in answer.text


def test_the_whole_report_is_a_page_that_may_run_no_script(client):
    answer = client.get("/v1/run/report")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "invented-for-the-test" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy and policy.endswith("sandbox")


@pytest.mark.parametrize(
    "name",
    [
        "nothing.svg",
        "metrics.json",
        "../bundle.json",
        "..%2fbundle.json",
        "%2e%2e/bundle.json",
        "%00",
        "/etc/passwd",
    ],
)
def test_nothing_but_the_named_plots_is_handed_out(client, bundle, name):
    (bundle.path / REPORT / "nothing.svg").write_text("<svg/>")  # put there since
    answer = client.get(f"/v1/run/plots/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_bundle_without_a_report_tells_its_versions(bundle):
    client = client_of(bundle)
    told = client.get("/v1/run").json()
    assert told["versions"]["bundle"] == "b1"
    assert told["report"] is None
    assert "without a report" in client.get("/v1/run/report").json()["detail"]
    assert client.get("/v1/run/plots/exposed-1.svg").status_code == 404


def test_a_report_of_another_version_is_a_warning_and_the_service_answers(bundle, caplog):
    render(invented_metrics(), invented_samples(2), bundle.path / REPORT)
    file = bundle.path / REPORT / "metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["champion"]
    file.write_text(json.dumps(metrics))
    client = client_of(bundle)
    assert client.get("/v1/run").json()["report"] is None
    assert "metrics.json" in caplog.text and "champion" in caplog.text
    assert "invented-for-the-test" in client.get("/v1/run/report").text
    body = {"user_id": "u3", "k": 2}
    assert client.post("/v1/recommendations", json=body).status_code == 200
