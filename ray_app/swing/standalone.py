"""Swing without a run folder and without Ray: arrays of ids in, tables of neighbours out.

    from ray_app.swing import item_neighbours, parameters, user_neighbours

    item_neighbours(users, items)   # item_id, neighbour_id, score, common_users
    item_neighbours(users, items, parameters("alink", k=20))
    user_neighbours(users, items, timestamps=times)   # user_id, neighbour_id, similarity, common_items

Ids are strings or integers, and come back as they were given. Rows may be in any order and repeat.
`python -m pipelines.swing --interactions FILE --out DIR` does the same to a file, on all cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ray_app.config import SwingConfig, validate
from ray_app.data.codes import in_order
from ray_app.errors import ConfigError, DataError
from ray_app.swing import items as item_side
from ray_app.swing import users as user_side
from ray_app.swing.spool import ITEM_COLUMNS, USER_COLUMNS, labelled
from ray_app.swing.table import NeighbourTable, Rows
from ray_app.swing.weights import PRESETS, Preset

Ids = np.ndarray | pl.Series | Sequence[str] | Sequence[int]
Numbers = np.ndarray | pl.Series | Sequence[float] | Sequence[int]
DEFAULTS = SwingConfig()
SEED = 7


def parameters(preset: Preset | None = None, **values: Any) -> SwingConfig:
    """The default parameters, then the weights of a preset, then `values` (fields of `SwingConfig`).

    Raises ConfigError for an unknown name or a value out of range (NaN and infinity among them).
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}: take one of {', '.join(PRESETS)}")
    checked = validate({"swing": values}, "parameters").swing
    chosen = {name: getattr(checked, name) for name in values}
    return checked.model_copy(update={**(PRESETS[preset] if preset else {}), **chosen})


def item_neighbours(
    users: Ids,
    items: Ids,
    config: SwingConfig = DEFAULTS,
    *,
    timestamps: Numbers | None = None,
    strengths: Numbers | None = None,
    seed: int = SEED,
) -> pl.DataFrame:
    """Swing neighbours of every item, best first: item_id, neighbour_id, score, common_users.

    users and items, of equal length, say who interacted with what; an interaction given twice counts
    once. Items come in ascending id, numbers before text. An item without neighbours has no row: one
    that no two users share with another item, or the only one there is. `seed` chooses the users of
    items that have more than `max_users_per_item`. timestamps and strengths matter only where the config
    weighs by them (`item_half_life_days`, `item_strength`). Raises DataError for null ids, ids of mixed
    types, arrays of different lengths, or timestamps or strengths that are wanted and missing.
    """
    events = Events.of(users, items, timestamps, strengths)
    table = item_side.graph_neighbours(events.graph(config), config, seed=seed)
    return _frame(table, events.item_ids, ITEM_COLUMNS)


def user_neighbours(
    users: Ids,
    items: Ids,
    config: SwingConfig = DEFAULTS,
    *,
    timestamps: Numbers | None = None,
    strengths: Numbers | None = None,
    seed: int = SEED,
) -> pl.DataFrame:
    """Similar users of every user, best first: user_id, neighbour_id, similarity, common_items.

    timestamps (epoch seconds, or a polars Date or Datetime) fade old interactions by
    `half_life_days`; without them all count alike. strengths (positive: a rating, a count, a weight of
    the event) default to 1. Of an interaction given twice the latest counts. Raises DataError as
    `item_neighbours` does, and for timestamps or strengths that are not finite.
    """
    events = Events.of(users, items, timestamps, strengths)
    return _frame(user_side.user_neighbours(events.index(config, seed)), events.user_ids, USER_COLUMNS)


