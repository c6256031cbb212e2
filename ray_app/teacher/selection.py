"""Which training rows are reasoned about: a diverse subset, the same for the same seed.

Rows are put into strata (user cluster x label x item popularity x main feature) and taken in turn, one of
each stratum a round, so that rare kinds of decisions are not drowned by the common one. Inside a stratum,
rows of users and items that have few rows so far come first.
"""

from __future__ import annotations

import numpy as np

PARTS = ("low", "middle", "high")
MIN_EARLIER = 3
"""Interactions a user must have had before a row, for there to be evidence."""


def earlier_interactions(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """For each row, how many rows of the same user have a strictly earlier timestamp. Shapes (N,)."""
    order = np.lexsort((timestamps, users))
    user, time = users[order], timestamps[order]
    position = np.arange(len(order))
    new_user = np.r_[True, user[1:] != user[:-1]]
    new_time = new_user | np.r_[True, time[1:] != time[:-1]]
    start_of_user = np.maximum.accumulate(np.where(new_user, position, 0))
    start_of_time = np.maximum.accumulate(np.where(new_time, position, 0))
    counts = np.empty(len(order), dtype=np.int64)
    counts[order] = start_of_time - start_of_user
    return counts


def terciles(codes: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each row: the third of all distinct codes, by frequency, that its code is in. (N,)"""
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    return (rank * 3 // max(1, len(counts)))[inverse]


def strata(labels: np.ndarray, clusters: np.ndarray, items: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The stratum of each row as text: `liked/popular high/cluster 2/Drama`.

    `labels` (N,) of 0 and 1; `clusters` (N,) of each row's user; `items` (N,) codes; `features` (N,) the
    items' main features.
    """
    return np.array(
        [
            f"{'liked' if label else 'disliked'}/popular {PARTS[p]}/cluster {cluster}/{feature}"
            for label, p, cluster, feature in zip(labels, terciles(items), clusters, features, strict=True)
        ],
        dtype=object,
    )


def select(stratum: np.ndarray, size: int, seed: int, spread: tuple[np.ndarray, ...] = ()) -> np.ndarray:
    """Indices (sorted) of `size` rows taken from the strata in turn; all rows if there are fewer.

    spread: codes (N,), such as users and items. A stratum offers those rows first that are among the first
    of their codes in a random order (by the product of their places), so that more codes are covered.
    """
    rng = np.random.default_rng(seed)
    names, code = np.unique(stratum.astype(str), return_inverse=True)
    shuffled = rng.permutation(len(code))
    place = np.ones(len(code), dtype=np.int64)
    for codes in spread:
        place *= 1 + _repeats(codes[shuffled])
    order = shuffled[np.lexsort((place, code[shuffled]))]
    sizes = np.bincount(code, minlength=len(names))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    turn = np.arange(len(code)) - starts[code[order]]
    who_first = rng.permutation(len(names))[code[order]]
    return np.sort(order[np.lexsort((who_first, turn))][:size])


def _repeats(codes: np.ndarray) -> np.ndarray:
    """How often the code of each place stood before it. (N,)"""
    return earlier_interactions(codes, np.arange(len(codes)))


def coverage(
    selected: np.ndarray, users: np.ndarray, items: np.ndarray, stratum: np.ndarray, seed: int
) -> dict[str, float]:
    """Shares of all users, items and strata that the selection touches, beside a random one of its size."""
    random = np.random.default_rng(seed + 1).permutation(len(users))[: len(selected)]
    shares: dict[str, float] = {"rows": float(len(selected))}
    for name, values in (("users", users), ("items", items), ("strata", stratum.astype(str))):
        distinct = max(1, len(np.unique(values)))
        shares[name] = round(len(np.unique(values[selected])) / distinct, 4)
        shares[f"{name}_random"] = round(len(np.unique(values[random])) / distinct, 4)
    return shares
