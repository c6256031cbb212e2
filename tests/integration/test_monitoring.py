"""What a Ray session observes: at the node's exporter, in a real Prometheus, in traces across processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.cluster import free_port
from pipelines.monitor import INSTALL, ask, queries
from ray_app.records import Explanation, Item, Recommendation, RecommendedItem, Reflection, Step, Verdict
from ray_app.telemetry import ENGINE, METRICS
from tests.bundles import LinearStudent, make_bundle, store_url

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "configs" / "prometheus"
NEEDS_GPU = {"avg by (instance) (ray_node_gpus_utilization)"}
"""Queries that a machine without a GPU answers with nothing."""
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason=f"prometheus and promtool are not on PATH: {INSTALL}",
)


def answer() -> Recommendation:
    """Two items: one decided by an expert and turned by reflection, one by the global adapter."""
    item = Item(item_id="1", title="Alien", features=[], keywords=[], year=1979, description="")
    step = Step(text="It is liked.", citations=["e1"])

    def one(expert: str, reflection: Reflection | None, rewritten: int) -> RecommendedItem:
        explanation = Explanation(
            text="It is liked.", detail="standard", sentences=[step, step], coherent=True, rewritten=rewritten
        )
        verdict = Verdict(p_yes=0.4, logit=-0.4, expert=expert)
        return RecommendedItem(
            item=item,
            score=0.4,
            confidence=0.6,
            verdict=verdict,
            reflection=reflection,
            explanation=explanation,
            evidence=[],
        )

    doubt = Reflection(triggers=["conflict"], questions={}, before=0.6, after=0.4, rounds=1)
    return Recommendation(
        user_id="1",
        items=[one("expert-7", doubt, 1), one("global", None, 0)],
        versions={},
        timings_ms={"reasoning": 40.0, "total": 55.0, "of somebody's invention": 1.0},
    )


MANIFEST: dict[str, Any] = {
    "stage": "reason",
    "seconds": 12.5,
    "cpu_seconds": 20.0,
    "peak_memory_mb": 900.0,
    "files": {"a": 10, "b": 32},
    "counts": {"accepted": 6, "traces": 10, "dead": 0, "tokens": 700},
}
POINT = {
    "tokens_per_second": 40_000,
    "step": 5,
    "of": 20,
    "loss_answer": 0.5,
    "loss_text": 1.5,
    "valid_auc": 0.75,
}


def scraped(port: int) -> dict[tuple[str, str], float]:
    """(name, value of our labels) -> value."""
    found = {}
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20, trust_env=False).text
    ours = "\n".join(line for line in text.splitlines() if "rationale_" in line)
    for family in text_string_to_metric_families(f"{ours}\n"):
        for sample in family.samples:
            known = next(
                (one for name, one in METRICS.items() if sample.name.startswith(f"ray_{name}")), None
            )
            if known is not None:
                labels = ",".join(sample.labels[label] for label in known.labels)
                found[sample.name, labels] = found.get((sample.name, labels), 0.0) + sample.value
    return found


class Collector(ThreadingHTTPServer):
    """Takes spans as OpenTelemetry's exporters send them (OTLP over HTTP)."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        super().__init__(("127.0.0.1", 0), Taking)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def exporter(collector: Collector) -> Iterator[int]:
    """A Ray session that reports every second; the port of its node's exporter."""
    import ray

    port = free_port()
    variables = {
        "PYTHONPATH": str(ROOT),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
        runtime_env={"env_vars": variables},
    )
    yield port
    ray.shutdown()


@pytest.fixture(scope="module")
def observer(exporter: int) -> Any:
    import ray

    @ray.remote(num_cpus=0)
    class Observer:
        def __init__(self) -> None:
            from ray_app.telemetry import Telemetry

            self.telemetry = Telemetry()

        def pipeline(self, given: Recommendation) -> None:
            self.telemetry.answered("recommendations", given)
            self.telemetry.answered("/v1/users/4711", given)
            self.telemetry.stage(MANIFEST)
            self.telemetry.training("expert-2", POINT)

        def engine(self) -> None:
            self.telemetry.appear(ENGINE)
            self.telemetry.set("rationale_waiting", 3)

    return Observer.remote()


