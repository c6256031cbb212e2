"""Logs and traces: what a line and a span say, and that they find their way through the graph."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pipelines import common
from ray_app import logs, tracing
from ray_app.artifacts import Run, StageSpec
from ray_app.bundle import Bundle
from ray_app.config import Config
from ray_app.errors import NotFoundError, OverloadedError
from ray_app.telemetry import Telemetry
from serve.ingress import make_api
from tests.bundles import LinearStudent, store_url
from tests.pages import make_front


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """JSON logs as a process has them that starts with the variable set; the lines told so far."""
    ours = logging.getLogger("rationale")
    before = ours.handlers[:], ours.level, ours.propagate
    monkeypatch.setenv(logs.VARIABLE, "json")
    logs.set_up.cache_clear()
    logs.set_up()
    yield lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours.handlers[:], ours.level, ours.propagate = before
    logs.set_up.cache_clear()


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """A process has one provider for good, so the module's tests share it."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    return kept


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def test_an_answer_is_a_line_with_its_request_and_route_but_no_id_of_a_user(bundle, lines):
    client = TestClient(make_api(make_front(bundle, LinearStudent())))
    client.get("/v1/users/u3", headers={"X-Request-Id": "abc"})
    client.get("/healthz")
    (line,) = lines()
    assert line.pop("ms") > 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "rationale.access",
        "message": "answered",
        "request": "abc",
        "method": "GET",
        "route": "users",
        "status": 200,
    }


def test_a_text_from_outside_cannot_forge_a_line(lines):
    logging.getLogger("rationale.test").warning("%s", 'x\n{"level": "info"}\u202e\x1b[2J')
    (line,) = lines()
    assert line["message"] == 'x\n{"level": "info"}\u202e\x1b[2J'


def test_an_exception_is_in_its_line(lines):
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("rationale.test").exception("failed")
    assert "ValueError: broken" in lines()[0]["exception"]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Brings a stage up to date without Ray."""
    monkeypatch.setattr(common, "start_ray", lambda config: None)
    spec = StageSpec("swing", lambda folder: {"rows": 7}, keys={})
    return lambda: common.make(spec, Config(), Run(tmp_path / "r7"), force=False)


def test_a_stage_tells_run_and_counts(stage, lines):
    stage()
    stage()
    told = lines()
    assert [line["event"] for line in told] == ["started", "finished", "up to date"]
    assert {(line["run"], line["stage"]) for line in told} == {("r7", "swing")}
    assert told[1]["counts"] == {"rows": 7}


def test_a_person_reads_plain_lines(stage, capsys):
    stage()
    told = capsys.readouterr().out
    assert told.startswith("swing ...\nswing ")
    assert "{" not in told


def test_refusals_and_requests_at_work_are_counted(bundle):
    heard: list[tuple[Any, ...]] = []

    class Heard(Telemetry):
        def add(self, name: str, amount: float = 1, **labels: str) -> None:
            heard.append((name, *labels.values()))

        def set(self, name: str, number: float, **labels: str) -> None:
            heard.append((name, number))

    from serve.limits import Limits, Pace

    api = make_api(make_front(bundle, LinearStudent()))
    client = TestClient(Limits(api, pace=Pace(0, 0, 9.0), telemetry=Heard()))
    assert client.get("/v1/users").status_code == 503
    assert heard == [("rationale_refusals", "users", "503")]
    heard.clear()
    client = TestClient(Limits(api, pace=Pace(1, 1, 9.0), telemetry=Heard()), raise_server_exceptions=False)
    assert client.get("/v1/users/4711").status_code == 404
    assert client.get("/v1/made-up/4711").status_code == 404
    at_work = [("rationale_at_work", 1), ("rationale_at_work", 0)]
    assert heard == [
        *at_work,
        ("rationale_refusals", "users", "404"),
        *at_work,
        ("rationale_refusals", "other", "404"),
    ]


class Handle:
    """A Serve handle to an agent in a thread of its own: context must travel with the call."""

    deployment_name = "Retrieval"

    def __init__(self, agent: Any):
        self.agent = agent

    @property
    def profile(self) -> Any:
        def remote(*args: Any, **more: Any) -> Any:
            work = lambda: asyncio.run(self.agent.profile(*args, **more))  # noqa: E731
            return asyncio.get_running_loop().run_in_executor(None, work)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def profile(published):
    """The retrieval agent's `profile` behind a handle."""
    from serve.deployments import Retrieval
    from serve.handles import call
    from serve.settings import Settings

    settings = Settings(Bundle.open(published).config, str(published), store_url(published))
    handle: Any = Handle(Retrieval(settings))
    return call(handle, "profile", OverloadedError)


def test_a_hop_has_a_span_where_it_is_waited_for_and_one_where_it_is_worked_at(spans, profile):
    async def ask() -> None:
        parent = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        with tracing.request("GET /v1/users", "r-1", parent):
            await profile("u3", 5)

    asyncio.run(ask())
    work, wait, request = spans.get_finished_spans()
    assert [one.name for one in (work, wait, request)] == ["Retrieval.profile"] * 2 + ["GET /v1/users"]
    assert [one.kind.name for one in (work, wait, request)] == ["SERVER", "CLIENT", "SERVER"]
    assert [one.parent.span_id for one in (work, wait)] == [wait.context.span_id, request.context.span_id]
    assert {one.context.trace_id for one in (work, wait, request)} == {int("ab" * 16, 16)}
    assert {one.attributes["rationale.request"] for one in (work, wait, request)} == {"r-1"}


def test_an_error_of_an_agent_is_on_both_spans_and_comes_through_as_it_was(spans, profile):
    async def ask() -> None:
        with tracing.request("GET /v1/users", "r-2", {}):
            await profile("nobody", 5)

    with pytest.raises(NotFoundError):
        asyncio.run(ask())
    assert [one.status.is_ok for one in spans.get_finished_spans()] == [False] * 3


def test_a_hop_outside_a_request_makes_no_span(spans, profile):
    assert asyncio.run(profile("u3", 5)).user.user_id == "u3"
    assert spans.get_finished_spans() == ()
