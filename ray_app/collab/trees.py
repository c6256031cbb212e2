"""Boosted trees on the collaborative vectors: what the student is told, weighed by another kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightgbm
import numpy as np

from ray_app.collab.features import SCALARS

ROUNDS = 150
SETTINGS = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.6,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class Trees:
    """Gradient-boosted trees (Ke et al. 2017, LightGBM) over a row's vectors side by side."""

    def __init__(self, booster: lightgbm.Booster):
        self._booster = booster

    @classmethod
    def fit(cls, vectors: Mapping[str, np.ndarray], labels: np.ndarray, seed: int, threads: int = 1) -> Trees:
        """Of vectors float [n, width] by name, and labels [n]. Two average rows, one of each label, stand
        beside them where all labels are alike: then everybody gets about the smoothed rate of all rows."""
        rows = _side_by_side(vectors)
        if len(np.unique(labels)) < 2:
            average = rows.mean(0, keepdims=True)
            rows, labels = np.concatenate([rows, average, average]), np.append(labels, [0, 1])
        settings = SETTINGS | {"seed": seed, "num_threads": threads}
        return cls(lightgbm.train(settings, lightgbm.Dataset(rows, labels), ROUNDS))

    def p_yes(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """float64 [n]"""
        return np.asarray(self._booster.predict(_side_by_side(vectors), num_threads=1))

    def save(self, path: Path) -> None:
        """LightGBM's own text: read back, it decides to the bit alike."""
        path.write_text(self._booster.model_to_string())

    @classmethod
    def load(cls, path: Path) -> Trees:
        return cls(lightgbm.Booster(model_str=path.read_text()))


def _side_by_side(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.hstack([np.asarray(vectors[name]) for name in SCALARS])
