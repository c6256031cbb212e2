"""What the student is measured against, each fed with nothing but what was known before a row.

Rows of a split are scored by plain statistics, by item-to-item models of the likes before the split, and by
a regression and trees on the student's own vectors, fitted on the training rows.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from pipelines.contexts import ContextSource
from ray_app.artifacts import Run
from ray_app.collab.regression import Regression
from ray_app.collab.trees import Trees
from ray_app.errors import DataError
from ray_app.evaluation.baselines import ItemModel, cosine, ease, tuned
from ray_app.student.model import SOFT_NAMES

TUNED_AT = 20
"""K of the NDCG@K that EASE's penalty is chosen by."""


def load_vectors(run: Run) -> dict[str, np.ndarray]:
    """The collaborative vectors of all rows, memory-mapped."""
    folder = run.stage("encode").local()
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SOFT_NAMES}


def training_rows(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Vectors, labels and users of the training rows."""
    rows = pl.read_parquet(
        run.stage("prepare").path("interactions.parquet"), columns=["split", "label", "user"]
    )
    train = np.flatnonzero(rows["split"].to_numpy() == "train")
    vectors = {name: value[train] for name, value in load_vectors(run).items()}
    return vectors, rows["label"].to_numpy()[train], rows["user"].to_numpy()[train]


def exposed_rivals(
    source: ContextSource,
    vectors: dict[str, np.ndarray],
    models: dict[str, ItemModel],
    rows: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Name -> score [n] of rows of a split. Raises DataError where the training rows have one label."""
    pair = vectors["pair"][rows]
    return {
        "random": np.random.default_rng(seed).random(len(rows)),
        "popularity": np.asarray(source.rolling[rows, 0]),
        "item rate": np.asarray(source.rolling[rows, 1]),
        "Swing": pair[:, 1] * (np.expm1(pair[:, 3]) + 0.2),
        **{name: item_scores(source, model, rows) for name, model in models.items()},
        **fitted(source, vectors, rows, seed),
    }


def fitted(
    source: ContextSource, vectors: dict[str, np.ndarray], rows: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """P(yes) [n] of the models that are fitted on the training rows' vectors."""
    train = np.flatnonzero(source.splits == "train")
    labels = source.labels[train]
    if labels.min() == labels.max():
        raise DataError(
            f"all {len(train)} training rows have label {labels[0]}, and nothing can be learned from them: "
            "change data.positive_rating or give other rows"
        )

    known, asked = ({name: vectors[name][of] for name in SOFT_NAMES} for of in (train, rows))
    return {
        "logistic regression": Regression.fit(known, labels).p_yes(asked),
        "trees": Trees.fit(known, labels, seed, threads=2).p_yes(asked),
    }


def item_models(source: ContextSource, moment: str) -> tuple[dict[str, ItemModel], float]:
    """EASE and cosine from the likes before a snapshot's cut, and EASE's penalty.

    The penalty is the best one of the moment before: fitted before that snapshot, tested on the likes
    between the two.
    """
    names = [entry["name"] for entry in source.snapshots]
    at = names.index(moment)
    earlier = source.snapshots[max(0, at - 1)]["rows"] if at else 0
    known = source.snapshots[at]["rows"]
    liked, seen, relevant = followed(source, earlier, known)
    penalty = tuned(lambda value: ease(*likes(source, earlier), value), liked, seen, relevant, TUNED_AT)
    models = {"cosine": cosine(*likes(source, known)), "EASE": ease(*likes(source, known), penalty)}
    return models, penalty


def likes(source: ContextSource, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(users, items, n_items) of the likes among the first rows."""
    chosen = np.flatnonzero(source.labels[:rows] > 0)
    return source.users[chosen], source.targets[chosen], len(source.items)


def followed(
    source: ContextSource, before: int, until: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[set[int]]]:
    """(liked, seen, new likes) of users with rows before one row number and new likes until another."""
    liked: list[np.ndarray] = []
    known: list[np.ndarray] = []
    relevant: list[set[int]] = []
    span = np.arange(before, until)
    for user in np.unique(source.users[span[source.labels[span] > 0]]).tolist():
        own = source.histories.rows[source.histories.indptr[user] : source.histories.indptr[user + 1]]
        past, new = own[own < before], own[(own >= before) & (own < until)]
        seen = source.targets[past]
        goal = set(source.targets[new[source.labels[new] > 0]].tolist()) - set(seen.tolist())
        if len(past) and goal:
            liked.append(seen[source.labels[past] > 0])
            known.append(seen)
            relevant.append(goal)
    return liked, known, relevant


def item_scores(source: ContextSource, model: ItemModel, rows: np.ndarray) -> np.ndarray:
    """float64 [n]: the model's score of each row's target from what its user liked before the row."""
    start, end = source.histories.before(source.users[rows], source.timestamps[rows])
    items, labels = source.histories.items, source.histories.labels
    return np.array(
        [
            model.score(items[a:b][labels[a:b] > 0], int(source.targets[row]))
            for row, a, b in zip(rows, start, end, strict=True)
        ]
    )
