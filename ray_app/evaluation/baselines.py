"""Rivals made of past interactions alone: linear models from item to item.

    score(u, j) = sum over items i that u liked of weight[i, j]

EASE (Steck, WWW 2019, arXiv 1905.03375) has the weights in closed form. With G = X'X, X the binary matrix
of users and liked items, and P = (G + penalty * I)^-1:

    weight[i, j] = -P[i, j] / P[j, j],  weight[i, i] = 0

Cosine is its plain relative: weight[i, j] = G[i, j] / sqrt(G[i, i] G[j, j]).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ray_app.evaluation import ranking

MAX_ITEMS = 5000
"""Items that a model knows, the most liked ones: its cost grows with their third power (EASE)."""
PENALTIES = (50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)


@dataclass(frozen=True)
class ItemModel:
    """Weights between the items that were liked most; what else there is scores 0."""

    place: np.ndarray
    """int64 [n_items]: an item's row in `weights`, -1 for none."""
    weights: np.ndarray
    """float64 [m, m]: from a liked item (row) to a target (column)."""

    def scores(self, liked: np.ndarray) -> np.ndarray:
        """float64 [n_items] for a user who liked these items."""
        found = np.zeros(len(self.place))
        rows = self.place[liked]
        known = self.place >= 0
        found[known] = self.weights[rows[rows >= 0]].sum(0)[self.place[known]]
        return found

    def score(self, liked: np.ndarray, target: int) -> float:
        """The score of one target."""
        rows, column = self.place[liked], self.place[target]
        return float(self.weights[rows[rows >= 0], column].sum()) if column >= 0 else 0.0


def ease(users: np.ndarray, items: np.ndarray, n_items: int, penalty: float) -> ItemModel:
    """EASE from liked (user, item) pairs, codes [n] each. Takes m^3 steps for m <= MAX_ITEMS items."""
    place, gram = _gram(users, items, n_items)
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return ItemModel(place, weights)


def cosine(users: np.ndarray, items: np.ndarray, n_items: int) -> ItemModel:
    """Cosine of the items' liking users, from liked (user, item) pairs."""
    place, gram = _gram(users, items, n_items)
    norm = np.sqrt(np.diag(gram))
    weights = gram / np.outer(norm, norm)
    np.fill_diagonal(weights, 0.0)
    return ItemModel(place, weights)


def tuned(
    make: Callable[[float], ItemModel],
    liked: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    relevant: Sequence[Collection[int]],
    k: int,
    penalties: Iterable[float] = PENALTIES,
) -> float:
    """The penalty whose model has the best NDCG@k (full catalogue) on these users, the first of equals.

    liked, seen: item codes of each user's history; relevant: what each liked afterwards. Give users of a
    moment before the one that is measured. Without users, the middle of the penalties.
    """
    options = list(penalties)
    if not any(relevant):
        return options[len(options) // 2]

    def quality(penalty: float) -> float:
        model = make(penalty)
        ranked = [top(model.scores(mine), known, k) for mine, known in zip(liked, seen, strict=True)]
        return ranking.ndcg_full(ranked, relevant, k)

    return max(options, key=quality)


def top(scores: np.ndarray, seen: np.ndarray, k: int) -> np.ndarray:
    """Codes int64 [<= k] of the best items that were not seen; equals by code."""
    order = np.argsort(-scores, kind="stable")
    return order[~np.isin(order, seen)][:k]


def _gram(users: np.ndarray, items: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(place [n_items], G [m, m]) of the most liked items; an item nobody liked has no place."""
    users, items = np.unique(np.stack([users, items]), axis=1)
    counts = np.bincount(items, minlength=n_items)
    best = np.argsort(-counts, kind="stable")[:MAX_ITEMS]
    best = np.sort(best[counts[best] > 0])
    place = np.full(n_items, -1, np.int64)
    place[best] = np.arange(len(best))
    kept = place[items] >= 0
    shape = (int(users.max(initial=-1)) + 1, len(best))
    x = sp.csr_matrix((np.ones(kept.sum()), (users[kept], place[items[kept]])), shape=shape)
    return place, (x.T @ x).toarray()
