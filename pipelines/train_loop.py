"""What one Ray Train worker does: the phases in order, each on a DeepSpeed engine.

Every worker plans the same batches from the same seed and takes each world-size-th one, so the data of a
step does not depend on where it runs. A finished phase is committed to the stage folder by rank 0 and never
repeated; inside a phase, DeepSpeed checkpoints go to Ray Train, which hands the last one back after a
failure. A checkpoint fits the same number of workers only: at another number the phase starts over.
An adapter's phase stops early on the UAUC of validation rows and keeps its best point.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.metrics import roc_auc_score

from ray_app.collab.features import SCALARS
from ray_app.config import Config, TrainConfig
from ray_app.evaluation.ranking import uauc
from ray_app.student.batching import Sequence, batches, collate, plan, sizes
from ray_app.student.model import SOFT_NAMES, Batch, Student, trainable
from ray_app.student.phases import ANSWERS, LANGUAGE, Phase, build, load_tokenizer, optimizer, phases, save
from ray_app.student.stopping import EarlyStopping
from ray_app.telemetry import Telemetry

DONE = "done.json"
PLACE = "place"
"""Name of the file in which a rank says what its checkpoint is of."""
CURVE_POINTS = 6
"""Validation points per phase."""
CURVE_ROWS = 500
"""Validation rows of a point, those of whole users; a phase's final score takes all."""


def train_loop(settings: dict[str, Any]) -> None:
    """Entry point of a worker. settings: config (as a dict), folder, encode (local folders)."""
    import deepspeed
    import ray.train

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


class Data:
    """Tokenized examples and the vectors of their rows."""

    def __init__(self, config: Config, folder: Path, encode: Path):
        self.tokenizer = load_tokenizer(config, folder)
        self.vectors = {name: np.load(encode / f"{name}.npy", mmap_mode="r") for name in SOFT_NAMES}
        reads_all = config.student.soft_vectors == "all"
        self.widths = {
            name: int(value.shape[1]) if reads_all else SCALARS[name] for name, value in self.vectors.items()
        }
        self.passes = config.student.bootstrap.answer_passes
        self.examples = read_tokens(folder / "tokens" / "examples")
        self.valid = [item for item, _ in read_tokens(folder / "tokens" / "valid")]
        corpus = folder / "tokens" / "corpus"
        self.corpus = [item for item, _ in read_tokens(corpus)] if corpus.exists() else []

    def of(self, phase: Phase) -> list[Sequence]:
        if phase.name == ANSWERS:
            return self.corpus * self.passes + [item for item, _ in self.examples if not item.reasoned]
        if phase.name == LANGUAGE:
            return [item for item, _ in self.examples if item.reasoned]
        own = [item for item, cluster in self.examples if phase.cluster in (None, cluster)]
        return own if phase.warm else self.corpus + own


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


