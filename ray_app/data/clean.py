"""From text to typed tables. Every row that is not taken gets a reason; none disappears.

A row is judged by its rules in order and rejected for the first that it breaks. Of rows with equal
keys the first one in the input is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import polars as pl

from ray_app.config import DataConfig
from ray_app.data import text
from ray_app.data.sources import Raw
from ray_app.data.split import SPLITS
from ray_app.data.tables import META
from ray_app.errors import DataError

MAX_TIMESTAMP = 4_102_444_800
"""2100-01-01 in epoch seconds. Milliseconds land far beyond it."""

Rules = list[tuple[str, pl.Expr]]


@dataclass
class Clean:
    """Typed tables, and the rejected rows of each (columns of `records.REJECTS`).

    interactions: user_id, item_id, timestamp, rating, label[, split]; items: the fields of
    `records.Item`; users: user_id, profile (JSON).
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    rejects: dict[str, pl.DataFrame]
    years_unread: int
    """Items whose year is not a number, nor part of the title; it is left empty."""


def clean(raw: Raw, config: DataConfig) -> Clean:
    """Judge and convert all tables. Raises nothing for bad rows: see `check_rejects`."""
    titles = pl.Series("_title", [text.normalise(title, text.TITLE_CHARS) for title in raw.items["title"]])
    titled = _stripped(raw.items, ["item_id"]).with_columns(titles.cast(pl.String))
    items, bad_items = _sift(titled, _item_rules(), ["item_id"])
    users, bad_users = _sift(_stripped(raw.users, ["user_id"]), _id_rules("user_id"), ["user_id"])
    typed = _typed_interactions(raw.interactions, config)
    rules = _interaction_rules(config, items["item_id"], "split" in typed.columns)
    interactions, bad_interactions = _sift(typed, rules, ["user_id", "item_id", "_time"])
    converted, years_unread = _convert_items(items)
    return Clean(
        interactions=_convert_interactions(interactions),
        items=converted,
        users=_convert_users(users, interactions["user_id"]),
        rejects={"interactions": bad_interactions, "items": bad_items, "users": bad_users},
        years_unread=years_unread,
    )


def check_rejects(raw: Raw, rejects: dict[str, pl.DataFrame], limit: float, where: str) -> None:
    """Raise DataError if a table lost more than `limit` of its rows; `where` says where they are."""
    for table, rejected in rejects.items():
        total = getattr(raw, table).height
        if rejected.height <= limit * total:
            continue
        reasons = rejected["reason"].value_counts(sort=True).rows()
        counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        raise DataError(
            f"{table}: {rejected.height:,} of {total:,} rows rejected ({counts}), more than "
            f"data.max_reject_rate {limit:g}: see {where}/{table}.parquet, mend the input or raise the limit"
        )


def _sift(frame: pl.DataFrame, rules: Rules, keys: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows that break no rule, rejects)."""
    broken = [pl.when(condition).then(pl.lit(reason)) for reason, condition in rules]
    judged = frame.with_columns(pl.coalesce(pl.col("_reason"), *broken).alias("_reason"))
    sound = pl.col("_reason").is_null()
    # Only sound rows compete: a rejected row must not make its sound twin a duplicate.
    first = pl.struct(*keys, sound).is_first_distinct()
    judged = judged.with_columns(
        pl.when(sound & ~first).then(pl.lit("duplicate")).otherwise(pl.col("_reason")).alias("_reason")
    )
    columns = [name for name in frame.columns if not name.startswith("_")]
    rejects = judged.filter(~sound).select(
        pl.col("_file").alias("file"),
        pl.col("_line").alias("line"),
        pl.col("_reason").alias("reason"),
        pl.coalesce(pl.col("_raw"), pl.struct(columns).struct.json_encode()).alias("row"),
    )
    return judged.filter(sound), rejects


def _stripped(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Text columns without blanks around them; what is then empty is null."""
    strip = (pl.col(column).str.strip_chars().replace("", None) for column in columns)
    return frame.with_columns(*strip)


def _id_rules(column: str) -> Rules:
    return [
        (f"missing {column}", pl.col(column).is_null()),
        (f"unusable {column}", pl.col(column).str.contains(text.UNUSABLE_ID)),
    ]


def _item_rules() -> Rules:
    return [*_id_rules("item_id"), ("missing title", pl.col("_title") == "")]


