"""The teacher's quality as a page of its own, from what `quality.json` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_app.evaluation.report import page_environment

TABLES = {
    "mode": "By mode",
    "round": "By round",
    "template": "By template",
    "label": "By what happened",
    "popularity": "By popularity of the item",
    "cluster": "By cluster of the user",
    "feature": "By main feature",
}


def to_html(quality: dict[str, Any], run: str) -> str:
    """One self-contained page. `quality` is laid out as stage reason writes it."""
    environment = page_environment(Path(__file__).parent)
    tables = {title: quality[f"by_{name}"] for name, title in TABLES.items()}
    most = max(quality["lengths"].values(), default=1)
    return environment.get_template("quality.html.jinja").render(q=quality, run=run, tables=tables, most=most)
