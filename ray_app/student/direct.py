"""A second way from the collaborative vectors to the answer, beside the LM: a small network.

    score = mean over members of preference + user bias

A member's *preference*, an MLP over the statistics of user, item and pair, learns the order of one user's
items: pairs (Rendle et al. 2009) and, at half the weight, cross-entropy of the whole score. Its *user bias*
is b_u(t) of Koren (Collaborative filtering with temporal dynamics, 2009): a line through what the user
thought of things before this visit, and in it. It learns from all rows, and the preference does not feel it
do so. One network for both follows a user's mood more than it should: each like raises what comes next, and
the order of a user's items, which come one after the other, pays for it.

Members differ in their start and in the order of their rows; their mean varies less than one of them.
It learns before the LM, by itself, in seconds, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from ray_app.collab.features import VISIT

MEMBERS, HIDDEN, DROPOUT = 8, 128, 0.02
CROSS_ENTROPY, BIAS_PAIRS = 0.5, 0.4
"""Weights beside that of the preference's pairs and of the bias's cross-entropy, which are 1: chosen on
MovieLens-1M's validation rows (docs/results.md)."""
PASSES, BATCH, TOGETHER = 10, 88, 16
"""Passes over the rows, rows of a batch, and rows of one user that a batch takes together."""
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 2e-3, 0.1, 0.1


@dataclass(frozen=True)
class Rows:
    """Training rows."""

    statistics: torch.Tensor
    """(n, width), standardised."""
    visits: torch.Tensor
    """(n, 2)"""
    labels: torch.Tensor
    users: torch.Tensor
    """(n,)"""


class Direct(nn.Module):
    """Reads `width` standardised statistics and the visit's two numbers, and gives `share` of the score."""

    share: torch.Tensor

    def __init__(self, width: int, share: float):
        super().__init__()
        self.members = cast("Sequence[Member]", nn.ModuleList(Member(width) for _ in range(MEMBERS)))
        self.register_buffer("share", torch.tensor(share))
        self.register_buffer("mean", torch.zeros(len(VISIT)))
        self.register_buffer("scale", torch.ones(len(VISIT)))

    def fit_scaling(self, visits: torch.Tensor) -> None:
        """Standardise by the visits of training rows, (n, 2)."""
        self.get_buffer("mean").copy_(visits.mean(0))
        self.get_buffer("scale").copy_(1 / visits.std(0).clamp_min(1e-3))

    def forward(self, statistics: torch.Tensor, visits: torch.Tensor) -> torch.Tensor:
        """(n, width), (n, 2) -> (n,) score, a logit."""
        scaled = self._scaled(visits)
        return torch.stack([torch.add(*own(statistics, scaled)) for own in self.members]).mean(0)

    def fit(self, rows: Rows, seed: int) -> None:
        """Have every member learn the training rows."""
        rows = replace(rows, visits=self._scaled(rows.visits))
        for number, own in enumerate(self.members):
            fit(own, rows, seed * MEMBERS + number)

    def _scaled(self, visits: torch.Tensor) -> torch.Tensor:
        scaled = (visits - self.get_buffer("mean")) * self.get_buffer("scale")
        return scaled.clamp(-6, 6).to(next(self.parameters()).dtype)


class Member(nn.Module):
    """An MLP and a line."""

    def __init__(self, width: int):
        super().__init__()
        self.preference = nn.Sequential(
            nn.Dropout(DROPOUT),
            nn.Linear(width, HIDDEN),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, 1),
        )
        self.bias = nn.Linear(len(VISIT), 1)
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.bias.bias)

    def forward(self, statistics: torch.Tensor, visits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, width), (n, 2) standardised -> preference and user bias, (n,) each."""
        return self.preference(statistics).squeeze(1).float(), self.bias(visits).squeeze(1).float()

    def loss(
        self, statistics: torch.Tensor, visits: torch.Tensor, labels: torch.Tensor, users: torch.Tensor
    ) -> torch.Tensor:
        preference, bias = self(statistics, visits)
        score, pairs = preference.detach() + bias, pairs_of(labels, users)
        return (
            pairwise_loss(preference, pairs)
            + CROSS_ENTROPY * F.binary_cross_entropy_with_logits(preference + bias.detach(), labels.float())
            + F.binary_cross_entropy_with_logits(score, labels.float())
            + BIAS_PAIRS * pairwise_loss(score, pairs)
        )


def fit(member: Member, rows: Rows, seed: int) -> None:
    """Train it on rows whose visits are standardised too."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    rule = torch.optim.AdamW(member.parameters(), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    plan = [batch for _ in range(PASSES) for batch in batches(rows.users.numpy(), rng)]
    rate = OneCycleLR(rule, LEARNING_RATE, len(plan), pct_start=WARMUP, cycle_momentum=False)
    member.train()
    for batch in plan:
        rule.zero_grad()
        member.loss(*(values[batch] for values in vars(rows).values())).backward()
        rule.step()
        rate.step()
    member.eval()


def pairs_of(labels: torch.Tensor, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the liked and of the disliked row of each pair that one user's rows make, (pairs,) each."""
    liked, disliked = torch.where((users[:, None] == users[None]) & (labels[:, None] > labels[None]))
    return liked, disliked


def pairwise_loss(logits: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean of -log sigmoid(liked - disliked) over the pairs; 0 without one. Rendle et al. 2009."""
    liked, disliked = pairs
    return F.softplus(logits[disliked] - logits[liked]).sum() / max(len(liked), 1)


def batches(users: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """One pass over n rows in about equal batches; up to TOGETHER rows of a user stand together."""
    order = np.lexsort((rng.random(len(users)), users))
    own = users[order]
    first = np.flatnonzero(np.diff(own, prepend=-1))
    place = np.arange(len(own)) - np.repeat(first, np.diff(first, append=len(own)))
    group = np.cumsum(place % TOGETHER == 0) - 1
    order = order[np.argsort(rng.permutation(group[-1] + 1)[group], kind="stable")]
    return np.array_split(order, -(-len(order) // BATCH))