def _typed_interactions(frame: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    given = ["user_id", "item_id", "timestamp", "rating", "label", "split"]
    present = [column for column in given if column in frame.columns]
    frame = _stripped(frame.select(*present, *META), present)
    absent = pl.lit(None, pl.String)
    rating = (pl.col("rating") if "rating" in present else absent).cast(pl.Float64, strict=False)
    label_text = (pl.col("label") if "label" in present else absent).str.to_lowercase()
    label = label_text.replace_strict(
        {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}, default=None, return_dtype=pl.Int8
    )
    liked = (rating >= config.positive_rating).cast(pl.Int8)
    return frame.with_columns(
        _seconds=pl.col("timestamp").cast(pl.Float64, strict=False),
        _rating=rating,
        _label=pl.coalesce(label, liked) if "label" in present else liked,
        _label_bad=label_text.is_not_null() & label.is_null(),
        _rating_bad=(pl.col("rating") if "rating" in present else absent).is_not_null()
        & ~rating.is_finite().fill_null(False),
    ).with_columns(
        _time=pl.when(pl.col("_seconds").is_between(0, MAX_TIMESTAMP))
        .then(pl.col("_seconds"))
        .floor()
        .cast(pl.Int64)
    )


def _interaction_rules(config: DataConfig, item_ids: pl.Series, has_split: bool) -> Rules:
    low, high = config.rating_range
    seconds = pl.col("_seconds")
    in_split = pl.col("split").is_in(SPLITS).fill_null(False)
    return [
        *_id_rules("user_id"),
        *_id_rules("item_id"),
        ("missing timestamp", pl.col("timestamp").is_null()),
        ("timestamp is not a number", ~seconds.is_finite().fill_null(False)),
        ("timestamp is not in epoch seconds", ~seconds.is_between(0, MAX_TIMESTAMP)),
        ("rating is not a number", pl.col("_rating_bad")),
        ("rating out of range", ~pl.col("_rating").is_between(low, high)),
        ("label is not 0 or 1", pl.col("_label_bad")),
        ("neither rating nor label", pl.col("_label").is_null()),
        *([("split is not train, valid or test", ~in_split)] if has_split else []),
        ("unknown item_id", ~pl.col("item_id").is_in(item_ids.implode())),
    ]


def _convert_interactions(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        "user_id",
        "item_id",
        pl.col("_time").alias("timestamp"),
        pl.col("_rating").cast(pl.Float32).alias("rating"),
        pl.col("_label").alias("label"),
        *(["split"] if "split" in frame.columns else []),
    )


def _convert_items(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    def texts(column: str, cap: int) -> list[str]:
        values = frame[column] if column in frame.columns else [None] * frame.height
        return [text.normalise(value, cap) for value in values]

    def lists(column: str) -> list[list[str]]:
        if column not in frame.columns:
            return [[] for _ in range(frame.height)]
        values = frame[column].to_list()
        split = [value.split("|") if isinstance(value, str) else value or [] for value in values]
        return [text.tidy_features([part for part in parts if part]) for parts in split]

    tidied = [text.tidy_title(title) for title in frame["_title"]]
    titles: list[str] = [title for title, _ in tidied]
    years: list[int | None] = [year for _, year in tidied]
    unread = 0
    if "year" in frame.columns:
        given = frame["year"].str.strip_chars().cast(pl.Float64, strict=False).cast(pl.Int32, strict=False)
        years = [own if own is not None else year for own, year in zip(given, years, strict=True)]
        unread = sum(
            year is None and value is not None for year, value in zip(years, frame["year"], strict=True)
        )
    features = lists("features")
    descriptions = texts("description", text.DESCRIPTION_CHARS)
    keywords = lists("keywords")
    if "keywords" not in frame.columns:
        bodies = [f"{title} {body}" for title, body in zip(titles, descriptions, strict=True)]
        keywords = text.extract_keywords(bodies, features, years)
    items = pl.DataFrame(
        {
            "item_id": frame["item_id"],
            "title": titles,
            "features": features,
            "keywords": keywords,
            "year": years,
            "description": descriptions,
        },
        schema_overrides={
            "features": pl.List(pl.String),
            "keywords": pl.List(pl.String),
            "year": pl.Int32,
        },
    )
    return items, unread


def _convert_users(frame: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    """The users of the file, and those that only interactions name, with an empty profile."""
    columns = [name for name in frame.columns if name != "user_id" and not name.startswith("_")]
    profiles = [
        json.dumps(
            {
                column: text.normalise(str(row[column]), text.TITLE_CHARS)
                for column in columns
                if row[column] is not None
            },
            ensure_ascii=False,
            sort_keys=True,
        )
        for row in frame.iter_rows(named=True)
    ]
    known = pl.DataFrame({"user_id": frame["user_id"], "profile": pl.Series(profiles, dtype=pl.String)})
    others = seen.unique().to_frame("user_id").join(known, on="user_id", how="anti")
    return pl.concat([known, others.with_columns(pl.lit("{}").alias("profile"))])
