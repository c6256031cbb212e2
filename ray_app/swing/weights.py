"""How much one user counts: w_u = (alpha1 + |I_u|)^-beta, and what the published versions set.

Every published Swing is this formula with other constants, so a preset is a change of parameters:

| preset | alpha1 | alpha2 | beta | source |
|---|---|---|---|---|
| flink | 15 | 0 | 0.3 | Flink ML 2.3 `Swing` |
| alink | 5 | 1 | -0.35 | Alink `SwingRecommTrain`; the negative beta makes heavy users count *more* |
| funrec | 0 | 1 | 0.5 | Datawhale FunRec; counts ordered pairs, so its raw scores are twice ours |

No published Swing weighs interactions. Ours, where asked for, multiplies what a pair {u, v} adds to S_ij by
the geometric mean of the users' two strengths for either item, sqrt(s_ui s_vi) * sqrt(s_uj s_vj), with

    s_ui = strength * 2^(-age / half_life)

so that two users of strength 4 count four times each, and strengths of 1 change nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ray_app.config import SwingConfig
from ray_app.errors import DataError

DAY = 86400.0
Preset = Literal["flink", "alink", "funrec"]

PRESETS: dict[Preset, dict[str, float]] = {
    "flink": {"alpha1": 15.0, "alpha2": 0.0, "beta": 0.3},
    "alink": {"alpha1": 5.0, "alpha2": 1.0, "beta": -0.35},
    "funrec": {"alpha1": 0.0, "alpha2": 1.0, "beta": 0.5},
}


def user_weights(counts: np.ndarray, config: SwingConfig) -> np.ndarray:
    """Weights float64[n] of users with `counts` distinct items; a user without items weighs 0."""
    weights = np.zeros(len(counts))
    active = counts > 0
    weights[active] = (config.alpha1 + counts[active]) ** -config.beta
    return weights


def weighs_interactions(config: SwingConfig) -> bool:
    return config.item_strength or config.item_half_life_days is not None


def interaction_strengths(
    n: int, strengths: np.ndarray | None, timestamps: np.ndarray | None, config: SwingConfig
) -> np.ndarray:
    """s_ui float64[n] of n events from their strengths (above 0) and times (epoch seconds).

    Age counts from the latest of the events. Raises DataError where the config asks for what was not
    given, or a value is not a finite number (a strength, above 0).
    """
    s = np.ones(n)
    if config.item_strength:
        given = _numbers("strength", strengths, n, "item_strength")
        if n and given.min() <= 0:
            raise DataError(f"strength {given.min():g} is not positive: give every event some")
        s = s * given
    if config.item_half_life_days is not None:
        when = _numbers("timestamp", timestamps, n, "item_half_life_days")
        s *= 2.0 ** ((when - when.max(initial=-np.inf)) / (config.item_half_life_days * DAY))
    return s


def _numbers(name: str, values: np.ndarray | None, n: int, setting: str) -> np.ndarray:
    if values is None or len(values) != n:
        have = "none" if values is None else len(values)
        raise DataError(f"{setting} needs {n} {name}s, got {have}: give one per interaction, or unset it")
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"{name} of row {row} is {numbers[row]}: give every interaction a finite number")
    return numbers


def preset(name: Preset, config: SwingConfig) -> SwingConfig:
    """The config with a published version's weights.

    Values are taken as published: `alink` has a beta that the config refuses as a setting.
    """
    return config.model_copy(update=PRESETS[name])
