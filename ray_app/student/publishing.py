"""Is an expert worth publishing? It must beat the global adapter on its own cluster's validation users.

Both adapters' logits are calibrated on the rows in question (`student.calibration`, two numbers each), so
that neither wins by its scale, and compared by log loss, which counts order and confidence, and counts
users with one label too:

    gain(user) = mean over the user's rows of  loss(global adapter) - loss(expert)
    gain       = mean over users

The expert is published if few bootstrap resamples of the users see no gain: at most MAX_DOUBT. What is
not published the gate takes for the global adapter (`experts.choose`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import log_expit

from ray_app.evaluation.intervals import bootstrap_values
from ray_app.student import calibration

MIN_USERS = 5
"""Fewer validation users than this say nothing: the bootstrap of one user is always sure."""
MAX_DOUBT = 0.1
RESAMPLES = 2000


@dataclass(frozen=True)
class Gain:
    """What an expert is worth beside the global adapter, in nats per row; > 0: the expert is better."""

    users: int
    rows: int
    gain: float | None
    """None where there is no validation row."""
    low: float | None
    high: float | None
    """95 % interval of `gain` by bootstrap over users; None below MIN_USERS."""
    doubt: float
    """Share of the resamples without a gain; 1 below MIN_USERS."""
    better: float | None
    """Share of the users with a gain."""

    @property
    def published(self) -> bool:
        return self.doubt <= MAX_DOUBT

    def row(self) -> dict[str, Any]:
        """For `experts.json`."""
        return {**asdict(self), "published": self.published}


def worth_publishing(
    labels: np.ndarray, users: np.ndarray, expert_logits: np.ndarray, global_logits: np.ndarray, seed: int
) -> Gain:
    """The expert's gain on the validation rows of its cluster: labels 0/1, users, raw logits, each [n]."""
    if not len(labels):
        return Gain(0, 0, None, None, None, 1.0, None)
    code = np.unique(users, return_inverse=True)[1]
    saved = _loss(global_logits, labels) - _loss(expert_logits, labels)
    per_user = np.bincount(code, saved) / np.bincount(code)
    count, gain, better = len(per_user), float(per_user.mean()), float((per_user > 0).mean())
    if count < MIN_USERS:
        return Gain(count, len(labels), gain, None, None, 1.0, better)
    values = bootstrap_values(per_user, count, RESAMPLES, seed)
    low, high = np.quantile(values, [0.025, 0.975])
    doubt = float((values <= 0).mean())
    return Gain(count, len(labels), gain, float(low), float(high), doubt, better)


def _loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [n]: log loss of each row under the Platt map that suits these rows best."""
    slope, offset = calibration.fit(logits.astype(np.float64), labels)
    z = slope * logits + offset
    return -np.where(labels > 0, log_expit(z), log_expit(-z))
