"""How far P(yes) can be taken at its word: expected calibration error, Brier score, reliability."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from ray_app.errors import DataError
from ray_app.evaluation.ranking import Floats, rows

BINS = 15


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> list[dict[str, float]]:
    """Points of the reliability curve over equal-mass bins, empty ones left out.

    Each point: mean predicted `p`, observed share of positives `observed`, number of `rows`. Equal
    probabilities stay in one bin (by their mid-rank), so the order of rows does not matter.
    """
    y, p = _checked(labels, probabilities)
    if not len(p):
        return []
    bin_of = ((rankdata(p) - 0.5) / len(p) * bins).astype(np.int64)
    mass = np.bincount(bin_of, minlength=bins)
    predicted, positives = np.bincount(bin_of, p, bins), np.bincount(bin_of, y, bins)
    return [
        {"p": float(predicted[b] / mass[b]), "observed": float(positives[b] / mass[b]), "rows": int(mass[b])}
        for b in np.flatnonzero(mass)
    ]


def ece(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: |predicted - observed| averaged over equal-mass bins by their rows.

    Naeini et al. 2015 with the equal-mass bins of Nguyen and O'Connor 2015. In [0, 1], NaN without rows.
    """
    points = reliability(labels, probabilities, bins)
    total = sum(point["rows"] for point in points)
    gap = sum(point["rows"] * abs(point["p"] - point["observed"]) for point in points)
    return gap / total if total else float("nan")


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared difference of probability and label (Brier 1950). NaN without rows."""
    y, p = _checked(labels, probabilities)
    return float(np.mean((p - y) ** 2)) if len(p) else float("nan")


def calibration(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """The report's section: `ece`, `brier`, `brier_constant` (always the base rate), `reliability`."""
    y, _ = _checked(labels, probabilities)
    base = float(y.mean()) if len(y) else float("nan")
    return {
        "rows": len(y),
        "ece": ece(labels, probabilities),
        "brier": brier(labels, probabilities),
        "brier_constant": base * (1 - base),
        "reliability": reliability(labels, probabilities),
    }


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats]:
    y, p = rows(labels, probabilities)
    if ((p < 0) | (p > 1)).any():
        raise DataError(
            f"probability {p[(p < 0) | (p > 1)][0]:g} is outside 0..1: calibrate the scores first"
        )
    return y.astype(np.float64), p
