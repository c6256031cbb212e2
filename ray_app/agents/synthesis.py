"""The synthesis of a decision and its second looks, and the fit of its weights.

    z after = offset + w_initial * z + sum over sections s of w_s * z without s + w_segment * z other segment
              + w_reweighed * z of the trees + w_reasoned * z after reasoning

z are log odds of calibrated P(yes); a look that was not taken stands at z itself, so that its weight goes to
the first decision. The weights are fitted on validation rows that trigger: logistic regression with a normal
prior around `DEFAULT`, which few rows hardly move. Where that makes decisions no better, reflection keeps
the first one and only tells its doubts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit
from scipy.stats import binomtest

from ray_app.agents.interface import SecondLook
from ray_app.evaluation import intervals
from ray_app.evaluation.metrics import finite
from ray_app.evaluation.ranking import auc
from ray_app.prompts.student import SECTIONS

NEVER = 1e-6
PRIOR = 10.0
"""Strength of the prior: as much as so many rows of unit variance."""
MIN_ROWS = 100
"""With fewer triggered rows nothing is fitted."""
FOLDS = 5


@dataclass(frozen=True)
class Weights:
    """Of log odds; `history`, `similar` and `pool` weigh the looks that left that section out."""

    initial: float = 0.5
    history: float = 0.05
    similar: float = 0.05
    pool: float = 0.05
    segment: float = 0.1
    reweighed: float = 0.25
    reasoned: float = 0.0
    offset: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def array(self) -> np.ndarray:
        return np.array(list(asdict(self).values()))


DEFAULT = Weights()
NEUTRAL = Weights(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Keep the first decision."""


def features(before: float, looks: list[SecondLook]) -> np.ndarray:
    """float64 [8] in the order of `Weights`: z of the first decision, of each look, and 1 for the offset.

    A look that leaves several sections out counts for each of them.
    """
    z = log_odds(before)
    without = [
        _mean([p for look in looks for name, p in look.without.items() if section in name.split(" and ")], z)
        for section in SECTIONS
    ]
    segment = _mean([p for look in looks for p in look.segments.values()], z)
    reweighed = _mean([look.reweighed for look in looks if look.reweighed is not None], z)
    reasoned = _mean([look.reasoned for look in looks if look.reasoned is not None], z)
    return np.array([z, *without, segment, reweighed, reasoned, 1.0])


def synthesis(before: float, looks: list[SecondLook], weights: Weights = DEFAULT) -> float:
    """P(yes) after the second looks, of P(yes) before."""
    return float(expit(features(before, looks) @ weights.array())) if looks else before


def fit(rows: np.ndarray, labels: np.ndarray) -> Weights:
    """The weights of highest posterior for `features` float [n, 8] and labels [n]."""
    start = DEFAULT.array()

    def loss(w: np.ndarray) -> float:
        z = rows @ w
        nll = -(labels * log_expit(z) + (1 - labels) * log_expit(-z)).sum()
        return float(nll + 0.5 * PRIOR * ((w - start) ** 2).sum())

    return Weights(*(float(value) for value in minimize(loss, start, method="BFGS").x))


def learn(
    rows: np.ndarray, labels: np.ndarray, users: np.ndarray, resamples: int, seed: int
) -> tuple[Weights, dict[str, Any]]:
    """(weights to serve, what they are worth) from `features` float [n, 8], labels [n] and user codes [n].

    The report is `compared` with cross-fitted decisions: each fold of users decided by weights of the
    others. Reflection has to earn its place: unless it saves log loss there, costs no AUC inside the folds,
    and no accuracy beyond its interval, the weights are `NEUTRAL`. So they are with too few rows, labels all
    alike, or a single user.
    """
    if len(labels) < MIN_ROWS or len(np.unique(labels)) < 2 or len(np.unique(users)) < 2:
        return NEUTRAL, compared(rows, labels, users, expit(rows @ NEUTRAL.array()), resamples, seed)
    code = np.unique(users, return_inverse=True)[1]
    fold = np.random.default_rng(seed).permutation(code.max() + 1)[code] % FOLDS
    after = np.empty(len(labels))
    for held in _members(fold):
        after[held] = expit(rows[held] @ fit(rows[~held], labels[~held]).array())
    report = compared(rows, labels, users, after, resamples, seed)
    # Decisions of different weights are not compared with each other: AUC counts inside each fold.
    gains = [_auc(after[at], labels[at]) - _auc(rows[at, 0], labels[at]) for at in _members(fold)]
    saves = report["after"]["log_loss"] < report["before"]["log_loss"]
    earns = saves and np.nanmean(gains) >= 0 and report["accuracy_gain"]["high"] >= 0
    return fit(rows, labels) if earns else NEUTRAL, report


