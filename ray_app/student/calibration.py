"""Calibration of P(yes): Platt scaling of the logit, one map per adapter, fitted on validation rows.

    P(yes) = sigmoid(slope * logit + offset)          (Platt, 1999)

An adapter with few validation rows, or whose labels are all alike, takes the map fitted on all rows.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from ray_app.student.experts import GLOBAL

MIN_ROWS = 200
Platt = tuple[float, float]


def fit(logits: np.ndarray, labels: np.ndarray) -> Platt:
    """(slope, offset) that minimise the log loss, with a weak prior towards (1, 0)."""

    def loss(ab: np.ndarray) -> float:
        z = ab[0] * logits + ab[1]
        nll = -(labels * log_expit(z) + (1 - labels) * log_expit(-z)).sum()
        return float(nll + 0.5 * ((ab[0] - 1) ** 2 + ab[1] ** 2))

    found = minimize(loss, np.array([1.0, 0.0]), method="BFGS")
    return float(max(found.x[0], 1e-3)), float(found.x[1])


def fit_all(adapters: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> dict[str, Platt]:
    """A map per adapter name (str [n]) and one under `global` fitted on all rows."""
    maps = {GLOBAL: fit(logits, labels)}
    for name in np.unique(adapters):
        rows = adapters == name
        if name != GLOBAL and rows.sum() >= MIN_ROWS and 0 < labels[rows].mean() < 1:
            maps[str(name)] = fit(logits[rows], labels[rows])
    return maps


def apply(maps: dict[str, Platt], adapter: str, logit: float) -> float:
    """Calibrated P(yes) of one logit."""
    slope, offset = maps.get(adapter, maps[GLOBAL])
    return float(expit(slope * logit + offset))


def apply_all(maps: dict[str, Platt], adapters: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Calibrated P(yes) float64 [n]."""
    ab = np.array([maps.get(str(name), maps[GLOBAL]) for name in adapters]).reshape(-1, 2)
    return expit(ab[:, 0] * logits + ab[:, 1])


def cross_fitted(
    adapters: np.ndarray, logits: np.ndarray, labels: np.ndarray, users: np.ndarray, seed: int
) -> np.ndarray:
    """Calibrated P(yes) float64 [n] of the very rows that calibrate: maps of one half of the users, drawn
    by the seed, on the other. Measures what `fit_all` is worth without rows kept apart for it."""
    code = np.unique(users, return_inverse=True)[1]
    half = np.random.default_rng(seed).permutation(code.max(initial=-1) + 1)[code] % 2
    p = np.empty(len(logits))
    for side in (0, 1):
        maps = fit_all(adapters[half != side], logits[half != side], labels[half != side])
        p[half == side] = apply_all(maps, adapters[half == side], logits[half == side])
    return p
