"""The graph of deployments on a real Ray, over HTTP: one session for all tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from bench.graph import served
from ray_app.bundle import REPORT
from ray_app.client import Client
from ray_app.evaluation.report import render
from ray_app.records import Recommendation
from serve.settings import Settings
from tests.bundles import LinearStudent, make_bundle, store_url
from tests.reports import invented_metrics, invented_samples

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("bundle")
    bundle = make_bundle(folder)
    render(invented_metrics(), invented_samples(2), folder / REPORT)
    settings = Settings(bundle.config, str(folder), store_url(folder))
    with (
        served(settings, lambda *_: LinearStudent(), 4) as address,
        httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
    ):
        yield client


def ask(service: httpx.Client, **body) -> httpx.Response:
    return service.post("/v1/recommendations", json={"user_id": "u3", "k": 3} | body)


def wait_ready(service: httpx.Client, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while service.get("/readyz").status_code != 200:
        assert time.monotonic() < end, "not ready in time"
        time.sleep(0.2)


def test_five_agents_answer_together(service):
    wait_ready(service)
    found = Recommendation.model_validate_json(ask(service, high_stakes=True).content)
    assert len(found.items) == 3
    assert not found.degraded
    assert all(entry.explanation.coherent for entry in found.items)
    assert all(entry.reflection and entry.reflection.rounds == 1 for entry in found.items)
    assert set(found.timings_ms) == {
        "retrieval",
        "swing",
        "reasoning",
        "reflection",
        "explanation",
        "total",
    }


def test_steps_are_streamed_through_the_proxy(service):
    client = Client(http=service)
    *steps, answer = client.stream("u3", 2)
    visitor = client.recommend(liked=["i4", "i8"], k=2, detail="trail")
    assert [step.work for step in steps if step.ms is not None][:4] == [
        "fetch",
        "propose",
        "assemble",
        "decide",
    ]
    assert len(answer.items) == len(visitor.items) == 2


def test_errors_of_agents_cross_the_graph_as_problems(service):
    answer = ask(service, user_id="nobody")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["detail"] == "user 'nobody' does not exist: ask GET /v1/users for ids"


def test_the_ingress_tells_of_the_run_and_hands_out_its_plots(service):
    told = service.get("/v1/run").json()
    assert told["versions"]["bundle"] == "b1"
    assert told["report"]["run"]["name"] == "invented-for-the-test"
    answers = [service.get(f"/v1/run/plots/{plot['name']}") for plot in told["report"]["plots"]]
    assert {answer.headers["content-type"] for answer in answers} == {"image/svg+xml"}
    assert service.get("/v1/run/report").status_code == 200


def test_feedback_changes_the_next_answer(service):
    top = ask(service, k=1).json()["items"][0]["item"]["item_id"]
    answer = service.post("/v1/interactions", json={"user_id": "u3", "item_id": top, "label": 0})
    assert answer.status_code == 201
    shown = {entry["item"]["item_id"] for entry in ask(service, k=20).json()["items"]}
    assert top not in shown


def test_a_killed_reasoning_replica_degrades_the_answer_and_comes_back(service):
    import psutil

    wait_ready(service)
    mine = [
        one for one in psutil.Process().children(recursive=True) if "Reasoning" in " ".join(one.cmdline())
    ]
    for process in mine:
        os.kill(process.pid, signal.SIGKILL)
    assert mine
    answers = [ask(service) for _ in range(3)]
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    assert any(answer.status_code == 200 for answer in answers)
    wait_ready(service)
    assert not ask(service).json()["degraded"]
