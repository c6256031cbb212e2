"""Stand-alone Swing: hand values, ids as given, every kind of bad input, spools against tables."""

import math
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.errors import ConfigError, DataError
from ray_app.swing import item_neighbours, parameters, user_neighbours
from ray_app.swing.spool import ITEM_COLUMNS, Spool, labelled
from ray_app.swing.table import NeighbourTable, Rows

FLINK = [(0, 10), (0, 11), (0, 12), (1, 13), (1, 12), (2, 10), (2, 11), (2, 12), (3, 13), (3, 12)]
FLINK += [(4, item) for item in (12, 10, 11, 12, 13)]
"""The rows of Flink ML's own test; user 4 has more than 3 distinct items, so it is dropped."""


def columns(rows):
    return [row[0] for row in rows], [row[1] for row in rows]


def raw(**values):
    return parameters(normalize="none", **values)


def test_flinks_own_test_comes_out():
    table = item_neighbours(*columns(FLINK), parameters("flink", normalize="none", max_behavior=3))
    assert table.columns == ["item_id", "neighbour_id", "score", "common_users"]
    found = {(i, j): score for i, j, score, _ in table.iter_rows()}
    pair, heavy = 0.058845768947156235, 0.09134833828228624
    assert found == pytest.approx(
        {(10, 11): pair, (10, 12): pair, (11, 10): pair, (11, 12): pair}
        | {(12, 13): heavy, (12, 10): pair, (12, 11): pair, (13, 12): heavy}
    )
    assert table["item_id"].to_list() == sorted(table["item_id"])
    assert table.filter(item_id=12)["neighbour_id"][0] == 13


def test_alinks_documented_example_comes_out():
    rows = [
        (f"a{u}", item) for u, pair in enumerate([(11, 12), (11, 12), (12, 13), (13, 14)]) for item in pair
    ]
    table = item_neighbours(*columns(rows), parameters("alink", normalize="none", min_behavior=1))
    assert table.rows() == [(11, 12, pytest.approx(7**0.7 / 3), 2), (12, 11, pytest.approx(7**0.7 / 3), 2)]


def test_funrec_counts_each_pair_of_users_once():
    users, items = ["A"] * 2 + ["B"] * 2, ["x", "y"] * 2
    table = item_neighbours(users, items, parameters("funrec", normalize="none"))
    assert table["score"].to_list() == pytest.approx([1 / 2 / (1 + 2)] * 2)


def test_user_similarity_by_hand():
    # everything about two users with the same two items is alike; n / (n + shrinkage) remains
    table = user_neighbours(["u", "u", "v", "v"], [1, 2, 1, 2], config=parameters(user_shrinkage=6))
    assert table.columns == ["user_id", "neighbour_id", "similarity", "common_items"]
    assert table.rows() == [("u", "v", pytest.approx(0.25), 2), ("v", "u", pytest.approx(0.25), 2)]


def test_strength_and_recency_count_for_users():
    users, items = ["u", "u", "v", "v", "w", "w"], [1, 2, 1, 2, 1, 2]
    plain = user_neighbours(users, items)
    day = 86400
    strong = user_neighbours(users, items, strengths=[5, 1, 1, 5, 1, 5])
    recent = user_neighbours(users, items, timestamps=[400 * day, 0, 0, 400 * day, 0, 400 * day])
    for table in (strong, recent):
        near = table.filter(pl.col("user_id") == "v")
        assert near["neighbour_id"].to_list() == ["w", "u"]
        assert near["similarity"][0] == pytest.approx(plain["similarity"][0])
        assert near["similarity"][1] < plain["similarity"][0]


def test_dates_are_seconds():
    users, items, seconds = ["u", "u", "v", "v"], [1, 2, 1, 2], [0, 10**7, 2 * 10**7, 0]
    dates = pl.from_epoch(pl.Series(seconds), "s")
    assert user_neighbours(users, items, timestamps=dates).equals(
        user_neighbours(users, items, timestamps=seconds)
    )


