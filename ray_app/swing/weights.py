"""How much one user counts: w_u = (alpha1 + |I_u|)^-beta, and what the published versions set.

Every published Swing is this formula with other constants, so a preset is a change of parameters:

| preset | alpha1 | alpha2 | beta | source |
|---|---|---|---|---|
| flink | 15 | 0 | 0.3 | Flink ML 2.3 `Swing` |
| alink | 5 | 1 | -0.35 | Alink `SwingRecommTrain`; the negative beta makes heavy users count *more* |
| funrec | 0 | 1 | 0.5 | Datawhale FunRec; counts ordered pairs, so its raw scores are twice ours |
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ray_app.config import SwingConfig

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


def preset(name: Preset, config: SwingConfig) -> SwingConfig:
    """The config with a published version's weights.

    Values are taken as published: `alink` has a beta that the config refuses as a setting.
    """
    return config.model_copy(update=PRESETS[name])
