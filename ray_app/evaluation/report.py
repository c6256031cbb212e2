"""The report of a run: one self-contained HTML page, `metrics.json`, and the page's plots as files.

The layout of the metrics is in `metrics.py`. Every section appears on the page; one without data says
"not measured", so that a gap cannot be taken for a good result.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ray_app.evaluation import charts
from ray_app.evaluation.metrics import Metrics, Number, Plot, Sample, TableSection, checked
from ray_app.prompts.cards import CITATION, hide
from ray_app.records import Evidence, Step

MAX_SAMPLES = 20
CHANCE = {"auc": 0.5, "uauc": 0.5, "snapshot_accuracy": 0.5}
NAMES = {
    "auc": "AUC",
    "uauc": "UAUC",
    "uauc_null": "UAUC null",
    "snapshot_accuracy": "Snapshot",
    "ece": "ECE",
}
HEADLINE = ["auc", "uauc", "uauc_null", "ndcg@5", "map@5", "snapshot_accuracy", "ece"]
"""Columns of the first table; the sections below have all."""
COUNTS = {
    "uauc_users": "users with both labels (UAUC)",
    "ndcg_users": "users with two rows or more (NDCG, MAP)",
    "snapshot_users": "users with a pair at one moment",
    "snapshot_pairs": "pairs at one moment",
    "ranked_users": "users with a liked test item",
}


def render(metrics: dict[str, Any], samples: list[dict[str, Any]], out: Path) -> Path:
    """Write `report.html`, `metrics.json`, `plots.json` and its plots into the folder `out`; return the
    page's path.

    `metrics` is laid out as `metrics.Metrics`, each sample as `metrics.Sample`; at most twenty samples
    are shown. Raises DataError where they do not fit.
    """
    typed, shown = checked(metrics, samples)
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(typed.model_dump(), indent=2, sort_keys=True, allow_nan=False)
    _replace(out / "metrics.json", content + "\n")
    drawn = _charts(typed)
    plots = []
    for section, entries in drawn.items():
        for number, (caption, svg) in enumerate(entries, 1):
            plots.append(Plot(name=f"{section}-{number}.svg", section=section, caption=caption))
            _replace(out / plots[-1].name, charts.as_file(str(svg)))
    _replace(out / "plots.json", json.dumps([plot.model_dump() for plot in plots], indent=2) + "\n")
    page = out / "report.html"
    _replace(page, to_html(typed, shown[:MAX_SAMPLES], drawn))
    return page


def to_html(metrics: Metrics, samples: list[Sample], drawn: dict[str, list[tuple[str, Markup]]]) -> str:
    """The page as text."""
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"num": number, "metric": metric_name, "counts": counts}
    environment.filters |= {"cited_parts": cited_parts, "cited_evidence": cited_evidence, "fact": fact}
    template = environment.get_template("report.html.jinja")
    return template.render(
        m=metrics,
        samples=samples,
        headline=_headline(metrics.exposed),
        exposed=_table(metrics.exposed),
        catalogue=_table(metrics.catalogue),
        best=_champion(metrics),
        charts=drawn,
    )


def page_environment(folder: Path) -> Environment:
    """Jinja for the pages of a run, whose templates lie in `folder`: escaped, strict, with plain numbers."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent}
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """`.783`; an en dash where there is no number."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def metric_name(key: str) -> str:
    return NAMES.get(key, key.upper() if "@" in key else key.replace("_", " "))


def counts(entries: dict[str, int]) -> str:
    return ", ".join(f"{count(value)} {COUNTS.get(name, name)}" for name, value in entries.items())


def cited_parts(step: Step, evidence: list[Evidence]) -> list[tuple[str, str]]:
    """A step as (text, evidence id) parts: the title in quotes for an id, "" where there is none."""
    titles = {entry.id: entry.title for entry in evidence}
    pieces = CITATION.split(hide(step.text))
    return [
        (f"“{titles[piece]}”" if piece in titles else f"[{piece}]", piece) if place % 2 else (piece, "")
        for place, piece in enumerate(pieces)
    ]


def cited_evidence(sample: Sample) -> list[Evidence]:
    """Evidence that a sample's reasons cite, in its order."""
    ids = {name for step in sample.steps for name in step.citations}
    return [entry for entry in sample.evidence if entry.id in ids]