@pytest.mark.parametrize(
    ("parameter", "name"),
    [({"item_strength": True}, "strengths"), ({"item_half_life_days": 9}, "timestamps")],
)
def test_items_are_weighed_only_where_asked(parameter, name):
    users, items = ["u", "u", "v", "v", "v", "w", "w"], [1, 2, 1, 2, 3, 2, 3]
    given = {name: [10**6 * (1 + (user == "w")) for user in users]}
    plain, weighed = (item_neighbours(users, items, raw(**some), **given) for some in ({}, parameter))
    assert plain.equals(item_neighbours(users, items, raw()))
    assert weighed.filter(item_id=2)["neighbour_id"].to_list() == [3, 1]
    with pytest.raises(DataError, match=f"{next(iter(parameter))} needs 7 {name}, got none"):
        item_neighbours(users, items, raw(**parameter))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=80),
    st.randoms(use_true_random=False),
)
def test_row_order_repeats_and_spelling_of_ids_change_nothing(rows, random):
    config = parameters(max_users_per_item=3, user_min_similarity=0, min_common_users=1)
    shuffled = rows + random.sample(rows, len(rows) // 2)
    random.shuffle(shuffled)
    for neighbours in (item_neighbours, user_neighbours):
        one = neighbours(*columns(rows), config=config)
        assert neighbours(*columns(shuffled), config=config).equals(one)
        text = neighbours(*([str(value) for value in column] for column in columns(rows)), config=config)
        assert text.equals(one.with_columns(pl.col(*one.columns[:2]).cast(pl.String)))


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        (np.array([3, 3, 9, 9], np.uint16), pl.UInt16),
        (np.array(["b", "b", "a", "a"]), pl.String),
        (np.array(["b", "b", "a", "a"], object), pl.String),
        (pl.Series(["b", "b", "a", "a"], dtype=pl.Categorical), pl.String),
        ([2**40, 2**40, -1, -1], pl.Int64),
    ],
)
def test_ids_come_back_as_given(ids, dtype):
    table = user_neighbours(ids, [1, 2, 1, 2])
    assert table["user_id"].dtype == table["neighbour_id"].dtype == dtype
    assert set(table["user_id"]) == set(ids)


def test_the_only_item_and_users_without_company_have_no_rows():
    assert item_neighbours(["u", "v", "w"], [1, 1, 1]).is_empty()
    assert user_neighbours(["u", "v", "w"], [1, 1, 1]).is_empty()
    assert item_neighbours(["u", "u", "v"], [1, 2, 3]).is_empty()


def test_a_user_below_min_behavior_counts_for_no_pair():
    users, items = ["u", "u", "v", "v", "w"], [1, 2, 1, 2, 1]
    with_w, without = item_neighbours(users, items, raw()), item_neighbours(users[:4], items[:4], raw())
    assert with_w.equals(without)


def test_no_interactions_give_empty_tables():
    assert item_neighbours([], []).columns == ["item_id", "neighbour_id", "score", "common_users"]
    assert item_neighbours([], []).is_empty()
    assert user_neighbours([], [], timestamps=[], strengths=[]).is_empty()


