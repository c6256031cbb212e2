"""Clusters of users by behaviour, and the gate that chooses an expert for a user.

Users are clustered by their standardised collaborative vector (k-means; the number of clusters by
silhouette). At inference the gate compares the user's vector of the moment with the cluster means, after
ThinkRec (arXiv 2505.15091):

    w = softmax(cos(user, mean_c) / temperature)
    one expert      if max w > single + margin / n
    global adapter  if entropy(w) >= entropy * ln n       (the user is like all clusters, or like none)
    blend           otherwise: the experts' logits, weighted by w

A blend mixes logits, not weights, so no adapter is built per request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from ray_app.config import GateConfig
from ray_app.errors import DataError

GLOBAL = "global"
SILHOUETTE_SAMPLE = 2000


@dataclass(frozen=True)
class Clusters:
    """Behaviour clusters: the standardisation and the means."""

    mean: np.ndarray
    """float32 [d]"""
    scale: np.ndarray
    """float32 [d]"""
    centres: np.ndarray
    """float32 [n, d], standardised"""
    silhouette: float

    @property
    def names(self) -> list[str]:
        return [f"expert-{number}" for number in range(len(self.centres))]

    def standardise(self, vectors: np.ndarray) -> np.ndarray:
        return np.clip((vectors - self.mean) * self.scale, -5, 5).astype(np.float32)

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """int [n] cluster of each user vector [n, d]."""
        z = self.standardise(vectors)
        return np.argmin(((z[:, None, :] - self.centres[None]) ** 2).sum(-1), axis=1)

    @classmethod
    def load(cls, path: Path) -> Clusters:
        with np.load(path) as stored:
            return cls(stored["mean"], stored["scale"], stored["centres"], float(stored["silhouette"]))

    def save(self, file: BinaryIO) -> None:
        np.savez(file, mean=self.mean, scale=self.scale, centres=self.centres, silhouette=self.silhouette)


def cluster_by_last_row(
    rows: pl.DataFrame, vectors: np.ndarray, low: int, high: int, seed: int
) -> tuple[Clusters, np.ndarray]:
    """Clusters of the training users by their vector at their last training row; cluster of each user code.

    rows: interactions as stage prepare writes them; vectors [n_rows, width], by row_id. Users without a
    training row are in cluster -1.
    """
    train = rows.filter(pl.col("split") == "train")
    last = train.group_by("user", maintain_order=True).agg(pl.col("row_id").max()).sort("user")
    known = np.asarray(vectors[last["row_id"].to_numpy()])
    clusters = cluster_users(known, low, high, seed)
    of_user = np.full(int(rows["user"].max()) + 1, -1, np.int32)  # pyright: ignore[reportArgumentType]
    of_user[last["user"].to_numpy()] = clusters.assign(known)
    return clusters, of_user


def cluster_users(
    vectors: np.ndarray, smallest: int, largest: int, seed: int, *, min_share: float = 0.08
) -> Clusters:
    """Cluster user vectors [n, d]; the number in smallest..largest with the best silhouette.

    A number whose smallest cluster holds less than min_share of the users is only taken if none is better
    balanced. Raises DataError for fewer users than smallest + 1.
    """
    if len(vectors) <= smallest:
        raise DataError(
            f"{len(vectors)} users have training rows, too few for train.min_experts {smallest}: lower it"
        )
    mean, scale = vectors.mean(0), 1 / np.maximum(vectors.std(0), 1e-3)
    z = np.clip((vectors - mean) * scale, -5, 5).astype(np.float32)
    best: tuple[bool, float, np.ndarray] | None = None
    for number in range(smallest, min(largest, len(vectors) - 1) + 1):
        fit = KMeans(number, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
        labels = fit.fit_predict(z)
        sample = min(SILHOUETTE_SAMPLE, len(z))
        # One cluster has no silhouette; 0 is that of users who lie between two.
        quality = (
            float(silhouette_score(z, labels, sample_size=sample, random_state=seed)) if number > 1 else 0.0
        )
        balanced = bool(np.bincount(labels).min() >= min_share * len(z))
        candidate = (balanced, quality, fit.cluster_centers_)
        if best is None or candidate[:2] > best[:2]:
            best = candidate
    assert best is not None
    return Clusters(mean.astype(np.float32), scale.astype(np.float32), best[2].astype(np.float32), best[1])


@dataclass(frozen=True)
class Choice:
    """Adapters to run and how to weigh their logits; the weights sum to 1."""

    name: str
    """An expert, `blend` or `global`."""
    weights: dict[str, float]
    gate: dict[str, float]
    """Every cluster's softmax weight, for the trail."""

    @property
    def lead(self) -> str:
        """The adapter that writes the reasons."""
        return max(self.weights, key=lambda name: self.weights[name])


def choose(user: np.ndarray, clusters: Clusters, published: set[str], config: GateConfig) -> Choice:
    """The gate's choice for a user vector [d]. Experts that are not published count as the global one."""
    z = clusters.standardise(user[None])[0]
    norms = np.linalg.norm(clusters.centres, axis=1) * max(float(np.linalg.norm(z)), 1e-9)
    cosine = clusters.centres @ z / np.maximum(norms, 1e-9)
    w = np.exp((cosine - cosine.max()) / config.temperature)
    w /= w.sum()
    n = len(w)
    gate = {name: float(value) for name, value in zip(clusters.names, w, strict=True)}

    def resolve(name: str) -> str:
        return name if name in published else GLOBAL

    if n == 1 or w.max() > config.single + config.margin / n:
        name = resolve(clusters.names[int(w.argmax())])
        return Choice(name, {name: 1.0}, gate)
    entropy = float(-(w * np.log(np.maximum(w, 1e-12))).sum())
    if entropy >= config.entropy * np.log(n):
        return Choice(GLOBAL, {GLOBAL: 1.0}, gate)
    weights: dict[str, float] = {}
    for name, value in gate.items():
        weights[resolve(name)] = weights.get(resolve(name), 0.0) + value
    return Choice("blend" if len(weights) > 1 else next(iter(weights)), weights, gate)


def gate_logits(
    users: np.ndarray,
    clusters: Clusters,
    published: set[str],
    config: GateConfig,
    logits: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """(name of the choice [n], blended logit float64 [n]) of rows with user vectors [n, d].

    logits: adapter name -> [n]; needs the global adapter and every published expert.
    """
    choices = [choose(user, clusters, published, config) for user in users]
    blended = [
        sum(weight * float(logits[name][at]) for name, weight in choice.weights.items())
        for at, choice in enumerate(choices)
    ]
    return np.array([choice.name for choice in choices], str), np.array(blended, np.float64)
