"""The store, on SQLite and on a real PostgreSQL server: the same tests for both."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from ray_app.data import schema
from ray_app.data.store import Store
from ray_app.errors import ConfigError, DataError, NotFoundError, OverloadedError
from ray_app.records import Interaction, Item

ITEMS = pl.DataFrame(
    {
        "item": [0, 1],
        "item_id": ["10", "20"],
        "title": ["Heat", "Alien"],
        "features": [["Crime"], []],
        "keywords": [["1990s"], []],
        "year": [1995, None],
        "description": ["", "In space."],
    }
)
USERS = pl.DataFrame(
    {"user": [0, 1, 2], "user_id": ["1", "12", "2"], "profile": ['{"city": "Oslo"}', "{}", "{}"]}
)
INTERACTIONS = pl.DataFrame(
    {
        "row_id": [0, 1, 2],
        "user": [0, 0, 1],
        "item": [1, 0, 1],
        "timestamp": [100, 200, 200],
        "rating": [2.0, 5.0, None],
        "label": [0, 1, 1],
        "split": ["train", "valid", "test"],
    }
)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = Store(database)
    store.load(ITEMS, USERS, INTERACTIONS, version="v1")
    yield store
    store.close()


def liked(user: str = "1", item: str = "10", time: int = 300) -> Interaction:
    return Interaction(user_id=user, item_id=item, timestamp=time, rating=None, label=1)


@contextmanager
def another_client(database: str) -> Iterator[sa.Connection]:
    """A transaction that writes; it ends with the block."""
    engine = schema.open_engine(database)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection
    engine.dispose()


def test_a_loaded_bundle_is_read_back(store):
    assert store.version() == "v1"
    assert store.counts() == {"users": 3, "items": 2, "interactions": 3, "feedback": 0}
    assert store.user("1").profile == {"city": "Oslo"}
    assert store.items(["20", "10"]) == {
        "20": Item(item_id="20", title="Alien", description="In space."),
        "10": Item(item_id="10", title="Heat", features=["Crime"], keywords=["1990s"], year=1995),
    }
    assert store.history("1") == [
        Interaction(user_id="1", item_id="20", timestamp=100, rating=2.0, label=0),
        Interaction(user_id="1", item_id="10", timestamp=200, rating=5.0, label=1),
    ]


def test_loading_the_same_version_again_changes_nothing(store):
    assert store.load(ITEMS, USERS, INTERACTIONS, version="v1") is False
    assert store.counts()["interactions"] == 3


def test_a_newer_version_replaces_the_loaded_rows_and_keeps_feedback(store):
    store.add(liked(time=300), event="like", key="k")
    newer = pl.concat(
        [INTERACTIONS[:1], INTERACTIONS[1:2].with_columns(timestamp=pl.lit(300))], how="vertical_relaxed"
    )
    renamed = ITEMS.with_columns(title=pl.col("title").str.to_uppercase())
    assert store.load(renamed, USERS, newer, version="v2") is True
    assert [row.timestamp for row in store.history("1")] == [100, 300]
    assert store.counts() == {"users": 3, "items": 2, "interactions": 2, "feedback": 1}
    assert store.items(["10"])["10"].title == "HEAT"
    assert store.add(liked(time=300), event="like", key="k") is False


def test_history_is_strictly_before_a_time_and_limited_to_the_newest(store):
    for time in (201, 202, 203):
        store.add(liked(time=time), event="like")
    assert [row.timestamp for row in store.history("1", before=203, limit=2)] == [201, 202]
    assert [row.timestamp for row in store.history("1", before=200)] == [100]
    assert store.history("2") == []


def test_users_are_listed_shortest_id_first_by_prefix_with_counts(store):
    assert store.users(10) == [("1", 2), ("2", 0), ("12", 1)]
    assert store.users(10, prefix="1") == [("1", 2), ("12", 1)]
    assert store.users(1) == [("1", 2)]
    assert store.users(10, prefix="%") == []


def test_ids_sort_by_code_point_whatever_the_language_of_the_database(store):
    for name in ("b", "A", "ä", "a", "B"):
        store.add(liked(user=name), event="like")
    assert [user.user_id for user in store.users(10)] == ["1", "2", "A", "B", "a", "b", "ä", "12"]


def test_unknown_ids_are_named_with_what_to_ask(store):
    with pytest.raises(NotFoundError, match=r"^user '9999' does not exist: ask GET /v1/users for ids$"):
        store.user("9999")
    with pytest.raises(NotFoundError, match="user '9999'"):
        store.history("9999")
    with pytest.raises(NotFoundError, match="item '30' does not exist"):
        store.items(["10", "30"])
    with pytest.raises(NotFoundError, match="item '30'"):
        store.add(liked(item="30"), event="like")


@pytest.mark.parametrize("odd", ["", "a\x00b", "\ud800", "x" * 300, "' OR 1=1 --"])
def test_odd_ids_are_simply_not_there(store, odd):
    with pytest.raises(NotFoundError):
        store.user(odd)
    with pytest.raises(NotFoundError):
        store.history(odd)
    with pytest.raises(NotFoundError):
        store.items([odd])
    assert odd == "" or store.users(10, prefix=odd) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda store: store.add(liked(user="a\x00b"), event="like"), "user id 'a.x00b' is empty, too long"),
        (lambda store: store.add(liked(), event="like", key=""), "key '' is empty"),
        (lambda store: store.add(liked(), event="history"), "kept for the rows of a bundle"),
        (lambda store: store.add(liked(time=1_700_000_000_000), event="like"), "not in epoch seconds"),
    ],
)
def test_values_that_cannot_be_stored_are_refused(store, call, message):
    with pytest.raises(DataError, match=message):
        call(store)
    assert store.counts()["feedback"] == 0


def test_feedback_of_an_unknown_user_creates_the_user(store):
    assert store.add(liked(user="new"), event="like") is True
    assert store.user("new").profile == {}
    assert store.history("new") == [liked(user="new")]


def test_threads_that_send_the_same_key_store_it_once(store):
    results = []
    gate = threading.Barrier(8)

    def send():
        gate.wait()
        results.append(store.add(liked(user="racer"), event="like", key="once"))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    assert store.counts()["feedback"] == 1


ADD = """
import sys, time
from ray_app.data.store import Store
from ray_app.records import Interaction

