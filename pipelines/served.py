"""The student behind its gate, on the engine that serves it, for batch jobs."""

from __future__ import annotations

import numpy as np

from ray_app.bundle import Bundle
from ray_app.config import Config
from ray_app.engines.student import Scoring
from ray_app.engines.vllm_student import VllmStudent
from ray_app.prompts.student import decide_prompt
from ray_app.records import Context
from ray_app.student.calibration import apply_all
from ray_app.student.experts import Choice
from ray_app.student.model import SOFT_NAMES


class Served:
    """A bundle's student with an engine of its own; `engine.close()` ends it."""

    def __init__(self, config: Config, bundle: Bundle):
        self.bundle, self.config = bundle, config
        self.engine = VllmStudent(bundle, config.evaluate.engine)

    def score(
        self, contexts: list[Context], vectors: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, list[Choice]]:
        """(logits [n], calibrated P(yes) [n], the gate's choices)."""
        choices = [self.bundle.choice(user) for user in vectors["user"]]
        requests, places, weights = [], [], []
        for at, (context, choice) in enumerate(zip(contexts, choices, strict=True)):
            prompt = decide_prompt(context, self.config.prompt)
            own = {name: vectors[name][at] for name in SOFT_NAMES}
            for name, weight in choice.weights.items():
                requests.append(Scoring(prompt, own, name))
                places.append(at)
                weights.append(weight)
        scores = self.engine.run(self.engine.score(requests))
        logits = np.bincount(places, np.array(weights) * scores, len(contexts))
        names = np.array([choice.name for choice in choices])
        return logits, apply_all(self.bundle.calibration, names, logits), choices
