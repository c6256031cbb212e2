"""Where the data comes from: MovieLens-100K (fetched, or GroupLens' own folder) or the user's files.

`read` gives three frames of text with the project's column names and the `_` columns of
`ray_app.data.tables`; nothing is judged here but the files and columns themselves.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ray_app.artifacts import filesystem
from ray_app.config import DataConfig
from ray_app.data import packages, tables
from ray_app.errors import ConfigError, DataError

RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
"""Wheel that carries MovieLens-100K (Harper and Konstan 2015, doi 10.1145/2827872) as sample data."""
RECBOLE_MEMBER = "recbole/dataset_example/ml-100k/ml-100k"

_GENRE_FLAGS = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir "
    "Horror Musical Mystery Romance Sci-Fi Thriller War Western"
)
GENRES = _GENRE_FLAGS.split()
"""Order of the genre flags in GroupLens' `u.item`."""

COLUMNS = {
    "interactions": ["user_id", "item_id", "timestamp", "rating", "label", "split"],
    "items": ["item_id", "title", "features", "keywords", "description", "year"],
    "users": ["user_id"],
}
REQUIRED = {
    "interactions": ["user_id", "item_id", "timestamp"],
    "items": ["item_id", "title"],
    "users": ["user_id"],
}

ReadFiles = Callable[[list[str]], pl.DataFrame]
"""Reads many files into one frame; on a cluster the stage passes one that shares them out."""


@dataclass
class Raw:
    """The three tables as they were read; `users` has only `user_id` and `_` columns where none is given."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame


def read_files(uris: list[str]) -> pl.DataFrame:
    return pl.concat([tables.read(uri) for uri in uris], how="diagonal")


def read(config: DataConfig, many: ReadFiles = read_files) -> Raw:
    """All tables of the configured source; `many` reads the files of a folder.

    Raises DataError naming the missing file or column, ConfigError for a mapping that cannot be meant.
    """
    if config.source == "files":
        return _read_own_files(config, many)
    if config.path is not None:
        return _read_grouplens(config.path)
    return _read_recbole(packages.fetch(RECBOLE, RECBOLE_SHA256, Path(config.cache)))


def content_hashes(config: DataConfig) -> dict[str, str]:
    """SHA-256 of what `read` would read, by table; needs no network."""
    if config.source == "ml-100k" and config.path is None:
        return {"ml-100k": RECBOLE_SHA256}
    return {table: _content_hash(uri) for table, uri in _locations(config).items()}


def _locations(config: DataConfig) -> dict[str, str]:
    if config.source == "ml-100k":
        folder = f"{config.path}".rstrip("/")
        return {
            "interactions": f"{folder}/u.data",
            "items": f"{folder}/u.item",
            "users": f"{folder}/u.user",
        }
    for table in ("interactions", "items"):
        if getattr(config, table) is None:
            raise ConfigError(f"data.source is files but data.{table} is not set: give its path")
    given = {table: getattr(config, table) for table in COLUMNS}
    return {table: uri for table, uri in given.items() if uri is not None}


def _content_hash(uri: str) -> str:
    whole = hashlib.sha256()
    for part in tables.list_files(uri):
        fs, path = filesystem(part)
        with fs.open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())  # pyright: ignore[reportArgumentType]
    return whole.hexdigest()


def _read_own_files(config: DataConfig, many: ReadFiles) -> Raw:
    unknown = set(config.columns) - {column for columns in COLUMNS.values() for column in columns}
    if unknown:
        names = sorted({column for columns in COLUMNS.values() for column in columns})
        raise ConfigError(f"data.columns: unknown column {min(unknown)!r}: map one of {', '.join(names)}")
    found: dict[str, pl.DataFrame] = {}
    for table, uri in _locations(config).items():
        uris = tables.list_files(uri)
        found[table] = read_files(uris) if uris == [uri] else many(uris)
    headers = {column for frame in found.values() for column in frame.columns}
    for ours, theirs in config.columns.items():
        if theirs not in headers:
            raise DataError(
                f"data.columns maps {ours} to {theirs!r}, and no input file has that column: "
                "correct the mapping"
            )
    renamed = {table: _rename(frame, table, config.columns) for table, frame in found.items()}
    users = renamed.get("users", pl.DataFrame(schema={"user_id": pl.String} | tables.META))
    return Raw(renamed["interactions"], renamed["items"], users)


def _rename(frame: pl.DataFrame, table: str, columns: dict[str, str]) -> pl.DataFrame:
    """The table with our names; unknown columns go, but users keep theirs as their profile."""
    theirs = {}
    for column in COLUMNS[table]:
        mapped = columns.get(column, column)
        source = mapped if mapped in frame.columns else column
        if source in frame.columns:
            theirs[column] = source
        elif column in REQUIRED[table]:
            has = ", ".join(name for name in frame.columns if name not in tables.META)
            raise DataError(
                f"{table}: no column {mapped!r} (it has {has}): add it, or map data.columns.{column} to one"
            )
    if table == "interactions" and not {"rating", "label"} & set(theirs):
        raise DataError("interactions: no rating and no label column: add one, or map it in data.columns")
    used = {*theirs.values(), *theirs, *tables.META}
    extra = [name for name in frame.columns if name not in used] if table == "users" else []
    return frame.select(
        *(pl.col(source).alias(column) for column, source in theirs.items()), *extra, *tables.META
    )


def _read_recbole(wheel: Path) -> Raw:
    frames = {}
    with zipfile.ZipFile(wheel) as archive:
        for suffix in ("inter", "item", "user"):
            member = f"{RECBOLE_MEMBER}.{suffix}"
            frame = tables.parse_text(archive.read(member), member.rsplit("/", 1)[-1], "\t")
            frames[suffix] = frame.rename(lambda column: column.split(":")[0])  # "user_id:token"
    items = frames["item"].rename({"movie_title": "title", "release_year": "year", "class": "features"})
    return Raw(
        interactions=frames["inter"],
        items=items.with_columns(pl.col("features").str.split(" ")),
        users=frames["user"],
    )


def _read_grouplens(folder: str) -> Raw:
    """GroupLens' distribution: headerless `u.data` (tabs), `u.item` and `u.user` (bars, latin-1)."""
    shapes = {
        "u.data": ("\t", ["user_id", "item_id", "rating", "timestamp"]),
        "u.item": ("|", ["item_id", "title", "release", "video_release", "url", *GENRES]),
        "u.user": ("|", ["user_id", "age", "gender", "occupation", "zip_code"]),
    }
    frames = {}
    for name, (separator, columns) in shapes.items():
        (uri,) = tables.list_files(f"{folder.rstrip('/')}/{name}")
        fs, path = filesystem(uri)
        content = fs.cat_file(path)
        frames[name] = tables.parse_text(content, name, separator, columns=columns, encoding="latin-1")
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    items = frames["u.item"].select(
        "item_id", "title", pl.concat_list(flags).list.drop_nulls().alias("features"), *tables.META
    )
    return Raw(frames["u.data"], items, frames["u.user"])