def add(key, user):
    one = Interaction(user_id=user, item_id="10", timestamp=999, label=1)
    return store.add(one, event="like", key=key)

store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""


@contextmanager
def process(database: str, program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the store open and goes on with `program` once it is sent a line."""
    child = subprocess.Popen(
        [sys.executable, "-c", ADD + program, database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def test_processes_that_send_the_same_keys_at_once_store_each_once(store, database):
    program = "print(sum(add(f'k{n}', f'new{n}') for n in range(100)))"
    with process(database, program) as one, process(database, program) as other:
        for child in (one, other):
            child.stdin.write("go\n")
            child.stdin.flush()
        stored = [int(child.communicate(timeout=60)[0]) for child in (one, other)]
    assert sum(stored) == 100
    assert store.counts()["feedback"] == 100


def test_an_acknowledged_interaction_survives_a_killed_process(store, database):
    with process(database, "add('k', '1'); print('ack', flush=True); time.sleep(60)") as child:
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ack\n"
        child.kill()
        child.wait()
    assert store.history("1")[-1].timestamp == 999
    assert store.add(liked(time=999), event="like", key="k") is False


def test_what_was_not_committed_when_a_process_died_is_not_there(store, database):
    program = """
with store._transaction(writes=True) as connection:
    connection.exec_driver_sql("DELETE FROM interactions")
    print("deleted", flush=True)
    time.sleep(60)
"""
    with process(database, program) as child:
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "deleted\n"
        child.kill()
        child.wait()
    assert store.counts()["interactions"] == 3
    assert store.add(liked(), event="like") is True


def test_of_loads_at_once_one_makes_the_change(database):
    """The tables are not there yet, either."""
    results, gate = [], threading.Barrier(4)

    def load():
        gate.wait()
        store = Store(database)
        results.append(store.load(ITEMS, USERS, INTERACTIONS, version="v1"))
        store.close()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 3 + [True]
    store = Store(database)
    assert store.counts() == {"users": 3, "items": 2, "interactions": 3, "feedback": 0}
    store.close()


def test_a_locked_store_is_read_and_refuses_to_write_in_time(database, monkeypatch):
    monkeypatch.setattr(schema, "LOCKED_S", 0.3)
    store = Store(database)
    store.load(ITEMS, USERS, INTERACTIONS, version="v1")
    with another_client(database) as connection:
        if connection.dialect.name == "postgresql":  # SQLite's writer has locked everything already
            connection.exec_driver_sql("LOCK TABLE interactions IN EXCLUSIVE MODE")
        with pytest.raises(OverloadedError, match=r"the store does not answer \(.*lock"):
            store.add(liked(), event="like", key="k")
        assert len(store.history("1")) == 2
    assert store.add(liked(), event="like", key="k") is True
    store.close()


def test_a_failed_load_leaves_the_old_bundle_whole(store):
    broken = ITEMS.with_columns(title=pl.lit(None, pl.String))
    with pytest.raises(Exception, match=r"(?i)not.null constraint"):
        store.load(broken, USERS, INTERACTIONS, version="v2")
    assert store.version() == "v1"
    assert store.counts()["interactions"] == 3


def test_a_store_that_stopped_answering_is_a_retryable_error(store, database):
    with another_client(database) as connection:
        connection.exec_driver_sql("DROP TABLE interactions")
    for call in (lambda: store.history("1"), lambda: store.add(liked(), event="like")):
        with pytest.raises(OverloadedError, match=r"the store does not answer .*: send the request again"):
            call()


def test_a_url_that_cannot_be_opened_is_one_line_without_its_password(tmp_path):
    with pytest.raises(
        ConfigError, match=r"missing/store.db' cannot be opened .*unable to open.*: correct serve.store"
    ):
        Store(f"sqlite:///{tmp_path}/missing/store.db")
    for url in ("nosuch://u:secret@host/db", "postgresql+psycopg://u:secret@127.0.0.1:1/db"):
        with pytest.raises(ConfigError, match=r"u:\*\*\*@") as error:
            Store(url)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)
