"""Item-item Swing (arXiv 2010.05525), exact, with the semantics of Flink ML.

    S_ij = sum over pairs {u, v} in U_i ∩ U_j of  w_u * w_v / (alpha2 + |I_u ∩ I_v|)
    w_u  = (alpha1 + |I_u|)^-beta

Duplicate interactions count once; users with fewer than `min_behavior` or more than `max_behavior`
distinct items are left out; where an item has more than `max_users_per_item` users, its row is computed
from a sample of them (see `kernel.sample`), and `common` counts within that sample.

With `item_strength` or `item_half_life_days` a pair counts by its interactions' strengths: see `weights`.

`normalize` takes the popularity out of the score, which grows like n_ij squared: `max` divides a row by its
highest score, `product` by n_i * n_j, `sqrt` takes the root of that, which is on the scale of a cosine.

Two kernels give the same rows, to the last bit: the item-centric one takes any graph, row by row; the
user-centric one sums all rows at once in a dense matrix. `ItemGraph.user_centric` chooses.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import ceil

import numpy as np
import scipy.sparse as sp

from ray_app.config import SwingConfig
from ray_app.errors import DataError
from ray_app.swing import kernel
from ray_app.swing.table import NeighbourTable, Rows
from ray_app.swing.weights import interaction_strengths, user_weights, weighs_interactions

DENSE_BYTES = 1 << 30
"""Memory that the user-centric kernel may take."""
ONE_TASK_STEPS = 5e9
"""A user-centric run of more steps (some seconds) gains less than splitting the rows among tasks does."""


HOT_USERS = 4000
"""Rows of fewer users are never cut into shares: they take less time than Ray does to hand them out."""

Share = tuple[int, int, int]
"""A part of a hot item's pairs of users: (rank, number, of how many)."""


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
    roots: np.ndarray
    """float32[pairs]: square roots of the interactions' strengths along `user_items`; empty if all are 1."""

    @classmethod
    def build(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        n_users: int,
        n_items: int,
        config: SwingConfig,
        *,
        strengths: np.ndarray | None = None,
        timestamps: np.ndarray | None = None,
    ) -> ItemGraph:
        """From int32[n] codes; strengths and timestamps (epoch seconds) of the n events are read where
        the config weighs by them, and of an interaction given twice the stronger counts.

        Raises DataError for a code out of range, and as `weights.interaction_strengths` does.
        """
        check_codes("user", users, n_users)
        check_codes("item", items, n_items)
        codes = users.astype(np.int64) * n_items + items
        pairs = np.sort(codes)  # np.unique of numpy 2.3 hashes integers, which takes far longer
        pairs = pairs[np.append(True, np.diff(pairs) != 0)[: len(pairs)]]
        user, item = np.divmod(pairs, n_items)
        counts = np.bincount(user, minlength=n_users)
        taken = (counts >= config.min_behavior) & (counts <= config.max_behavior)
        user, item = user[taken[user]], item[taken[user]]
        counts = np.where(taken, counts, 0)
        degree = np.bincount(item, minlength=n_items)
        item_ids = np.argsort(-degree, kind="stable")
        rank = np.empty(n_items, np.int64)
        rank[item_ids] = np.arange(n_items)
        item_ptr, item_users, at = _transposed(pointer(counts), rank[item], n_items)
        user_ptr, user_items, back = _transposed(item_ptr, item_users, n_users)
        roots = np.empty(0, np.float32)
        if weighs_interactions(config):
            strongest = np.zeros(len(pairs))
            given = interaction_strengths(len(codes), strengths, timestamps, config)
            np.maximum.at(strongest, np.searchsorted(pairs, codes), given)
            roots = np.sqrt(strongest[taken[pairs // max(n_items, 1)]][at[back]]).astype(np.float32)
        return cls(
            user_ptr,
            user_items,
            item_ptr,
            item_users,
            item_ids.astype(np.int32),
            user_weights(counts, config),
            roots,
        )

    @property
    def n_items(self) -> int:
        return len(self.item_ptr) - 1

    @property
    def csr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """user_ptr, user_items, item_ptr and item_users, read-only."""
        return (
            read_only(self.user_ptr),
            read_only(self.user_items),
            read_only(self.item_ptr),
            read_only(self.item_users),
        )

    def user_centric(self, max_users: int) -> bool:
        """Whether the user-centric kernel may and should compute all rows.

        It may if no item is capped, interactions are not weighted, and its matrix and its block (float64)
        fit into `DENSE_BYTES`. It should if it takes fewer steps. By degrees d, with W = sum of C(d_i, 2)
        pairs of interactions with one item, and at least B = W (W / P - 1) / 2 updates, P = C(n_users, 2)
        (all pairs of users having equally much in common is the least):

            item-centric:  W + 3 sum d_u^2 + 4 B       (every update from both items, in two passes)
            user-centric:  2 W + sum d_u^2 + 2 I^2 + B
        """
        users, items = np.diff(self.user_ptr).astype(float), np.diff(self.item_ptr).astype(float)
        size = 8 * (len(items) ** 2 + users.max(initial=0) ** 2)
        if items.max(initial=0) > max_users or len(self.roots) or size > DENSE_BYTES:
            return False
        by_items, by_users = _steps(users, items)
        return by_users < by_items

    def split(self, parts: int, max_users: int) -> list[np.ndarray]:
        """Ranks int32[] of each of about `parts` tasks of nearly equal cost, without the rows that `shares`
        cuts; or of one task with all ranks, where the user-centric kernel takes that for few steps.

        An item costs about (its users) * (the items of those), with at most `max_users` users.
        """
        if self._in_one_task(max_users):
            return [np.arange(self.n_items, dtype=np.int32)]
        costs = self.costs(max_users)
        whole = np.setdiff1d(np.arange(self.n_items, dtype=np.int32), list(self.shares(parts, max_users)))
        wanted = max(1, ceil(parts * costs[whole].sum() / max(costs.sum(), 1)))
        return [whole[task] for task in balance(costs[whole], wanted)]

    def split_shares(self, parts: int, max_users: int) -> list[list[Share]]:
        """The shares of hot rows, in tasks of about the cost of those of `split`; mostly there are none."""
        cut, costs = self.shares(parts, max_users), self.costs(max_users)
        pieces = [(rank, share, shares) for rank, shares in cut.items() for share in range(shares)]
        each = np.array([costs[rank] // shares for rank, _, shares in pieces], np.int64)
        wanted = max(1, ceil(parts * each.sum() / max(costs.sum(), 1)))
        return [[pieces[at] for at in task] for task in balance(each, wanted)]

    def shares(self, parts: int, max_users: int) -> dict[int, int]:
        """Into how many shares to cut the row of each hot item (by rank), so that none costs more than
        0.15 of a task's mean: whatever task takes one last is then not much above it."""
        if self._in_one_task(max_users):
            return {}
        costs, users = self.costs(max_users), np.minimum(np.diff(self.item_ptr), max_users)
        most = 0.15 * costs.sum() / parts
        hot = np.flatnonzero((costs > most) & (users >= HOT_USERS))
        return {int(rank): ceil(costs[rank] / most) for rank in hot}

    def _in_one_task(self, max_users: int) -> bool:
        degrees = (np.diff(starts).astype(float) for starts in (self.user_ptr, self.item_ptr))
        return self.user_centric(max_users) and _steps(*degrees)[1] < ONE_TASK_STEPS

    def costs(self, max_users: int) -> np.ndarray:
        """Estimated cost int64[n_items] of the item-centric rows."""
        degree = np.diff(self.item_ptr)
        activity = np.concatenate([[0], np.cumsum(np.diff(self.user_ptr)[self.item_users])])
        sampled = np.minimum(degree, max_users)
        return sampled**2 * np.diff(activity[self.item_ptr]) // np.maximum(degree, 1)


def _transposed(
    row_ptr: np.ndarray, columns: np.ndarray, n_columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transpose of a CSR matrix, by counting: its row starts int64, columns int32 (ascending per row),
    and from where in the given one each entry comes."""
    rows = len(row_ptr) - 1
    given = sp.csr_matrix((np.arange(len(columns)), columns, row_ptr), shape=(rows, n_columns))
    turned = given.tocsc()
    return turned.indptr.astype(np.int64), turned.indices.astype(np.int32, copy=False), turned.data


def _steps(users: np.ndarray, items: np.ndarray) -> tuple[float, float]:
    """Estimated steps of the item-centric and of the user-centric kernel: see `ItemGraph.user_centric`."""
    wedges, squares = (items * (items - 1) / 2).sum(), (users**2).sum()
    active = np.count_nonzero(users)
    updates = wedges * max(wedges / max(active * (active - 1) / 2, 1) - 1, 0) / 2
    by_items = wedges + 3 * squares + 4 * updates
    by_users = 2 * wedges + squares + 2 * len(items) ** 2 + updates
    return by_items, by_users


def item_rows(graph: ItemGraph, ranks: np.ndarray, config: SwingConfig, *, seed: int) -> Rows:
    """Neighbours of the items of these ranks. Every row is independent of which others are asked for,
    and of the kernel, which is the user-centric one only where all rows are asked for at once."""
    everything = np.arange(graph.n_items, dtype=np.int32)
    if np.array_equal(ranks, everything) and graph.user_centric(config.max_users_per_item):
        return user_centric_rows(graph, config)
    return item_centric_rows(graph, ranks, config, seed=seed)


def item_centric_rows(graph: ItemGraph, ranks: np.ndarray, config: SwingConfig, *, seed: int) -> Rows:
    """Raises DataError where one item has more than 2^31 interactions of its users to list."""
    return Rows.pack(graph.item_ids[ranks], _item_centric(graph, ranks, config, seed, (0, 1), np.empty(0)))


def user_centric_rows(graph: ItemGraph, config: SwingConfig) -> Rows:
    """All rows: what `item_centric_rows` gives where no item has more than `max_users_per_item` users and
    interactions are not weighted. Takes 8 * n_items^2 bytes."""
    sums = np.zeros((graph.n_items, graph.n_items))
    longest = int(np.diff(graph.user_ptr).max(initial=0))
    updates = kernel.pair_sums(
        *graph.csr,
        read_only(graph.weights),
        config.alpha2,
        np.empty(1 << 16, np.uint16 if longest <= 1 << 16 else np.uint32),
        sums,
    )
    kernel.mirror(sums)
    rows = rows_of_sums(graph, np.arange(graph.n_items, dtype=np.int32), sums, config, seed=0)
    rows.work[:] += updates // max(graph.n_items, 1)
    return rows


def share_sums(graph: ItemGraph, share: Share, config: SwingConfig, *, seed: int) -> tuple[np.ndarray, int]:
    """Unnormalised sums float64[n_items] of one share of a hot item's pairs of users, and the steps taken.

    The pairs (a, b), b > a, are dealt out by ranges of a with equal numbers of pairs. The sums of all
    shares together make the item's row: see `rows_of_sums`.
    """
    rank, number, shares = share
    sums = np.zeros(graph.n_items)
    made = _item_centric(graph, np.array([rank], np.int32), config, seed, (number, shares), sums)
    return sums, int(made[-1][0])


def rows_of_sums(
    graph: ItemGraph, ranks: np.ndarray, sums: np.ndarray, config: SwingConfig, *, seed: int
) -> Rows:
    """Neighbours of the items of these ranks, from their sums float64[len(ranks), n_items]."""
    found = kernel.summed_rows(
        read_only(ranks),
        sums,
        *graph.csr,
        read_only(graph.item_ids),
        config.max_users_per_item,
        config.min_common_users,
        min(config.k, max(graph.n_items - 1, 1)),
        kernel.NORMALIZE[config.normalize],
        seed,
    )
    return Rows.pack(graph.item_ids[ranks], found)


def _item_centric(
    graph: ItemGraph,
    ranks: np.ndarray,
    config: SwingConfig,
    seed: int,
    part: tuple[int, int],
    partial: np.ndarray,
) -> tuple[np.ndarray, ...]:
    most = min(int(np.diff(graph.item_ptr).max(initial=0)), config.max_users_per_item)
    longest = int(np.diff(graph.user_ptr).max(initial=0))
    if min(most * longest, len(graph.item_users)) >= 1 << 31:
        raise DataError(
            f"an item has {most} users with up to {longest} items each: lower max_users_per_item or "
            "max_behavior until their product is below 2^31"
        )
    return kernel.item_rows(
        read_only(ranks),
        read_only(graph.user_ptr),
        read_only(graph.user_items),
        read_only(graph.roots),
        read_only(graph.item_ptr),
        read_only(graph.item_users),
        read_only(graph.item_ids),
        read_only(graph.weights),
        config.alpha2,
        config.max_users_per_item,
        config.min_common_users,
        min(config.k, max(graph.n_items - 1, 1)),
        kernel.NORMALIZE[config.normalize],
        seed,
        np.empty(1 << 16, np.uint16 if most <= 1 << 16 else np.uint32),
        part,
        partial,
    )


def item_neighbours(
    users: np.ndarray,
    items: np.ndarray,
    n_users: int,
    n_items: int,
    config: SwingConfig,
    *,
    strengths: np.ndarray | None = None,
    timestamps: np.ndarray | None = None,
    seed: int,
) -> NeighbourTable:
    """The Swing neighbours of every item, from int32[n] user and item codes, in this process."""
    graph = ItemGraph.build(
        users, items, n_users, n_items, config, strengths=strengths, timestamps=timestamps
    )
    return graph_neighbours(graph, config, seed=seed)


def graph_neighbours(graph: ItemGraph, config: SwingConfig, *, seed: int) -> NeighbourTable:
    """The Swing neighbours of every item of a graph, in this process."""
    rows = item_rows(graph, np.arange(graph.n_items, dtype=np.int32), config, seed=seed)
    return NeighbourTable.assemble(graph.n_items, [rows])


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
