"""Swing as others compute it, to measure ours against: Flink ML's merge per pair of users, and plain Python.

Both follow the reference for one item after another: every pair of the item's users, the items the two
have in common, one addition for each of these. Not cached on disk, since `kernel.sample` is compiled in.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np
from numba import njit

from ray_app.config import SwingConfig
from ray_app.swing import kernel
from ray_app.swing.items import ItemGraph, read_only


def merge_rows(graph: ItemGraph, ranks: np.ndarray, config: SwingConfig, seed: int) -> np.ndarray:
    """Flink ML's way: the k best raw scores float32[r, k] of each item of these ranks, 0 where fewer."""
    return _merge_rows(
        read_only(ranks),
        *graph.csr,
        read_only(graph.item_ids),
        read_only(graph.weights),
        config.alpha2,
        config.max_users_per_item,
        config.k,
        seed,
    )


@njit(nogil=True)
def _merge_rows(mains, user_ptr, user_items, item_ptr, item_users, item_ids, weights, alpha2, cap, k, seed):
    """Flink's hash map from item to score is an array here, which is faster."""
    scores = np.zeros((mains.size, k), np.float32)
    total, both = np.zeros(item_ptr.size - 1), np.empty(item_ptr.size - 1, np.int32)
    for row in range(mains.size):
        i = mains[row]
        users = kernel.sample(item_users[item_ptr[i] : item_ptr[i + 1]], item_ids[i], cap, seed)
        total[:] = 0
        for a in range(users.size):
            for b in range(a + 1, users.size):
                p, p_stop = user_ptr[users[a]], user_ptr[users[a] + 1]
                q, q_stop = user_ptr[users[b]], user_ptr[users[b] + 1]
                common = 0
                while p < p_stop and q < q_stop:
                    if user_items[p] == user_items[q]:
                        both[common] = user_items[p]
                        common += 1
                        p += 1
                        q += 1
                    elif user_items[p] < user_items[q]:
                        p += 1
                    else:
                        q += 1
                gain = weights[users[a]] * weights[users[b]] / (alpha2 + common)
                for c in range(common):
                    total[both[c]] += gain
        total[i] = 0
        best = np.sort(total)[::-1][:k]
        scores[row, : best.size] = best
    return scores


def python_rows(graph: ItemGraph, ranks: np.ndarray, config: SwingConfig, seed: int) -> np.ndarray:
    """The formula in sets and dictionaries; returns what `merge_rows` does."""
    scores = np.zeros((len(ranks), config.k), np.float32)
    weights, baskets = graph.weights.tolist(), {}
    for row, i in enumerate(ranks):
        owners = graph.item_users[graph.item_ptr[i] : graph.item_ptr[i + 1]]
        users = kernel.sample(owners, graph.item_ids[i], config.max_users_per_item, seed).tolist()
        for u in users:
            if u not in baskets:
                baskets[u] = set(graph.user_items[graph.user_ptr[u] : graph.user_ptr[u + 1]].tolist())
        total: dict[int, float] = defaultdict(float)
        for u, v in combinations(users, 2):
            both = baskets[u] & baskets[v]
            gain = weights[u] * weights[v] / (config.alpha2 + len(both))
            for j in both:
                total[j] += gain
        total.pop(int(i), None)
        best = sorted(total.values(), reverse=True)[: config.k]
        scores[row, : len(best)] = best
    return scores


@njit(nogil=True)
def count_updates(user_ptr, user_items, item_ptr, item_users, item_ids, cap, seed):
    """Score updates and kernel steps int64[2, n_items] of each item's row.

    Updates: over the other items j, the pairs of users that both have i and j. Steps, of the
    item-centric kernel: all pairs of the item's users, the updates, and three passes over the users' items.
    """
    n_items = item_ptr.size - 1
    found, count = np.zeros((2, n_items), np.int64), np.zeros(n_items, np.int64)
    for i in range(n_items):
        users = kernel.sample(item_users[item_ptr[i] : item_ptr[i + 1]], item_ids[i], cap, seed)
        listed, updates = 0, 0
        for u in users:
            for p in range(user_ptr[u], user_ptr[u + 1]):
                count[user_items[p]] += 1
                listed += 1
        count[i] = 0
        for u in users:
            for p in range(user_ptr[u], user_ptr[u + 1]):
                n = count[user_items[p]]
                updates += n * (n - 1) // 2
                count[user_items[p]] = 0
        found[0, i] = updates
        found[1, i] = updates + users.size * (users.size - 1) // 2 + 3 * listed
    return found
