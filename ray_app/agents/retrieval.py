"""The data retrieval agent: histories, metadata and features from the bundle and the store; feedback in."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ray_app.agents.interface import Dossier, Profile, Proposal, Rated, UserView
from ray_app.bundle import Bundle
from ray_app.collab.evidence import Peers
from ray_app.data.store import Store, UserSummary
from ray_app.records import Interaction, Item

CACHE_USERS, CACHE_S = 1024, 5.0
"""Views kept. The agent that takes feedback in forgets that user at once; where several replicas share a
store, the others follow after CACHE_S."""
FRESH_S = 86_400
"""Vectors say how long ago things happened, and the student has only seen short gaps: a bundle of old
data is asked as of one day after its last event at most."""


class DataRetrievalAgent:
    """Store calls wait in threads; all else is arrays in memory."""

    def __init__(self, bundle: Bundle, store: Store, clock: Callable[[], float] = time.time):
        self._bundle = bundle
        self._store = store
        self._clock = clock
        self._views: OrderedDict[str, tuple[float, UserView]] = OrderedDict()

    async def fetch(self, user_id: str, item_id: str | None = None) -> UserView:
        """The user's history up to now, feedback included. Raises NotFoundError.

        item_id: the only item that will be asked about; it is left out of the history.
        """
        view = self._cached(user_id)
        if view is None:
            view = await asyncio.to_thread(self._load, user_id)
            self._views[user_id] = (self._clock(), view)
            self._views.move_to_end(user_id)
            if len(self._views) > CACHE_USERS:
                self._views.popitem(last=False)
        return view if item_id is None else view.about(self._bundle.item_code(item_id))

    async def assemble(self, view: UserView, proposal: Proposal) -> Dossier:
        """Contexts and vectors of the proposed items. Made as they were made for training."""
        bundle, history = self._bundle, view.history
        pool = self._pool(view, proposal.peers)
        contexts = [
            bundle.gatherer.context(
                view.user.user_id,
                view.code,
                history,
                view.now,
                int(item),
                float(count),
                float(rate),
                view.like_rate,
                proposal.peers,
                pool,
            )
            for item, (count, rate, _) in zip(proposal.items, bundle.statistics(proposal.items), strict=True)
        ]
        return Dossier(contexts, bundle.vectors(history, proposal.items, view.now))

    async def profile(self, user_id: str, limit: int) -> Profile:
        """The user and their last `limit` events. Raises NotFoundError."""
        view = await self.fetch(user_id)
        events = await asyncio.to_thread(self._store.history, user_id, None, limit)
        items = await asyncio.to_thread(self._store.items, [event.item_id for event in events])
        rated = [
            Rated(
                item=items[event.item_id],
                rating=event.rating,
                label=event.label,
                timestamp=event.timestamp,
            )
            for event in reversed(events)
        ]
        return Profile(user=view.user, like_rate=view.like_rate, count=len(view.history), history=rated)

    async def users(self, limit: int, prefix: str) -> list[UserSummary]:
        return await asyncio.to_thread(self._store.users, limit, prefix)

    async def item(self, item_id: str) -> Item:
        """Raises NotFoundError."""
        return self._bundle.items[self._bundle.item_code(item_id)]

    async def items(self, limit: int, text: str) -> list[Item]:
        """The first items whose title contains `text`, in any case, the most rated first."""
        wanted = text.casefold()
        found = [code for code, item in enumerate(self._bundle.items) if wanted in item.title.casefold()]
        found.sort(key=lambda code: -self._bundle.state.count[code])
        return [self._bundle.items[code] for code in found[:limit]]

    async def record(self, interaction: Interaction, event: str, key: str | None) -> bool:
        """Take feedback in; durable when this returns. False if the key was known.

        Raises NotFoundError for an unknown item, DataError for a value that cannot be stored.
        """
        added = await asyncio.to_thread(self._store.add, interaction, event=event, key=key)
        self._views.pop(interaction.user_id, None)
        return added

    async def version(self) -> str | None:
        """The bundle version that the store was loaded from; raises OverloadedError if it is silent."""
        return await asyncio.to_thread(self._store.version)

    def _cached(self, user_id: str) -> UserView | None:
        made, view = self._views.get(user_id, (0.0, None))
        if view is None or self._clock() - made > CACHE_S:
            return None
        self._views.move_to_end(user_id)
        return view

    def _load(self, user_id: str) -> UserView:
        bundle = self._bundle
        user, events = self._store.user(user_id), self._store.history(user_id)
        now = int(np.clip(self._clock(), bundle.cut + 1, bundle.cut + FRESH_S))
        history = bundle.history(user_id, events)
        history = replace(history, timestamps=np.minimum(history.timestamps, now))
        code = bundle.user_codes.get(user_id, -1)
        return UserView(user, code, now, history, bundle.like_rate(history))

    def _pool(self, view: UserView, peers: Peers) -> np.ndarray:
        """Other candidates named in a prompt: peers' favourites, then seeded draws, as in training."""
        prompt, seed = self._bundle.config.prompt, self._bundle.config.seed
        size = prompt.candidates + 1
        rng = np.random.default_rng([seed, zlib.crc32(view.user.user_id.encode())])
        draws = rng.integers(0, len(self._bundle.items), 4 * size)
        known = np.concatenate([peers.signals.items[prompt.neighbours :][:size], draws])
        seen = set(view.history.items.tolist())
        return np.array([item for item in dict.fromkeys(known.tolist()) if item not in seen][:size], np.int32)