NAN = math.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, "a"], [1, 2]), r"user ids are of mixed types \(int, str\): make them all"),
        ((["a", "b"], ["x", 2]), r"item ids are of mixed types \(int, str\)"),
        (([True, False], [1, 2]), r"user ids are of type Boolean"),
        (([1, None], [1, 2]), r"1 user ids are null \(first in row 1\): remove"),
        (([1, 2], pl.Series([None, "b"])), r"1 item ids are null \(first in row 0\)"),
        (([1.5, 2.5], [1, 2]), r"user ids are of type Float64: make them strings or integers"),
        (([1, 2], [1, 2, 3]), r"2 users but 3 items: give one per interaction"),
        (([1, 2], [1, 2], [5]), r"2 users but 1 timestamps"),
        (([1, 2], [1, 2], [5, NAN]), r"timestamp of row 1 is nan: give every row a number"),
        (([1, 2], [1, 2], [5, math.inf]), r"timestamp of row 1 is inf"),
        (([1, 2], [1, 2], [5, None]), r"timestamp of row 1 is nan"),
        (([1, 2], [1, 2], ["yesterday", "today"]), r"timestamps are not numbers"),
        (([1, 2], [1, 2], [5, 6], [1, 0]), r"strength of row 1 is 0, not above 0"),
        (([1, 2], [1, 2], [5, 6], [-1, 1]), r"strength of row 0 is -1, not above 0"),
        (([1, 2], [1, 2], [5, 6], [1, NAN]), r"strength of row 1 is nan"),
    ],
)
def test_bad_data_is_named_in_one_line(arguments, message):
    with pytest.raises(DataError, match=message) as caught:
        user_neighbours(*arguments[:2], **dict(zip(("timestamps", "strengths"), arguments[2:], strict=False)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *[({name: -1}, f"{name}: .*greater") for name in ("alpha1", "alpha2", "beta", "user_shrinkage")],
        *[
            ({name: NAN}, f"{name}: .*finite.* nan")
            for name in ("alpha1", "alpha2", "beta", "half_life_days")
        ],
        ({"beta": math.inf}, "beta: .*finite"),
        ({"k": 0}, r"k: .*greater than or equal to 1 \(got 0\)"),
        ({"user_k": 0}, "user_k: .*greater than or equal to 1"),
        ({"k": 2.5}, "k: .*integer"),
        ({"max_users_per_item": 1}, "max_users_per_item: .*greater than or equal to 2"),
        ({"min_behavior": 5, "max_behavior": 2}, "min_behavior 5 > max_behavior 2: swap them"),
        ({"normalize": "l2"}, "normalize: .*'none'"),
        ({"alpha3": 1}, "unknown key swing.alpha3"),
        ({"preset": "spark"}, "there is no preset 'spark': take one of flink, alink, funrec"),
    ],
)
def test_bad_parameters_are_named_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parameters(**values)
    assert "\n" not in str(caught.value)


def test_values_go_on_top_of_a_preset():
    config = parameters("alink", alpha2=3, k=7)
    assert (config.alpha1, config.alpha2, config.beta, config.k) == (5, 3, -0.35, 7)


def test_importing_it_loads_neither_ray_nor_torch():
    code = "import sys, ray_app.swing; print({'ray', 'torch', 'vllm', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@st.composite
def parts_of_a_table(draw):
    n = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    order = draw(st.permutations(range(n)))
    parts = []
    while order:
        size = draw(st.integers(1, len(order)))
        mains, order = np.array(order[:size], np.int32), order[size:]
        sizes = np.array(lengths, np.int32)[mains]
        indices = np.concatenate(
            [np.arange(length) + main for main, length in zip(mains, sizes, strict=True)]
        )
        values = indices.astype(np.int32) % n
        parts.append(Rows(mains, sizes, values, values / np.float32(7), values * 2, mains.astype(np.int64)))
    return n, parts


@settings(max_examples=30, deadline=None)
@given(parts_of_a_table(), st.integers(1, 6))
def test_a_spool_writes_what_a_table_in_memory_would(tmp_path_factory, made, chunk):
    n, parts = made
    folder = tmp_path_factory.mktemp("spool")
    table, spool = NeighbourTable.assemble(n, parts), Spool(n, chunk=chunk)
    for part in parts:
        spool.add(part)
    table.save(folder / "memory", "items")
    spool.save(folder / "spool", "items")
    for file in (folder / "memory").iterdir():
        assert file.read_bytes() == (folder / "spool" / file.name).read_bytes()
    ids = pl.Series([f"m{i}" for i in range(n)])
    spool.write_parquet(folder / "items.parquet", ids, ITEM_COLUMNS)
    lengths = np.diff(table.indptr)
    whole = Rows(np.arange(n), lengths, table.indices, table.scores, table.common, lengths)
    assert pl.read_parquet(folder / "items.parquet").equals(labelled(whole, ids, ITEM_COLUMNS))
    assert spool.work.tolist() == list(range(n))