@dataclass(frozen=True)
class Events:
    """Checked interactions (length n), with ids as codes: positions in `user_ids` and `item_ids`."""

    users: np.ndarray
    """int32[n]"""
    items: np.ndarray
    """int32[n]"""
    timestamps: np.ndarray | None
    """int64[n]: epoch seconds."""
    strengths: np.ndarray | None
    """float32[n]: above 0."""
    user_ids: pl.Series
    """Ascending, so that codes, and with them samples and ties, do not depend on the order of rows."""
    item_ids: pl.Series

    @classmethod
    def of(
        cls, users: Ids, items: Ids, timestamps: Numbers | None = None, strengths: Numbers | None = None
    ) -> Events:
        user_ids, user_codes = _coded("user", users)
        item_ids, item_codes = _coded("item", items)
        when = None if timestamps is None else _seconds(timestamps)
        weight = None if strengths is None else _numbers("strength", strengths).astype(np.float32)
        for name, array in {"items": item_codes, "timestamps": when, "strengths": weight}.items():
            if array is not None and len(array) != len(user_codes):
                raise DataError(f"{len(user_codes)} users but {len(array)} {name}: give one per interaction")
        if weight is not None and not np.all(weight > 0):
            row = int(np.flatnonzero(weight <= 0)[0])
            raise DataError(f"strength of row {row} is {weight[row]:g}, not above 0: give every event some")
        return cls(user_codes, item_codes, when, weight, user_ids, item_ids)

    def graph(self, config: SwingConfig) -> item_side.ItemGraph:
        """Raises DataError where the config weighs by timestamps or strengths that there are not."""
        return item_side.ItemGraph.build(
            self.users,
            self.items,
            len(self.user_ids),
            len(self.item_ids),
            config,
            strengths=self.strengths,
            timestamps=self.timestamps,
        )

    def index(self, config: SwingConfig, seed: int) -> user_side.UserIndex:
        n = len(self.users)
        when = np.zeros(n, np.int64) if self.timestamps is None else self.timestamps
        return user_side.UserIndex.build(
            self.users,
            self.items,
            np.ones(n, np.float32) if self.strengths is None else self.strengths,
            when,
            int(when.max(initial=0)),
            len(self.user_ids),
            len(self.item_ids),
            config,
            ratings=np.full(n, np.nan, np.float32),
            labels=np.ones(n, np.int8),
            seed=seed,
        )


def _coded(kind: str, values: Ids) -> tuple[pl.Series, np.ndarray]:
    """The distinct ids in order, and int32[n] the position of each value among them."""
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values.tolist()
    try:
        ids = pl.Series("id", values)
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        types = sorted({type(value).__name__ for value in values})
        raise DataError(
            f"{kind} ids are of mixed types ({', '.join(types)}): make them all strings or all integers"
        ) from error
    if ids.dtype in (pl.Null, pl.Categorical, pl.Enum):
        ids = ids.cast(pl.String)
    if ids.null_count():
        row = ids.is_null().arg_max()
        raise DataError(
            f"{ids.null_count()} {kind} ids are null (first in row {row}): remove these rows or name them"
        )
    if not (ids.dtype.is_integer() or ids.dtype == pl.String):
        raise DataError(f"{kind} ids are of type {ids.dtype}: make them strings or integers")
    distinct = in_order(ids.unique().to_frame(), "id")
    codes = ids.to_frame().join(distinct.with_row_index("code"), on="id", how="left", maintain_order="left")
    return distinct["id"], codes["code"].cast(pl.Int32).to_numpy()


def _seconds(values: Numbers) -> np.ndarray:
    if isinstance(values, pl.Series) and values.dtype.is_temporal():
        values = values.cast(pl.Datetime("us")).dt.epoch("s")
    return np.floor(_numbers("timestamp", values)).astype(np.int64)


def _numbers(what: str, values: Numbers) -> np.ndarray:
    """float64[n]. Raises DataError for what is no finite number."""
    try:
        numbers = pl.Series(values, strict=False).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{what}s are not numbers: {' '.join(str(error).split())}") from error
    if not np.all(np.abs(numbers) < 1e18):
        row = int(np.flatnonzero(~(np.abs(numbers) < 1e18))[0])
        raise DataError(
            f"{what} of row {row} is {numbers[row]}: give every row a number, or leave the {what}s out"
        )
    return numbers


def _frame(table: NeighbourTable, ids: pl.Series, columns: tuple[str, str, str]) -> pl.DataFrame:
    lengths = np.diff(table.indptr)
    mains = np.arange(len(lengths))
    return labelled(Rows(mains, lengths, table.indices, table.scores, table.common, mains), ids, columns)
