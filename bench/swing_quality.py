"""What Swing is worth: Recall@20 and NDCG@20 on MovieLens-100K, beside what everybody knows.

    python -m bench.swing_quality [--grid]

All ratings count as interactions. The last 20 % of each user's history, by time, is the test part; of the
rest the last 20 % is the validation part. A user's score of an item is the sum over the history of the
similarity to it; the whole catalogue but the history is ranked. Every method is tuned on the validation
part alone (trained on what precedes it), then trained on both and tested once. --grid also prints every
setting of Swing that was tried.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import polars as pl

from ray_app.config import DataConfig, SwingConfig
from ray_app.data import sources
from ray_app.swing import parameters
from ray_app.swing.items import item_neighbours
from ray_app.swing.weights import PRESETS

TOP = 20
HELD_OUT = 0.2
SEED = 7
WEIGHTS = [(15.0, 0.3), (15.0, 0.1), (0.0, 0.0), (0.0, 0.5)]
"""(alpha1, beta) that are tried."""
ALPHA2 = [0.0, 1.0, 10.0, 30.0, 100.0, 300.0]
NORMALIZE = ["none", "max", "product", "sqrt"]
KS = [50, 100, 200, 300]
MIN_COMMON = [2, 5]

Fit = Callable[[np.ndarray], np.ndarray]
"""Similarity [items, items] from who has what [users, items] (0/1); row: item of the history."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--grid", action="store_true", help="print every setting of Swing tried")
    options = arguments.parse_args()
    train, test = histories()
    fit, valid = cut(train)
    started = time.process_time()

    chosen = choose_swing(fit, valid, options.grid)
    default = SwingConfig()
    print(f"{'':<36}{'validation':>18}{'test':>18}")
    print(f"{'':<36}{'Recall@20  NDCG@20':>18}{'Recall@20  NDCG@20':>20}")
    for name, fits in methods(default, chosen).items():
        settings = {setting: evaluate(one, fit, valid) for setting, one in fits.items()}
        best = max(settings, key=lambda setting: settings[setting][1])
        (recall, ndcg), (test_recall, test_ndcg) = settings[best], evaluate(fits[best], train, test)
        label = f"{name} {best}".strip()
        print(f"{label:<36}{recall:>9.4f}{ndcg:>9.4f}{test_recall:>11.4f}{test_ndcg:>9.4f}", flush=True)
    print(f"default: {told(default)}\nchosen on validation: {told(chosen)}")
    print(f"CPU {time.process_time() - started:.0f} s; standard error over users about .005")


def methods(default: SwingConfig, chosen: SwingConfig) -> dict[str, dict[str, Fit]]:
    """Per method the settings that the validation part chooses from."""
    swing: dict[str, SwingConfig] = {
        **{
            f"Swing {name}, normalize={how}": parameters(name, normalize=how)
            for name, how in itertools.product(PRESETS, NORMALIZE)
        },
        "Swing, chosen on validation": chosen,
        "Swing, our default": default,
    }
    return {
        "popularity": {"": popularity},
        "cosine": {f"k={k}": truncated(cosine, k) for k in KS},
        "BM25": {f"k={k}": truncated(bm25, k) for k in KS},
        "EASE": {f"lambda={weight}": ease(weight) for weight in (100, 200, 500, 1000)},
        **{name: {"": of_swing(config)} for name, config in swing.items()},
    }


def histories() -> tuple[np.ndarray, np.ndarray]:
    """Training and test part of MovieLens-100K: events [n, 2] of user and item codes, oldest first."""
    rows = sources.read(DataConfig()).interactions.select(
        pl.col("user_id").rank("dense").cast(pl.Int64) - 1,
        pl.col("item_id").rank("dense").cast(pl.Int64) - 1,
        pl.col("timestamp").cast(pl.Float64),
    )
    events = rows.sort("timestamp", "user_id", "item_id").select("user_id", "item_id").to_numpy()
    return cut(events)


