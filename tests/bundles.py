"""A small real bundle, made by the real functions from synthetic data, and a student without a model."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import polars as pl

from ray_app.agents.synthesis import DEFAULT
from ray_app.artifacts import Folder
from ray_app.bundle import SYNTHESIS, TREES, Bundle, seal
from ray_app.collab.features import Catalogue, Histories, encode
from ray_app.collab.latent import item_vectors
from ray_app.collab.opinions import Crowd
from ray_app.collab.rolling import roll
from ray_app.collab.trees import Trees
from ray_app.config import Config
from ray_app.data.store import Store
from ray_app.engines.student import Scoring, Writing
from ray_app.errors import EngineError
from ray_app.records import ITEMS, USERS
from ray_app.student.experts import cluster_users
from ray_app.swing.items import item_neighbours
from ray_app.swing.users import UserIndex, strengths

USERS_COUNT, ITEMS_COUNT, EACH = 30, 40, 18
GENRES = ["Sci-Fi", "Drama", "Comedy", "Film-Noir"]
START, DAY = 880_000_000, 86_400
VERSION = "b1"
EXPERTS = ["expert-0", "expert-1"]
SWING = {"user_min_similarity": 0.0, "user_k": 10, "k": 20}


def make_bundle(folder: Path, **serve: object) -> Bundle:
    """Users like one genre in two of their own and little else; ids are u0.. and i0.., item i has genre
    i mod 4 (every fifth a second one). User u{n} belongs to genre n mod 4. All users but the last have
    EACH ratings, the last has none."""
    config = Config.model_validate({"swing": SWING, "collab": {"dimensions": 4}, "serve": serve})
    rng = np.random.default_rng(3)
    genres = [[GENRES[i % 4]] + ([GENRES[(i + 1) % 4]] if i % 5 == 0 else []) for i in range(ITEMS_COUNT)]
    titles = [f"{genres[i][0]} Tale {i}" for i in range(ITEMS_COUNT)]
    titles[0], titles[4] = "The [e1] “Quoted” Film", "A user, a target & <b>markup</b>"
    items = pl.DataFrame(
        {
            "item": np.arange(ITEMS_COUNT, dtype=np.int32),
            "item_id": [f"i{i}" for i in range(ITEMS_COUNT)],
            "title": titles,
            "features": genres,
            "keywords": [[] for _ in range(ITEMS_COUNT)],
            "year": [1960 + i for i in range(ITEMS_COUNT)],
            "description": ["" for _ in range(ITEMS_COUNT)],
        },
        schema=pl.from_arrow(ITEMS.empty_table()).schema,  # type: ignore[union-attr]
    )
    users = pl.DataFrame(
        {
            "user": np.arange(USERS_COUNT, dtype=np.int32),
            "user_id": [f"u{u}" for u in range(USERS_COUNT)],
            "profile": [json.dumps({"age": str(20 + u)}) for u in range(USERS_COUNT)],
        },
        schema=pl.from_arrow(USERS.empty_table()).schema,  # type: ignore[union-attr]
    )
    rows = []
    for user in range(USERS_COUNT - 1):
        for item in rng.choice(ITEMS_COUNT, EACH, replace=False):
            fits = GENRES[user % 4] in genres[item]
            rating = int(np.clip(round(rng.normal(4.4 if fits else 2.6, 0.9)), 1, 5))
            rows.append((user, int(item), START + int(rng.integers(0, 90)) * DAY, float(rating)))
    rows.sort(key=lambda row: (row[2], row[0], row[1]))
    user, item, timestamp = (np.array([row[at] for row in rows]) for at in range(3))
    rating = np.array([row[3] for row in rows], np.float32)
    label = (rating >= config.data.positive_rating).astype(np.int8)
    user, item, timestamp = user.astype(np.int32), item.astype(np.int32), timestamp.astype(np.int64)
    _write(folder, config, items, users, user, item, timestamp, rating, label)
    interactions = pl.DataFrame(
        {
            "row_id": np.arange(len(rows)),
            "user": user,
            "item": item,
            "timestamp": timestamp,
            "rating": rating,
            "label": label,
        }
    )
    store = Store(store_url(folder))
    store.load(items, users, interactions, version=VERSION)
    store.close()
    return Bundle.open(folder)


def store_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'store.sqlite'}"


def _write(
    folder: Path,
    config: Config,
    items: pl.DataFrame,
    users: pl.DataFrame,
    user: np.ndarray,
    item: np.ndarray,
    timestamp: np.ndarray,
    rating: np.ndarray,
    label: np.ndarray,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue.build(items["features"].to_list(), items["year"].to_list())
    prior, cut = config.collab.prior, int(timestamp.max())
    codes = catalogue.indptr, catalogue.features, len(catalogue.vocabulary)
    rolling, state = roll(user, item, timestamp, label, USERS_COUNT, ITEMS_COUNT, *codes, prior)
    histories = Histories.build(user, item, label, rolling[:, 4], timestamp, USERS_COUNT)
    table = item_neighbours(user, item, USERS_COUNT, ITEMS_COUNT, config.swing, seed=config.seed)
    index = UserIndex.build(
        user,
        item,
        strengths(label),
        timestamp,
        cut,
        USERS_COUNT,
        ITEMS_COUNT,
        config.swing,
        ratings=rating,
        labels=label,
        seed=config.seed,
    )
    table.save(folder / "swing", "items")
    index.save(folder / "swing", "users")
    latent = item_vectors(user, item, USERS_COUNT, ITEMS_COUNT, 4, catalogue.matrix, None, config.seed)
    np.save(folder / "latent.npy", latent)
    start, end = histories.before(user, timestamp)
    rates = np.full(len(user), label.mean())
    told, window = (item, timestamp, rolling[:, :3], rates), config.collab.window
    rest = catalogue, latent, table, Crowd.of(histories, ITEMS_COUNT), prior, window
    vectors = encode(histories, user, start, end, *told, *rest)
    Folder(folder).write_json(SYNTHESIS, DEFAULT.as_dict())
    Trees.fit(vectors, label, config.seed).save(folder / TREES)
    items.write_parquet(folder / "items.parquet")
    users.write_parquet(folder / "users.parquet")
    fields = {name: getattr(histories, name) for name in Histories.__dataclass_fields__}
    np.savez(folder / "histories.npz", **fields, ratings=rating[histories.rows])
    with open(folder / "state.npz", "wb") as file:
        state.save(file)
    with open(folder / "clusters.npz", "wb") as file:
        cluster_users(vectors["user"], 3, 3, config.seed).save(file)
    (folder / "calibration.json").write_text(json.dumps({"global": [1.0, 0.0], "expert-0": [0.8, 0.1]}))
    facts = {"version": VERSION, "config": config.model_dump(mode="json"), "experts": EXPERTS, "cut": cut}
    seal(folder, facts)


_LINE = re.compile(r"^ \( (\w+) \[(e\d+)\] (.*) \)$", re.MULTILINE)
_OFFSETS = {"global": 0.0, "expert-0": 0.4, "expert-1": -0.4, "expert-2": 0.2}


class LinearStudent:
    """A student whose logit is a linear function of the pair vector, the adapter and the prompt's length,
    and who writes one true sentence about the first evidence that speaks for its answer.

    `lies`: its sentences claim the opposite sign. `dies`: methods that raise EngineError.
    """

    def __init__(self, lies: bool = False, dies: tuple[str, ...] = (), scale: float = 1.0):
        self.lies, self.dies, self.scale = lies, dies, scale
        self.scored: list[Scoring] = []
        self.written: list[Writing] = []

    async def score(self, requests: list[Scoring]) -> np.ndarray:
        self._live("score")
        self.scored += requests
        weights = np.array([3, 1, -1, 0, 0, 2, 0, 2, 1, 1, 1, 2], np.float32)
        return np.array(
            [
                self.scale * (float(request.vectors["pair"][:12] @ weights) + 0.5)
                + _OFFSETS[request.adapter]
                + 0.2 * ("History:" in request.prompt)
                for request in requests
            ],
            np.float32,
        )

    async def write(self, requests: list[Writing]) -> list[str]:
        self._live("write")
        self.written += requests
        return [self._text(request) for request in requests]

    async def healthy(self) -> None:
        self._live("healthy")

    def _live(self, method: str) -> None:
        if method in self.dies:
            raise EngineError(f"the student engine died while asked to {method}: it will be restarted")

    def _text(self, request: Writing) -> str:
        yes = "\nAnswer: Yes" in request.prompt
        lines = _LINE.findall(request.prompt)
        fitting = [line for line in lines if ("<+>" in line[2]) == yes] or lines
        if not fitting:
            return f" ( {'Yes' if yes else 'No'} )"
        kind, name, rest = fitting[0]
        liked = ("<+>" in rest) != self.lies
        verb = "liked" if liked else "disliked"
        subject = {"history": "The user", "neighbour": "Similar users"}.get(kind)
        sentence = f"{subject} {verb} [{name}]" if subject else f"The target was {verb} by others [{name}]"
        would = "would" if yes else "would not"
        answer = "Yes" if yes else "No"
        return f" ( {kind} [{name}] ) {sentence}. ( {answer} ) So overall the user {would} like it."


class Breakable(LinearStudent):
    """A student that hangs while the file `hung` is there. A request that hangs makes the file `hanging`, one
    that is called off `dropped`."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    async def score(self, requests):
        try:
            while self._hung():
                (self._folder / "hanging").touch()
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            (self._folder / "dropped").touch()
            raise
        return await super().score(requests)

    async def healthy(self) -> None:
        while self._hung():
            await asyncio.sleep(0.05)

    def _hung(self) -> bool:
        return (self._folder / "hung").exists()