def run_phase(phase: Phase, config: Config, folder: Path, data: Data, rank: int, world: int) -> None:
    import deepspeed
    import ray.train

    settings = json.loads(Path(config.train.deepspeed).read_text())
    student = build(phase, config, folder, data.tokenizer, data.widths)
    rows = data.of(phase)
    if phase.source is None:
        seen = np.unique([item.row_id for item in rows])
        student.projector.fit_scaling(
            {name: torch.from_numpy(np.asarray(data.vectors[name][seen])) for name in SOFT_NAMES}
        )
    rule = optimizer(phase, student, config.train.weight_decay)
    rates = [group["lr"] for group in rule.param_groups]
    if phase.matrix_rate is not None:
        # DeepSpeed would clip Muon's steps, whose size says nothing of the gradient's.
        settings["gradient_clipping"] = 0.0
    engine: Any = deepspeed.initialize(
        model=student,
        model_parameters=[p for p in student.parameters() if p.requires_grad],  # pyright: ignore[reportArgumentType]
        optimizer=rule,
        config=settings,
        dist_init_required=False,
    )[0]
    total = steps_of(rows, phase, config, world)
    watch = EarlyStopping(config.train.patience)
    step, curve = restore(engine, phase, rank, world, watch)
    glance, done = whole_users(data.valid, CURVE_ROWS, config.seed), False
    saved = resumed = time.monotonic()
    tokens, seconds, recent = 0, 0.0, []
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
        tokens += batch.ids.numel()
        recent.append([float(out["answer"]), float(out["text"])])
        step = number + 1
        point = step == total or step % max(1, total // CURVE_POINTS) == 0
        if point:
            seconds += time.monotonic() - resumed
            logits = score(engine.module, glance, data, config.train, engine.device)
            order = within_users(glance, logits)
            if not phase.whole:
                with gathered(engine, engine.module):
                    done = watch.see(step, order, learning(engine.module))
            answer, text = np.mean(recent, axis=0)
            curve.append(
                {
                    "step": step,
                    "of": total,
                    "seconds": round(seconds, 2),
                    "tokens_per_second": round(world * tokens / seconds),
                    "loss_answer": round(float(answer), 5),
                    "loss_text": round(float(text), 5),
                    "valid_auc": round(auc(glance, logits), 5),
                    "valid_uauc": round(order, 5),
                }
            )
            recent, resumed = [], time.monotonic()
            engine.train()
            if rank == 0:
                report_progress(phase, curve[-1])
        if done:
            break
        if step < total and due(saved, config.train.checkpoint_every_s, engine.device):
            checkpoint(engine, phase, step, rank, world, curve, watch)
            saved = time.monotonic()
    with gathered(engine, engine.module, modify=True):
        watch.restore(learning(engine.module))
    commit(phase, engine, folder, data, config, rank, curve, len(rows), watch.step or step)
    ray.train.report({"phase": phase.name})
    engine.destroy()


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


def schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then cosine decay to zero."""
    first = max(1, int(warmup * total))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + np.cos(np.pi * (step - first) / max(1, total - first)))


def to_device(batch: Batch, device: torch.device) -> Batch:
    moved: dict[str, Any] = {
        name: {key: tensor.to(device) for key, tensor in value.items()}
        if isinstance(value, dict)
        else value.to(device)
        for name, value in vars(batch).items()
    }
    return Batch(**moved)


@torch.no_grad()
def score(
    student: Student, rows: list[Sequence], data: Data, config: TrainConfig, device: torch.device
) -> np.ndarray:
    """float32 [n] answer logits in the order of rows."""
    student.eval()
    weights = {False: config.loss_rec, True: config.loss_reason}
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
    logits = np.zeros(len(rows), np.float32)
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        batch = collate([rows[at] for at in part], data.vectors, weights, data.tokenizer.pad_token_id)
        batch = to_device(batch, device)
        logits[part] = student.answer_logits(student.hidden(batch), batch).cpu().numpy()
    return logits


def auc(rows: list[Sequence], logits: np.ndarray) -> float:
    labels = np.array([item.label for item in rows])
    return float(roc_auc_score(labels, logits)) if 0 < labels.mean() < 1 else float("nan")


def within_users(rows: list[Sequence], logits: np.ndarray) -> float:
    """UAUC; not a number where no user has rows of both labels."""
    return uauc([item.user for item in rows], [item.label for item in rows], logits)


def whole_users(rows: list[Sequence], count: int, seed: int) -> list[Sequence]:
    """About `count` of the rows: all those of some users, drawn by seed."""
    users = np.array([item.user for item in rows])
    order = np.random.default_rng(seed).permutation(np.unique(users))
    sizes = np.bincount(users)[order]
    chosen = set(order[: int(np.searchsorted(np.cumsum(sizes), count)) + 1].tolist())
    return [item for item in rows if item.user in chosen]


def learning(student: Student) -> dict[str, torch.nn.Parameter]:
    """Parameters that the phase trains, by name."""
    return {name: p for name, p in student.named_parameters() if p.requires_grad}


def due(saved: float, every_s: float, device: torch.device) -> bool:
    """Whether a checkpoint is due, by rank 0's clock: saving waits for all ranks, so all must agree."""
    late = torch.tensor(int(time.monotonic() - saved > every_s), device=device)
    torch.distributed.broadcast(late, src=0)
    return bool(late)


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
        engine.save_checkpoint(local, tag="state", client_state=state, exclude_frozen_parameters=True)
        torch.save(watch.state_dict(), Path(local, f"best-{rank}.pt"))
        Path(local, f"{PLACE}-{rank}.json").write_text(json.dumps(state | {"files": sizes_in(local)}))
        ray.train.report(
            {"phase": phase.name, "step": step}, checkpoint=ray.train.Checkpoint.from_directory(local)
        )


def restore(
    engine: Any, phase: Phase, rank: int, world: int, watch: EarlyStopping
) -> tuple[int, list[dict[str, Any]]]:
    """(step, curve) to go on from: the start of the phase if the checkpoint is of another or is damaged."""
    import ray.train

    last = ray.train.get_checkpoint()
    if last is None:
        return 0, []
    with last.as_directory() as local:
        state = whole(Path(local), rank, engine.device)
        if state is None or state["phase"] != phase.name or state["world"] != world:
            return 0, []
        engine.load_checkpoint(local, tag="state", load_module_strict=False)
        watch.load_state_dict(torch.load(Path(local, f"best-{rank}.pt"), weights_only=True))
        return state["step"], state["curve"]


def sizes_in(folder: str | Path) -> dict[str, int]:
    """Bytes of every file in a checkpoint's folder, but for what `checkpoint` writes last."""
    found = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found if PLACE not in path.name}


def whole(folder: Path, rank: int, device: torch.device) -> dict[str, Any] | None:
    """What a rank's checkpoint says of itself; None, and a line that says so, if a file is cut off or gone.

    Every rank looks at all files it knows of, and ranks agree: one damaged file stops the resume of all.
    """
    try:
        state = json.loads((folder / f"{PLACE}-{rank}.json").read_bytes())
        there = sizes_in(folder)
        damaged = sorted(name for name, size in state["files"].items() if there.get(name) != size)
    except (OSError, ValueError):
        state, damaged = None, [f"{PLACE}-{rank}.json"]
    fit = torch.tensor(int(not damaged), device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(fit, op=torch.distributed.ReduceOp.MIN)
    if damaged:
        print(f"train: the checkpoint's {damaged[0]} is damaged, the phase starts over", flush=True)
    return state if int(fit) else None


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


def gathered(engine: Any, student: Student, modify: bool = False) -> Any:
    """The parameters that the phase trains, whole on every rank; with `modify`, changes to them last."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    import deepspeed

    parameters = list(learning(student).values())
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modify else None)


def report_progress(phase: Phase, point: dict[str, Any]) -> None:
    Telemetry().training(phase.name, point)
    print(
        f"train {phase.name}: step {point['step']}/{point['of']}  {point['seconds']:.0f} s  "
        f"{point['tokens_per_second']:,} tokens/s  loss answer {point['loss_answer']:.3f} "
        f"text {point['loss_text']:.3f}  valid AUC {point['valid_auc']:.4f} "
        f"UAUC {point['valid_uauc']:.4f}",
        flush=True,
    )
