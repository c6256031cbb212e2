"""Diverse selection, against values by hand."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.teacher.selection import coverage, earlier_interactions, select, strata, terciles


def test_earlier_interactions_counts_strictly_earlier_rows_of_the_same_user():
    users = np.array([1, 1, 2, 1, 1, 2])
    times = np.array([10, 20, 5, 20, 30, 5])
    assert earlier_interactions(users, times).tolist() == [0, 1, 0, 1, 3, 0]


def test_terciles_are_of_codes_by_frequency():
    codes = np.array([7] * 9 + [5] * 5 + [3])
    assert dict(zip(codes.tolist(), terciles(codes).tolist(), strict=True)) == {3: 0, 5: 1, 7: 2}


def test_strata_name_all_four_sides():
    names = strata(np.array([1, 0]), np.array([4, 4]), np.array([2, 2]), np.array(["Drama", "War"]))
    assert names.tolist() == [
        "liked/popular low/cluster 4/Drama",
        "disliked/popular low/cluster 4/War",
    ]


def test_rare_strata_are_taken_in_turn_with_common_ones():
    stratum = np.array(["common"] * 97 + ["rare"] * 3)
    chosen = select(stratum, 6, seed=0)
    assert (stratum[chosen] == "rare").sum() == 3
    assert len(set(chosen.tolist())) == 6


@settings(deadline=None)
@given(
    stratum=st.lists(st.sampled_from("abcde"), min_size=1, max_size=60),
    size=st.integers(1, 80),
    seed=st.integers(0, 5),
)
def test_a_selection_is_as_even_as_the_strata_allow(stratum, size, seed):
    names = np.array(stratum)
    chosen = select(names, size, seed)
    assert len(chosen) == min(size, len(names))
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == select(names, size, seed).tolist()
    taken = {name: int((names[chosen] == name).sum()) for name in set(stratum)}
    most = max(taken.values())
    assert all(count >= most - 1 or count == stratum.count(name) for name, count in taken.items())


def test_a_stratum_offers_first_what_its_users_and_items_have_least_of():
    users = np.array([0] * 90 + list(range(1, 11)))
    items = np.arange(100) % 7
    chosen = select(np.array(["one"] * 100), 20, 0, spread=(users, items))
    assert len(set(users[chosen])) == 11
    assert len(set(items[chosen])) == 7
    assert chosen.tolist() == select(np.array(["one"] * 100), 20, 0, spread=(users, items)).tolist()


def test_coverage_stands_beside_a_random_sample_of_the_same_size():
    users = np.repeat(np.arange(10), 10)
    items = np.tile(np.arange(10), 10)
    found = coverage(np.arange(0, 100, 11), users, items, users, seed=1)
    assert found["rows"] == 10
    assert found["users"] == found["items"] == found["strata"] == 1.0
    assert found["users_random"] < 1.0
