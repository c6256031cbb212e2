#!/usr/bin/env python3
"""docs/configs.md from the fields of `ray_app.config`: names, types, defaults, bounds, what each does.

.venv/bin/python .ci/config_page.py --write      (without it: print the page)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ray_app.config import Config  # noqa: E402

PAGE = ROOT / "docs" / "configs.md"
HEAD = """# Configuration

A config is a YAML file; every key has a default, an unknown key is an error. On the command line
`--set key.path=value` (with make: `SET="key.path=value ..."`) overrides one value, written as YAML. This page
is written by `.ci/config_page.py --write` from `ray_app/config.py`; a test fails where they differ.

"""
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "pattern": "like"}


def page() -> str:
    return HEAD + "\n".join(section("", Config, {})).rstrip() + "\n"


def section(path: str, model: type[BaseModel], seen: dict[type[BaseModel], str]) -> Iterator[str]:
    """Heading, what the section is for, its keys as a table, then the sections in it."""
    inner = {name: found for name, field in model.model_fields.items() if (found := model_of(field))}
    yield f"## `{path}`" if path else "## The run"
    yield ""
    if model.__doc__:
        yield cell(model.__doc__)
        yield ""
    own = {name: field for name, field in model.model_fields.items() if name not in inner}
    if own:
        yield "| Key | Type | Default | Meaning |"
        yield "|---|---|---|---|"
    for name, field in own.items():
        meaning = cell(field.description or "")
        yield f"| `{join(path, name)}` | {cell(kind(field))} | {default(field)} | {meaning} |"
    if own:
        yield ""
    for name, one in inner.items():
        if one in seen:
            yield f"## `{join(path, name)}`\n\nThe keys of `{seen[one]}`{other_defaults(model, name, one)}.\n"
        else:
            seen[one] = join(path, name)
            yield from section(join(path, name), one, seen)


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def model_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def kind(field: FieldInfo) -> str:
    """The annotation as a person writes it, and its bounds."""
    text = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
    if get_args(field.annotation) and text in ("list", "dict", "tuple"):
        text = str(field.annotation)
    text = re.sub(r"typing\.|NoneType", lambda m: "None" if m[0] == "NoneType" else "", text)
    bounds = [
        f"{sign} {getattr(one, name)}"
        for one in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(one, name, None) is not None
    ]
    return f"`{text}`" + (f", {' and '.join(bounds)}" if bounds else "")


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    return "needed" if value is PydanticUndefined else f"`{plain(value)}`"


def plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def other_defaults(model: type[BaseModel], name: str, one: type[BaseModel]) -> str:
    """How a section that stands in a second place differs from its first."""
    given = model.model_fields[name].get_default(call_default_factory=True)  # type: ignore[call-arg]
    if not isinstance(given, one):
        return ""
    usual = {
        key: field.get_default(call_default_factory=True)  # type: ignore[call-arg]
        for key, field in one.model_fields.items()
    }
    changed = {key: value for key, value in given.model_dump().items() if value != usual[key]}
    told = ", ".join(f"`{key}: {plain(value)}`" for key, value in changed.items())
    return f", with {told}" if told else ""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