def fact(entry: Evidence) -> str:
    """An entry of evidence in words, without its title."""
    opinion = "liked" if entry.sign > 0 else "not liked"
    behind = f"{entry.support} rating{'' if entry.support == 1 else 's'}"
    if entry.kind == "history":
        rated = "" if entry.rating is None else f", rated {entry.rating:g}"
        text = f"the user's own: {opinion}{rated}"
    elif entry.kind == "crowd":
        share = "" if entry.rating is None else f", {percent(entry.rating)} positive"
        text = f"everyone, on this item: {opinion}{share} of {behind}"
    else:
        subject = "similar users" if entry.kind == "neighbour" else "similar users, on this item"
        average = "" if entry.rating is None else f", average {entry.rating:.1f}"
        text = f"{subject}: {opinion}{average}, {behind}"
    return text + (f"; shares {', '.join(entry.shared)}" if entry.shared else "")


def _table(table: TableSection | None) -> dict[str, Any] | None:
    """Columns in order of first appearance, the null beside UAUC."""
    if table is None:
        return None
    columns = list(dict.fromkeys(key for entry in table.scorers.values() for key in entry))
    if "uauc_null" in columns:
        columns.remove("uauc_null")
        columns.insert(columns.index("uauc") + 1, "uauc_null")
    return {
        "columns": columns,
        "rows": table.scorers,
        "counts": table.counts,
        "artefact": table.artefact,
        "paired": table.paired,
    }


def _headline(table: TableSection | None) -> dict[str, Any] | None:
    """The exposed table without all but the headline's columns."""
    full = _table(table)
    return full and full | {"columns": [name for name in HEADLINE if name in full["columns"]]}


def _champion(metrics: Metrics) -> dict[str, Number]:
    return metrics.exposed.scorers.get(metrics.champion, {}) if metrics.exposed else {}


def _charts(metrics: Metrics) -> dict[str, list[tuple[str, Markup]]]:
    """Charts with their captions by section; a list is empty where there is nothing to draw."""
    drawn: dict[str, list[tuple[str, Markup]]] = {
        name: [] for name in ("exposed", "catalogue", "calibration", "curves", "stages")
    }
    for section, table, keys in (
        ("exposed", metrics.exposed, ("auc", "uauc", "snapshot_accuracy", "ndcg")),
        ("catalogue", metrics.catalogue, ("ndcg", "map")),
    ):
        for key in _first_of_each(table, keys):
            assert table is not None
            numbers = {name: entry[key] for name, entry in table.scorers.items() if key in entry}
            if any(number.value is not None for number in numbers.values()):
                drawn[section].append(_bars(key, numbers, metrics.champion))
    if metrics.calibration and metrics.calibration.reliability:
        drawn["calibration"].append(
            ("Observed against predicted", Markup(charts.reliability(metrics.calibration.reliability)))
        )
    for title, value in (("Training loss", "loss"), ("AUC on valid rows", "valid_auc")):
        if any(getattr(point, value) is not None for one in metrics.curves or [] for point in one.points):
            drawn["curves"].append((title, Markup(charts.curve(title, metrics.curves or [], value))))
    if metrics.stages:
        drawn["stages"].append(("Seconds by stage", Markup(charts.stages(metrics.stages))))
    return drawn


def _first_of_each(table: TableSection | None, keys: tuple[str, ...]) -> list[str]:
    """For `ndcg` the smallest cut-off that was measured, such as `ndcg@5`."""
    measured = list(dict.fromkeys(key for entry in table.scorers.values() for key in entry)) if table else []
    found = (next((name for name in measured if name.partition("@")[0] == key), None) for key in keys)
    return [name for name in found if name is not None]


def _bars(key: str, numbers: dict[str, Number], champion: str) -> tuple[str, Markup]:
    chance = CHANCE.get(key)
    caption = f"{metric_name(key)}, from {f'chance ({number(chance, 1)})' if chance else 'zero'}"
    # The SVG is our own drawing; names in it were escaped by matplotlib.
    return caption, Markup(charts.bars(caption, numbers, champion, chance or 0.0))


def _replace(path: Path, content: str) -> None:
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
