"""What a process of a Ray session observes is what the node's exporter shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.cluster import free_port
from ray_app.records import Explanation, Item, Recommendation, RecommendedItem, Reflection, Step, Verdict
from ray_app.telemetry import METRICS

ROOT = Path(__file__).resolve().parents[2]


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
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known = next(
                (one for name, one in METRICS.items() if sample.name.startswith(f"ray_{name}")), None
            )
            if known is not None:
                labels = ",".join(sample.labels[label] for label in known.labels)
                found[sample.name, labels] = found.get((sample.name, labels), 0.0) + sample.value
    return found


@pytest.mark.slow
def test_the_exporter_shows_what_was_observed():
    import ray

    @ray.remote
    class Observer:
        def observe(self, given: Recommendation) -> None:
            from ray_app.telemetry import Telemetry

            self.telemetry = Telemetry()
            self.telemetry.answered("recommendations", given)
            self.telemetry.answered("/v1/users/4711", given)
            self.telemetry.stage(MANIFEST)
            self.telemetry.training("expert-2", POINT)

    port = free_port()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        _metrics_export_port=port,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        observer = Observer.remote()
        ray.get(observer.observe.remote(answer()))
        found: dict[tuple[str, str], float] = {}
        deadline = time.monotonic() + 60
        while ("ray_rationale_train_valid_auc", "expert") not in found and time.monotonic() < deadline:
            time.sleep(0.5)
            found = scraped(port)
    finally:
        ray.shutdown()
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
