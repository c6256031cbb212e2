"""The two tables of a report: every scorer on the same rows, with intervals and paired differences.

Both return plain dictionaries; a measured number is `{"value", "low", "high"}`, the interval being 95 %
by bootstrap over users. All scorers are drawn the same resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.errors import DataError
from ray_app.evaluation import calibration, intervals, ranking
from ray_app.evaluation.ranking import Floats

NULL_REPEATS = 20


def exposed_table(
    users: ArrayLike,
    timestamps: ArrayLike,
    labels: ArrayLike,
    scores: Mapping[str, ArrayLike],
    ks: Sequence[int],
    bootstrap: int,
    seed: int,
    champion: str | None = None,
    probabilities: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Scorers under the exposed protocol.

    `scorers`: name -> {auc, uauc, uauc_null, snapshot_accuracy, ndcg@k, map@k, ece}. The null is the mean
    and 95 % range of UAUC over label permutations inside each user, the scores held fixed. `ece` is there
    for scorers with `probabilities`, and has no interval: resampled, it is biased upwards.
    `counts`: rows, users, and how many users entered each metric.
    `artefact`: UAUC of minus the user's rolling like-rate, and its null with the rate made anew from the
    permuted labels: what conditioning alone gives on these rows.
    `paired`: with a `champion`, other scorer -> metric -> champion minus other (`paired_test`; AUC and
    snapshot accuracy are no means over users and have an interval but no p-value).
    """
    y = np.asarray(labels)
    names, code = np.unique(np.asarray(users), return_inverse=True)
    if champion is not None and champion not in scores:
        raise DataError(f"champion {champion!r} is not among the scorers {sorted(scores)}: name one of them")
    statistics = {name: _statistics(code, timestamps, y, score, ks) for name, score in scores.items()}
    table: dict[str, Any] = {"scorers": {}}
    for name, score in scores.items():
        entry = {
            metric: _measured(statistic, len(names), bootstrap, seed)
            for metric, statistic in statistics[name].items()
        }
        null = ranking.uauc_null(code, y, score, seed, NULL_REPEATS)
        table["scorers"][name] = entry | {"uauc_null": _range(null)}
    for name, p in (probabilities or {}).items():
        table["scorers"][name]["ece"] = {"value": calibration.ece(y, p), "low": None, "high": None}
    table["counts"] = _counts(code, timestamps, y)
    table["artefact"] = _artefact(code, timestamps, y, seed)
    if champion is not None:
        table["paired"] = _paired(statistics, champion, len(names), bootstrap, seed)
    return table


def catalogue_table(
    ranked: Mapping[str, Sequence[NDArray[np.integer]]],
    relevant: Sequence[Collection[int]],
    ks: Sequence[int],
    bootstrap: int,
    seed: int,
    champion: str | None = None,
) -> dict[str, Any]:
    """Scorers under the full-catalogue protocol: scorer -> one ranked item list per user.

    Returns `scorers` (ndcg@k, map@k), `counts` and, with a `champion`, `paired`, as `exposed_table`.
    """
    statistics = {
        name: {f"ndcg@{k}": ranking.user_ndcg_full(lists, relevant, k) for k in ks}
        | {f"map@{k}": ranking.user_map_full(lists, relevant, k) for k in ks}
        for name, lists in ranked.items()
    }
    table: dict[str, Any] = {
        "scorers": {
            name: {
                metric: _measured(per_user, len(relevant), bootstrap, seed)
                for metric, per_user in metrics.items()
            }
            for name, metrics in statistics.items()
        },
        "counts": {"users": len(relevant), "ranked_users": sum(1 for items in relevant if items)},
    }
    if champion is not None:
        table["paired"] = _paired(statistics, champion, len(relevant), bootstrap, seed)
    return table


Statistics = dict[str, "Floats | intervals.Statistic"]
"""Metric -> per-user values whose mean it is, or a function of the draws."""


def _statistics(
    code: ArrayLike, timestamps: ArrayLike, y: ArrayLike, score: ArrayLike, ks: Sequence[int]
) -> Statistics:
    right, pairs = ranking.snapshot_pairs(code, timestamps, y, score)
    return {
        "auc": intervals.auc_statistic(code, y, score),
        "uauc": ranking.user_auc(code, y, score),
        "snapshot_accuracy": intervals.ratio_statistic(right, pairs),
        **{f"ndcg@{k}": ranking.user_ndcg_exposed(code, y, score, k) for k in ks},
        **{f"map@{k}": ranking.user_map_exposed(code, y, score, k) for k in ks},
    }


def _measured(
    statistic: Floats | intervals.Statistic, users: int, bootstrap: int, seed: int
) -> dict[str, float]:
    compute = statistic if callable(statistic) else intervals.mean_statistic(statistic)
    value = float(compute(np.ones((1, users)))[0])
    low, high = intervals.user_bootstrap(statistic, users, bootstrap, seed)
    return {"value": value, "low": low, "high": high}


def _range(values: Floats) -> dict[str, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _counts(code: NDArray[np.integer], timestamps: ArrayLike, y: NDArray[Any]) -> dict[str, int]:
    size, positives = np.bincount(code), np.bincount(code, y)
    _, pairs = ranking.snapshot_pairs(code, timestamps, y, np.zeros(len(y)))
    return {
        "rows": len(y),
        "positives": int(y.sum()),
        "users": len(size),
        "uauc_users": int(((positives > 0) & (positives < size)).sum()),
        "ndcg_users": int((size > 1).sum()),
        "snapshot_users": int((pairs > 0).sum()),
        "snapshot_pairs": int(pairs.sum()),
    }


def _artefact(code: NDArray[np.integer], timestamps: ArrayLike, y: NDArray[Any], seed: int) -> dict[str, Any]:
    def score(labels: ArrayLike) -> Floats:
        return -ranking.rolling_rate(code, timestamps, labels)

    null = ranking.uauc_null(code, y, score, seed, NULL_REPEATS)
    return {"uauc": ranking.uauc(code, y, score(y)), "null": _range(null)}


def _paired(
    statistics: Mapping[str, Mapping[str, Floats | intervals.Statistic]],
    champion: str,
    users: int,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    return {
        name: {
            metric: _difference(statistics[champion][metric], other, users, bootstrap, seed)
            for metric, other in metrics.items()
        }
        for name, metrics in statistics.items()
        if name != champion
    }


def _difference(
    a: Floats | intervals.Statistic, b: Floats | intervals.Statistic, users: int, bootstrap: int, seed: int
) -> dict[str, float | int]:
    if callable(a) and callable(b):
        return _measured_difference(lambda draws: a(draws) - b(draws), users, bootstrap, seed)
    assert not callable(a)
    assert not callable(b)
    return intervals.paired_test(a, b, bootstrap, seed)


def _measured_difference(
    statistic: intervals.Statistic, users: int, bootstrap: int, seed: int
) -> dict[str, float | int]:
    found = _measured(statistic, users, bootstrap, seed)
    return {"difference": found["value"], "low": found["low"], "high": found["high"], "users": users}
