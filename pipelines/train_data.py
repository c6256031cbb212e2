"""What a training worker reads: tokenized examples, the vectors of their rows, batches in one fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ray_app.collab.features import SCALARS
from ray_app.config import Config
from ray_app.student.batching import Sequence, batches, plan, sizes
from ray_app.student.model import SOFT_NAMES, Batch
from ray_app.student.phases import ANSWERS, LANGUAGE, Phase, load_tokenizer


class Data:
    """Tokenized examples and the vectors of their rows."""

    def __init__(self, config: Config, folder: Path, encode: Path):
        self.tokenizer = load_tokenizer(config, folder)
        self.vectors = {name: np.load(encode / f"{name}.npy", mmap_mode="r") for name in SOFT_NAMES}
        self.widths = widths(config, self.vectors)
        self.passes = config.student.bootstrap.answer_passes
        self.examples = read_tokens(folder / "tokens" / "examples")
        self._valid = read_tokens(folder / "tokens" / "valid")
        corpus = folder / "tokens" / "corpus"
        self.corpus = [item for item, _ in read_tokens(corpus)] if corpus.exists() else []

    def of(self, phase: Phase) -> list[Sequence]:
        if phase.name == LANGUAGE:
            return [item for item, _ in self.examples if item.reasoned]
        own = [item for item, cluster in self.examples if phase.cluster in (None, cluster)]
        return self.corpus * self.passes + own if phase.name == ANSWERS else own

    @property
    def valid(self) -> list[Sequence]:
        return [item for item, _ in self._valid]

    def valid_of(self, phase: Phase) -> list[Sequence]:
        """Validation rows of the users whom the phase is for; all of them where those have none."""
        return [item for item, cluster in self._valid if phase.cluster in (None, cluster)] or self.valid


def widths(config: Config, vectors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many leading entries of each vector the student reads."""
    reads_all = config.student.soft_vectors == "all"
    return {name: value.shape[1] if reads_all else SCALARS[name] for name, value in vectors.items()}


def read_tokens(folder: Path) -> list[tuple[Sequence, int]]:
    """(sequence, cluster) in row order."""
    frame = pl.read_parquet(folder / "*.parquet").sort("place")
    found = []
    for row in frame.iter_rows(named=True):
        soft = {name: row[f"soft_{name}"] for name in SOFT_NAMES if row[f"soft_{name}"] >= 0}
        ids = np.array(row["ids"], np.int32)
        item = Sequence(
            row["row_id"],
            row["user"],
            row["label"],
            ids,
            soft,
            row["answer"],
            row["text_start"],
            row["kind"] == "reason",
        )
        found.append((item, row["cluster"]))
    return found


def steps_of(rows: list[Sequence], phase: Phase, config: Config, world: int) -> int:
    per_epoch = len(plan(*sizes(rows), config.train.batch_tokens, np.random.default_rng(config.seed)))
    return max(1, round(phase.epochs * per_epoch / world))


def stream(
    rows: list[Sequence], phase: Phase, config: Config, data: Data, rank: int, world: int, total: int
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for this worker: batch number step * world + rank of the endless seeded sequence.

    A cluster without examples has no batch: its expert stays the global adapter.
    """
    weights = {False: config.train.loss_rec, True: config.train.loss_reason}
    number, epoch = 0, 0
    while rows:
        seed = config.seed * 1000 + epoch
        pad = data.tokenizer.pad_token_id
        for batch in batches(rows, data.vectors, weights, pad, config.train.batch_tokens, seed):
            if number // world >= total:
                return
            if number % world == rank:
                yield number // world, batch
            number += 1
        epoch += 1


def whole_users(rows: list[Sequence], count: int, seed: int) -> list[Sequence]:
    """About `count` of the rows: all those of some users, drawn by seed."""
    users = np.array([item.user for item in rows])
    order = np.random.default_rng(seed).permutation(np.unique(users))
    sizes = np.bincount(users)[order]
    chosen = set(order[: int(np.searchsorted(np.cumsum(sizes), count)) + 1].tolist())
    return [item for item in rows if item.user in chosen]


def to_device(batch: Batch, device: torch.device) -> Batch:
    moved: dict[str, Any] = {
        name: {key: tensor.to(device) for key, tensor in value.items()}
        if isinstance(value, dict)
        else value.to(device)
        for name, value in vars(batch).items()
    }
    return Batch(**moved)
