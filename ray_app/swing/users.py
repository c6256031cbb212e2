"""User-user similarity from interaction strength, recency and rarity, computed for any history on the fly.

    x_ui  = strength * 2^(-age / half_life) * ln(1 + U / n_i)       U active users, n_i of them with item i
    sim   = cosine(x_u, x_v) * n / (n + shrinkage)                  n items in common

Kept: at least `user_min_common` items in common, `user_min_similarity` or more, and of those the `user_k`
that maximal marginal relevance chooses with lambda = `user_diversity`, so that not all neighbours are
copies of each other. Candidates come from the item postings, at most `max_users_per_item` users each (a
hashed sample where there are more); similarities of candidates are then exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ray_app.artifacts import Folder
from ray_app.config import SwingConfig
from ray_app.errors import DataError
from ray_app.swing import kernel
from ray_app.swing.items import balance, check_codes, pointer, read_only
from ray_app.swing.table import NeighbourTable, Rows, load_arrays, save_arrays
from ray_app.swing.weights import DAY

POOL = 3
"""Candidates per neighbour among which diversity chooses."""
ARRAYS = (
    "user_ptr", "user_items", "user_x", "user_ratings", "user_labels",
    "item_ptr", "item_users", "item_x", "idf",
)  # fmt: skip


def strengths(labels: np.ndarray) -> np.ndarray:
    """Interaction strength float32[n] of labels: 1 for a like, 0.3 for the rest (interest all the same)."""
    return np.where(labels > 0, np.float32(1.0), np.float32(0.3))


@dataclass(frozen=True)
class Signals:
    """Items that similar users liked, best first. One entry an item, n entries."""

    items: np.ndarray
    """int32[n]"""
    average: np.ndarray
    """float32[n]: mean rating of the similar users who rated it; their share of likes where none did."""
    support: np.ndarray
    """int32[n]: how many of the similar users have it."""
    score: np.ndarray
    """float32[n]: similarity of those who liked it minus that of those who did not; > 0."""


class Memo(NamedTuple):
    """Similarities of users to each other, as far as `UserIndex.similar` has needed them."""

    pairs: np.ndarray
    nears: np.ndarray

    @classmethod
    def empty(cls, size: int = kernel.PAIRS) -> Memo:
        """size: similarities it keeps at most, a power of 2."""
        return cls(np.full(size, -1, np.int64), np.empty(size, np.float32))


@dataclass(frozen=True)
class UserIndex:
    """Every user's unit vector and the postings of every item, as of one moment."""

    user_ptr: np.ndarray
    """int64[n_users + 1]"""
    user_items: np.ndarray
    """int32[pairs]: ascending per user."""
    user_x: np.ndarray
    """float32[pairs]: rows of unit length."""
    user_ratings: np.ndarray
    """float32[pairs]: NaN where there is none."""
    user_labels: np.ndarray
    """int8[pairs]"""
    item_ptr: np.ndarray
    """int64[n_items + 1]"""
    item_users: np.ndarray
    """int32[postings]: ascending per item."""
    item_x: np.ndarray
    """float32[postings]: user_x of the posting."""
    idf: np.ndarray
    """float32[n_items]"""
    config: SwingConfig

    @classmethod
    def build(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        strengths: np.ndarray,
        timestamps: np.ndarray,
        now: int,
        n_users: int,
        n_items: int,
        config: SwingConfig,
        *,
        ratings: np.ndarray,
        labels: np.ndarray,
        seed: int,
    ) -> UserIndex:
        """Index interactions (arrays of length n) that happened up to `now` (epoch seconds).

        Of several events of a user with an item the latest counts. `ratings` is NaN where unknown.
        Raises DataError for a code out of range, a strength that is not positive, an event after `now`.
        """
        check_codes("user", users, n_users)
        check_codes("item", items, n_items)
        _check_events(strengths, timestamps, now)
        kept = _latest(users.astype(np.int64) * n_items + items, timestamps)
        user, item = users[kept].astype(np.int64), items[kept].astype(np.int32)
        user_ptr = pointer(np.bincount(user, minlength=n_users))
        degree = np.bincount(item, minlength=n_items)
        active = np.count_nonzero(np.diff(user_ptr))
        idf = np.log1p(active / np.maximum(degree, 1)).astype(np.float32)
        x = _unit(user_ptr, item, strengths[kept], timestamps[kept], idf, config)

        by_item = np.argsort(item, kind="stable")
        posted = by_item[_sampled(item[by_item], user[by_item], degree, config.max_users_per_item, seed)]
        return cls(
            user_ptr,
            item,
            x,
            ratings[kept].astype(np.float32),
            labels[kept].astype(np.int8),
            pointer(np.bincount(item[posted], minlength=n_items)),
            user[posted].astype(np.int32),
            x[posted],
            idf,
            config,
        )

    @property
    def n_users(self) -> int:
        return len(self.user_ptr) - 1

    def similar(
        self,
        history_items: np.ndarray,
        history_strengths: np.ndarray,
        history_timestamps: np.ndarray,
        now: int,
        exclude_user: int = -1,
        k: int | None = None,
        memo: Memo | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Users like the owner of a history (arrays of length h), who need not be in the index.

        Returns users int32[], similarities float32[], items in common int32[], in descending similarity,
        then ascending user; at most k (default: `user_k`). `memo` makes the next call with it faster, and
        changes no result; it belongs to this index and one thread. Raises DataError as `build` does.
        """
        check_codes("item", history_items, len(self.idf))
        _check_events(history_strengths, history_timestamps, now)
        kept = _latest(history_items, history_timestamps)
        items = history_items[kept].astype(np.int32)
        x = _unit(
            pointer(np.array([len(items)])),
            items,
            history_strengths[kept],
            history_timestamps[kept],
            self.idf,
            self.config,
        )
        users, similarities, common, _ = kernel.nearest(
            read_only(items),
            read_only(x),
            exclude_user,
            *self._matrix(),
            *self._selection(self.config.user_k if k is None else k),
            np.zeros(self.n_users, np.float32),
            np.zeros(self.n_users, np.int32),
            np.zeros(len(self.idf), np.float32),
            *(memo or Memo.empty(1)),
        )
        return users, similarities, common

    def signals(
        self, users: np.ndarray, similarities: np.ndarray, top: int, exclude_items: np.ndarray
    ) -> Signals:
        """The `top` items these users lean towards, without `exclude_items`; ties go to the lower code."""
        items, average, support, score = kernel.leanings(
            read_only(np.asarray(users, np.int32)),
            read_only(np.asarray(similarities, np.float32)),
            read_only(np.asarray(exclude_items, np.int32)),
            read_only(self.user_ptr),
            read_only(self.user_items),
            read_only(self.user_labels),
            read_only(self.user_ratings),
            len(self.idf),
        )
        best = np.lexsort((items, -score))[:top]
        return Signals(
            items[best].astype(np.int32),
            average[best].astype(np.float32),
            support[best].astype(np.int32),
            score[best].astype(np.float32),
        )

    def opinions(self, users: np.ndarray, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Ratings float32 [m] (NaN where there is none) and labels int8 [m] that these users gave the item;
        those who have not met it are left out."""
        at = kernel.entries(
            read_only(np.asarray(users, np.int32)),
            item,
            read_only(self.user_ptr),
            read_only(self.user_items),
        )
        return self.user_ratings[at], self.user_labels[at]

    def split(self, parts: int) -> list[np.ndarray]:
        """Users int32[] of each of `parts` tasks of nearly equal cost."""
        reach = np.concatenate([[0], np.cumsum(np.diff(self.item_ptr)[self.user_items])])
        return balance(np.diff(reach[self.user_ptr]), parts)

    def save(self, folder: str | Path, prefix: str) -> None:
        """Write `<prefix>.<array>.npy` and `<prefix>.config.json`, each atomically."""
        save_arrays(folder, prefix, {name: getattr(self, name) for name in ARRAYS})
        Folder(folder).write_json(f"{prefix}.config.json", self.config.model_dump())

    @classmethod
    def load(cls, folder: str | Path, prefix: str, mmap: bool = True) -> UserIndex:
        """Read what `save` wrote; with `mmap` the pages are shared between processes."""
        config = SwingConfig.model_validate(Folder(folder).read_json(f"{prefix}.config.json"))
        return cls(**load_arrays(folder, prefix, list(ARRAYS), mmap), config=config)

    def _matrix(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return (
            read_only(self.user_ptr),
            read_only(self.user_items),
            read_only(self.user_x),
            read_only(self.item_ptr),
            read_only(self.item_users),
            read_only(self.item_x),
        )

    def _selection(self, k: int) -> tuple[int, int, int, float, float, float]:
        limits = self.config
        return (
            k,
            POOL * k,
            limits.user_min_common,
            limits.user_shrinkage,
            limits.user_min_similarity,
            limits.user_diversity,
        )


def user_rows(index: UserIndex, users: np.ndarray) -> Rows:
    """Neighbours of indexed users int32[r], the same as `similar` gives for their own histories."""
    found = kernel.user_rows(read_only(users), *index._matrix(), *index._selection(index.config.user_k))
    return Rows.pack(users, found)


def user_neighbours(index: UserIndex) -> NeighbourTable:
    """The neighbours of every indexed user, in this process."""
    return NeighbourTable.assemble(
        index.n_users, [user_rows(index, np.arange(index.n_users, dtype=np.int32))]
    )


def _latest(keys: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Positions of the latest event of each key, in ascending key; of equal times the last given."""
    order = np.lexsort((timestamps, keys))
    last = np.append(np.diff(keys[order]) != 0, True)[: len(order)]
    return order[last]


def _unit(
    user_ptr: np.ndarray,
    items: np.ndarray,
    strengths: np.ndarray,
    timestamps: np.ndarray,
    idf: np.ndarray,
    config: SwingConfig,
) -> np.ndarray:
    return kernel.unit_rows(
        read_only(user_ptr),
        read_only(items),
        read_only(strengths.astype(np.float32)),
        read_only(timestamps.astype(np.int64)),
        read_only(idf),
        config.half_life_days * DAY,
    )


def _sampled(items: np.ndarray, users: np.ndarray, degree: np.ndarray, cap: int, seed: int) -> np.ndarray:
    """Which of the postings (ascending by item, user) stay when each item keeps at most `cap` users."""
    stays = np.ones(len(items), np.bool_)
    starts = pointer(degree)
    for item in np.flatnonzero(degree > cap):
        row = slice(starts[item], starts[item + 1])
        stays[row] = np.isin(users[row], kernel.sample(read_only(users[row]), item, cap, seed))
    return stays


def _check_events(strengths: np.ndarray, timestamps: np.ndarray, now: int) -> None:
    if len(strengths) and not strengths.min() > 0:
        raise DataError(f"interaction strength {strengths.min():g} is not positive: give every event some")
    if len(timestamps) and timestamps.max() > now:
        raise DataError(
            f"an event at {timestamps.max()} lies after now = {now}: pass only what had happened by then"
        )
