"""Ids become int32 codes: the row numbers of `users.parquet` and `items.parquet`."""

from __future__ import annotations

import polars as pl

from ray_app import records
from ray_app.data.clean import Clean


def in_order(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Sorted by id, so that codes do not depend on the order of the input: numbers by value, then text."""
    number = pl.col(column).cast(pl.Int64, strict=False)
    return frame.sort(number, pl.col(column), nulls_last=True)


def encode(clean: Clean, split: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(interactions, items, users) with the columns, in the order, of the schemas in `records`.

    `split` belongs to the rows of `clean.interactions`. Interactions come out sorted by (timestamp,
    user, item), which no two rows share, so `row_id` is determined by the data.
    """
    items = _numbered(in_order(clean.items, "item_id"), "item")
    users = _numbered(in_order(clean.users, "user_id"), "user")
    interactions = (
        clean.interactions.with_columns(split.alias("split"))
        .join(users.select("user_id", "user"), on="user_id", how="left")
        .join(items.select("item_id", "item"), on="item_id", how="left")
        .sort("timestamp", "user", "item")
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("row_id"))
    )
    return (
        interactions.select(records.INTERACTIONS.names),
        items.select(records.ITEMS.names),
        users.select(records.USERS.names),
    )


def _numbered(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    return frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias(name))
