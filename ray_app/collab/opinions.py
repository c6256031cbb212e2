"""What users of like taste thought of a target: user-based collaborative filtering on residuals.

After Resnick et al., "GroupLens" (1994), with the damped cosine of Herlocker et al. (1999): over the raters v
of the target before the row's moment, r being residuals (label - item rate when it was rated),

    w(v)    = r_u . r_v / (|r_u| |r_v| + DAMPING)          over what u and v had rated by then
    opinion = sum of w(v) r_v(target) / (sum of |w(v)| + FLOOR)

once over all raters and once over those with w > 0. Only the latest ratings count: `RATERS` of the target,
`window` of each user. A user's own earlier rating of the target is one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from ray_app.collab.features import Histories

COLUMNS = ("all", "alike")
RATERS = 128
DAMPING = 3.0
FLOOR = 0.3


@dataclass(frozen=True)
class Crowd:
    """Everyone's ratings, found by user and by item."""

    histories: Histories
    indptr: np.ndarray
    """int64 [n_items + 1]"""
    users: np.ndarray
    """int32 [n]: who rated each item, by time."""
    timestamps: np.ndarray
    """int64 [n]"""
    residuals: np.ndarray
    """float32 [n]"""

    @classmethod
    def of(cls, histories: Histories, n_items: int) -> Crowd:
        owners = np.repeat(np.arange(len(histories.indptr) - 1, dtype=np.int32), np.diff(histories.indptr))
        order = np.lexsort((histories.timestamps, histories.items))
        counts = np.bincount(histories.items, minlength=n_items)
        return cls(
            histories,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            owners[order],
            histories.timestamps[order],
            histories.residuals[order],
        )


def opinions(
    items: np.ndarray,
    residuals: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    targets: np.ndarray,
    timestamps: np.ndarray,
    crowd: Crowd,
    window: int,
) -> np.ndarray:
    """float32 [n, 2], columns as in `COLUMNS`, of n rows.

    items int32 [h], residuals float32 [h]: histories one after the other; row r sees start[r]:end[r] of
    them, and of the crowd what was before timestamps[r]. targets int32 [n].
    """
    out = np.zeros((len(targets), len(COLUMNS)), np.float32)
    own = np.zeros(len(crowd.indptr) - 1)
    past = crowd.histories
    everyone = past.indptr, past.items, past.residuals, past.timestamps
    raters = crowd.indptr, crowd.users, crowd.timestamps, crowd.residuals
    _opinions(items, residuals, start, end, targets, timestamps, everyone, raters, window, own, out)
    return out


@njit(cache=True, nogil=True)
def _opinions(items, residuals, start, end, targets, timestamps, everyone, raters, window, own, out):
    indptr, their_items, their_residuals, their_times = everyone
    by_item, users, rated, opinion = raters
    for k in range(len(targets)):
        now, target = timestamps[k], targets[k]
        first = max(start[k], end[k] - window)
        mine = 0.0
        for at in range(first, end[k]):
            own[items[at]] = residuals[at]
            mine += residuals[at] * residuals[at]
        low = by_item[target]
        last = low + np.searchsorted(rated[low : by_item[target + 1]], now)
        both = weights = liked = alike = 0.0
        for rater in range(max(low, last - RATERS), last):
            begin = indptr[users[rater]]
            until = begin + np.searchsorted(their_times[begin : indptr[users[rater] + 1]], now)
            dot = theirs = 0.0
            for at in range(max(begin, until - window), until):
                dot += own[their_items[at]] * their_residuals[at]
                theirs += their_residuals[at] * their_residuals[at]
            w = dot / (np.sqrt(mine * theirs) + DAMPING)
            both += w * opinion[rater]
            weights += abs(w)
            if w > 0:
                liked += w * opinion[rater]
                alike += w
        out[k, 0] = both / (weights + FLOOR)
        out[k, 1] = liked / (alike + FLOOR)
        for at in range(first, end[k]):
            own[items[at]] = 0.0
