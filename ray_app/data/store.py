"""The service's own data: users, items, and every interaction, durable once acknowledged.

One schema on SQLite (embedded: WAL, foreign keys, synchronous=FULL) and PostgreSQL (a cluster:
synchronous_commit=on), without a statement that only one of them understands. A store is safe to share
between threads, and several processes may open one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import polars as pl
import sqlalchemy as sa
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
    TimeoutError,
)

from ray_app.data.clean import MAX_TIMESTAMP
from ray_app.data.schema import bundle, interactions, items, metadata, open_engine, shown, users
from ray_app.data.text import UNUSABLE_ID
from ray_app.errors import ConfigError, DataError, NotFoundError, OverloadedError
from ray_app.records import Interaction, Item, User

HISTORY = "history"
"""Event of rows that came with a bundle; rows that the service collects carry events of their own."""
BATCH = 5_000
ATTEMPTS = 5
SILENT = (OperationalError, InterfaceError, InternalError, ProgrammingError, TimeoutError)
"""What a database says that is locked, full, gone, read-only, without its tables or a free connection."""
T = TypeVar("T")


class UserSummary(NamedTuple):
    user_id: str
    interactions: int


class Store:
    """Users, items and interactions behind a SQLAlchemy URL; makes its tables where they are missing.

    Raises ConfigError if the URL cannot be opened. All methods raise OverloadedError while the database
    is locked or does not answer; a call with a `key` can then be repeated without harm.
    """

    def __init__(self, url: str):
        try:
            self._engine = open_engine(url)
            self._write(metadata.create_all)
        except (SQLAlchemyError, ModuleNotFoundError, OverloadedError) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise ConfigError(
                f"store {shown(url)!r} cannot be opened ({cause}): correct serve.store"
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    def load(
        self,
        item_table: pl.DataFrame,
        user_table: pl.DataFrame,
        interaction_table: pl.DataFrame,
        *,
        version: str,
    ) -> bool:
        """Import the tables of stage `prepare` in one transaction; False if `version` is there already.

        A newer version replaces the rows that came with the older one. What the service has collected
        stays, and is not doubled where the new version contains it.
        """
        tables = (item_table, user_table, interaction_table)
        return self._write(lambda connection: _load(connection, *tables, version))

    def version(self) -> str | None:
        """Version of the bundle that was loaded last."""
        with self._reading() as connection:
            return connection.scalar(sa.select(bundle.c.version))

    def user(self, user_id: str) -> User:
        """Raises NotFoundError."""
        with self._reading() as connection:
            row = (
                connection.execute(users.select().where(users.c.user_id == user_id)).one_or_none()
                if _usable(user_id)
                else None
            )
        if row is None:
            raise NotFoundError(f"user {user_id!r} does not exist: ask GET /v1/users for ids")
        return User(user_id=row.user_id, profile=row.profile)

    def users(self, limit: int, prefix: str = "") -> list[UserSummary]:
        """The first users whose id begins with `prefix`, shortest ids first, with their history's length."""
        if prefix and not _usable(prefix):
            return []
        some = (
            sa.select(users.c.user_id)
            .where(sa.func.substr(users.c.user_id, 1, len(prefix)) == prefix)
            .order_by(sa.func.length(users.c.user_id), users.c.user_id)
            .limit(limit)
            .subquery()
        )
        counted = (
            sa.select(some.c.user_id, sa.func.count(interactions.c.id))
            .outerjoin(interactions, interactions.c.user_id == some.c.user_id)
            .group_by(some.c.user_id)
            .order_by(sa.func.length(some.c.user_id), some.c.user_id)
        )
        with self._reading() as connection:
            return [UserSummary(user_id, count) for user_id, count in connection.execute(counted)]

    def items(self, ids: Iterable[str]) -> dict[str, Item]:
        """Items by id, in the order asked for. Raises NotFoundError naming the first unknown one."""
        wanted = list(dict.fromkeys(ids))
        usable = [item_id for item_id in wanted if _usable(item_id)]
        found: dict[str, Item] = {}
        with self._reading() as connection:
            for start in range(0, len(usable), BATCH):
                chosen = items.c.item_id.in_(usable[start : start + BATCH])
                for row in connection.execute(items.select().where(chosen)).mappings():
                    found[row["item_id"]] = Item(**row)
        for item_id in wanted:
            if item_id not in found:
                raise _no_item(item_id)
        return {item_id: found[item_id] for item_id in wanted}

    def history(self, user_id: str, before: int | None = None, limit: int | None = None) -> list[Interaction]:
        """The user's last `limit` interactions earlier than `before` (epoch seconds), newest last.

        Raises NotFoundError for an unknown user.
        """
        if not _usable(user_id):
            self.user(user_id)
        columns = [interactions.c[name] for name in Interaction.model_fields]
        query = sa.select(*columns).where(interactions.c.user_id == user_id)
        if before is not None:
            query = query.where(interactions.c.timestamp < before)
        query = query.order_by(interactions.c.timestamp.desc(), interactions.c.id.desc()).limit(limit)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        if not rows:
            self.user(user_id)
        return [Interaction(**row) for row in reversed(rows)]

    def add(self, interaction: Interaction, *, event: str, key: str | None = None) -> bool:
        """Store one interaction; it survives a crash once this returns. A new user is created.

        `key` makes a repeated call harmless: False if an interaction with it is there already.
        Raises NotFoundError for an unknown item, DataError for a value that cannot be stored.
        """
        for name, value in {"user id": interaction.user_id, "event": event, "key": key}.items():
            if value is not None and not _usable(value):
                raise DataError(
                    f"{name} {value[:40]!r} is empty, too long or has control characters: send another"
                )
        if event == HISTORY:
            raise DataError(f"event {event!r} is kept for the rows of a bundle: send another")
        time = interaction.timestamp
        if not 0 <= time <= MAX_TIMESTAMP:
            raise DataError(f"timestamp {time} is not in epoch seconds: send 0 to {MAX_TIMESTAMP}")
        return self._write(lambda connection: _add(connection, interaction, event, key))

    def counts(self) -> dict[str, int]:
        """Rows of each table; `feedback` are the interactions that the service collected."""
        rows = sa.select(sa.func.count())
        queries = {
            "users": rows.select_from(users),
            "items": rows.select_from(items),
            "interactions": rows.select_from(interactions),
            "feedback": rows.where(interactions.c.event != HISTORY),
        }
        with self._reading() as connection:
            return {name: connection.execute(query).scalar_one() for name, query in queries.items()}

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _answering(), self._transaction(writes=False) as connection:
            yield connection

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction that writes.

        It may lose a race for a key, a new user or a new table: then it runs again and sees what the
        winner wrote.
        """
        with _answering():
            for _ in range(ATTEMPTS - 1):
                try:
                    with self._transaction(writes=True) as connection:
                        return work(connection)
                except (IntegrityError, ProgrammingError):
                    continue
            with self._transaction(writes=True) as connection:
                return work(connection)

    @contextmanager
    def _transaction(self, writes: bool) -> Iterator[sa.Connection]:
        with self._engine.connect().execution_options(writes=writes) as connection, connection.begin():
            yield connection


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except SILENT as error:
        cause = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise OverloadedError(
            f"the store does not answer ({cause}): send the request again, or check the database"
        ) from error


def _usable(text: str) -> bool:
    """Whether both databases can hold it as an id: JSON may carry lone surrogates, which neither can."""
    return bool(text.strip()) and re.search(rf"{UNUSABLE_ID}|[\ud800-\udfff]", text) is None


def _no_item(item_id: str) -> NotFoundError:
    return NotFoundError(f"item {item_id!r} does not exist: ask GET /v1/items for ids")


def _add(connection: sa.Connection, interaction: Interaction, event: str, key: str | None) -> bool:
    if key is not None and _has(connection, interactions.c.key, key):
        return False
    if not _usable(interaction.item_id) or not _has(connection, items.c.item_id, interaction.item_id):
        raise _no_item(interaction.item_id)
    if not _has(connection, users.c.user_id, interaction.user_id):
        connection.execute(users.insert().values(user_id=interaction.user_id, profile={}))
    row = interaction.model_dump() | {"event": event, "key": key}
    connection.execute(interactions.insert().values(row))
    return True


def _has(connection: sa.Connection, column: sa.Column[Any], value: str) -> bool:
    return connection.execute(sa.select(sa.exists().where(column == value))).scalar_one()


def _load(
    connection: sa.Connection,
    item_table: pl.DataFrame,
    user_table: pl.DataFrame,
    interaction_table: pl.DataFrame,
    version: str,
) -> bool:
    present = connection.scalar(sa.select(bundle.c.version).with_for_update())
    if present == version:
        return False
    # The row is also the lock: of two first loads the second fails on its key, and tries again.
    connection.execute(
        bundle.insert().values(id=1, version=version)
        if present is None
        else bundle.update().values(version=version)
    )
    connection.execute(interactions.delete().where(interactions.c.event == HISTORY))
    _upsert(connection, items, "item_id", item_table.select(list(Item.model_fields)).to_dicts())
    profiles = user_table.select("user_id", "profile").to_dicts()
    profiles = [row | {"profile": json.loads(row["profile"])} for row in profiles]
    _upsert(connection, users, "user_id", profiles)
    named = interaction_table.join(user_table, on="user").join(item_table, on="item").sort("row_id")
    for batch in named.select(list(Interaction.model_fields)).iter_slices(BATCH):
        rows = [row | {"event": HISTORY} for row in batch.iter_rows(named=True)]
        connection.execute(interactions.insert(), rows)
    _drop_doubles(connection)
    return True


def _upsert(connection: sa.Connection, table: sa.Table, key: str, rows: list[dict[str, Any]]) -> None:
    known = set(connection.scalars(sa.select(table.c[key])))
    new = [row for row in rows if row[key] not in known]
    changed = [row | {"_key": row[key]} for row in rows if row[key] in known]
    if new:
        connection.execute(table.insert(), new)
    if changed:
        connection.execute(table.update().where(table.c[key] == sa.bindparam("_key")), changed)


def _drop_doubles(connection: sa.Connection) -> None:
    """Feedback becomes the next run's data: a loaded row that the service collected itself goes again."""
    collected = interactions.alias()
    double = sa.exists().where(
        collected.c.event != HISTORY,
        collected.c.user_id == interactions.c.user_id,
        collected.c.item_id == interactions.c.item_id,
        collected.c.timestamp == interactions.c.timestamp,
    )
    connection.execute(interactions.delete().where(interactions.c.event == HISTORY, double))
