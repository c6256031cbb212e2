"""Tables of the service's store, and the engine that opens them on SQLite or PostgreSQL alike."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DisconnectionError

LOCKED_S = 10.0
"""Time a writer waits for another, or anybody for a silent server, before being refused."""
metadata = sa.MetaData()
_id = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # sorts like SQLite, wherever it runs
_counter = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up only INTEGER keys

bundle = sa.Table(
    "bundle",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Text, nullable=False),
)
"""One row: the bundle that was loaded last."""

users = sa.Table(
    "users",
    metadata,
    sa.Column("user_id", _id, primary_key=True),
    sa.Column("profile", sa.JSON, nullable=False),
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("item_id", _id, primary_key=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("features", sa.JSON, nullable=False),
    sa.Column("keywords", sa.JSON, nullable=False),
    sa.Column("year", sa.Integer),
    sa.Column("description", sa.Text, nullable=False),
)

interactions = sa.Table(
    "interactions",
    metadata,
    sa.Column("id", _counter, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.user_id"), nullable=False),
    sa.Column("item_id", sa.ForeignKey("items.item_id"), nullable=False),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("rating", sa.Float),
    sa.Column("label", sa.SmallInteger, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("key", sa.Text, unique=True),
    sa.Index("interactions_by_user", "user_id", "timestamp", "id"),
)
"""Timestamps are epoch seconds; `key` is the client's idempotency key."""


def open_engine(url: str) -> sa.Engine:
    """An engine whose commits are durable and whose SQLite transactions are real ones.

    Raises SQLAlchemyError for what is no URL of either database, ModuleNotFoundError without its driver.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() == "psycopg":
        return _open_postgresql(parsed)
    if parsed.get_backend_name() != "sqlite":
        raise ArgumentError("a store is on sqlite:/// or postgresql+psycopg://")
    engine = sa.create_engine(parsed, connect_args={"timeout": LOCKED_S})
    event.listen(engine, "connect", _on_sqlite_connect)
    if parsed.database:
        file = Path(parsed.database)
        event.listen(engine, "connect", lambda _, record: record.info.update(inode=_inode(file)))
        event.listen(engine, "checkout", lambda _, record, __: _check(record, file))
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _open_postgresql(url: sa.URL) -> sa.Engine:
    wait = {"connect_timeout": str(round(LOCKED_S) or 1), "tcp_user_timeout": str(round(1000 * LOCKED_S))}
    engine = sa.create_engine(
        url.set(query=wait | dict(url.query)), pool_pre_ping=True, pool_timeout=LOCKED_S
    )
    event.listen(engine, "connect", _on_postgresql_connect)
    return engine


def shown(url: str) -> str:
    """The URL without its password, for messages."""
    return re.sub(r"//([^:/@]*):.*@", r"//\1:***@", url)


def _inode(file: Path) -> int | None:
    return file.stat().st_ino if file.exists() else None


def _check(record: Any, file: Path) -> None:
    """A connection to a file that was removed or replaced would take in what nobody finds again."""
    if record.info["inode"] != _inode(file):
        raise DisconnectionError(f"{file} is not the file that was opened")


def _on_sqlite_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, see _on_sqlite_begin
    _use_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: Any) -> None:
    """Of several that open a new file at once SQLite lets one change the mode, and the others do not wait."""
    end = time.monotonic() + LOCKED_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _on_postgresql_connect(connection: Any, _: Any) -> None:
    connection.autocommit = True  # what is set in a transaction ends with it
    for setting in ("synchronous_commit = on", f"lock_timeout = {round(1000 * LOCKED_S)}"):
        connection.execute(f"SET {setting}")
    connection.autocommit = False


def _on_sqlite_begin(connection: sa.Connection) -> None:
    # A writer takes its lock at once: one that read first could not wait for another's, only fail.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
