"""Contexts of rows of the data set, as known just before each row: what reason, mix and evaluate share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from ray_app.artifacts import Run
from ray_app.collab.evidence import NO_PEERS, SIGNALS, Gatherer, History, Peers, find_peers
from ray_app.collab.features import Catalogue, Histories
from ray_app.config import Config
from ray_app.records import Context, Item, item_record
from ray_app.swing.snapshots import load_snapshot, snapshot_for


class ContextSource:
    """Builds the contexts of rows; the same row gives the same context in any process."""

    def __init__(self, config: Config, run: Run):
        prepare, encode = run.stage("prepare"), run.stage("encode").local()
        frame = pl.read_parquet(prepare.path("interactions.parquet"))
        self.config = config
        self.users = frame["user"].to_numpy()
        self.targets = frame["item"].to_numpy()
        self.timestamps = frame["timestamp"].to_numpy()
        self.labels = frame["label"].to_numpy()
        self.ratings = frame["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy()
        self.splits = frame["split"].to_numpy()
        items = pl.read_parquet(prepare.path("items.parquet"))
        self.items: list[Item] = [item_record(row) for row in items.iter_rows(named=True)]
        self.catalogue = Catalogue.build([i.features for i in self.items], [i.year for i in self.items])
        self.user_ids = pl.read_parquet(prepare.path("users.parquet"))["user_id"].to_list()
        self.rolling = np.load(encode / "rolling.npy", mmap_mode="r")
        self.histories = Histories.build(
            self.users,
            self.targets,
            self.labels,
            np.asarray(self.rolling[:, 4]),
            self.timestamps,
            len(self.user_ids),
        )
        self._swing = run.stage("swing")
        self.snapshots = self._swing.read_json("snapshots.json")
        self.snapshot = snapshot_for(self.snapshots, self.timestamps)
        self._gatherers: dict[int, Gatherer] = {}

    @classmethod
    def open(cls, config: Config, run_uri: str) -> ContextSource:
        return cls(config, Run(run_uri))

    def whole_users(self, split: str, limit: int, seed: int) -> np.ndarray:
        """Rows of whole users of the split, in a seeded order of users, up to about `limit` rows."""
        rows = np.flatnonzero(self.splits == split)
        users = np.random.default_rng(seed).permutation(np.unique(self.users[rows]))
        counts = np.bincount(self.users[rows], minlength=len(self.user_ids))[users]
        taken = users[: max(1, int(np.searchsorted(np.cumsum(counts), limit, side="right")))]
        return rows[np.isin(self.users[rows], taken)]

    def build(self, row_ids: Sequence[int]) -> list[Context]:
        """Contexts in the order of row_ids; rows of one user and moment share the search for peers."""
        order = sorted(range(len(row_ids)), key=lambda at: (self.users[row_ids[at]], row_ids[at]))
        contexts: list[Context | None] = [None] * len(row_ids)
        moment: tuple[int, int] | None = None
        history, peers, pool = None, NO_PEERS, np.empty(0, np.int32)
        for at in order:
            row = row_ids[at]
            user, now = int(self.users[row]), int(self.timestamps[row])
            gatherer = self.gatherer(int(self.snapshot[row]))
            if history is None or moment != (user, now):
                moment, history = (user, now), self.history(user, now)
                peers = find_peers(gatherer.index, history, now, user, SIGNALS)
                pool = self.pool(row, history, peers)
            contexts[at] = gatherer.context(
                self.user_ids[user],
                history,
                now,
                int(self.targets[row]),
                float(self.rolling[row, 0]),
                float(self.rolling[row, 1]),
                float(self.rolling[row, 3]),
                peers,
                pool,
            )
        return [context for context in contexts if context is not None]

    def history(self, user: int, now: int) -> History:
        """The user's ratings before `now`."""
        (start,), (end,) = self.histories.before(np.array([user]), np.array([now]))
        rows = self.histories.rows[start:end]
        return History(
            self.targets[rows].astype(np.int32),
            self.labels[rows].astype(np.float32),
            self.ratings[rows].astype(np.float32),
            self.histories.residuals[start:end],
            self.timestamps[rows],
        )

    def pool(self, row: int, history: History, peers: Peers) -> np.ndarray:
        """Other candidates named in a prompt: peers' favourites, then seeded draws from what is known."""
        size = self.config.prompt.candidates + 1
        draws = np.random.default_rng([self.config.seed, row]).integers(0, len(self.items), 4 * size)
        known = np.concatenate([peers.signals.items[self.config.prompt.neighbours :][:size], draws])
        seen = set(history.items.tolist())
        fresh = [item for item in dict.fromkeys(known.tolist()) if item not in seen]
        return np.array(fresh[:size], np.int32)

    def gatherer(self, number: int) -> Gatherer:
        """The gatherer of a snapshot (-1: before the first)."""
        if number not in self._gatherers:
            empty = Gatherer(
                self.items,
                self.catalogue,
                None,
                None,
                self.config.prompt,
                self.config.data.positive_rating,
            )
            if number >= 0:
                swing, index = load_snapshot(self._swing, self.snapshots[number]["name"])
                empty = replace(empty, swing=swing, index=index)
            self._gatherers[number] = empty
        return self._gatherers[number]
