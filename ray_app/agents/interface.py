"""What the agents hand to each other, and the team as the orchestrator sees it.

    fetch -> UserView -> propose -> Proposal -> assemble -> Slate -> decide -> Verdicts of all
          -> gather -> Dossier of the best -> write -> Verdicts with reasons
          -> review -> Reviews (reconsider -> SecondLook) -> present -> Explanations
          -> without -> Dossier -> rethink -> P(yes)

All of it can be pickled, so an agent may live in this process or behind a Serve handle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ray_app.collab.evidence import History, Peers, crowd
from ray_app.records import Context, Explanation, Item, Record, Reflection, User, Verdict

Detail = Literal["brief", "standard", "detailed"]
DETAILS: tuple[Detail, ...] = ("brief", "standard", "detailed")
Asked = Literal["brief", "standard", "detailed", "trail"]
"""What a request may ask for: `trail` is `detailed` and the whole way to the answer."""


class Rated(Record):
    """One event of a user's history, as a person reads it."""

    item: Item
    rating: float | None
    label: int
    timestamp: int


class Profile(Record):
    """A user and what is known of them, newest event first."""

    user: User
    like_rate: float
    count: int
    history: list[Rated]


@dataclass(frozen=True)
class UserView:
    """One user at one moment, as arrays."""

    user: User
    code: int
    """Row of the bundle's users; -1 for a user that came later."""
    now: int
    """The moment of the answer, epoch seconds: no event of the history is later."""
    history: History
    like_rate: float
    target: int | None = None
    """The only item asked about; the history then is that without it."""

    def about(self, target: int) -> UserView:
        """The view for a question about one item: what the user's own rating of it says is left out."""
        return replace(self.without([target]), target=target)

    def without(self, items: list[int]) -> UserView:
        """The view of somebody who never rated these items; the like rate stays."""
        others = ~np.isin(self.history.items, items)
        arrays = (getattr(self.history, name)[others] for name in History.__dataclass_fields__)
        return replace(self, history=History(*arrays))


