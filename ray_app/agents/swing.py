"""The Swing agent: similar users, what they and the item neighbours suggest, and decisions without a student.

    candidate score = neighbours / max + favourites / max + TREND * trend / max
    neighbours(i)   = sum over liked j in the history of 2^(-age_j / HALF_LIFE) * swing(j, i)
    favourites(i)   = similarity of the similar users who liked i minus that of those who did not
    trend(i)        = sum over everyone's likes of i of 2^(-days before the bundle's cut / TREND_DAYS)

age_j counts the user's later ratings. Items that are rated well fill up what is left. TREND and TREND_DAYS
were chosen for NDCG@20 at five moments of MovieLens-100K that lie before its test rows.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from ray_app.agents.interface import Dossier, Proposal, UserView
from ray_app.bundle import Bundle
from ray_app.collab.evidence import SIGNALS, History, Peers, find_peers
from ray_app.records import Context, Interaction, Verdict
from ray_app.swing.users import Memo
from ray_app.swing.weights import DAY

HALF_LIFE = 20.0
TREND, TREND_DAYS = 2.0, 7.0
SWING = "swing"
"""What a verdict names as its expert where no adapter decided."""


class SwingAgent:
    """Similarity matrices are memory-mapped, so replicas on one node share them."""

    def __init__(self, bundle: Bundle):
        self._bundle = bundle
        self._memo = Memo.empty()
        self.trend = _trend(bundle)
        """float64 [n_items]: everyone's likes of late, at most 1."""

    def warm(self) -> None:
        """Do once what compiles when it is first done (numba), for somebody who has liked one item."""
        liked = Interaction(
            user_id="", item_id=self._bundle.items[0].item_id, timestamp=self._bundle.cut + 1, label=1
        )
        history = self._bundle.history("", [liked])
        self.candidates(history, self.signals(history, liked.timestamp, -1), 1)

    async def propose(self, view: UserView, n: int) -> Proposal:
        """Similar users, and n items or fewer worth deciding about: only the target where there is one."""
        peers = self.signals(view.history, view.now, view.code)
        if view.target is not None:
            return Proposal(peers, np.array([view.target], np.int32), np.zeros(1, np.float32))
        signals = self._signals(view.history, peers, n)
        items, scores = self._best(view.history, signals, n)
        return Proposal(peers, items, scores, {name: values[items] for name, values in signals.items()})

    def signals(self, history: History, now: int, user_code: int) -> Peers:
        """Similar users (the owner, `user_code`, apart) and their favourites."""
        return find_peers(self._bundle.gatherer.index, history, now, user_code, SIGNALS, self._memo)

    def candidates(self, history: History, peers: Peers, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes int32 [<= n] of items that are not in the history, best first, and scores float32."""
        return self._best(history, self._signals(history, peers, n), n)

    def _signals(self, history: History, peers: Peers, n: int) -> dict[str, np.ndarray]:
        """The terms of every item's score, float64 [n_items] each."""
        return {
            "neighbours": _scaled(self._neighbours(history)),
            "favourites": _scaled(self._favourites(history, peers, 2 * n)),
            "trend": TREND * self.trend,
        }

    def _best(
        self, history: History, signals: dict[str, np.ndarray], n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = signals["neighbours"] + signals["favourites"] + signals["trend"]
        # What nothing speaks for comes last, in the order of its rate, at scores below every other.
        rates = self._bundle.statistics(np.arange(len(scores), dtype=np.int32))[:, 1]
        positive = scores[scores > 0]
        floor = float(positive.min()) if len(positive) else 1.0
        scores = np.where(scores > 0, scores, floor * rates / (1 + rates))
        scores[history.items] = -1.0
        order = np.lexsort((np.arange(len(scores)), -scores))[:n]
        best = order[scores[order] >= 0]
        return best.astype(np.int32), scores[best].astype(np.float32)

    async def estimate(self, dossier: Dossier) -> list[Verdict]:
        """Decisions from rates alone, for when the student's engine has died.

        logit P(yes) = logit(item's rate) + logit(user's rate) - logit(global rate), the rates taken as
        independent given the answer.
        """
        return [self._estimate(context) for context in dossier.contexts]

    def _estimate(self, context: Context) -> Verdict:
        bundle = self._bundle
        code = bundle.item_code(context.target.item_id)
        rate = bundle.statistics(np.array([code], np.int32))[0, 1]
        z = logit(rate) + logit(context.like_rate) - logit(bundle.state.global_rate)
        return Verdict(p_yes=float(expit(z)), logit=float(z), expert=SWING)

    def _neighbours(self, history: History) -> np.ndarray:
        scores = np.zeros(len(self._bundle.items))
        table = self._bundle.gatherer.swing
        if table is None:
            return scores
        for at in np.flatnonzero(history.labels > 0):
            indices, near, _ = table.of(int(history.items[at]))
            scores[indices] += 2.0 ** (-(len(history) - 1 - at) / HALF_LIFE) * near
        return scores

    def _favourites(self, history: History, peers: Peers, n: int) -> np.ndarray:
        scores = np.zeros(len(self._bundle.items))
        index = self._bundle.gatherer.index
        if index is not None and len(peers.users):
            found = index.signals(peers.users, peers.similarities, n, history.items)
            scores[found.items] = found.score
        return scores


def _scaled(scores: np.ndarray) -> np.ndarray:
    return scores / best if (best := float(scores.max(initial=0.0))) > 0 else scores


def _trend(bundle: Bundle) -> np.ndarray:
    past = bundle.histories
    weight = past.labels * 2.0 ** (-(bundle.cut - past.timestamps) / (TREND_DAYS * DAY))
    return _scaled(np.bincount(past.items, weight, len(bundle.items)))
