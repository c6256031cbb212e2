"""Metrics and samples of a run that never was, laid out as a report takes them. All numbers are invented."""

from __future__ import annotations

from typing import Any

import numpy as np

SCORERS = ["random", "popularity", "item rate", "trees", "student", "student + trees"]


def invented_number(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def invented_entry(value: float, metrics: list[str]) -> dict[str, dict[str, float]]:
    return {metric: invented_number(value + 0.003 * place) for place, metric in enumerate(metrics)}


def invented_metrics() -> dict[str, Any]:
    exposed = ["auc", "uauc", "snapshot_accuracy", "ndcg@5", "ndcg@10", "map@5", "map@10", "uauc_null"]
    full = ["ndcg@5", "ndcg@10", "map@5", "map@10"]
    table = {name: invented_entry(0.51 + 0.05 * place, exposed) for place, name in enumerate(SCORERS)}
    table["student"]["ece"] = {"value": 0.031, "low": None, "high": None}
    difference = {"difference": 0.031, "low": 0.011, "high": 0.05, "p_value": 0.0002, "users": 111}
    return {
        "run": {
            "name": "invented-for-the-test",
            "created": "2001-01-01 00:00",
            "versions": {"rationale": "0.0.0", "ray": "0.0"},
            "settings": {"teacher": "none", "seed": "7"},
        },
        "champion": "student",
        "data": {
            "source": "invented",
            "users": 111,
            "items": 222,
            "interactions": 3333,
            "rejected": 4,
            "splits": {"train": {"rows": 2222, "users": 99, "positive_share": 0.55}, "test": {"rows": 1111}},
        },
        "exposed": {
            "scorers": table,
            "counts": {"rows": 1111, "uauc_users": 88},
            "artefact": {"uauc": 0.67, "null": {"value": 0.69, "low": 0.68, "high": 0.7}},
            "paired": {
                name: dict.fromkeys(("auc", "uauc"), difference) for name in SCORERS if name != "student"
            },
        },
        "catalogue": {
            "scorers": {
                name: invented_entry(0.02 + 0.01 * place, full) for place, name in enumerate(SCORERS)
            },
            "counts": {"users": 60},
        },
        "calibration": {
            "rows": 1111,
            "ece": 0.031,
            "brier": 0.191,
            "brier_constant": 0.248,
            "reliability": [{"p": p, "observed": p**1.1, "rows": 74} for p in np.linspace(0.1, 0.95, 15)],
        },
        "curves": [
            {
                "name": name,
                "points": [
                    {
                        "step": s,
                        "tokens": 8192 * s,
                        "loss": 3 / (s + 1) + 0.4,
                        "valid_auc": 0.78 - 0.2 / (s + 1),
                    }
                    for s in range(0, 40, 4)
                ],
            }
            for name in ("global", "expert-0", "expert-1")
        ],
        "experts": [
            {
                "name": "expert-0",
                "users": 40,
                "rows": 500,
                "valid_users": 31,
                "auc_expert": 0.79,
                "auc_global": 0.78,
                "gain": 0.0123,
                "low": 0.0021,
                "high": 0.0234,
                "doubt": 0.01,
                "better": 0.61,
                "published": True,
            },
            {"name": "expert-1", "users": 30, "rows": 20, "auc_expert": None, "auc_global": 0.71},
        ],
        "ablation": {
            "split": "valid",
            "rows": 1111,
            "seeds": [7, 8],
            "variants": {
                name: {"auc": {"mean": 0.771, "spread": 0.0042, "values": [0.768, 0.774]}}
                for name in ("student", "without experts")
            },
        },
        "teacher": {
            "engine": "evidence writer",
            "rows": 200,
            "traces": 400,
            "accepted": 310,
            "by_round": {"0": {"attempts": 400, "accepted": 280}, "1": {"attempts": 120, "accepted": 30}},
            "by_template": {"plain": {"attempts": 200, "accepted": 160}},
            "rejects": {"wrong_verdict": 80, "duplicate": 10},
        },
        "text": {
            "explanations": 200,
            "meteor": {"meteor": 0.41, "shuffled": 0.3, "lift": 0.11},
            "bleurt": {"computed": False, "reason": "not computed: no BLEURT checkpoint at /nowhere"},
            "coherence": {"verdict_agreement": 0.97, "internal_consistency": 1.0, "order": 0.99},
            "coverage": {"recall": 0.35, "precision": 0.93},
            "groundedness": 0.95,
            "groundedness_kinds": {
                "history": {"statements": 412, "forced": 0.99, "raw": 0.91},
                "peers": {"statements": 3, "forced": 1.0, "raw": None},
            },
            "usr": 0.99,
            "fcr": 0.8,
            "div": 0.6,
            "distinct_1": 0.02,
        },
        "reflection": {
            "rows": 412,
            "users": 55,
            "before": {"auc": 0.601, "accuracy": 0.575, "log_loss": 0.6802},
            "after": {"auc": 0.624, "accuracy": 0.59, "log_loss": 0.6711},
            "auc_gain": {"value": 0.023, "low": 0.0071, "high": 0.0389},
            "accuracy_gain": {"value": 0.011, "low": 0.0015, "high": 0.0205},
            "turned": 61,
            "better": 34,
            "worse": 27,
            "p": 0.443,
            "triggers": {"low_confidence": 380, "conflict": 44},
            "looks": {"history": 0.598, "reweighed": 0.631},
            "neutral": False,
        },
        "stages": [
            {"stage": stage, "seconds": 10.0 * n, "cpu_seconds": 16.0 * n, "peak_memory_mb": 300.0 * n}
            for n, stage in enumerate(["prepare", "swing", "encode", "reason", "mix", "train", "evaluate"], 1)
        ],
        "system": {
            "latency": {"samples": 100, "p50": 210.0, "p95": 480.0, "p99": 900.0, "max": 950.0},
            "rate_per_s": 2.0,
            "throughput_per_s": 1.9,
            "peak_memory_mb": 900.0,
        },
    }


def invented_samples(count: int) -> list[dict[str, Any]]:
    entry = {
        "id": "e1",
        "kind": "history",
        "item_id": "1",
        "title": "An <Invented> Film (1901)",
        "features": ["Comedy"],
        "shared": ["Comedy"],
        "rating": 5.0,
        "support": 1,
        "sign": 1,
        "weight": 1.0,
    }
    crowd = entry | {
        "id": "e2",
        "kind": "crowd",
        "title": "The Target",
        "rating": 0.62,
        "support": 21,
        "shared": [],
    }
    return [
        {
            "user_id": f"u{n}",
            "title": f"The Target, number {n}",
            "decision": n % 2 == 0,
            "p_yes": 0.73 if n % 2 == 0 else 0.31,
            "label": True,
            "steps": [
                {"text": "( [e1] <r5> <+> ) The user liked [e1], which shares Comedy.", "citations": ["e1"]},
                {"text": "On balance everyone liked it [e2], so yes.", "citations": ["e2"]},
            ],
            "evidence": [entry, crowd],
            "problems": ["e1 is liked, not the opposite"] if n == 1 else [],
        }
        for n in range(count)
    ]
