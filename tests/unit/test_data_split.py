import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.config import SplitConfig
from ray_app.data.split import SPLITS, check_split, time_split
from ray_app.errors import DataError

SHARES = SplitConfig(train=0.6, valid=0.2, test=0.2)


def frame(**times: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        [{"split": split, "timestamp": time} for split, given in times.items() for time in given],
        schema={"split": pl.String, "timestamp": pl.Int64},
    )


def test_distinct_times_are_cut_at_the_shares_whatever_their_order():
    split = time_split(pl.Series([9, 0, 1, 2, 3, 8, 4, 5, 6, 7]), SHARES)
    assert split.to_list() == ["test", *["train"] * 4, "test", "train", "train", "valid", "valid"]


def test_a_tie_goes_whole_to_the_nearer_side():
    # Wanted after row 6 of 10; time 3 covers rows 5 to 7, and a cut after 7 is nearer than one after 4.
    split = time_split(pl.Series([0, 1, 2, 2, 3, 3, 3, 4, 5, 6]), SHARES)
    assert split.to_list() == [*["train"] * 7, "valid", "test", "test"]


@given(st.lists(st.integers(0, 30), min_size=3, max_size=300).filter(lambda times: len(set(times)) >= 3))
def test_splits_are_in_order_apart_in_time_and_never_empty(times):
    series = pl.Series(times, dtype=pl.Int64)
    split = time_split(series, SHARES)
    spans = [series.filter(split == name) for name in SPLITS]
    assert sum(len(span) for span in spans) == len(times)
    assert spans[0].max() < spans[1].min()
    assert spans[1].max() < spans[2].min()
    check_split(pl.DataFrame({"split": split, "timestamp": series}))


@given(st.integers(20, 500))
def test_without_ties_sizes_are_within_one_row_of_their_shares(rows):
    counts = time_split(pl.Series(np.arange(rows)), SHARES).value_counts()
    sizes = dict(counts.rows())
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert abs(sizes[name] - share * rows) <= 1


def test_too_few_distinct_times_cannot_be_split():
    with pytest.raises(DataError, match="4 interactions have 2 distinct timestamps"):
        time_split(pl.Series([1, 1, 2, 2]), SHARES)


def test_a_given_split_that_overlaps_is_refused_with_both_times():
    with pytest.raises(DataError, match="train ends at 20, valid begins at 20"):
        check_split(frame(train=[10, 20], valid=[20, 30], test=[40]))
    with pytest.raises(DataError, match="valid ends at 50, test begins at 40"):
        check_split(frame(train=[10, 20], valid=[30, 50], test=[40]))


@pytest.mark.parametrize("missing", SPLITS)
def test_an_empty_split_is_refused(missing):
    times = {"train": [1], "valid": [2], "test": [3]}
    del times[missing]
    with pytest.raises(DataError, match=f"split {missing} has 0 of 2 interactions"):
        check_split(frame(**times))


def test_only_an_empty_test_split_may_be_allowed():
    check_split(frame(train=[1], valid=[2]), allow_empty_test=True)
    with pytest.raises(DataError, match="split valid has 0"):
        check_split(frame(train=[1], test=[2]), allow_empty_test=True)
