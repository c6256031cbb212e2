"""What every new projector of a run begins with: how its inputs are scaled, and the direct part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipelines.rivals import training_rows
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
    read, *answers = training_rows(run)
    vectors = {name: torch.from_numpy(value) for name, value in read.items()}
    labels, users = (torch.from_numpy(value).long() for value in answers)
    with one_thread():
        torch.manual_seed(config.seed)
        # Of a projector that only scales, the size of its outputs does not matter.
        projector = Projector(widths(config, read), 1, share=config.student.direct)
        projector.fit_scaling(vectors)
        if projector.direct is not None:
            projector.direct.fit(Rows(*projector.read(vectors), labels, users), config.seed)
    save_start(projector, local)


@contextmanager
def one_thread() -> Iterator[None]:
    """So that the bits do not depend on the number of cores; at this size more threads are no faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
