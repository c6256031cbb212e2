"""Early stopping (Prechelt 1998): a phase keeps its best point and ends when none of the next is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class EarlyStopping:
    """Watches a score of validation rows, higher is better, at the points of a training curve."""

    def __init__(self, patience: int):
        self.patience = patience
        self.best, self.step, self.waited = -math.inf, 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def see(self, step: int, score: float, weights: Mapping[str, torch.Tensor]) -> bool:
        """Note a point; whether `patience` points have passed since the best one.

        A score that is not a number (no user with both labels) says nothing: its weights are kept, since
        later ones are the better guess.
        """
        if not score <= self.best:
            self.best, self.step, self.waited = (self.best if math.isnan(score) else score), step, 0
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        else:
            self.waited += 1
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put the best point's weights back in place; nothing to do where no point was seen."""
        for name, tensor in self.weights.items():
            weights[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
