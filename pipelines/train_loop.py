"""What one Ray Train worker does: the phases in order, each on a DeepSpeed engine.

Every worker plans the same batches from the same seed and takes each world-size-th one, so the data of a
step does not depend on where it runs. A finished phase is committed to the stage folder by rank 0 and never
repeated; inside a phase, DeepSpeed checkpoints go to Ray Train, which hands the last one back after a
failure, whatever the number of workers is then. An adapter's phase stops early on the UAUC of validation
rows and keeps its best point.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from pipelines.train_checkpoints import STATE, checkpoint, due, gathered, interrupted, learning
from pipelines.train_data import Data, steps_of, stream, to_device, whole_users
from pipelines.train_progress import Progress
from ray_app.config import Config, TrainConfig
from ray_app.evaluation.ranking import uauc
from ray_app.student.batching import Sequence, collate
from ray_app.student.model import Student, trainable
from ray_app.student.phases import Phase, build, optimizer, phases, save
from ray_app.student.stopping import EarlyStopping

DONE, BOARD = "done.json", "tensorboard"
CURVE_POINTS = 6
"""Validation points per phase."""
CURVE_ROWS = {True: 500, False: 4000}
"""Validation rows of a point, those of whole users, by whether the phase trains all parameters; more where
the points decide when it ends. A phase's final score takes all rows."""
SCORED_AT_ONCE = 64


def train_loop(settings: dict[str, Any]) -> None:
    """Entry point of a worker. settings: config (as a dict), folder, encode (local folders)."""
    import deepspeed
    import ray.train

    quiet()
    config = Config.model_validate(settings["config"])
    folder, context = Path(settings["folder"]), ray.train.get_context()
    torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if config.train.use_gpu else "gloo")
    data = Data(config, folder, Path(settings["encode"]))
    for phase in phases(config, settings["clusters"]):
        if (folder / phase.name / DONE).exists():
            continue
        run_phase(phase, config, folder, data, context.get_world_rank(), context.get_world_size())