@dataclass(frozen=True)
class Proposal:
    """Items worth deciding about, best first, and the similar users behind them."""

    peers: Peers
    items: np.ndarray
    """int32 [n] codes"""
    scores: np.ndarray
    """float32 [n]"""
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 [n] each: what the scores are made of."""

    def take(self, places: list[int]) -> Proposal:
        """The part about the items at these places."""
        signals = {name: values[places] for name, values in self.signals.items()}
        return Proposal(self.peers, self.items[places], self.scores[places], signals)


@dataclass(frozen=True)
class Slate:
    """What a first decision about each of n items of one user reads. Most of them are never shown, so no
    evidence was gathered for them."""

    common: Context
    """What is the same for each: all but target, evidence and candidates, which are empty."""
    pool: list[Item]
    """Other candidates that a prompt may name, and `named`, how many of them it does."""
    named: int
    targets: list[Item]
    crowd: np.ndarray
    """float64 [n, 2]: how many ratings the item has, and its rate."""
    vectors: dict[str, np.ndarray]
    """user, item, pair: float32 [n, width]"""

    def __len__(self) -> int:
        return len(self.targets)

    def context(self, at: int) -> Context:
        """What the decision about one item reads; of its evidence only what everyone thought."""
        target, (count, rate) = self.targets[at], self.crowd[at]
        others = [item for item in self.pool if item.item_id != target.item_id]
        known = crowd(target, float(count), float(rate))
        changed = {
            "target": target,
            "evidence": [known] if known else [],
            "candidates": others[: self.named],
        }
        return self.common.model_copy(update=changed)

    def dossier(self, places: list[int], contexts: list[Context]) -> Dossier:
        """The items at these places with their whole contexts."""
        return Dossier(contexts, {name: values[places] for name, values in self.vectors.items()})


@dataclass(frozen=True)
class Dossier:
    """Everything that can be known of n items of one user."""

    contexts: list[Context]
    vectors: dict[str, np.ndarray]
    """user, item, pair: float32 [n, width]"""

    def __len__(self) -> int:
        return len(self.contexts)

    def take(self, places: list[int]) -> Dossier:
        """The part about the items at these places."""
        vectors = {name: values[places] for name, values in self.vectors.items()}
        return Dossier([self.contexts[at] for at in places], vectors)

    @staticmethod
    def joined(parts: list[Dossier]) -> Dossier:
        """All items of some dossiers, of which there is at least one."""
        contexts = [context for part in parts for context in part.contexts]
        names = parts[0].vectors
        return Dossier(
            contexts, {name: np.concatenate([part.vectors[name] for part in parts]) for name in names}
        )


@dataclass(frozen=True)
class SecondLook:
    """One decision made again: from other evidence, from another segment, with other weights; P(yes) each."""

    without: dict[str, float]
    """Sections left out of the prompt (`history`, `history and pool`) -> P(yes)."""
    segments: dict[str, float]
    """Other adapter -> P(yes)."""
    reweighed: float | None = None
    """P(yes) of boosted trees on the same signals (`collab.trees`)."""
    reasoned: float | None = None
    """P(yes) at the end of reasons that were written without an answer (`prompt.reason_first`)."""


@dataclass(frozen=True)
class Review:
    """A decision after the reflection agent saw it."""

    verdict: Verdict
    reflection: Reflection | None
    """None where nothing gave cause for doubt."""


@dataclass(frozen=True)
class Team:
    """The collaborators as async callables: methods of plain agents, or Serve handles."""

    fetch: Callable[[str | None, str | None, dict[str, int]], Awaitable[UserView]]
    """User id, id of the only item asked about, opinions the request brings along: item id -> 0 or 1."""
    propose: Callable[[UserView, int], Awaitable[Proposal]]
    """View, number of candidates."""
    assemble: Callable[[UserView, Proposal], Awaitable[Slate]]
    gather: Callable[[UserView, Proposal], Awaitable[list[Context]]]
    """View, the part of a proposal to show: contexts with their evidence."""
    estimate: Callable[[Dossier], Awaitable[list[Verdict]]]
    """Decisions without the student, for when its engine has died."""
    decide: Callable[[Slate], Awaitable[list[Verdict]]]
    write: Callable[[Dossier, list[Verdict], int], Awaitable[list[Verdict]]]
    """Dossier, verdicts, attempt: the verdicts with reasons."""
    reconsider: Callable[[Dossier, int], Awaitable[list[SecondLook]]]
    """Dossier, round from 1."""
    triggers: Callable[[Dossier, list[Verdict], bool], Awaitable[list[list[str]]]]
    """Dossier, verdicts, whether the stakes are high: causes for doubt, per item."""
    synthesise: Callable[
        [Dossier, list[Verdict], list[list[str]], list[list[SecondLook]]], Awaitable[list[Review]]
    ]
    """Dossier, verdicts, triggers, second looks of all rounds per item."""
    present: Callable[[Dossier, list[Verdict], Detail], Awaitable[list[Explanation]]]
    without: Callable[[UserView, list[str], list[list[str]]], Awaitable[Dossier]]
    """View, items, per item the rated items to forget: what a decision about each would read then."""
    rethink: Callable[[Dossier, Dossier], Awaitable[list[float]]]
    """Dossier, what would be known otherwise: calibrated P(yes) of that by the adapters of the first."""

    @classmethod
    def of(cls, retrieval: Any, swing: Any, reasoning: Any, reflection: Any, explanation: Any) -> Team:
        """The team of the five agents in this process."""
        return cls(
            fetch=retrieval.fetch,
            propose=swing.propose,
            assemble=retrieval.assemble,
            gather=retrieval.gather,
            estimate=swing.estimate,
            decide=reasoning.decide,
            write=reasoning.write,
            reconsider=reasoning.reconsider,
            triggers=reflection.triggers,
            synthesise=reflection.synthesise,
            present=explanation.present,
            without=retrieval.without,
            rethink=reasoning.rethink,
        )
