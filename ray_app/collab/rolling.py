"""Statistics that expand with time: what was known of an item and a user before each row.

Rows are processed in time order; rows with one timestamp see the same state and enter it together, so
nothing from at or after a row's timestamp reaches it. The same state, kept at the end, serves online.

    rate(i)   = (positives_i + prior * expected_i) / (n_i + prior)
    effect(i) = sum over earlier ratings of (label - the rater's own rate then) / (n_i + prior)
    rate(u)   = (positives_u + prior * global rate) / (n_u + prior)
    residual  = label - rate(i) at the row's time

expected_i is the mean rate of the item's features (genres), itself expanding. `effect` is the item's
rate freed of who happened to rate it (a debiased item effect).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numba import njit

FEATURE_PRIOR = 20.0


@dataclass(frozen=True)
class ItemState:
    """Expanding statistics of every item at one moment; float64 [n_items] unless said otherwise."""

    count: np.ndarray
    positives: np.ndarray
    deviation: np.ndarray
    """Sum over ratings of label - the rater's rate then."""
    feature_count: np.ndarray
    """[n_features]"""
    feature_positives: np.ndarray
    """[n_features]"""
    totals: np.ndarray
    """[2]: ratings, positives."""

    @classmethod
    def empty(cls, n_items: int, n_features: int) -> ItemState:
        return cls(*(np.zeros(n) for n in (n_items, n_items, n_items, n_features, n_features, 2)))

    def save(self, file: BinaryIO) -> None:
        np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> ItemState:
        with np.load(path) as stored:
            return cls(**{f.name: stored[f.name] for f in fields(cls)})

    @property
    def global_rate(self) -> float:
        return float((self.totals[1] + 1) / (self.totals[0] + 2))

    def statistics(
        self, items: np.ndarray, indptr: np.ndarray, features: np.ndarray, prior: float
    ) -> np.ndarray:
        """float64 [n, 3]: count, rate and effect of each item now."""
        out = np.empty((len(items), 3))
        _statistics(
            items,
            indptr,
            features,
            self.count,
            self.positives,
            self.deviation,
            self.feature_count,
            self.feature_positives,
            self.totals,
            prior,
            out,
        )
        return out


def user_rate(positives: float, count: float, global_rate: float, prior: float) -> float:
    """Smoothed share of a user's ratings that are positive."""
    return (positives + prior * global_rate) / (count + prior)


def roll(
    users: np.ndarray,
    items: np.ndarray,
    timestamps: np.ndarray,
    labels: np.ndarray,
    n_users: int,
    n_items: int,
    indptr: np.ndarray,
    features: np.ndarray,
    n_features: int,
    prior: float,
) -> tuple[np.ndarray, ItemState]:
    """Expanding statistics of rows sorted by time.

    users, items int32 [n], timestamps int64 [n] ascending, labels int8 [n]; (indptr, features) is the
    CSR list of feature codes per item. Returns (float64 [n, 5]: item count, item rate, item effect, user
    rate, residual - each as of just before the row - and the ItemState after the last row).
    """
    if np.any(np.diff(timestamps) < 0):
        raise ValueError("rows must be sorted by timestamp")
    state = ItemState.empty(n_items, n_features)
    rows = np.empty((len(users), 5))
    _roll(
        users,
        items,
        timestamps,
        labels,
        np.zeros(n_users),
        np.zeros(n_users),
        indptr,
        features,
        state.count,
        state.positives,
        state.deviation,
        state.feature_count,
        state.feature_positives,
        state.totals,
        prior,
        rows,
    )
    return rows, state


@njit(cache=True, nogil=True)
def _rate_of(item, indptr, features, count, positives, f_count, f_positives, g, prior):
    expected, n = 0.0, 0
    for at in range(indptr[item], indptr[item + 1]):
        f = features[at]
        expected += (f_positives[f] + FEATURE_PRIOR * g) / (f_count[f] + FEATURE_PRIOR)
        n += 1
    expected = expected / n if n else g
    return (positives[item] + prior * expected) / (count[item] + prior)


@njit(cache=True, nogil=True)
def _statistics(
    items, indptr, features, count, positives, deviation, f_count, f_positives, totals, prior, out
):
    g = (totals[1] + 1) / (totals[0] + 2)
    for k in range(len(items)):
        i = items[k]
        out[k, 0] = count[i]
        out[k, 1] = _rate_of(i, indptr, features, count, positives, f_count, f_positives, g, prior)
        out[k, 2] = deviation[i] / (count[i] + prior)


@njit(cache=True, nogil=True)
def _roll(
    users,
    items,
    timestamps,
    labels,
    u_count,
    u_positives,
    indptr,
    features,
    count,
    positives,
    deviation,
    f_count,
    f_positives,
    totals,
    prior,
    rows,
):
    start, n = 0, len(users)
    while start < n:
        end = start
        while end < n and timestamps[end] == timestamps[start]:
            end += 1
        g = (totals[1] + 1) / (totals[0] + 2)
        for k in range(start, end):
            u, i = users[k], items[k]
            rows[k, 0] = count[i]
            rows[k, 1] = _rate_of(i, indptr, features, count, positives, f_count, f_positives, g, prior)
            rows[k, 2] = deviation[i] / (count[i] + prior)
            rows[k, 3] = (u_positives[u] + prior * g) / (u_count[u] + prior)
            rows[k, 4] = labels[k] - rows[k, 1]
        for k in range(start, end):
            u, i, y = users[k], items[k], labels[k]
            count[i] += 1
            positives[i] += y
            deviation[i] += y - rows[k, 3]
            u_count[u] += 1
            u_positives[u] += y
            totals[0] += 1
            totals[1] += y
            for at in range(indptr[i], indptr[i + 1]):
                f_count[features[at]] += 1
                f_positives[features[at]] += y
        start = end
