"""One file of interactions, for stand-alone use: CSV, TSV or Parquet, with ids as they are written there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

from ray_app.errors import ConfigError, DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
REQUIRED = ("user_id", "item_id")
COLUMNS = (*REQUIRED, "timestamp", "strength")


def read(file: str, columns: str) -> pl.DataFrame:
    """The file's columns under our names: user_id, item_id, and timestamp and strength where it has them.

    Ids of text files are integers if all of them are written as integers are (no `007`), else strings.
    Raises DataError for a file that is missing, no table, empty, or without a column.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"{file} {'is a folder' if path.is_dir() else 'does not exist'}: name one file")
    if path.suffix not in (*SEPARATORS, ".parquet"):
        raise DataError(f"{file} is neither .csv, .tsv nor .parquet: convert or rename it")
    try:
        if path.suffix == ".parquet":
            table = pl.scan_parquet(path)
        else:
            table = pl.scan_csv(path, separator=SEPARATORS[path.suffix], infer_schema=False)
        frame = table.select(_chosen(file, table.collect_schema().names(), columns)).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        raise DataError(f"{file} cannot be read ({reason}): check that it is what its suffix says") from error
    if frame.is_empty():
        raise DataError(f"{file} has no rows: give it at least one interaction")
    return frame if path.suffix == ".parquet" else _typed(frame)


def _chosen(file: str, has: list[str], columns: str) -> list[pl.Expr]:
    mapped: dict[str, str] = {}
    for pair in filter(None, columns.split(",")):
        ours, sign, theirs = (part.strip() for part in pair.partition("="))
        if not sign or ours not in COLUMNS:
            names = ", ".join(COLUMNS)
            raise ConfigError(f"--columns: {pair!r} is not OURS=FILE'S, where OURS is one of {names}")
        mapped[ours] = theirs
    chosen = []
    for name in COLUMNS:
        theirs = mapped.get(name, name)
        if theirs in has:
            chosen.append(pl.col(theirs).alias(name))
        elif name in REQUIRED or name in mapped:
            raise DataError(
                f"{file} has no column {theirs!r} (it has {', '.join(has)}): "
                f"name yours with --columns {name}=..."
            )
    return chosen


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Text columns as what they hold: ids as integers where that loses nothing, times, numbers."""
    columns = []
    for name in frame.columns:
        text = frame[name]
        if name in REQUIRED:
            number = text.cast(pl.Int64, strict=False)
            columns.append(number if number.cast(pl.String).equals(text) else text)
        else:
            columns.append(_measure(name, text))
    return pl.DataFrame(columns)


def _measure(name: str, text: pl.Series) -> pl.Series:
    """A column of numbers; timestamps may be dates instead."""
    parsed = text.cast(pl.Float64, strict=False)
    if name == "timestamp" and parsed.null_count() == len(text):
        with suppress(pl.exceptions.ComputeError):  # not even the format can be told
            parsed = text.str.to_datetime(strict=False, time_zone="UTC").alias(name)
    if parsed.null_count():
        row = int(np.flatnonzero(parsed.is_null().to_numpy())[0])
        kind = "seconds or dates" if name == "timestamp" else "numbers"
        raise DataError(
            f"{name} of row {row} is {text[row]!r}: write {kind}, or rename the column to leave it out"
        )
    return parsed
