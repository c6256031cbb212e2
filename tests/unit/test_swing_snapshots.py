"""Which snapshot a row may use."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.errors import DataError
from ray_app.swing.snapshots import plan, snapshot_for


def splits(*runs):
    return np.concatenate([np.full(count, name) for name, count in runs])


def test_cuts_lie_at_equal_row_counts_then_valid_test_final():
    listed = plan(np.arange(100, 124), splits(("train", 18), ("valid", 3), ("test", 3)), 2)
    assert listed == [
        {"name": "s0", "cut": 106, "rows": 6},
        {"name": "s1", "cut": 112, "rows": 12},
        {"name": "valid", "cut": 118, "rows": 18},
        {"name": "test", "cut": 121, "rows": 21},
        {"name": "final", "cut": None, "rows": 24},
    ]


def test_rows_of_one_timestamp_stay_together():
    times = np.array([1, 2, 2, 2, 2, 2, 3, 4])
    listed = plan(times, splits(("train", 7), ("test", 1)), 3)
    assert [(entry["name"], entry["cut"], entry["rows"]) for entry in listed] == [
        ("s0", 2, 1),
        ("test", 4, 7),
        ("final", None, 8),
    ]


def test_a_cut_without_earlier_rows_is_no_snapshot():
    listed = plan(np.array([5, 5, 5, 6]), splits(("train", 4)), 2)
    assert [entry["name"] for entry in listed] == ["final"]


def test_without_training_rows_there_is_nothing_to_cut():
    with pytest.raises(DataError, match="split train"):
        plan(np.array([1]), np.array(["test"]), 2)


@given(st.lists(st.integers(0, 40), min_size=5, max_size=60), st.integers(1, 8))
def test_a_row_is_only_given_what_lies_strictly_before_it(times, count):
    times = np.sort(times)
    n = len(times)
    listed = plan(times, splits(("train", n - 2), ("valid", 1), ("test", 1)), count)
    chosen = snapshot_for(listed, times)
    cuts = [entry["cut"] for entry in listed[:-1]]
    assert cuts == sorted(set(cuts))
    for time, index in zip(times, chosen, strict=True):
        if index >= 0:
            assert listed[index]["name"] != "final"
            assert listed[index]["rows"] == np.count_nonzero(times < cuts[index])
            assert cuts[index] <= time
        later = cuts[index + 1 :]
        assert all(cut > time for cut in later)
