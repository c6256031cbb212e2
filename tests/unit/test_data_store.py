import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest

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
def store(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.load(ITEMS, USERS, INTERACTIONS, version="v1")
    yield store
    store.close()


def liked(user: str = "1", item: str = "10", time: int = 300) -> Interaction:
    return Interaction(user_id=user, item_id=item, timestamp=time, rating=None, label=1)


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


def test_an_acknowledged_interaction_survives_a_killed_process(store, tmp_path):
    program = (
        "import sys, time\n"
        "from ray_app.data.store import Store\n"
        "from ray_app.records import Interaction\n"
        f"store = Store('sqlite:///{tmp_path}/store.db')\n"
        "store.add(Interaction(user_id='1', item_id='10', timestamp=999, label=1), event='like', key='k')\n"
        "print('ack', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ack\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert store.history("1")[-1].timestamp == 999
    assert store.add(liked(time=999), event="like", key="k") is False


def test_a_failed_load_leaves_the_old_bundle_whole(store):
    broken = ITEMS.with_columns(title=pl.lit(None, pl.String))
    with pytest.raises(Exception, match="NOT NULL"):
        store.load(broken, USERS, INTERACTIONS, version="v2")
    assert store.version() == "v1"
    assert store.counts()["interactions"] == 3


def test_a_store_that_stopped_answering_is_a_retryable_error(store, tmp_path):
    with sqlite3.connect(tmp_path / "store.db") as broken:
        broken.execute("DROP TABLE interactions")
    with pytest.raises(OverloadedError, match=r"the store does not answer .*: send the request again"):
        store.history("1")


def test_a_url_that_cannot_be_opened_is_one_line_without_its_password(tmp_path):
    with pytest.raises(
        ConfigError, match=r"missing/store.db' cannot be opened .*unable to open.*: correct serve.store"
    ):
        Store(f"sqlite:///{tmp_path}/missing/store.db")
    with pytest.raises(ConfigError, match=r"u:\*\*\*@host") as error:
        Store("nosuch://u:secret@host/db")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
