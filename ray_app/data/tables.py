"""One CSV, TSV or Parquet file as a frame of text, with every unreadable line kept and named.

The frame has the file's columns as strings (a list column of a Parquet file stays a list) and four more:

    _file    the file it came from
    _line    line number in a text file, row number in a Parquet file; the first is 1
    _reason  why the row cannot be taken, else null; later checks fill it in (`clean`)
    _raw     the line as it was, where it could not be split into columns

polars reads clean text files; whatever it cannot vouch for (ragged lines, stray quotes, bytes that
are not UTF-8, line breaks inside fields) is read again line by line, so that one broken line costs
one row and not its neighbours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import polars as pl

from ray_app.artifacts import filesystem
from ray_app.errors import DataError

META = {"_file": pl.String, "_line": pl.Int64, "_reason": pl.String, "_raw": pl.String}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")
MAX_RECORD_LINES = 200
"""A quoted field may hold line breaks, but no record spans more lines than this."""


def list_files(uri: str) -> list[str]:
    """The file itself, or all CSV, TSV and Parquet files under a folder, sorted."""
    fs, path = filesystem(uri)
    if fs.isfile(path):
        return [uri]
    if not fs.isdir(path):
        raise DataError(f"input {uri} does not exist: correct the path in the data section of the config")
    found = sorted(file for file in fs.find(path) if file.endswith(SUFFIXES))
    if not found:
        raise DataError(f"folder {uri} holds no .csv, .tsv or .parquet file: give the folder that does")
    return [fs.unstrip_protocol(file) for file in found]


def read(uri: str) -> pl.DataFrame:
    """Read one file; its kind is told by its suffix. Raises DataError for a file that is no table at all."""
    name = uri.rsplit("/", 1)[-1]
    fs, path = filesystem(uri)
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{name} is neither .csv, .tsv nor .parquet: convert or rename it")
    content = fs.cat_file(path)
    frame = (
        _parse_parquet(content, name)
        if suffix == ".parquet"
        else parse_text(content, name, SEPARATORS[suffix])
    )
    return frame.with_columns(pl.lit(uri).alias("_file"))


def parse_text(
    content: bytes,
    name: str,
    separator: str,
    *,
    columns: list[str] | None = None,
    encoding: str = "utf-8",
) -> pl.DataFrame:
    """Parse separated text (RFC 4180 quoting). Without `columns` the first line names them."""
    if encoding != "utf-8":
        content = content.decode(encoding).encode()
    content = content.removeprefix(b"\xef\xbb\xbf")
    headed = columns is None
    if columns is None:
        columns = _header(content, name, separator)
    clean = _parse_clean(content, separator, columns, headed)
    if clean is None:
        return _parse_patiently(content, name, separator, columns, headed)
    return _with_meta(clean, name, first_line=2 if headed else 1)


def _header(content: bytes, name: str, separator: str) -> list[str]:
    first = content.split(b"\n", 1)[0].decode(errors="replace").rstrip("\r")
    columns = [column.strip() for column in _fields(first, separator) or []]
    if not any(columns):
        raise DataError(f"{name} has no header line: name the columns in its first line")
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name} has two columns named {twice!r}: rename or remove one")
    return columns


def _parse_clean(content: bytes, separator: str, columns: list[str], headed: bool) -> pl.DataFrame | None:
    """The frame, or None unless each line surely is one row with all its fields."""
    try:
        frame = pl.read_csv(
            content,
            separator=separator,
            has_header=headed,
            new_columns=columns,
            infer_schema=False,
        )
    except (pl.exceptions.PolarsError, ValueError):
        return None
    if frame.width != len(columns):
        return None
    # A row with too few fields ends in a null; so may a whole one, hence the second reading decides.
    short = frame[columns[-1]].null_count() > 0
    broken = any(frame[column].str.contains("\n", literal=True).any() for column in columns)
    return None if short or broken else frame


def _parse_patiently(
    content: bytes, name: str, separator: str, columns: list[str], headed: bool
) -> pl.DataFrame:
    lines = content.decode("utf-8", errors="replace").split("\n")
    rows: dict[str, list[Any]] = {column: [] for column in [*columns, *META]}
    for number, raw, fields in _records(lines, separator, len(columns), start=1 if headed else 0):
        values = fields or [None] * len(columns)
        reason = "malformed line" if fields is None else "not UTF-8" if "\ufffd" in raw else None
        for column, value in zip(columns, values, strict=True):
            rows[column].append(value or None)
        for column, value in zip(META, (name, number, reason, raw if reason else None), strict=True):
            rows[column].append(value)
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String) | META)


def _records(
    lines: list[str], separator: str, width: int, start: int
) -> Iterator[tuple[int, str, list[str] | None]]:
    """(line number, text, fields) of each record; no fields where the line is malformed.

    A record grows over lines while a quote is open. If that does not end in `width` fields, its first
    line alone is malformed and reading goes on with the next.
    """
    at = start
    while at < len(lines):
        text, span = lines[at].rstrip("\r"), 1
        if not text.strip():
            at += 1
            continue
        while text.count('"') % 2 and span < MAX_RECORD_LINES and at + span < len(lines):
            text += "\n" + lines[at + span].rstrip("\r")
            span += 1
        fields = _fields(text, separator)
        if fields is None or len(fields) != width:
            yield at + 1, lines[at].rstrip("\r"), None
            at += 1
        else:
            yield at + 1, text, fields
            at += span


def _fields(text: str, separator: str) -> list[str] | None:
    if '"' not in text:
        return text.split(separator)
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _parse_parquet(content: bytes, name: str) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(content)
    except pl.exceptions.PolarsError as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{name} is not a Parquet file ({cause}): write it anew") from error
    text = [_as_text(column, dtype) for column, dtype in frame.schema.items()]
    return _with_meta(frame.select(text), name, first_line=1)


def _as_text(column: str, dtype: pl.DataType) -> pl.Expr:
    values = pl.col(column)
    if isinstance(dtype, pl.List):
        return values.cast(pl.List(pl.String))
    if isinstance(dtype, pl.Datetime):
        return values.dt.epoch("s").cast(pl.String)
    if dtype.is_float():
        # Integers become floats where a tool kept missing values: 7.0 is the id 7, NaN is missing.
        whole = values.cast(pl.Int64, strict=False)
        plain = pl.when(whole.cast(dtype) == values).then(whole.cast(pl.String))
        text = plain.otherwise(values.cast(pl.String))
        return pl.when(values.is_nan()).then(None).otherwise(text).alias(column)
    return values.cast(pl.String)


def _with_meta(frame: pl.DataFrame, name: str, first_line: int) -> pl.DataFrame:
    return frame.with_columns(
        pl.lit(name).alias("_file"),
        pl.int_range(first_line, first_line + pl.len(), dtype=pl.Int64).alias("_line"),
        pl.lit(None, pl.String).alias("_reason"),
        pl.lit(None, pl.String).alias("_raw"),
    )
