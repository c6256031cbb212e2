"""What every new projector of a run begins with: how its inputs are scaled, and the direct part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch

from pipelines.rivals import load_vectors
from pipelines.train_data import widths
from ray_app.artifacts import Run
from ray_app.config import Config
from ray_app.student.direct import Rows
from ray_app.student.model import Projector
from ray_app.student.phases import PROJECTOR, save_start


def fit_projector(config: Config, run: Run, local: Path) -> None:
    """Fit both on the training rows and write them to projector.pt, once."""
    if (local / PROJECTOR).exists():
        return
    frame = pl.read_parquet(
        run.stage("prepare").path("interactions.parquet"), columns=["split", "label", "user"]
    )
    train = np.flatnonzero(frame["split"].to_numpy() == "train")
    every = load_vectors(run)
    vectors = {name: torch.from_numpy(value[train]) for name, value in every.items()}
    labels, users = (torch.from_numpy(frame[name].to_numpy()[train]).long() for name in ("label", "user"))
    with one_thread():
        torch.manual_seed(config.seed)
        # Of a projector that only scales, the size of its outputs does not matter.
        projector = Projector(widths(config, every), 1, share=config.student.direct)
        projector.fit_scaling(vectors)
        if projector.direct is not None:
            projector.direct.fit(Rows(*projector.read(vectors), labels, users), config.seed)
    save_start(projector, local)


@contextmanager
def one_thread() -> Iterator[None]:
    """So that the same seed gives the same bits on any machine; at this size more threads are no faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
