"""Train, valid and test by time: the model never sees what came after the rows it is asked about."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl

from ray_app.config import SplitConfig
from ray_app.errors import DataError

SPLITS = ("train", "valid", "test")


def time_split(timestamps: pl.Series, shares: SplitConfig) -> pl.Series:
    """Split of each row by two global cut points in time.

    Rows of one timestamp stay together, so a cut is placed at the change of timestamp nearest to its
    share. No split is empty. Raises DataError if there are fewer than three distinct timestamps.
    """
    times, counts = np.unique(timestamps.to_numpy(), return_counts=True)
    if len(times) < len(SPLITS):
        raise DataError(
            f"{len(timestamps)} interactions have {len(times)} distinct timestamps, and a time split needs "
            "at least 3: give more data or a split column"
        )
    before = np.concatenate([[0], np.cumsum(counts)])  # rows before the i-th distinct timestamp
    valid = _nearest(before, len(timestamps) * shares.train, first=1, last=len(times) - 2)
    test = _nearest(
        before, len(timestamps) * (shares.train + shares.valid), first=valid + 1, last=len(times) - 1
    )
    starts = np.array([times[valid], times[test]])
    codes = np.searchsorted(starts, timestamps.to_numpy(), side="right")
    return pl.Series("split", np.array(SPLITS)[codes])


def _nearest(before: np.ndarray, rows: float, first: int, last: int) -> int:
    return first + int(np.argmin(np.abs(before[first : last + 1] - rows)))


def check_split(interactions: pl.DataFrame, *, allow_empty_test: bool = False) -> None:
    """Raise DataError for an empty split, or for splits that overlap in time.

    `interactions` has `split` and `timestamp`; each split must end before the next begins.
    """
    spans = {
        row["split"]: (row["first"], row["last"])
        for row in interactions.group_by("split")
        .agg(first=pl.col("timestamp").min(), last=pl.col("timestamp").max())
        .iter_rows(named=True)
    }
    for split in SPLITS:
        if split in spans or (split == "test" and allow_empty_test):
            continue
        remedy = " or set data.allow_empty_test to evaluate on valid" if split == "test" else ""
        raise DataError(
            f"split {split} has 0 of {len(interactions)} interactions: correct the split column, "
            f"or remove it for a split by time{remedy}"
        )
    present = [split for split in SPLITS if split in spans]
    for earlier, later in pairwise(present):
        end, begin = spans[earlier][1], spans[later][0]
        if end >= begin:
            raise DataError(
                f"splits overlap in time: {earlier} ends at {end}, {later} begins at {begin}; "
                "correct the split column, or remove it for a split by time"
            )
