"""Metrics of stages, engines and agents: their names, bounded labels, and what turns records into them.

`ray.util.metrics` does the rest: every node exports what its processes observe, and Prometheus reads
`ray_<name>` there (counters as `ray_<name>_total`). A label has a closed set of values, so nobody who
sends ids or invents routes can grow the number of series; what is not in the set counts as `other`.
Ray keeps of a histogram what fell into which bucket: ask for quantiles, its sum is made of bucket middles.

    telemetry = Telemetry()
    telemetry.answered("recommendations", recommendation)

Outside a Ray session observing does nothing, and Ray is not imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from ray_app.records import Recommendation

OTHER = "other"
AGENTS = ("retrieval", "swing", "reasoning", "reflection", "explanation", "total")
STAGES = ("prepare", "swing", "encode", "reason", "mix", "train", "reflect", "evaluate", "publish")
ROUTES = ("recommendations", "explanations", "interactions", "users", "items")
PHASES = ("language", "answers", "global", "expert")
TRIGGERS = ("low_confidence", "conflict", "high_stakes", "inconsistent")
MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000]


@dataclass(frozen=True)
class Metric:
    """One metric: what it counts or measures, and the values each label may have."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)


METRICS = {
    # service
    "rationale_answers": Metric(
        "counter", "Requests answered.", {"route": ROUTES, "outcome": ("ok", "degraded")}
    ),
    "rationale_refusals": Metric(
        "counter",
        "Requests refused or failed.",
        {"route": ROUTES, "status": ("400", "401", "403", "404", "413", "422", "429", "500", "503", "504")},
    ),
    "rationale_agent_ms": Metric(
        "histogram", "Milliseconds a request waited for an agent; total is the whole.", {"agent": AGENTS}
    ),
    "rationale_items": Metric(
        "counter", "Items answered, by the gate's choice.", {"gate": ("global", "blend", "expert")}
    ),
    "rationale_doubts": Metric("counter", "Causes for a second look.", {"trigger": TRIGGERS}),
    "rationale_reflections": Metric(
        "counter", "Items looked at again, by whether the verdict turned.", {"turned": ("yes", "no")}
    ),
    "rationale_sentences": Metric(
        "counter", "Sentences shown: the student's, or written anew.", {"source": ("student", "rewritten")}
    ),
    "rationale_at_work": Metric("gauge", "Requests at work in this ingress."),
    "rationale_feedback": Metric(
        "counter", "Interactions taken in, or known already.", {"outcome": ("stored", "known")}
    ),
    # engine
    "rationale_prompts": Metric("counter", "Prompts of the student's engine.", {"work": ("decide", "write")}),
    "rationale_tokens": Metric(
        "counter", "Tokens read, found in the prefix cache, written.", {"kind": ("read", "cached", "written")}
    ),
    "rationale_waiting": Metric("gauge", "Prompts the student's engine was given and has not finished."),
    # pipeline
    "rationale_stage_seconds": Metric("gauge", "Wall seconds of the stage's last run.", {"stage": STAGES}),
    "rationale_stage_cpu_seconds": Metric("gauge", "CPU seconds of the stage's last run.", {"stage": STAGES}),
    "rationale_stage_memory_mb": Metric("gauge", "Peak memory of the stage's last run.", {"stage": STAGES}),
    "rationale_stage_bytes": Metric("gauge", "Bytes the stage's last run left.", {"stage": STAGES}),
    "rationale_traces": Metric(
        "counter", "Texts of the teacher.", {"verdict": ("accepted", "rejected", "dead")}
    ),
    "rationale_teacher_tokens": Metric("counter", "Tokens the teacher wrote."),
    "rationale_train_tokens_per_s": Metric("gauge", "Training speed of all workers.", {"phase": PHASES}),
    "rationale_train_progress": Metric("gauge", "Share of the phase's steps done.", {"phase": PHASES}),
    "rationale_train_loss": Metric("gauge", "Training loss.", {"phase": PHASES, "loss": ("answer", "text")}),
    "rationale_train_valid_auc": Metric("gauge", "AUC on validation rows.", {"phase": PHASES}),
}  # fmt: skip
SERVICE = (
    "rationale_answers",
    "rationale_refusals",
    "rationale_items",
    "rationale_doubts",
    "rationale_reflections",
    "rationale_sentences",
    "rationale_feedback",
)
"""Counters of the ingress."""
ENGINE = ("rationale_prompts", "rationale_tokens")
"""Counters of the student's engine."""


