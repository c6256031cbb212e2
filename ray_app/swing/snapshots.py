"""Neighbours as of several moments, so that a row of the data is only ever given what was known before it.

`snapshots.json` lists {"name", "cut", "rows"} in time order; a snapshot knows the interactions with
timestamp < cut. The last one, `final`, has no cut: it knows everything and is for serving only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ray_app.artifacts import Folder
from ray_app.errors import DataError
from ray_app.swing.table import NeighbourTable
from ray_app.swing.users import UserIndex

FINAL = "final"


def plan(timestamps: np.ndarray, splits: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The snapshots of a data set: `count` within the training rows, then valid, test and final.

    timestamps int64[n], splits str[n]. Training cuts lie at equal row counts, each moved back to the first
    row of its timestamp; cuts that coincide are one snapshot, and a cut without earlier rows is none.
    Raises DataError where no row is for training.
    """
    train = np.sort(timestamps[splits == "train"])
    if not len(train):
        raise DataError("no interaction has split train: check the split column or data.split")
    cuts = sorted({int(train[len(train) * j // (count + 1)]) for j in range(1, count + 1)})
    names = {cut: f"s{number}" for number, cut in enumerate(cut for cut in cuts if cut > timestamps.min())}
    for split in ("valid", "test"):
        if np.any(splits == split):
            names[int(timestamps[splits == split].min())] = split
    ordered = np.sort(timestamps)
    listed: list[dict[str, Any]] = [
        {"name": names[cut], "cut": cut, "rows": int(np.searchsorted(ordered, cut))} for cut in sorted(names)
    ]
    return [*listed, {"name": FINAL, "cut": None, "rows": len(timestamps)}]


def snapshot_for(snapshots: list[dict[str, Any]], timestamps: np.ndarray) -> np.ndarray:
    """Which snapshot each row may use: int64[n], the last whose cut <= timestamp; -1 before the first.

    `final` is never chosen: it may know the row itself.
    """
    cuts = np.array([entry["cut"] for entry in snapshots if entry["cut"] is not None], np.int64)
    return np.searchsorted(cuts, timestamps, side="right") - 1


def load_snapshot(folder: Folder, name: str) -> tuple[NeighbourTable, UserIndex]:
    """Item neighbours and user index of one snapshot of the stage's folder, memory-mapped."""
    local = folder.folder(name).local()
    return NeighbourTable.load(local, "items"), UserIndex.load(local, "users")