def cut(events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All but the last 20 % of each user's events (rounded down), and these."""
    order = np.argsort(events[:, 0], kind="stable")
    counts = np.bincount(events[:, 0])
    position = np.arange(len(events)) - np.repeat(np.cumsum(counts) - counts, counts)
    late = position >= np.repeat(counts - np.floor(counts * HELD_OUT), counts)
    is_late = np.empty(len(events), np.bool_)
    is_late[order] = late
    return events[~is_late], events[is_late]


def evaluate(fit: Fit, known: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """Mean Recall@20 and NDCG@20 (binary gain; ideal of min(20, hidden items)) over users."""
    has, wanted = matrix(known), matrix(hidden)
    scores = has @ fit(has)
    scores[has > 0] = -np.inf
    first = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    hits = np.take_along_axis(wanted, first, axis=1)
    discount = 1 / np.log2(np.arange(TOP) + 2)
    sizes = wanted.sum(1).astype(int)
    users = sizes > 0
    ideal = np.cumsum(discount)[np.minimum(sizes[users], TOP) - 1]
    return float((hits.sum(1)[users] / sizes[users]).mean()), float((hits[users] @ discount / ideal).mean())


def matrix(events: np.ndarray) -> np.ndarray:
    """float32[users, items] of 0 and 1, of the whole data set's size."""
    has = np.zeros(SHAPE, np.float32)
    has[events[:, 0], events[:, 1]] = 1
    return has


SHAPE = (943, 1682)


def popularity(has: np.ndarray) -> np.ndarray:
    return np.broadcast_to(has.sum(0), (has.shape[1], has.shape[1]))


def cosine(has: np.ndarray) -> np.ndarray:
    norms = np.maximum(np.linalg.norm(has, axis=0), 1)
    return _without_self(_together(has) / np.outer(norms, norms))


def bm25(has: np.ndarray, k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Inner products of items' BM25-weighted user vectors (items as documents, users as terms)."""
    idf = np.log(has.shape[1] / (1 + has.sum(1))).clip(0)
    length = has.sum(0)
    saturation = (k1 + 1) / (k1 * (1 - b + b * length / length.mean()) + 1)
    weighted = has * idf[:, None] * saturation
    return _without_self(weighted.T @ weighted)


def ease(weight: float) -> Fit:
    """EASE (Steck 2019): B = I - P diag(1 / P), P = (XᵀX + lambda I)^-1, with a zero diagonal."""

    def fit(has: np.ndarray) -> np.ndarray:
        inverse = np.linalg.inv(_together(has).astype(np.float64) + weight * np.eye(has.shape[1]))
        return _without_self(-inverse / np.diag(inverse)).astype(np.float32)

    return fit


def of_swing(config: SwingConfig) -> Fit:
    def fit(has: np.ndarray) -> np.ndarray:
        users, items = np.nonzero(has)
        n_users, n_items = has.shape
        table = item_neighbours(
            users.astype(np.int32), items.astype(np.int32), n_users, n_items, config, seed=SEED
        )
        similarity = np.zeros((n_items, n_items), np.float32)
        similarity[np.repeat(np.arange(n_items), np.diff(table.indptr)), table.indices] = table.scores
        return similarity

    return fit


def truncated(fit: Fit, k: int) -> Fit:
    """The k best of each row, the rest 0."""

    def best(has: np.ndarray) -> np.ndarray:
        similarity = fit(has)
        if k >= len(similarity):
            return similarity
        bar = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
        return np.where(similarity >= bar, similarity, 0)

    return best


def choose_swing(fit: np.ndarray, valid: np.ndarray, show: bool) -> SwingConfig:
    """The best in NDCG@20 on the validation part: weights and normalisation first, then k and support."""
    weights = [
        {"alpha1": alpha1, "beta": beta, "alpha2": alpha2, "normalize": how, "k": k}
        for (alpha1, beta), alpha2, how, k in itertools.product(WEIGHTS, ALPHA2, NORMALIZE, [100])
    ]
    first = _best(weights, fit, valid, show)
    sizes = [first | {"k": k, "min_common_users": least} for k, least in itertools.product(KS, MIN_COMMON)]
    return parameters(**_best(sizes, fit, valid, show))


def _best(
    settings: Iterable[dict[str, Any]], fit: np.ndarray, valid: np.ndarray, show: bool
) -> dict[str, Any]:
    best, highest = {}, -math.inf
    for setting in settings:
        recall, ndcg = evaluate(of_swing(parameters(**setting)), fit, valid)
        if show:
            print(f"{recall:.4f} {ndcg:.4f}  {setting}", flush=True)
        if ndcg > highest:
            best, highest = setting, ndcg
    return best


def told(config: SwingConfig) -> str:
    names = ("alpha1", "alpha2", "beta", "k", "min_common_users", "normalize")
    return ", ".join(f"{name}={getattr(config, name)}" for name in names)


def _together(has: np.ndarray) -> np.ndarray:
    return has.T @ has


def _without_self(similarity: np.ndarray) -> np.ndarray:
    similarity = similarity.copy()
    np.fill_diagonal(similarity, 0)
    return similarity


if __name__ == "__main__":
    main()
