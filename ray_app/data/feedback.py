"""What the service collected, as rows for the next run: learning from use.

Rows that came with a bundle (event `history`) are the source's own and stay out. Of several opinions of a
user about an item in one second the last counts; what the source holds already is not taken twice. All
else is left to the rules of `ray_app.data.clean`, which judge these rows as they judge the source's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ray_app.data.schema import interactions, open_engine, shown
from ray_app.data.store import HISTORY
from ray_app.data.tables import META
from ray_app.errors import ConfigError, DataError

FILE = "store"
"""What stands for the file in `rejects/` and in messages."""
KEYS = ["user_id", "item_id", "timestamp"]
SCHEMA = dict.fromkeys([*KEYS, "rating", "label"], pl.String) | META


def is_there(url: str) -> bool:
    """Whether the database holds a store yet: it is made when a run first publishes to it.

    Raises ConfigError if the URL does not open.
    """
    if (path := sqlite_path(url)) is not None and not path.is_file():
        return False
    with _opened(url) as connection:
        return sa.inspect(connection).has_table(interactions.name)


def read_feedback(url: str) -> pl.DataFrame:
    """The store's own interactions in the order they came, as text like the source's tables; `_line` is the
    row's id. A rated row has no label: it follows from data.positive_rating.

    Raises ConfigError if the URL does not open or holds no store.
    """
    if (path := sqlite_path(url)) is not None and not path.is_file():
        raise ConfigError(f"store {url!r} does not exist: correct data.store_feedback")
    names = ("id", "user_id", "item_id", "timestamp", "rating", "label")
    query = (
        sa.select(*(interactions.c[name] for name in names))
        .where(interactions.c.event != HISTORY)
        .order_by(interactions.c.id)
    )
    with _opened(url) as connection:
        rows = connection.execute(query).all()
    found = [
        (
            row.user_id,
            row.item_id,
            str(row.timestamp),
            None if row.rating is None else repr(float(row.rating)),
            str(row.label) if row.rating is None else None,
            FILE,
            row.id,
            None,
            None,
        )
        for row in rows
    ]
    frame = pl.DataFrame(found, schema=SCHEMA, orient="row")
    return frame.unique(KEYS, keep="last", maintain_order=True)


def joined(source: pl.DataFrame, feedback: pl.DataFrame) -> pl.DataFrame:
    """The source's interactions and what of the feedback they do not hold; text frames as `sources` reads.

    Raises DataError where the source has a split of its own: nobody has said where feedback belongs.
    """
    if not feedback.height:
        return source
    if "split" in source.columns:
        raise DataError(
            "data.store_feedback: the interactions have a split column, and feedback has none: remove the "
            "column for a split by time, or leave data.store_feedback out"
        )
    new = feedback.join(source.select(_keys()), left_on=_keys(), right_on=KEYS, how="anti")
    return pl.concat([source, new], how="diagonal")


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL; None for another database, or what is no URL."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        return None
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


@contextmanager
def _opened(url: str) -> Iterator[sa.Connection]:
    """A connection to read with; what goes wrong meanwhile is a ConfigError."""
    try:
        engine = open_engine(url)
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        cause = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise ConfigError(
            f"store {shown(url)!r} cannot be read ({cause}): correct data.store_feedback"
        ) from error


def _keys() -> list[pl.Expr]:
    """The keys by which `clean` finds doubles, as text."""
    ids = [pl.col(name).str.strip_chars() for name in KEYS[:2]]
    seconds = pl.col("timestamp").str.strip_chars().cast(pl.Float64, strict=False)
    whole = pl.when(seconds.is_finite() & seconds.is_between(0, 2**53)).then(seconds).floor()
    return [*ids, whole.cast(pl.Int64).cast(pl.String)]
