"""From one user's history to the Context of a prompt: which facts are worth an answer's while.

The profile is the same for every target of a user: latest ratings and what similar users liked. The
evidence is chosen for the target: history items related to it (Swing neighbours of the target, shared
features, recency), similar users' items of its kind, what similar users and everyone thought of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ray_app.collab.features import Catalogue
from ray_app.config import PromptConfig
from ray_app.prompts.cards import MAX_EVIDENCE
from ray_app.records import Context, Evidence, Item
from ray_app.swing.table import NeighbourTable
from ray_app.swing.users import Memo, Signals, UserIndex, strengths

CONTENT, RECENCY = 0.5, 0.1
"""Weight of feature overlap and of recency beside the Swing score (scaled to 1 for the nearest item)."""
MIN_PEERS = 2
SIGNALS = 24
"""Similar users' favourites that neighbours are chosen from."""
Facts = dict[str, Any]
"""An Evidence without its id."""


@dataclass(frozen=True)
class History:
    """One user's earlier ratings in time order; arrays of length h."""

    items: np.ndarray
    """int32"""
    labels: np.ndarray
    """float32, 0 or 1"""
    ratings: np.ndarray
    """float32, NaN where only the label is known"""
    residuals: np.ndarray
    """float32: label - the item's rate when it was rated"""
    timestamps: np.ndarray
    """int64"""

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Peers:
    """Users similar to the one asked for, at one moment."""

    users: np.ndarray
    similarities: np.ndarray
    common: np.ndarray
    signals: Signals


NO_PEERS = Peers(
    np.empty(0, np.int32),
    np.empty(0, np.float32),
    np.empty(0, np.int32),
    Signals(*(np.empty(0, kind) for kind in (np.int32, np.float32, np.int32, np.float32))),
)


def find_peers(
    index: UserIndex | None, history: History, now: int, user: int, top: int, memo: Memo | None = None
) -> Peers:
    """Similar users of a history and their favourite items that it does not hold.

    user: the owner's code, to leave out (-1: not in the index). memo: see `UserIndex.similar`.
    """
    if index is None or not len(history):
        return NO_PEERS
    found = index.similar(
        history.items, strengths(history.labels), history.timestamps, now, exclude_user=user, memo=memo
    )
    return Peers(*found, index.signals(found[0], found[1], top, history.items))


def crowd(item: Item, count: float, rate: float) -> Evidence | None:
    """What everyone thought of an item, of whose `count` ratings the share `rate` is positive, as the only
    evidence; None without ratings."""
    if count <= 0:
        return None
    return Evidence(id="e1", **_crowd(item, count, rate))


