"""A logistic regression on the collaborative vectors: what the student is told, weighed plainly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit

from ray_app.collab.features import SCALARS

PENALTY = 10.0
"""Of the squared weights, against the summed log loss of all rows."""
FAR = 6.0
"""Standard deviations from the mean at which an input counts no further."""


@dataclass(frozen=True)
class Regression:
    """P(yes) = expit(offset + weights . (x - mean) * scale), x the vectors of a row side by side."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    """float64 [width of all vectors]"""
    offset: float

    @classmethod
    def fit(cls, vectors: Mapping[str, np.ndarray], labels: np.ndarray) -> Regression:
        """Of vectors float [n, width] by name, and labels [n]; with one label only, the rate of all rows."""
        from sklearn.linear_model import LogisticRegression

        rows = _side_by_side(vectors)
        mean, scale = rows.mean(0), 1 / np.maximum(rows.std(0), 1e-3)
        if len(np.unique(labels)) < 2:
            rate = (labels.sum() + 1) / (len(labels) + 2)
            return cls(mean, scale, np.zeros(rows.shape[1]), float(logit(rate)))
        model: Any = LogisticRegression(C=1 / PENALTY, max_iter=500)
        model.fit(np.clip((rows - mean) * scale, -FAR, FAR), labels)
        return cls(mean, scale, model.coef_[0], float(model.intercept_[0]))

    def p_yes(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """float64 [n]"""
        scaled = np.clip((_side_by_side(vectors) - self.mean) * self.scale, -FAR, FAR)
        return expit(self.offset + scaled @ self.weights)


def _side_by_side(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.hstack([np.asarray(vectors[name], np.float64) for name in SCALARS])
