"""Generated interactions: popularity by a Zipf law, activity log-normal, no other structure."""

from __future__ import annotations

import numpy as np


def zipf(n_users: int, n_items: int, events: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """User and item codes int32[n] of distinct interactions: `events` draws, less some 5 % repeats.

    An item's popularity is (rank + 10)^-0.9, a user's activity log-normal with sigma 0.9, at least 2.
    """
    generator = np.random.default_rng(seed)
    activity = generator.lognormal(0, 0.9, n_users)
    activity = np.maximum(2, activity * (events / activity.sum())).astype(np.int64)
    popularity = (np.arange(n_items) + 10.0) ** -0.9
    users = np.repeat(np.arange(n_users), activity)
    drawn = np.searchsorted(np.cumsum(popularity / popularity.sum()), generator.random(len(users)))
    pairs = np.sort(users * n_items + np.minimum(drawn, n_items - 1))
    pairs = pairs[np.append(True, np.diff(pairs) != 0)]
    names = generator.permutation(n_items)
    return (pairs // n_items).astype(np.int32), names[pairs % n_items].astype(np.int32)
