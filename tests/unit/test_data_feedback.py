"""What the service collected becomes rows of the next run."""

from __future__ import annotations

import polars as pl
import pytest

from ray_app.config import DataConfig
from ray_app.data.clean import clean
from ray_app.data.feedback import is_there, joined, read_feedback
from ray_app.data.sources import Raw
from ray_app.data.store import Store
from ray_app.data.tables import META, parse_text
from ray_app.errors import ConfigError, DataError
from ray_app.records import Interaction

ITEMS = "item_id,title\ni1,Heat\ni2,Alien\n"


def table(text: str) -> pl.DataFrame:
    return parse_text(text.encode(), "rows.csv", ",")


@pytest.fixture
def url(database: str) -> str:
    return database


@pytest.fixture
def store(url):
    store = Store(url)
    items = pl.DataFrame(
        {"item": [0, 1, 2], "item_id": ["i1", "i2", "old"], "title": ["Heat", "Alien", "Old"],
         "features": [[], [], []], "keywords": [[], [], []], "year": [None, None, None],
         "description": ["", "", ""]}
    )  # fmt: skip
    users = pl.DataFrame({"user": [0], "user_id": ["u1"], "profile": ["{}"]})
    rows = pl.DataFrame(
        {"row_id": [0], "user": [0], "item": [0], "timestamp": [100], "rating": [5.0], "label": [1]}
    )
    store.load(items, users, rows, version="v1")
    yield store
    store.close()


def add(store: Store, user: str, item: str, time: int, rating: float | None = None, label: int = 1) -> None:
    one = Interaction(user_id=user, item_id=item, timestamp=time, rating=rating, label=label)
    store.add(one, event="page")


def cleaned(source: str, collected: pl.DataFrame, **data):
    raw = Raw(
        joined(table(source), collected),
        table(ITEMS),
        pl.DataFrame(schema={"user_id": pl.String} | META),
    )
    return clean(raw, DataConfig(source="files", **data))


def test_a_store_is_there_once_it_was_opened(url):
    assert not is_there(url)
    Store(url).close()
    assert is_there(url)


SOURCE = "user_id,item_id,timestamp,rating\nu1,i1,100,5\nu1,i2,200,3\n"


def test_only_what_the_service_collected_is_read(store, url):
    assert read_feedback(url).height == 0
    add(store, "u2", "i1", 300, 4.0)
    add(store, "u2", "i2", 301, None, 0)
    found = read_feedback(url)
    assert found.select("user_id", "item_id", "timestamp", "rating", "label").rows() == [
        ("u2", "i1", "300", "4.0", None),
        ("u2", "i2", "301", None, "0"),
    ]


def test_rated_rows_follow_positive_rating_and_labelled_ones_their_label(store, url):
    add(store, "u2", "i1", 300, 4.0)
    add(store, "u2", "i2", 301, None, 1)
    for positive, labels in ((4.0, [1, 0, 1, 1]), (5.0, [1, 0, 0, 1])):
        found = cleaned(SOURCE, read_feedback(url), positive_rating=positive)
        assert found.interactions["label"].to_list() == labels
        assert found.interactions["rating"].to_list() == [5.0, 3.0, 4.0, None]
        assert set(found.users["user_id"]) == {"u1", "u2"}


def test_what_the_source_holds_already_is_neither_doubled_nor_rejected(store, url):
    add(store, "u1", "i2", 200, None, 1)
    add(store, "u1", "i2", 201, None, 1)
    found = cleaned(SOURCE.replace("u1,i2,200,3", " u1 ,i2,200.7,3"), read_feedback(url))
    assert found.interactions["timestamp"].to_list() == [100, 200, 201]
    assert found.interactions["rating"].to_list() == [5.0, 3.0, None]
    assert found.rejects["interactions"].height == 0


def test_the_last_opinion_of_a_second_counts(store, url):
    add(store, "u2", "i1", 300, None, 1)
    add(store, "u2", "i1", 300, None, 0)
    assert cleaned(SOURCE, read_feedback(url)).interactions["label"].to_list() == [1, 0, 0]


def test_items_that_are_gone_are_rejected_by_name(store, url):
    add(store, "u2", "old", 300)
    rejects = cleaned(SOURCE, read_feedback(url)).rejects["interactions"]
    assert rejects.select("file", "reason").rows() == [("store", "unknown item_id")]


def test_broken_rows_of_the_source_stay_its_own(store, url):
    add(store, "u2", "i1", 300)
    source = SOURCE + "u1,i1,soon,5\nu1,i1,,5\nu1,i1,1e300,5\n"
    found = cleaned(source, read_feedback(url))
    assert found.interactions.height == 3
    assert found.rejects["interactions"].height == 3


def test_a_split_of_the_source_leaves_no_place_for_it(store, url):
    source = table("user_id,item_id,timestamp,rating,split\nu1,i1,100,5,train\n")
    assert joined(source, read_feedback(url)) is source
    add(store, "u2", "i1", 300)
    with pytest.raises(DataError, match="split column"):
        joined(source, read_feedback(url))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("sqlite:///{}/gone.db", "does not exist"),
        ("sqlite:///{}/empty.db", "no such table"),
        ("postgresql+psycopg://127.0.0.1:1/none", "cannot be read"),
        ("mysql://there", "sqlite:/// or postgresql"),
        ("no url", "cannot be read"),
    ],
)
def test_a_wrong_url_is_named(tmp_path, wrong, words):
    (tmp_path / "empty.db").touch()
    with pytest.raises(ConfigError, match=words) as error:
        read_feedback(wrong.format(tmp_path))
    assert "data.store_feedback" in str(error.value)
    assert not (tmp_path / "gone.db").exists()
