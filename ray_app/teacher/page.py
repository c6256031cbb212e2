"""The teacher's quality as a page of its own, from what `quality.json` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "count": "{:,}".format, "words": _words}
    tables = {title: quality[f"by_{name}"] for name, title in TABLES.items()}
    most = max(quality["lengths"].values(), default=1)
    return environment.get_template("quality.html.jinja").render(q=quality, run=run, tables=tables, most=most)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _words(name: str) -> str:
    return name.replace("_", " ")