@pytest.fixture(scope="module")
def service(exporter: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The graph of agents on that session."""
    from ray import serve

    from serve.app import application
    from serve.settings import Settings

    folder, port = tmp_path_factory.mktemp("bundle"), free_port()
    bundle = make_bundle(folder, deadline_s=120.0)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = Settings(bundle.config, str(folder), store_url(folder))
    serve.run(application(settings, lambda *_: LinearStudent()), name="rationale")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=130, trust_env=False) as client:
        yield client
    serve.shutdown()


@pytest.fixture(scope="module")
def prometheus(exporter: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with the repository's settings, but every 3 s, on that session; its URL.

    A scrape may take as long as its interval and no longer: on a busy machine 1 s is too little.
    """
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    (folder / "targets.json").write_text(f'[{{"targets": ["127.0.0.1:{exporter}"]}}]')
    settings = yaml.safe_load((RULES / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "3s"}
    settings["rule_files"] = [str(RULES / name) for name in settings["rule_files"]]
    settings["scrape_configs"][0]["file_sd_configs"][0]["files"] = ["targets.json"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = [
        *("prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
    ]
    process = subprocess.Popen(command)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


def wait(done: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, f"not so after {limit_s:g} s: {done.__doc__ or done}"
        time.sleep(0.5)


def test_the_exporter_shows_what_was_observed(exporter: int, observer: Any):
    import ray

    ray.get(observer.pipeline.remote(answer()))
    wait(lambda: ("ray_rationale_train_valid_auc", "expert") in scraped(exporter))
    found = scraped(exporter)
    expected = {
        ("ray_rationale_answers_total", "recommendations,ok"): 1,
        ("ray_rationale_answers_total", "other,ok"): 1,
        ("ray_rationale_agent_ms_count", "total"): 2,
        ("ray_rationale_agent_ms_count", "reasoning"): 2,
        ("ray_rationale_agent_ms_count", "other"): 2,
        ("ray_rationale_items_total", "expert"): 2,
        ("ray_rationale_items_total", "global"): 2,
        ("ray_rationale_doubts_total", "conflict"): 2,
        ("ray_rationale_reflections_total", "yes"): 2,
        ("ray_rationale_sentences_total", "rewritten"): 2,
        ("ray_rationale_sentences_total", "student"): 6,
        ("ray_rationale_stage_seconds", "reason"): 12.5,
        ("ray_rationale_stage_bytes", "reason"): 42,
        ("ray_rationale_traces_total", "accepted"): 6,
        ("ray_rationale_traces_total", "rejected"): 4,
        ("ray_rationale_teacher_tokens_total", ""): 700,
        ("ray_rationale_train_progress", "expert"): 0.25,
        ("ray_rationale_train_loss", "expert,text"): 1.5,
        ("ray_rationale_train_valid_auc", "expert"): 0.75,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert not any("4711" in labels for _, labels in found)


def test_the_last_words_of_a_process_that_ends_are_exported(exporter: int):
    """As those of a job's driver, whose last stage ends just before it does."""
    import ray
    import ray.actor

    @ray.remote(num_cpus=0)
    class Driver:
        def end(self) -> None:
            from ray_app.telemetry import Telemetry

            manifest = MANIFEST | {"stage": "publish", "seconds": 2.5}
            Telemetry().stage(manifest)
            ray.actor.exit_actor()

    Driver.remote().end.remote()
    wait(lambda: scraped(exporter).get(("ray_rationale_stage_seconds", "publish")) == 2.5, 15)


@needs_prometheus
def test_prometheus_answers_every_query_of_the_dashboards(
    prometheus: str, service: httpx.Client, observer: Any, exporter: int
):
    import ray

    ray.get(observer.pipeline.remote(answer()))
    ray.get(observer.engine.remote())
    wait(lambda: service.get("/readyz").status_code == 200)
    first = service.post("/v1/recommendations", json={"user_id": "u3", "k": 3, "high_stakes": True})
    assert first.status_code == 200
    item = first.json()["items"][0]["item"]["item_id"]
    refused = 'ray_rationale_refusals_total{route="recommendations",status="404"}'
    wait(lambda: bool(ask(prometheus, refused)))  # the series has begun before its first event
    assert service.post("/v1/recommendations", json={"user_id": "nobody"}).status_code == 404
    feedback = {"user_id": "u3", "item_id": item, "label": 1}
    assert service.post("/v1/interactions", json=feedback).status_code == 201
    asked = [one for one in queries(ROOT) if one.expr not in NEEDS_GPU]
    assert len(asked) > 25
    silent = [one.expr for one in asked]

    def answered() -> bool:
        silent[:] = [expr for expr in silent if not ask(prometheus, expr)]
        return not silent

    try:
        wait(answered)
    except AssertionError:
        seen = sorted({name for name, _ in scraped(exporter)})
        pytest.fail(f"no data after a minute for: {silent}; the exporter shows {seen}")
    for expr in NEEDS_GPU:
        ask(prometheus, expr)
    wait(lambda: [value for _, value in ask(prometheus, f"sum(last_over_time({refused}[1m]))")] == [1])
    # A series that began at nothing: its first event is an increase.
    first_refusal = 'sum(increase(ray_rationale_refusals_total{status="404"}[5m]))'
    wait(lambda: any(value > 0.5 for _, value in ask(prometheus, first_refusal)))


@needs_prometheus
def test_prometheus_evaluates_every_alert(prometheus: str):
    def rules() -> list[dict[str, Any]]:
        answer = httpx.get(f"{prometheus}/api/v1/rules", trust_env=False).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    wait(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert [rule["name"] for rule in rules() if rule["health"] != "ok"] == []
    for rule in rules():
        ask(prometheus, rule["query"])


@needs_prometheus
def test_alerts_fire_when_they_should(tmp_path: Path):
    """Prometheus' own simulation: what the series do, a minute a step, and which alerts follow."""

    def case(series: dict[str, str], at: str, alert: str, fires: bool) -> dict[str, Any]:
        rule = next(one for group in rules for one in group["rules"] if one["alert"] == alert)
        raised = {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [
                {"eval_time": at, "alertname": alert, "exp_alerts": [raised] if fires else []}
            ],
        }

    rules = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    ok, bad = "ray_rationale_answers_total{outcome='ok'}", "ray_rationale_answers_total{outcome='degraded'}"
    late = "ray_rationale_refusals_total{status='504'}"
    fault = "ray_rationale_refusals_total{status='500'}"
    cases = [
        case({ok: "0+60x20", bad: "0+6x20"}, "15m", "RationaleDegraded", True),
        case({ok: "0+60x20", bad: "0+2x20"}, "15m", "RationaleDegraded", False),
        case({ok: "0x20", bad: "0x20"}, "15m", "RationaleDegraded", False),
        case({ok: "0+60x20", late: "0+6x20"}, "15m", "RationaleRefusing", True),
        case({ok: "0+60x20", late: "0+1x20"}, "15m", "RationaleRefusing", False),
        case({fault: "0 0 0 1 1 1 1 1 1"}, "8m", "RationaleFaults", True),
        case({fault: "0x20"}, "15m", "RationaleFaults", False),
    ]
    suite = {"rule_files": [str(RULES / "alerts.yml")], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(suite))
    for command in (["check", "rules", str(RULES / "alerts.yml")], ["test", "rules", "cases.yml"]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_one_trace_goes_through_all_agents(service: httpx.Client, collector: Collector):
    """Each hop has a span where it is waited for and one where it is worked at, in different processes."""
    wait(lambda: service.get("/readyz").status_code == 200)
    trace_id = os.urandom(16).hex()
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "X-Request-Id": "traced-1"}
    body = {"user_id": "u3", "k": 2, "high_stakes": True}
    assert service.post("/v1/recommendations", json=body, headers=headers).status_code == 200

    def mine() -> list[Any]:
        return [span for span in collector.spans if span.trace_id.hex() == trace_id]

    agents = {"Retrieval", "Swing", "Reasoning", "Reflection", "Explanation"}
    wait(lambda: any(span.name == "POST /v1/recommendations" for span in mine()), 20)
    wait(lambda: agents <= {span.name.partition(".")[0] for span in mine() if span.kind == 2}, 20)
    spans = {span.span_id: span for span in mine()}
    assert {_attribute(span, "rationale.request") for span in spans.values()} == {"traced-1"}
    for span in spans.values():
        if span.kind == 2 and "." in span.name:
            waiting = spans[span.parent_span_id]
            assert (waiting.name, waiting.kind) == (span.name, 3)
    root = next(span for span in spans.values() if span.name == "POST /v1/recommendations")
    assert _attribute(root, "http.response.status_code") == 200


def _attribute(span: Any, name: str) -> Any:
    value = next(one.value for one in span.attributes if one.key == name)
    return value.string_value or value.int_value
