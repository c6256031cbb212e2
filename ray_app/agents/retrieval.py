"""The data retrieval agent: histories, metadata and features from the bundle and the store; feedback in."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ray_app.agents.interface import Dossier, Profile, Proposal, Rated, Slate, UserView
from ray_app.bundle import Bundle
from ray_app.collab.evidence import SIGNALS, History, Peers, find_peers
from ray_app.data.store import Store, UserSummary
from ray_app.errors import NotFoundError
from ray_app.records import Context, Interaction, Item, User
from ray_app.swing.users import Memo

CACHE_USERS, CACHE_S = 1024, 5.0
"""Views kept. The agent that takes feedback in forgets that user at once; where several replicas share a
store, the others follow after CACHE_S."""
FRESH_S = 86_400
"""Vectors say how long ago things happened, and the student has only seen short gaps: a bundle of old
data is asked as of one day after its last event at most."""

NO_ITEM = Item(item_id="", title="", features=[])


class DataRetrievalAgent:
    """Store calls wait in threads; all else is arrays in memory."""

    def __init__(self, bundle: Bundle, store: Store, clock: Callable[[], float] = time.time):
        self._bundle = bundle
        self._store = store
        self._clock = clock
        self._views: OrderedDict[str, tuple[float, UserView]] = OrderedDict()
        self._memo = Memo.empty()

    def warm(self) -> None:
        """Do once what compiles when it is first done (numba), for somebody who has liked one item."""
        view = self._with(self._nobody(""), {self._bundle.items[0].item_id: 1})
        peers = find_peers(self._bundle.gatherer.index, view.history, view.now, view.code, SIGNALS)
        proposal = Proposal(peers, np.zeros(1, np.int32), np.zeros(1, np.float32))
        self._slate(view, proposal)
        self._contexts(view, proposal)

    async def fetch(
        self, user_id: str | None, item_id: str | None = None, opinions: Mapping[str, int] | None = None
    ) -> UserView:
        """The user's history up to now, feedback included. Raises NotFoundError.

        item_id: the only item that will be asked about; it is left out of the history.
        opinions: item id -> 0 or 1, rated just now as far as this view goes, and stored nowhere. With some,
        the user may be nobody, or not known.
        """
        view = await self._known(user_id, bool(opinions))
        if opinions:
            view = self._with(view, opinions)
        return view if item_id is None else view.about(self._bundle.item_code(item_id))

    async def without(self, view: UserView, items: list[str], left_out: list[list[str]]) -> Dossier:
        """What a decision about each item would read, had the user never rated the items left out for it.

        Similar users, their favourites and the like rate follow from the shorter history.
        """
        bundle = self._bundle
        parts = []
        for name, others in zip(items, left_out, strict=True):
            less = view.without([bundle.item_code(other) for other in others])
            less = replace(less, like_rate=bundle.like_rate(less.history))
            peers = find_peers(bundle.gatherer.index, less.history, less.now, less.code, SIGNALS, self._memo)
            code = np.array([bundle.item_code(name)], np.int32)
            slate = self._slate(less, Proposal(peers, code, np.zeros(1, np.float32)))
            parts.append(slate.dossier([0], [slate.context(0)]))
        return Dossier.joined(parts)

    async def _known(self, user_id: str | None, or_nobody: bool) -> UserView:
        if user_id is None:
            return self._nobody("")
        try:
            return await self._current(user_id)
        except NotFoundError:
            if or_nobody:
                return self._nobody(user_id)
            raise

    async def _current(self, user_id: str) -> UserView:
        view = self._cached(user_id)
        if view is None:
            view = await asyncio.to_thread(self._load, user_id)
            self._views[user_id] = (self._clock(), view)
            self._views.move_to_end(user_id)
            if len(self._views) > CACHE_USERS:
                self._views.popitem(last=False)
        return view

    async def assemble(self, view: UserView, proposal: Proposal) -> Slate:
        """What deciding about the proposed items reads, made as it was made for training."""
        return self._slate(view, proposal)

    async def gather(self, view: UserView, proposal: Proposal) -> list[Context]:
        """Contexts of the proposed items with their evidence, made as they were made for training."""
        return self._contexts(view, proposal)

    def _slate(self, view: UserView, proposal: Proposal) -> Slate:
        bundle, history, pool = self._bundle, view.history, self._pool(view, proposal.peers)
        common = Context(
            user_id=view.user.user_id,
            timestamp=view.now,
            history_count=len(history),
            like_rate=view.like_rate,
            target=NO_ITEM,
            profile=bundle.gatherer.profile(history, proposal.peers),
            evidence=[],
        )
        return Slate(
            common=common,
            pool=[bundle.items[at] for at in pool],
            named=bundle.config.prompt.candidates,
            targets=[bundle.items[at] for at in proposal.items],
            crowd=bundle.statistics(proposal.items)[:, :2],
            vectors=bundle.vectors(history, proposal.items, view.now),
        )

    def _contexts(self, view: UserView, proposal: Proposal) -> list[Context]:
        bundle, pool = self._bundle, self._pool(view, proposal.peers)
        return bundle.gatherer.contexts(
            view.user.user_id,
            view.history,
            view.now,
            proposal.items,
            bundle.statistics(proposal.items),
            view.like_rate,
            proposal.peers,
            pool,
        )

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

    def _now(self) -> int:
        return int(np.clip(self._clock(), self._bundle.cut + 1, self._bundle.cut + FRESH_S))

    def _nobody(self, name: str) -> UserView:
        """Somebody without any history."""
        history = self._bundle.history("", [])
        return UserView(User(user_id=name), -1, self._now(), history, self._bundle.like_rate(history))

    def _with(self, view: UserView, opinions: Mapping[str, int]) -> UserView:
        """The view after these ratings; an item rated before counts as rated now."""
        bundle = self._bundle
        before = view.without([bundle.item_code(name) for name in opinions]).history
        rated = bundle.history(
            "",
            [
                Interaction(user_id="", item_id=name, timestamp=view.now, label=label)
                for name, label in opinions.items()
            ],
        )
        history = History(
            *(
                np.concatenate([getattr(before, name), getattr(rated, name)])
                for name in History.__dataclass_fields__
            )
        )
        return replace(view, history=history, like_rate=bundle.like_rate(history))

    def _load(self, user_id: str) -> UserView:
        bundle, now = self._bundle, self._now()
        user, events = self._store.user(user_id), self._store.history(user_id)
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
