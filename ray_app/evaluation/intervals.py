"""How sure a number is: bootstrap over users, and paired tests per user.

Users, not rows, are drawn, because rows of one user go together. A resample is a vector of counts: how
often each user was drawn. So a statistic needs one pass per resample, or one matrix product for all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import wilcoxon

from ray_app.evaluation.ranking import Floats, rows

Statistic = Callable[[Floats], Floats]
"""From draws (B, U) to values (B,)."""
_BATCH = 64


def user_bootstrap(
    statistic: Statistic | Floats, users: int, resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of a statistic over `users` users (Efron and Tibshirani 1993).

    `statistic` is a function of draws (B, U), such as `auc_statistic`, or per-user values (U,) whose
    mean is meant, NaN for users that do not count. Equal seeds draw equal resamples. Fewer than two that
    count say nothing of how users differ: NaN.
    """
    counted = users if callable(statistic) else np.count_nonzero(~np.isnan(statistic))
    if counted < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(bootstrap_values(statistic, users, resamples, seed), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_values(statistic: Statistic | Floats, users: int, resamples: int, seed: int) -> Floats:
    """(resamples,) values of the statistic; resamples where it is undefined are left out."""
    compute = statistic if callable(statistic) else mean_statistic(statistic)
    rng = np.random.default_rng(seed)
    chunks = []
    for start in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - start)
        drawn = rng.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        chunks.append(compute(np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users) * 1.0))
    values = np.concatenate(chunks)
    finite = values[np.isfinite(values)]
    return finite if len(finite) else np.array([np.nan])


def mean_statistic(per_user: Floats) -> Statistic:
    """Mean over users that count."""
    return ratio_statistic(np.nan_to_num(per_user), (~np.isnan(per_user)).astype(np.float64))


def ratio_statistic(numerator: Floats, denominator: Floats) -> Statistic:
    """Ratio of two sums over users, such as pairs ordered rightly over pairs."""

    def compute(draws: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return _times(draws, numerator) / _times(draws, denominator)

    return compute


def _times(draws: Floats, per_user: Floats) -> Floats:
    # Not `@`: on a busy machine the threads of BLAS wait for each other longer than this takes.
    return np.einsum("bu,u->b", draws, per_user)


def auc_statistic(users: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> Statistic:
    """AUC over all rows, each weighted by how often its user was drawn.

    The rows are sorted by score once; a resample is a sum over the distinct scores.
    """
    y, s = rows(labels, scores)
    code = np.unique(np.asarray(users), return_inverse=True)[1]
    level = np.unique(s, return_inverse=True)[1]
    levels = int(level.max()) + 1
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)

    def one(draw: Floats) -> float:
        above = np.bincount(level[positive], draw[code[positive]], levels)
        below = np.bincount(level[negative], draw[code[negative]], levels)
        wins = (above * (np.cumsum(below) - below / 2)).sum()
        pairs = above.sum() * below.sum()
        return wins / pairs if pairs else np.nan

    return lambda draws: np.array([one(draw) for draw in draws])


def paired_test(per_user_a: Floats, per_user_b: Floats, resamples: int, seed: int) -> dict[str, float | int]:
    """Does A beat B, user by user? Over users that count for both (neither value is NaN).

    `difference` is the mean of A - B, `low` and `high` its bootstrap interval, `p_value` the two-sided
    Wilcoxon signed-rank test (zero differences are shared out: Pratt 1959).
    """
    difference = np.asarray(per_user_a, np.float64) - np.asarray(per_user_b, np.float64)
    difference = difference[~np.isnan(difference)]
    if len(difference) == 0:
        nan = float("nan")
        return {"difference": nan, "low": nan, "high": nan, "p_value": nan, "users": 0}
    low, high = user_bootstrap(difference, len(difference), resamples, seed)
    moved = np.any(difference != 0)
    return {
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "p_value": float(tuple(wilcoxon(difference, zero_method="pratt"))[1]) if moved else 1.0,
        "users": len(difference),
    }
