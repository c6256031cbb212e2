"""The report of a run: `<run>/report/report.html` and `metrics.json`, from what its stages left.

    python -m pipelines.report --config configs/local.yaml [--run FOLDER]

Drawn again at the end of every `pipelines.run`; costs nothing worth a stage of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.common import STAGES, open_run, parser
from ray_app.artifacts import MANIFEST, Run, versions
from ray_app.config import Config
from ray_app.errors import cli
from ray_app.evaluation.report import render


def write_report(config: Config, run: Run, out: Path | None = None) -> Path:
    """Render the report into `out`, or `<run>/report`; needs stage evaluate. Returns the page's path."""
    manifests = {
        name: run.stage(name).read_json(MANIFEST) for name in STAGES if run.stage(name).exists(MANIFEST)
    }
    evaluate = run.stage("evaluate")
    metrics = evaluate.read_json("metrics.json") | {
        "run": {
            "name": run.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "settings": {
                "teacher": f"{config.reason.engine.kind} ({config.reason.engine.model})",
                "student": student(config),
                "evaluated on": manifests["prepare"]["counts"]["evaluated_on"],
                "seed": str(config.seed),
            },
        },
        "data": data_section(config, run, manifests["prepare"]["counts"]),
        "teacher": teacher_section(config, run, manifests["reason"]["counts"]),
        "curves": curves_section(run),
        "experts": experts_section(run),
        "ablation": ablation_section(run),
        "stages": [
            {key: facts[key] for key in ("stage", "seconds", "cpu_seconds", "peak_memory_mb")}
            for facts in manifests.values()
        ],
        "system": system_section(run, manifests["train"]),
    }
    return render(metrics, evaluate.read_json("samples.json"), out or run.folder.local() / "report")


def student(config: Config) -> str:
    """What decides, in a line."""
    base = config.student.base or "tiny Llama, bootstrapped in this run"
    share = config.student.direct
    return f"{base}, with {share:.0%} of the score from networks beside it" if share else base


def data_section(config: Config, run: Run, counts: dict[str, Any]) -> dict[str, Any]:
    rows = pl.read_parquet(run.stage("prepare").path("interactions.parquet"))
    splits = rows.group_by("split").agg(
        pl.len().alias("rows"),
        pl.col("user").n_unique().alias("users"),
        pl.col("label").mean().alias("positive_share"),
    )
    return {
        "source": config.data.source,
        **{name: counts[name] for name in ("users", "items", "interactions", "rejected")},
        "splits": {row.pop("split"): row for row in splits.sort("rows").iter_rows(named=True)},
    }


def teacher_section(config: Config, run: Run, counts: dict[str, Any]) -> dict[str, Any]:
    quality = run.stage("reason").read_json("quality.json")
    return {
        "engine": config.reason.engine.kind,
        "rows": counts["rows"],
        "traces": counts["traces"],
        "accepted": counts["accepted"],
        "by_round": tallies(quality["by_round"]),
        "by_template": tallies(quality["by_template"]),
        "rejects": counts["rejects"],
    }


def tallies(table: dict[str, Any]) -> dict[str, Any]:
    return {
        str(name): {"attempts": row["traces"], "accepted": row["accepted"]} for name, row in table.items()
    }


def curves_section(run: Run) -> list[dict[str, Any]]:
    curves = run.stage("train").read_json("curves.json")
    return [
        {
            "name": name,
            "points": [
                {
                    "step": point["step"],
                    "tokens": round(point["tokens_per_second"] * point["seconds"]),
                    "loss": point["loss_answer"],
                    "valid_auc": point["valid_auc"],
                }
                for point in facts["curve"]
            ],
        }
        for name, facts in curves.items()
    ]


def experts_section(run: Run) -> list[dict[str, Any]]:
    rows = run.stage("train").read_json("experts.json")
    renamed = {"expert": "name", "users": "users", "valid_rows": "rows", "valid_users": "valid_users"}
    kept = ("auc_expert", "auc_global", "gain", "low", "high", "doubt", "better", "published")
    return [
        {new: row[old] for old, new in renamed.items()} | {name: row[name] for name in kept} for row in rows
    ]


def ablation_section(run: Run) -> dict[str, Any] | None:
    """What `pipelines.ablate` left, if it was run."""
    folder = run.stage("ablation")
    return folder.read_json("ablation.json") if folder.exists("ablation.json") else None


def system_section(run: Run, train: dict[str, Any]) -> dict[str, Any]:
    curves = run.stage("train").read_json("curves.json")
    rates = [facts["curve"][-1]["tokens_per_second"] for facts in curves.values() if facts["curve"]]
    return {
        "train_tokens_per_s": max(rates) if rates else None,
        "hours_to_convergence": train["seconds"] / 3600,
    }


def main() -> None:
    config, run = open_run(parser("Draw the report of a finished run.").parse_args())
    print(write_report(config, run))


if __name__ == "__main__":
    cli(main)
