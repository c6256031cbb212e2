"""The red team's attempts (`redteam.yaml`), put where a data supplier or a client would put them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict

from ray_app.bundle import Bundle
from ray_app.config import DataConfig
from ray_app.data.clean import clean
from ray_app.data.sources import Raw
from ray_app.records import Item

CANARY = "CANARY"
ItemField = Literal["title", "features", "keywords", "description"]
ITEM_FIELDS: tuple[str, ...] = get_args(ItemField)


class Attempt(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    field: Literal[ItemField, "user_id", "profile", "feedback", "query"]
    text: str
    times: int = 1

    @property
    def payload(self) -> str:
        return self.text * self.times


def attempts(*fields: str) -> list[Attempt]:
    """Those that are put into one of `fields`."""
    rows = yaml.safe_load(Path(__file__).with_name("redteam.yaml").read_text())
    found = [Attempt.model_validate(row) for row in rows]
    assert len({one.id for one in found}) == len(found)
    return [one for one in found if one.field in fields]


def cleaned(item: Item, changes: dict[str, str]) -> Item:
    """The item as stage `prepare` makes it from a catalogue's row that has `changes`."""
    row = {
        "item_id": item.item_id,
        "title": item.title,
        "features": "|".join(item.features),
        "keywords": "|".join(item.keywords),
        "description": item.description,
        "year": str(item.year),
    } | changes
    meta = {"_file": "items.csv", "_line": 2, "_reason": None, "_raw": None}
    items = pl.DataFrame([row | meta], schema_overrides={"_reason": pl.String, "_raw": pl.String})
    users = items.select(pl.lit("u").alias("user_id"), *meta)
    acts = {"user_id": "u", "item_id": item.item_id, "timestamp": "1", "rating": "5"}
    events = pl.DataFrame([acts | meta], schema_overrides={"_reason": pl.String, "_raw": pl.String})
    (made,) = clean(Raw(events, items, users), DataConfig(source="files")).items.to_dicts()
    return item.model_copy(update=made)


def poisoned(bundle: Bundle, code: int, changes: dict[str, str]) -> Bundle:
    """The bundle with one item's text as an attacker wrote it. What was learnt from ratings is as before."""
    item = cleaned(bundle.items[code], changes)
    items = [item if at == code else one for at, one in enumerate(bundle.items)]
    return replace(bundle, items=items, gatherer=replace(bundle.gatherer, items=items))


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from (key, *strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
