"""Item-item Swing (arXiv 2010.05525), exact, with the semantics of Flink ML.

    S_ij = sum over pairs {u, v} in U_i ∩ U_j of  w_u * w_v / (alpha2 + |I_u ∩ I_v|)
    w_u  = (alpha1 + |I_u|)^-beta

Duplicate interactions count once; users with fewer than `min_behavior` or more than `max_behavior`
distinct items are left out; where an item has more than `max_users_per_item` users, its row is computed
from a sample of them (see `kernel.sample`), and `common` counts within that sample.

`normalize` takes the popularity out of the score, which grows like n_ij squared: `max` divides a row by its
highest score, `product` by n_i * n_j, `sqrt` takes the root of that, which is on the scale of a cosine.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from ray_app.config import SwingConfig
from ray_app.errors import DataError
from ray_app.swing import kernel
from ray_app.swing.table import NeighbourTable, Rows
from ray_app.swing.weights import user_weights


@dataclass(frozen=True)
class ItemGraph:
    """Who interacted with what, in CSR form both ways; items as ranks in descending popularity."""

    user_ptr: np.ndarray
    """int64[n_users + 1]"""
    user_items: np.ndarray
    """int32[pairs]: ranks, ascending per user."""
    item_ptr: np.ndarray
    """int64[n_items + 1], by rank."""
    item_users: np.ndarray
    """int32[pairs]: ascending per item."""
    item_ids: np.ndarray
    """int32[n_items]: rank to item code."""
    weights: np.ndarray
    """float64[n_users]"""

    @classmethod
    def build(
        cls, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, config: SwingConfig
    ) -> ItemGraph:
        """From int32[n] codes. Raises DataError for a code out of range."""
        check_codes("user", users, n_users)
        check_codes("item", items, n_items)
        pairs = np.unique(users.astype(np.int64) * n_items + items)
        user, item = np.divmod(pairs, n_items)
        counts = np.bincount(user, minlength=n_users)
        taken = (counts >= config.min_behavior) & (counts <= config.max_behavior)
        user, item = user[taken[user]], item[taken[user]]
        counts = np.where(taken, counts, 0)
        degree = np.bincount(item, minlength=n_items)
        item_ids = np.argsort(-degree, kind="stable")
        rank = np.empty(n_items, np.int64)
        rank[item_ids] = np.arange(n_items)
        by_user = np.sort(user * n_items + rank[item])
        by_item = np.sort(rank[item] * n_users + user)
        return cls(
            pointer(counts),
            (by_user % n_items).astype(np.int32),
            pointer(degree[item_ids]),
            (by_item % n_users).astype(np.int32),
            item_ids.astype(np.int32),
            user_weights(counts, config),
        )

    def split(self, parts: int, max_users: int) -> list[np.ndarray]:
        """Ranks int32[] of each of `parts` tasks of nearly equal cost.

        An item costs about (its users) * (the items of those), with at most `max_users` users.
        """
        degree = np.diff(self.item_ptr)
        activity = np.concatenate([[0], np.cumsum(np.diff(self.user_ptr)[self.item_users])])
        sampled = np.minimum(degree, max_users)
        return balance(sampled**2 * np.diff(activity[self.item_ptr]) // np.maximum(degree, 1), parts)


def item_rows(graph: ItemGraph, ranks: np.ndarray, config: SwingConfig, *, seed: int) -> Rows:
    """Neighbours of the items of these ranks. Every row is independent of which others are asked for."""
    degree = np.diff(graph.item_ptr)
    most = min(int(degree.max(initial=0)), config.max_users_per_item)
    local = np.empty(1 << 16, np.uint16 if most <= 1 << 16 else np.uint32)
    found = kernel.item_rows(
        read_only(ranks),
        read_only(graph.user_ptr),
        read_only(graph.user_items),
        read_only(graph.item_ptr),
        read_only(graph.item_users),
        read_only(graph.item_ids),
        read_only(graph.weights),
        config.alpha2,
        config.max_users_per_item,
        config.min_common_users,
        min(config.k, max(len(degree) - 1, 1)),
        kernel.NORMALIZE[config.normalize],
        seed,
        local,
    )
    return Rows.pack(graph.item_ids[ranks], found)


def item_neighbours(
    users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, config: SwingConfig, *, seed: int
) -> NeighbourTable:
    """The Swing neighbours of every item, from int32[n] user and item codes, in this process."""
    graph = ItemGraph.build(users, items, n_users, n_items, config)
    return NeighbourTable.assemble(
        n_items, [item_rows(graph, np.arange(n_items, dtype=np.int32), config, seed=seed)]
    )


def balance(costs: np.ndarray, parts: int) -> list[np.ndarray]:
    """Deal rows int32 out to at most `parts` tasks: the costliest first, each to the task with the least
    so far (Graham 1969). Rows of a task come out ascending; tasks without rows are left out."""
    tasks: list[list[int]] = [[] for _ in range(parts)]
    load = [(0, part) for part in range(parts)]
    for row in np.argsort(-costs, kind="stable").tolist():
        spent, part = heapq.heappop(load)
        tasks[part].append(row)
        heapq.heappush(load, (spent + int(costs[row]) + 1, part))
    return [np.array(sorted(rows), np.int32) for rows in tasks if rows]


def pointer(counts: np.ndarray) -> np.ndarray:
    """CSR row starts int64[n + 1] from row lengths."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view: numba compiles a second kernel for writable arrays otherwise."""
    view = array.view()
    view.flags.writeable = False
    return view


def check_codes(kind: str, codes: np.ndarray, n: int) -> None:
    if len(codes) and (codes.min() < 0 or codes.max() >= n):
        worst = codes.min() if codes.min() < 0 else codes.max()
        raise DataError(f"{kind} code {worst} is not in 0..{n - 1}: use the row numbers of {kind}s.parquet")
