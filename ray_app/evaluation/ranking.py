"""Ranking metrics, one definition each. Rows are (user, label, score); everything is vectorised by user.

Exposed protocol: only the rows that a user was shown are ranked, as CoLLM (arXiv 2310.19488) and
ThinkRec (arXiv 2505.15091) do. Full-catalogue protocol: all items unseen in training are ranked.
The two are never mixed: random scores already reach about .67 NDCG@5 in the first.

Functions named `user_*` give one value per user, in the order of `np.unique(users)`, with NaN for users
that do not count; the others give the mean over the users that count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.errors import DataError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve over all rows: P(score of a positive > of a negative), ties count half.

    Raises DataError if the labels have one class only.
    """
    y, s = rows(labels, scores)
    value = user_auc(np.zeros(len(y), np.int64), y, s)[0] if len(y) else np.nan
    if np.isnan(value):
        raise DataError(f"AUC needs both labels, got {len(y)} rows with {int(y.sum())} positives: add rows")
    return float(value)


def user_auc(users: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> Floats:
    """(U,) AUC inside each user; NaN for users with one label only.

    By ranks: (sum of the positives' mid-ranks - P(P+1)/2) / (P N), Mann and Whitney 1947.
    """
    y, s = rows(labels, scores)
    code, count = _codes(users, len(y))
    positives = np.bincount(code, y, count)
    negatives = np.bincount(code, 1 - y, count)
    rank_sum = np.bincount(code, _mid_ranks(code, s) * y, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def uauc(users: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> float:
    """Unweighted mean of `user_auc` over users with both labels; NaN if there is none.

    (RecBole's GAUC weights users by their rows: another metric.)
    """
    return mean(user_auc(users, labels, scores))


def uauc_null(
    users: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | Callable[[Ints], Floats],
    seed: int,
    repeats: int,
) -> Floats:
    """(repeats,) UAUC after permuting the labels inside each user: what no information scores.

    Fixed `scores` have a null of mean one half; its spread is the noise of UAUC on these rows. A score
    that is made of the user's earlier labels must be made anew from the permuted ones: give a function
    of the labels. Its null is above one half by conditioning alone (users with both labels who have
    liked much have fewer likes left): see `rolling_rate`.
    """
    y, _ = rows(labels, labels)
    code, _ = _codes(users, len(y))
    rng = np.random.default_rng(seed)
    by_user = np.argsort(code, kind="stable")
    values = np.empty(repeats)
    for repeat in range(repeats):
        permuted = np.empty(len(y), np.int64)
        permuted[by_user] = y[np.lexsort((rng.random(len(y)), code))]
        values[repeat] = uauc(code, permuted, scores(permuted) if callable(scores) else scores)
    return values


def rolling_rate(users: ArrayLike, timestamps: ArrayLike, labels: ArrayLike, prior: float = 2.0) -> Floats:
    """(n,) share of positives among the user's rows before each row's timestamp, smoothed to the mean.

    Minus this rate carries no information on permuted labels and still has a UAUC well above one half:
    scored with `uauc_null`, it measures the artefact of UAUC on these rows.
    """
    y, _ = rows(labels, labels)
    code, count = _codes(users, len(y))
    order = np.lexsort((np.asarray(timestamps), code))
    sorted_code, sorted_time = code[order], np.asarray(timestamps)[order]
    first = np.searchsorted(sorted_code, np.arange(count))[sorted_code]
    new = np.r_[True, (np.diff(sorted_code) != 0) | (np.diff(sorted_time) != 0)]
    snapshot = np.maximum.accumulate(np.where(new, np.arange(len(y)), 0))
    before = np.r_[0.0, np.cumsum(y[order])]
    liked, seen = before[snapshot] - before[first], snapshot - first
    rate = np.empty(len(y))
    rate[order] = (liked + prior * y.mean()) / (seen + prior)
    return rate


def snapshot_pairs(
    users: ArrayLike, timestamps: ArrayLike, labels: ArrayLike, scores: ArrayLike
) -> tuple[Floats, Floats]:
    """(U,) pairs ordered rightly and (U,) pairs, over rows of one user and one timestamp.

    A pair is a positive and a negative row; a tie counts half. Such rows share one history, so neither
    the user's rate nor the conditioning behind UAUC's artefact can order them.
    """
    y, s = rows(labels, scores)
    code, count = _codes(users, len(y))
    keys = np.stack([code, np.unique(np.asarray(timestamps), return_inverse=True)[1]], axis=1)
    unique, moment = np.unique(keys, axis=0, return_inverse=True)
    moment = moment.reshape(-1)
    pairs = np.bincount(moment, y) * np.bincount(moment, 1 - y)
    right = np.nan_to_num(user_auc(moment, y, s)) * pairs
    user = unique[:, 0]
    return np.bincount(user, right, count) * 1.0, np.bincount(user, pairs, count) * 1.0


def snapshot_accuracy(users: ArrayLike, timestamps: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> float:
    """Share of `snapshot_pairs` ordered rightly, pooled over users; NaN if there is no pair."""
    right, pairs = snapshot_pairs(users, timestamps, labels, scores)
    return float(right.sum() / pairs.sum()) if pairs.sum() else float("nan")


def user_ndcg_exposed(users: ArrayLike, labels: ArrayLike, scores: ArrayLike, k: int) -> Floats:
    """(U,) NDCG@k over exposed rows: NaN for users with one row, 0 for users without a positive.

    DCG = sum of label / log2(rank + 1) over ranks 1..k; ideal over min(k, positives).
    """
    y, code, rank, size = _ranked(users, labels, scores)
    positives = np.bincount(code, y, len(size))
    gain = np.bincount(code, np.where(rank < k, y / np.log2(rank + 2), 0), len(size))
    ideal = _ideal(k)[np.minimum(positives, k).astype(np.int64)]
    return np.where(size < 2, np.nan, gain / np.maximum(ideal, 1))


def user_map_exposed(users: ArrayLike, labels: ArrayLike, scores: ArrayLike, k: int) -> Floats:
    """(U,) average precision@k over exposed rows, divided by *all* the user's positives.

    NaN for users with one row, 0 for users without a positive.
    """
    y, code, rank, size = _ranked(users, labels, scores)
    positives = np.bincount(code, y, len(size))
    order = np.lexsort((rank, code))
    through = np.empty(len(y))
    total = np.cumsum(y[order])
    start = np.r_[0, np.cumsum(size)[:-1]]
    through[order] = total - np.r_[0, total][start][code[order]]
    precision = np.bincount(code, np.where(rank < k, y * through / (rank + 1), 0), len(size))
    return np.where(size < 2, np.nan, precision / np.maximum(positives, 1))


def ndcg_exposed(users: ArrayLike, labels: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Mean of `user_ndcg_exposed`."""
    return mean(user_ndcg_exposed(users, labels, scores, k))


def map_exposed(users: ArrayLike, labels: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Mean of `user_map_exposed`."""
    return mean(user_map_exposed(users, labels, scores, k))


def user_ndcg_full(
    ranked: Sequence[NDArray[np.integer]], relevant: Sequence[Collection[int]], k: int
) -> Floats:
    """(U,) NDCG@k of each user's ranked item list against the held-out positives; NaN without any.

    The list may be shorter than the catalogue (its head is enough); ideal DCG over min(k, positives).
    """
    return _full(ranked, relevant, k, lambda hits, n: (hits / np.log2(np.arange(len(hits)) + 2)).sum() / n)


def user_map_full(
    ranked: Sequence[NDArray[np.integer]], relevant: Sequence[Collection[int]], k: int
) -> Floats:
    """(U,) average precision@k, divided by min(k, positives) as RecBole does; NaN without positives."""

    def precision(hits: Floats, _: float) -> float:
        return float((hits * np.cumsum(hits) / (np.arange(len(hits)) + 1)).sum())

    found = _full(ranked, relevant, k, precision)
    sizes = np.array([min(k, len(items)) for items in relevant], dtype=float)
    return found / np.maximum(sizes, 1)


def ndcg_full(ranked: Sequence[NDArray[np.integer]], relevant: Sequence[Collection[int]], k: int) -> float:
    """Mean of `user_ndcg_full`."""
    return mean(user_ndcg_full(ranked, relevant, k))


def map_full(ranked: Sequence[NDArray[np.integer]], relevant: Sequence[Collection[int]], k: int) -> float:
    """Mean of `user_map_full`."""
    return mean(user_map_full(ranked, relevant, k))


def mean(per_user: Floats) -> float:
    """Mean over the users that count; NaN if none does."""
    counted = per_user[~np.isnan(per_user)]
    return float(counted.mean()) if len(counted) else float("nan")


def rows(labels: ArrayLike, scores: ArrayLike) -> tuple[Ints, Floats]:
    """Checked labels (n,) of 0/1 and finite scores (n,). Raises DataError."""
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise DataError(f"labels {y.shape} and scores {s.shape} must be two rows of one length")
    if not np.isin(y, (0, 1)).all():
        raise DataError(f"labels must be 0 or 1, got {y[~np.isin(y, (0, 1))][0]!r}: binarise the ratings")
    if not np.isfinite(s).all():
        raise DataError(f"{(~np.isfinite(s)).sum()} of {len(s)} scores are not finite: mend the scorer")
    return y.astype(np.int64), s


def _codes(users: ArrayLike, length: int) -> tuple[Ints, int]:
    names, code = np.unique(np.asarray(users), return_inverse=True)
    if code.shape != (length,):
        raise DataError(f"{len(code)} users for {length} labels: give one user per row")
    return code.astype(np.int64), len(names)


def _mid_ranks(code: Ints, scores: Floats) -> Floats:
    """(n,) rank from 1 of each score inside its group, ties sharing the mean of their ranks."""
    order = np.lexsort((scores, code))
    group, score = code[order], scores[order]
    position = np.arange(len(order), dtype=np.float64)
    new_group = np.r_[True, np.diff(group) != 0][: len(order)]
    new_tie = new_group | np.r_[True, np.diff(score) != 0][: len(order)]
    start = position[new_group][np.cumsum(new_group) - 1]
    tie = np.cumsum(new_tie) - 1
    size = np.bincount(tie)
    ranks = np.empty(len(order))
    ranks[order] = position[new_tie][tie] + (size[tie] + 1) / 2 - start
    return ranks


def _ranked(users: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> tuple[Ints, Ints, Ints, Ints]:
    """Labels (n,), user codes (n,), rank from 0 inside the user (n,), rows per user (U,).

    Equal scores are ordered by a fixed shuffle, so that neither file order nor label order helps.
    """
    y, s = rows(labels, scores)
    code, count = _codes(users, len(y))
    order = np.lexsort((np.random.default_rng(0).random(len(y)), -s, code))
    size = np.bincount(code, minlength=count)
    start = np.r_[0, np.cumsum(size)[:-1]]
    rank = np.empty(len(y), np.int64)
    rank[order] = np.arange(len(y)) - start[code[order]]
    return y, code, rank, size


def _ideal(k: int) -> Floats:
    """(k + 1,) ideal DCG of 0..k positives."""
    return np.r_[0.0, np.cumsum(1 / np.log2(np.arange(k) + 2))]


def _full(
    ranked: Sequence[NDArray[np.integer]],
    relevant: Sequence[Collection[int]],
    k: int,
    value: Callable[[Floats, float], float],
) -> Floats:
    if len(ranked) != len(relevant):
        raise DataError(f"{len(ranked)} ranked lists for {len(relevant)} users: give one list per user")
    ideal, values = _ideal(k), np.full(len(ranked), np.nan)
    for user, (items, wanted) in enumerate(zip(ranked, relevant, strict=True)):
        if wanted:
            hits = np.isin(np.asarray(items)[:k], list(wanted)).astype(np.float64)
            values[user] = value(hits, ideal[min(k, len(wanted))])
    return values