@dataclass(frozen=True)
class Gatherer:
    """Builds contexts against one snapshot of what is known."""

    items: list[Item]
    catalogue: Catalogue
    swing: NeighbourTable | None
    index: UserIndex | None
    prompt: PromptConfig
    positive_rating: float

    def context(
        self,
        user_id: str,
        history: History,
        now: int,
        target: int,
        target_count: float,
        target_rate: float,
        like_rate: float,
        peers: Peers,
        pool: np.ndarray,
    ) -> Context:
        """The context of one target. target_count and target_rate: its earlier ratings as of `now`."""
        known = np.array([[target_count, target_rate]])
        (found,) = self.contexts(user_id, history, now, np.array([target]), known, like_rate, peers, pool)
        return found

    def contexts(
        self,
        user_id: str,
        history: History,
        now: int,
        targets: np.ndarray,
        statistics: np.ndarray,
        like_rate: float,
        peers: Peers,
        pool: np.ndarray,
    ) -> list[Context]:
        """The contexts of n targets, int [n]; statistics: float [n, 2 or more], count and rate of each."""
        profile = self.profile(history, peers)
        return [
            Context(
                user_id=user_id,
                timestamp=int(now),
                history_count=len(history),
                like_rate=float(like_rate),
                target=self.items[target],
                profile=profile,
                evidence=self._evidence(history, peers, target, float(count), float(rate)),
                candidates=[self.items[at] for at in pool if at != target][: self.prompt.candidates],
            )
            for target, (count, rate, *_) in zip(targets.tolist(), statistics, strict=True)
        ]

    def _evidence(
        self, history: History, peers: Peers, target: int, count: float, rate: float
    ) -> list[Evidence]:
        opinions = self._opinions(peers, target, count, rate)
        related = [*self._related(history, target), *self._neighbours(peers, target)]
        chosen = [*related[: MAX_EVIDENCE - len(opinions)], *opinions]
        return [Evidence(id=f"e{at}", **entry) for at, entry in enumerate(chosen, 1)]

    def profile(self, history: History, peers: Peers) -> list[Evidence]:
        """The user's latest ratings, newest first, then similar users' favourites."""
        latest = range(len(history) - 1, max(-1, len(history) - 1 - self.prompt.history), -1)
        entries = [self._rated(history, at, [], 0.0) for at in latest]
        signals = peers.signals
        entries += [
            self._signal(signals, at, []) for at in range(min(len(signals.items), self.prompt.neighbours))
        ]
        return [Evidence(id=f"h{at}", **entry) for at, entry in enumerate(entries, 1)]

    def _related(self, history: History, target: int) -> list[Facts]:
        if not len(history):
            return []
        near = self._nearness(history.items, target)
        overlap = self._overlap(history.items, target)
        age = np.arange(len(history) - 1, -1, -1)
        weight = near + CONTENT * overlap + RECENCY * np.exp2(-age / 10)
        best = np.lexsort((age, -weight))[: self.prompt.history]
        return [
            self._rated(history, at, self._shared(int(history.items[at]), target), float(weight[at]))
            for at in best
        ]

    def _nearness(self, items: np.ndarray, target: int) -> np.ndarray:
        """float64 [n]: Swing score to the target over the target's best score; 0 for no neighbour."""
        if self.swing is None:
            return np.zeros(len(items))
        indices, scores, _ = self.swing.of(target)
        if not len(indices):
            return np.zeros(len(items))
        order = np.argsort(indices)
        at = np.minimum(np.searchsorted(indices[order], items), len(indices) - 1)
        hit = indices[order][at] == items
        return np.where(hit, scores[order][at] / scores[0], 0.0)

    def _overlap(self, items: np.ndarray, target: int) -> np.ndarray:
        """float64 [n]: Jaccard similarity of features with the target's."""
        indptr, features = self.catalogue.indptr, self.catalogue.features
        own = np.zeros(len(self.catalogue.vocabulary))
        own[features[indptr[target] : indptr[target + 1]]] = 1
        counts = self._widths
        widths = counts[items]
        rows = np.repeat(np.arange(len(items)), widths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(widths) - widths, widths)
        common = np.bincount(rows, own[features[indptr[items][rows] + within]], len(items))
        return common / np.maximum(widths + counts[target] - common, 1)

    @cached_property
    def _widths(self) -> np.ndarray:
        """int [n_items]: how many features an item has."""
        return np.diff(self.catalogue.indptr)

    def _neighbours(self, peers: Peers, target: int) -> list[Facts]:
        signals, found = peers.signals, []
        for at, item in enumerate(signals.items):
            shared = self._shared(item, target)
            if item != target and shared:
                found.append(self._signal(signals, at, shared))
        found.sort(key=lambda entry: -len(entry["shared"]) * entry["weight"])
        return found[: self.prompt.neighbours // 2]

    def _opinions(self, peers: Peers, target: int, count: float, rate: float) -> list[Facts]:
        found = []
        if self.index is not None and len(peers.users):
            ratings, labels = self.index.opinions(peers.users, target)
            if len(labels) >= MIN_PEERS:
                likes = float(labels.mean())
                average = None if np.isnan(ratings).any() else float(ratings.astype(np.float64).mean())
                strength = abs(likes - 0.5)
                found.append(
                    _opinion("peers", self.items[target], average, likes >= 0.5, len(labels), strength)
                )
        if count > 0:
            found.append(_crowd(self.items[target], count, rate))
        return found

    def _rated(self, history: History, at: int, shared: list[str], weight: float) -> Facts:
        rating = float(history.ratings[at])
        return self._named(history.items[at]) | {
            "kind": "history",
            "shared": shared,
            "rating": None if np.isnan(rating) else rating,
            "support": 1,
            "sign": 1 if history.labels[at] > 0 else -1,
            "weight": weight,
        }

    def _signal(self, signals: Signals, at: int, shared: list[str]) -> Facts:
        average = float(signals.average[at])
        starred = average > 1
        return self._named(signals.items[at]) | {
            "kind": "neighbour",
            "shared": shared,
            "rating": average if starred else None,
            "support": int(signals.support[at]),
            "sign": 1 if average >= (self.positive_rating if starred else 0.5) else -1,
            "weight": float(signals.score[at]),
        }

    def _named(self, code: int) -> Facts:
        return _named(self.items[code])

    def _shared(self, item: int, target: int) -> list[str]:
        """All of them, however few a prompt shows: what is left out would be said to be the item's alone."""
        own = set(self.items[target].features)
        return [name for name in self.items[item].features if name in own]


def _named(item: Item) -> Facts:
    return {"item_id": item.item_id, "title": item.title, "features": item.features}


def _opinion(
    kind: str, target: Item, rating: float | None, positive: bool, support: int, strength: float
) -> Facts:
    own = {"shared": [], "rating": rating, "support": support, "weight": 2 * strength}
    return _named(target) | own | {"kind": kind, "sign": 1 if positive else -1}


def _crowd(target: Item, count: float, rate: float) -> Facts:
    return _opinion("crowd", target, rate, rate >= 0.5, int(count), abs(rate - 0.5))
