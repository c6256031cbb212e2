"""The synthesis of a decision and its second looks, and the fit of its weights.

    z after = offset + w_initial * z + sum over sections s of w_s * z without s + w_segment * z other segment

z are log odds of calibrated P(yes); a look that was not taken stands at z itself, so that its weight goes to
the first decision. The weights are fitted on validation rows that trigger: logistic regression with a normal
prior around `DEFAULT`, which few rows hardly move. Measured on the same rows by cross-fitting: each fold of
users is judged by weights of the others, before and after paired.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit
from scipy.stats import binomtest

from ray_app.agents.interface import SecondLook
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

    initial: float = 0.6
    history: float = 0.25 / 3
    similar: float = 0.25 / 3
    pool: float = 0.25 / 3
    segment: float = 0.15
    offset: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def array(self) -> np.ndarray:
        return np.array(list(asdict(self).values()))


DEFAULT = Weights()


def features(before: float, looks: list[SecondLook]) -> np.ndarray:
    """float64 [6] in the order of `Weights`: z of the first decision, of each look, and 1 for the offset.

    A look that leaves several sections out counts for each of them.
    """
    z = log_odds(before)
    without = [
        _mean([p for look in looks for name, p in look.without.items() if section in name.split(" and ")], z)
        for section in SECTIONS
    ]
    segment = _mean([p for look in looks for p in look.segments.values()], z)
    return np.array([z, *without, segment, 1.0])


def synthesis(before: float, looks: list[SecondLook], weights: Weights = DEFAULT) -> float:
    """P(yes) after the second looks, of P(yes) before."""
    return float(expit(features(before, looks) @ weights.array())) if looks else before


def fit(rows: np.ndarray, labels: np.ndarray) -> Weights:
    """The weights of highest posterior for `features` float [n, 6] and labels [n]."""
    start = DEFAULT.array()

    def loss(w: np.ndarray) -> float:
        z = rows @ w
        nll = -(labels * log_expit(z) + (1 - labels) * log_expit(-z)).sum()
        return float(nll + 0.5 * PRIOR * ((w - start) ** 2).sum())

    return Weights(*(float(value) for value in minimize(loss, start, method="BFGS").x))


def gain(rows: np.ndarray, labels: np.ndarray, users: np.ndarray, seed: int) -> dict[str, Any]:
    """`judged` with cross-fitted weights: what the fit is worth on rows that it has not seen."""
    fitted = np.full(len(labels), np.nan)
    code = np.unique(users, return_inverse=True)[1]
    fold = np.random.default_rng(seed).permutation(code.max(initial=-1) + 1)[code] % FOLDS
    for part in np.unique(fold):
        held = fold == part
        fitted[held] = expit(rows[held] @ fit(rows[~held], labels[~held]).array())
    return _compared(rows, labels, fitted)


def judged(rows: np.ndarray, labels: np.ndarray, weights: Weights) -> dict[str, Any]:
    """What reflection is worth on rows that trigger: `features` float [n, 6] and labels [n].

    AUC, accuracy and log loss `before`, after with the `constant` weights and after with the `fitted` ones;
    `turned` decisions, of which so many `better` and `worse`, with the exact two-sided p of McNemar's test.
    An undefined AUC is None.
    """
    return _compared(rows, labels, expit(rows @ weights.array()))


def _compared(rows: np.ndarray, labels: np.ndarray, fitted: np.ndarray) -> dict[str, Any]:
    before, constant = expit(rows[:, 0]), expit(rows @ DEFAULT.array())
    return {
        "rows": len(labels),
        "before": _measured(before, labels),
        "constant": _measured(constant, labels) | _turned(before, constant, labels),
        "fitted": _measured(fitted, labels) | _turned(before, fitted, labels),
    }


def learn(
    rows: np.ndarray, labels: np.ndarray, users: np.ndarray, seed: int
) -> tuple[Weights, dict[str, Any]]:
    """(weights to serve, their report). `DEFAULT` with too few rows or labels all alike."""
    if len(labels) < MIN_ROWS or len(np.unique(labels)) < 2:
        return DEFAULT, {"rows": len(labels), "fitted": None}
    return fit(rows, labels), gain(rows, labels, users, seed)


def log_odds(p: float) -> float:
    """Finite."""
    return float(logit(np.clip(p, NEVER, 1 - NEVER)))


def _mean(values: list[float], otherwise: float) -> float:
    return float(np.mean([log_odds(p) for p in values])) if values else otherwise


def _measured(p: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    area = auc(labels, p) if len(np.unique(labels)) == 2 else float("nan")
    losses = np.where(labels > 0, p, 1 - p)
    return {
        "auc": round(float(area), 4) if np.isfinite(area) else None,
        "accuracy": round(float(((p >= 0.5) == (labels > 0)).mean()), 4),
        "log_loss": round(float(-np.log(np.clip(losses, NEVER, 1)).mean()), 4),
    }


def _turned(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    turned = (before >= 0.5) != (after >= 0.5)
    better = int((turned & ((after >= 0.5) == (labels > 0))).sum())
    worse = int(turned.sum()) - better
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {"turned": better + worse, "better": better, "worse": worse, "p": round(float(p), 4)}