def quiet() -> None:
    """Leave a person who follows the points of the curve only what is to be acted on."""
    from ray.train.v2._internal.execution import context
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # Two long lines per worker and checkpoint. Not below "ray.train": this logger is named after its file.
    context.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def run_phase(phase: Phase, config: Config, folder: Path, data: Data, rank: int, world: int) -> None:
    import ray.train

    watch = EarlyStopping(config.train.patience)
    rows = data.of(phase)
    total = steps_of(rows, phase, config, world)
    engine, rates, step, curve = start(phase, config, folder, data, world, total, watch)
    progress = Progress(phase, step, total, world, curve, folder / BOARD if rank == 0 else None)
    glance, done = whole_users(data.valid_of(phase), CURVE_ROWS[phase.whole], config.seed), False
    saved = time.monotonic()
    engine.train()
    for number, batch in stream(rows, phase, config, data, rank, world, total):
        if number < step:
            continue
        # Seeded by the step, so that a resumed phase drops what an undisturbed one would.
        torch.manual_seed(config.seed * 1_000_003 + number)
        batch = to_device(batch, engine.device)
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(number, total, config.train.warmup)
        out = engine(batch)
        engine.backward(out["loss"])
        engine.step()
        step = number + 1
        progress.step(step, batch.ids.numel(), float(out["answer"]), float(out["text"]))
        if step == total or step % max(1, total // CURVE_POINTS) == 0:
            progress.stop()
            logits = score(engine.module, glance, data, config.train, engine.device)
            order = within_users(glance, logits)
            if not phase.whole:
                with gathered(engine, engine.module):
                    done = watch.see(step, order, learning(engine.module))
            progress.point(step, auc(glance, logits), order)
            engine.train()
        if done:
            break
        if step < total and due(saved, config.train.checkpoint_every_s, engine.device):
            checkpoint(engine, phase, step, rank, world, progress.curve, watch)
            saved = time.monotonic()
    progress.close()
    with gathered(engine, engine.module, modify=True):
        watch.restore(learning(engine.module))
    commit(phase, engine, folder, data, config, rank, progress.curve, len(rows), watch.step or step)
    ray.train.report({"phase": phase.name})
    engine.destroy()


def start(
    phase: Phase,
    config: Config,
    folder: Path,
    data: Data,
    world: int,
    total: int,
    watch: EarlyStopping,
) -> tuple[Any, list[float], int, list[dict[str, Any]]]:
    """(engine, full learning rates, step, curve): as the phase starts, or as its last checkpoint left it."""
    import deepspeed
    from ray.train.torch import get_device

    settings = json.loads(Path(config.train.deepspeed).read_text())
    student = build(phase, config, folder, data.tokenizer, data.widths)
    if phase.matrix_rate is not None:
        # DeepSpeed would clip Muon's steps, whose size says nothing of the gradient's.
        settings["gradient_clipping"] = 0.0
    rule = optimizer(phase, student, config.train.weight_decay)
    rates = [group["lr"] for group in rule.param_groups]
    with interrupted(phase, get_device()) as last:
        if last and last.world != world:
            last.weights_into(student)
        engine: Any = deepspeed.initialize(
            model=student,
            model_parameters=[p for p in student.parameters() if p.requires_grad],  # pyright: ignore[reportArgumentType]
            optimizer=rule,
            config=settings,
            dist_init_required=False,
        )[0]
        if last is None:
            return engine, rates, 0, []
        if last.world == world:
            engine.load_checkpoint(str(last.folder), tag=STATE, load_module_strict=False)
        last.best_into(watch)
        return engine, rates, *last.at(world, total)


def schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then cosine decay to zero."""
    first = max(1, int(warmup * total))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + np.cos(np.pi * (step - first) / max(1, total - first)))


@torch.no_grad()
def score(
    student: Student, rows: list[Sequence], data: Data, config: TrainConfig, device: torch.device
) -> np.ndarray:
    """float32 [n] answer logits in the order of rows, on every worker.

    Each worker takes its share, in as many batches as any other: under ZeRO-3 a forward pass waits for all.
    """
    student.eval()
    weights = {False: config.loss_rec, True: config.loss_reason}
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
    parts = [order[start : start + SCORED_AT_ONCE] for start in range(0, len(order), SCORED_AT_ONCE)]
    parts += parts[: -len(parts) % world]
    logits = torch.full((len(rows),), -torch.inf, device=device)
    for part in parts[rank::world]:
        batch = collate([rows[at] for at in part], data.vectors, weights, data.tokenizer.pad_token_id)
        batch = to_device(batch, device)
        logits[part] = student.answer_logits(student.hidden(batch), batch)
    torch.distributed.all_reduce(logits, op=torch.distributed.ReduceOp.MAX)
    return logits.cpu().numpy()


def auc(rows: list[Sequence], logits: np.ndarray) -> float:
    labels = np.array([item.label for item in rows])
    return float(roc_auc_score(labels, logits)) if 0 < labels.mean() < 1 else float("nan")


def within_users(rows: list[Sequence], logits: np.ndarray) -> float:
    """UAUC; not a number where no user has rows of both labels."""
    return uauc([item.user for item in rows], [item.label for item in rows], logits)


def commit(
    phase: Phase,
    engine: Any,
    folder: Path,
    data: Data,
    config: Config,
    rank: int,
    curve: list[dict[str, Any]],
    rows: int,
    best: int,
) -> None:
    """Rank 0 writes the phase's result beside its place, then moves it there whole."""
    student = engine.module
    logits = score(student, data.valid, data, config.train, engine.device)
    with gathered(engine, student):
        if rank == 0:
            scratch = folder / f".{phase.name}.partial"
            shutil.rmtree(scratch, ignore_errors=True)
            save(phase, student, scratch)
            written = scratch / phase.name
            np.save(written / "valid_logits.npy", logits)
            facts = {
                "curve": curve,
                "rows": rows,
                "trainable": trainable(student),
                "best_step": best,
                "valid_auc": auc(data.valid, logits),
                "valid_uauc": within_users(data.valid, logits),
            }
            (written / DONE).write_text(json.dumps(facts))
            shutil.rmtree(folder / phase.name, ignore_errors=True)
            os.replace(written, folder / phase.name)
            shutil.rmtree(scratch, ignore_errors=True)
    torch.distributed.barrier()