class Telemetry:
    """Observes. One per process is enough; several do no harm."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def appear(self, names: tuple[str, ...]) -> None:
        """Have these counters' series begin at nothing.

        Prometheus sees no increase in a series whose first value is 1: without this the first fault of a
        process would raise no alert, and a share would have no value until both its parts had occurred.
        """
        for name in names:
            labels = METRICS[name].labels
            for values in product(*labels.values()):
                # The least that Ray's counter takes; it is lost in the first real addition.
                self.add(name, sys.float_info.min, **dict(zip(labels, values, strict=True)))

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count; an amount of 0 counts nothing."""
        tags = bounded(name, labels)
        if amount > 0 and (metric := self._metric(name)):
            metric.inc(amount, tags=tags)

    def set(self, name: str, number: float, **labels: str) -> None:
        tags = bounded(name, labels)
        if metric := self._metric(name):
            metric.set(number, tags=tags)

    def spread(self, name: str, number: float, **labels: str) -> None:
        """Into a histogram."""
        tags = bounded(name, labels)
        if metric := self._metric(name):
            metric.observe(number, tags=tags)

    def answered(self, route: str, answer: Recommendation) -> None:
        """Everything that an answer tells about its making."""
        self.add("rationale_answers", route=route, outcome="degraded" if answer.degraded else "ok")
        for agent, milliseconds in answer.timings_ms.items():
            self.spread("rationale_agent_ms", milliseconds, agent=agent)
        for one in answer.items:
            expert = one.verdict.expert
            self.add("rationale_items", gate=expert if expert in ("global", "blend") else "expert")
            rewritten = min(one.explanation.rewritten, len(one.explanation.sentences))
            self.add("rationale_sentences", rewritten, source="rewritten")
            self.add("rationale_sentences", len(one.explanation.sentences) - rewritten, source="student")
            if one.reflection:
                for trigger in one.reflection.triggers:
                    self.add("rationale_doubts", trigger=trigger)
                turned = (one.reflection.before >= 0.5) != (one.reflection.after >= 0.5)
                self.add("rationale_reflections", turned="yes" if turned else "no")

    def stage(self, manifest: dict[str, Any]) -> None:
        """A finished stage's costs, from its manifest; and the teacher's work, where it is the teacher's."""
        name, counts = manifest["stage"], manifest["counts"]
        self.set("rationale_stage_seconds", manifest["seconds"], stage=name)
        self.set("rationale_stage_cpu_seconds", manifest["cpu_seconds"], stage=name)
        self.set("rationale_stage_memory_mb", manifest["peak_memory_mb"], stage=name)
        self.set("rationale_stage_bytes", sum(manifest["files"].values()), stage=name)
        if name == "reason":
            self.add("rationale_traces", counts["accepted"], verdict="accepted")
            self.add("rationale_traces", counts["traces"] - counts["accepted"], verdict="rejected")
            self.add("rationale_traces", counts["dead"], verdict="dead")
            self.add("rationale_teacher_tokens", counts["tokens"])

    def training(self, phase: str, point: dict[str, Any]) -> None:
        """A point of a training curve, as `pipelines.train_progress` makes it."""
        kind = "expert" if phase.startswith("expert") else phase
        self.set("rationale_train_tokens_per_s", point["tokens_per_second"], phase=kind)
        self.set("rationale_train_progress", point["step"] / point["of"], phase=kind)
        for loss in ("answer", "text"):
            self.set("rationale_train_loss", point[f"loss_{loss}"], phase=kind, loss=loss)
        self.set("rationale_train_valid_auc", point["valid_auc"], phase=kind)

    def _metric(self, name: str) -> Any:
        """Ray's metric of this name; None outside a session."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if name not in self._made:
            from ray.util import metrics

            known = METRICS[name]
            keys = tuple(known.labels)
            if known.kind == "histogram":
                made = metrics.Histogram(name, known.help, boundaries=MILLISECONDS, tag_keys=keys)
            else:
                made = {"counter": metrics.Counter, "gauge": metrics.Gauge}[known.kind](
                    name, known.help, tag_keys=keys
                )
            self._made[name] = made
        return self._made[name]


def bounded(name: str, labels: dict[str, str]) -> dict[str, str]:
    """Labels with values out of their set replaced. Raises KeyError for a label the metric does not have."""
    allowed = METRICS[name].labels
    if labels.keys() != allowed.keys():
        raise KeyError(f"metric {name} has labels {', '.join(allowed)}, not {', '.join(labels)}")
    return {label: text if text in allowed[label] else OTHER for label, text in labels.items()}
