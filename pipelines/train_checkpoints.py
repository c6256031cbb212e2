"""Checkpoints inside a phase of training, handed to Ray Train and had back after a failure.

A checkpoint holds DeepSpeed's state, from which the same number of workers go on to the bit, and the plain
weights, from which any other number goes on: at the same place of the data, with the optimizer's moments
gathered anew.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ray_app.student.model import Student
from ray_app.student.phases import Phase
from ray_app.student.stopping import EarlyStopping

PLACE = "place"
"""Name of the file in which a rank says what its checkpoint is of."""
STATE, WEIGHTS, BEST = "state", "weights.pt", "best.pt"


@dataclass(frozen=True)
class Interrupted:
    """The last checkpoint of a phase that did not end."""

    folder: Path
    step: int
    world: int
    curve: list[dict[str, Any]]

    def weights_into(self, student: Student) -> None:
        """Before an engine takes the student: it may have another number of workers."""
        student.load_state_dict(torch.load(self.folder / WEIGHTS, weights_only=True), strict=False)

    def best_into(self, watch: EarlyStopping) -> None:
        watch.load_state_dict(torch.load(self.folder / BEST, weights_only=True))

    def at(self, world: int, total: int) -> tuple[int, list[dict[str, Any]]]:
        """(step, curve) as `world` workers count steps, of which they do `total`."""
        if world == self.world:
            return self.step, self.curve
        scaled = [{**point, "step": self._steps(point["step"], world), "of": total} for point in self.curve]
        return min(self._steps(self.step, world), total), scaled

    def _steps(self, step: int, world: int) -> int:
        """After which no batch that was learnt from comes again."""
        return -(-step * self.world // world)


@contextmanager
def interrupted(phase: Phase, device: torch.device) -> Iterator[Interrupted | None]:
    """The phase's last checkpoint; none if Ray Train has none, or it is of another phase or damaged."""
    import ray.train

    last = ray.train.get_checkpoint()
    if last is None:
        yield None
        return
    with last.as_directory() as local:
        state = whole(Path(local), device)
        if state is None or state["phase"] != phase.name:
            yield None
        else:
            yield Interrupted(Path(local), state["step"], state["world"], state["curve"])


def checkpoint(
    engine: Any,
    phase: Phase,
    step: int,
    rank: int,
    world: int,
    curve: list[dict[str, Any]],
    watch: EarlyStopping,
) -> None:
    """Save the engine on every rank and hand the checkpoint to Ray Train (which waits for all ranks)."""
    import ray.train

    with tempfile.TemporaryDirectory() as local:
        state = {"phase": phase.name, "step": step, "world": world, "curve": curve}
        engine.save_checkpoint(local, tag=STATE, client_state=state, exclude_frozen_parameters=True)
        with gathered(engine, engine.module):
            if rank == 0:
                torch.save(
                    {name: p.detach() for name, p in learning(engine.module).items()}, Path(local, WEIGHTS)
                )
                torch.save(watch.state_dict(), Path(local, BEST))
        Path(local, f"{PLACE}-{rank}.json").write_text(json.dumps(state | {"files": sizes_in(local)}))
        ray.train.report(
            {"phase": phase.name, "step": step}, checkpoint=ray.train.Checkpoint.from_directory(local)
        )


def due(saved: float, every_s: float, device: torch.device) -> bool:
    """Whether a checkpoint is due, by rank 0's clock: saving waits for all ranks, so all must agree."""
    late = torch.tensor(int(time.monotonic() - saved > every_s), device=device)
    torch.distributed.broadcast(late, src=0)
    return bool(late)


def sizes_in(folder: str | Path) -> dict[str, int]:
    """Bytes of every file in a checkpoint's folder, but for what `checkpoint` writes last."""
    found = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found if PLACE not in path.name}


def whole(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None, and a line that says so, if a file is cut off or gone.

    Every rank looks at the files of all, and ranks agree: what one cannot read stops the resume of all.
    """
    state, damaged = None, [f"{PLACE}-0.json"]
    try:
        state = json.loads((folder / damaged[0]).read_bytes())
        there, files = sizes_in(folder), {}
        for rank in range(state["world"]):
            damaged = [f"{PLACE}-{rank}.json"]
            files |= json.loads((folder / damaged[0]).read_bytes())["files"]
        damaged = sorted(name for name, size in files.items() if there.get(name) != size)
    except (OSError, ValueError):
        pass
    fit = torch.tensor(int(not damaged), device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(fit, op=torch.distributed.ReduceOp.MIN)
    if damaged:
        print(f"train: the checkpoint's {damaged[0]} is damaged, the phase starts over", flush=True)
    return state if int(fit) else None


def learning(student: Student) -> dict[str, torch.nn.Parameter]:
    """Parameters that the phase trains, by name."""
    return {name: p for name, p in student.named_parameters() if p.requires_grad}


def gathered(engine: Any, student: Student, modify: bool = False) -> Any:
    """The parameters that the phase trains, whole on every rank; with `modify`, changes to them last."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    import deepspeed

    parameters = list(learning(student).values())
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modify else None)