def judged(
    rows: np.ndarray, labels: np.ndarray, users: np.ndarray, weights: Weights, resamples: int, seed: int
) -> dict[str, Any]:
    """What these weights are worth on rows that they have not seen."""
    return compared(rows, labels, users, expit(rows @ weights.array()), resamples, seed)


def compared(
    rows: np.ndarray, labels: np.ndarray, users: np.ndarray, after: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """Decisions of doubted rows before and after reflection.

    `before`, `after`: auc, accuracy, log_loss. `auc_gain`, `accuracy_gain`: the paired difference and its
    95 % interval by bootstrap over users. `turned` decisions, of which so many `better` and `worse`, with the
    exact two-sided p of McNemar's test. `looks`: the AUC of each look that was
    taken, alone. What is undefined is None.
    """
    code, before = np.unique(users, return_inverse=True)[1], expit(rows[:, 0])
    number = int(code.max(initial=-1)) + 1

    def gain(
        defined: bool, statistic: Callable[[np.ndarray], intervals.Statistic]
    ) -> dict[str, float | None]:
        if not defined:
            return dict.fromkeys(("value", "low", "high"))
        later, earlier = statistic(after), statistic(before)

        def difference(draws: np.ndarray) -> np.ndarray:
            return later(draws) - earlier(draws)

        value = float(difference(np.ones((1, number)))[0])
        low, high = intervals.user_bootstrap(difference, number, resamples, seed)
        return finite({"value": value, "low": low, "high": high})

    def accuracy(p: np.ndarray) -> intervals.Statistic:
        right = np.bincount(code, _right(p, labels), number).astype(np.float64)
        return intervals.ratio_statistic(right, np.bincount(code, minlength=number).astype(np.float64))

    return {
        "rows": len(labels),
        "users": len(np.unique(code)),
        "before": _measured(before, labels),
        "after": _measured(after, labels),
        "looks": {
            name: _measured(expit(rows[:, at]), labels)["auc"]
            for at, name in enumerate(DEFAULT.as_dict())
            if name != "offset" and (rows[:, at] != rows[:, 0]).any()
        },
        "auc_gain": gain(len(np.unique(labels)) == 2, lambda p: intervals.auc_statistic(code, labels, p)),
        "accuracy_gain": gain(len(labels) > 0, accuracy),
    } | _turned(before, after, labels)


def log_odds(p: float) -> float:
    """Finite."""
    return float(logit(np.clip(p, NEVER, 1 - NEVER)))


def _mean(values: list[float], otherwise: float) -> float:
    return float(np.mean([log_odds(p) for p in values])) if values else otherwise


def _members(fold: np.ndarray) -> list[np.ndarray]:
    return [fold == part for part in np.unique(fold)]


def _right(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (p >= 0.5) == (labels > 0)


def _auc(p: np.ndarray, labels: np.ndarray) -> float:
    """Not a number where it is undefined."""
    return auc(labels, p) if len(np.unique(labels)) == 2 else float("nan")


def _measured(p: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    if not len(labels):
        return dict.fromkeys(("auc", "accuracy", "log_loss"))
    return {
        "auc": float(auc(labels, p)) if len(np.unique(labels)) == 2 else None,
        "accuracy": float(_right(p, labels).mean()),
        "log_loss": float(-np.log(np.clip(np.where(labels > 0, p, 1 - p), NEVER, 1)).mean()),
    }


def _turned(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    turned = (before >= 0.5) != (after >= 0.5)
    better = int((turned & _right(after, labels)).sum())
    worse = int(turned.sum()) - better
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {"turned": better + worse, "better": better, "worse": worse, "p": float(p)}
