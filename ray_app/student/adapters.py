"""Checkpoints before an engine starts: whole files, and adapters that fit the base and each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError, safe_open

from ray_app.errors import ArtifactError
from ray_app.student.experts import GLOBAL

AGAIN = "run stages train and publish again"


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns what a missing or cut-off checkpoint raises, torch's or safetensors', into an ArtifactError."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ArtifactError(f"{what} is missing or damaged ({reason}): {AGAIN}") from error


def check_adapters(adapters: Mapping[str, Path], hidden: int) -> int:
    """The common rank of LoRA adapters (PEFT folders) on a base with this hidden size.

    Experts start from the global adapter, so another rank is an adapter of another run. Raises
    ArtifactError for that, for an adapter of another base, and for a file that is missing or cut off.
    """
    ranks = {name: _rank(name, folder, hidden) for name, folder in adapters.items()}
    for name, rank in ranks.items():
        if rank != ranks[GLOBAL]:
            raise ArtifactError(
                f"adapter {name} has rank {rank}, the global one {ranks[GLOBAL]}: "
                f"it is of another run, {AGAIN}"
            )
    return ranks[GLOBAL]


def _rank(name: str, folder: Path, hidden: int) -> int:
    with readable(f"adapter {name} in {folder}"):
        rank = int(json.loads((folder / "adapter_config.json").read_bytes())["r"])
        with safe_open(folder / "adapter_model.safetensors", framework="numpy") as tensors:
            shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    for key, shape in shapes.items():
        if "lora_A" in key and list(shape) != [rank, hidden]:
            raise ArtifactError(
                f"adapter {name}: {key} is {list(shape)}, and rank {rank} on this base takes "
                f"[{rank}, {hidden}]: it is of another base, {AGAIN}"
            )
    return rank
