"""Stage train: tokenize the mix, cluster the users, run the phases on Ray Train + DeepSpeed, calibrate.

Writes tokenizer/ (bootstrapped base), tokens/, projector.pt (see `train_projector`), one folder per phase
(see `student.phases`), curves.json, experts.json and, ready for an engine, student/: model/ (a bootstrapped
base), projector.pt, adapters/<name>, clusters.npz, calibration.json and trees.txt.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.common import stage_main
from pipelines.encode import catalogue_of
from pipelines.rivals import training_rows
from pipelines.train_loop import train_loop
from pipelines.train_projector import fit_projector
from ray_app.artifacts import Folder, Run, StageSpec, file_hash
from ray_app.bundle import TREES
from ray_app.collab.trees import Trees
from ray_app.config import Config
from ray_app.errors import ConfigError
from ray_app.prompts.cards import feature_token
from ray_app.prompts.student import SECTIONS, decide_prompt, explain_prompt, reasoning_target
from ray_app.records import Context, Trace
from ray_app.student import calibration
from ray_app.student.batching import check_lengths, sequence
from ray_app.student.experts import GLOBAL, Clusters, cluster_by_last_row, gate_logits
from ray_app.student.phases import ANSWERS, PROJECTOR, load_tokenizer
from ray_app.student.publishing import worth_publishing
from ray_app.student.tokens import NO, YES, train_tokenizer

TOKENS = pa.schema(
    [
        ("place", pa.int64()),
        ("row_id", pa.int64()),
        ("user", pa.int32()),
        ("kind", pa.string()),
        ("label", pa.int8()),
        ("cluster", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("soft_user", pa.int32()),
        ("soft_item", pa.int32()),
        ("soft_pair", pa.int32()),
        ("answer", pa.int32()),
        ("text_start", pa.int32()),
    ]
)
SPEED_ONLY = {"workers", "cpus_per_worker", "threads", "max_failures", "checkpoint_every_s"}
"""Keys of `train` that say how a run is carried out, not what is learned."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Where Ray Train lists its checkpoints."""
QUIET = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "TORCH_COMPILE_DISABLE": "1"}
"""Otherwise every line a worker prints comes twice, and Muon's small products are compiled for a minute."""
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc settings that keep freed tensors mapped: a third more tokens per second on CPU."""


def spec(config: Config, run: Run) -> StageSpec:
    settings = Path(config.train.deepspeed)
    if not settings.is_file():
        raise ConfigError(f"train.deepspeed {settings} does not exist: give one of configs/deepspeed/*.json")
    return StageSpec(
        name="train",
        body=lambda folder: train_stage(config, run, folder),
        keys={
            "student": config.student.model_dump(),
            "train": config.train.model_dump(exclude={*SPEED_ONLY, "deepspeed"}),
            "gate": config.serve.gate.model_dump(),
            "prompt": config.prompt.model_dump(),
            "seed": config.seed,
        },
        reads=["prepare", "encode", "mix"],
        inputs={"deepspeed": file_hash(settings)},
        resumes=True,
    )


def train_stage(config: Config, run: Run, folder: Folder) -> dict[str, Any]:
    local = folder.local()
    users = pl.read_parquet(run.stage("prepare").path("interactions.parquet"))
    vectors = np.load(run.stage("encode").local() / "user.npy", mmap_mode="r")
    low, high = config.train.min_experts, config.train.max_experts
    clusters, of_user = cluster_by_last_row(users, vectors, low, high, config.seed)
    if config.student.base is None and not (local / "tokenizer").exists():
        bootstrap_tokenizer(config, run, local)
    for name in ("examples", "valid", *(["corpus"] if config.student.base is None else [])):
        tokenize(config, run, local, name, of_user)
    fit_projector(config, run, local)
    fit(config, run, local, len(clusters.names))
    return finish(config, run, local, clusters, of_user, vectors)


def bootstrap_tokenizer(config: Config, run: Run, local: Path) -> None:
    """Train the tokenizer on the run's own prompts and reasons; frequent features are single tokens."""
    mix = run.stage("mix")
    corpus = pl.read_parquet(mix.path("corpus.parquet"))["prompt"].gather_every(20).to_list()
    examples = pl.read_parquet(mix.path("examples.parquet"))
    texts = list(corpus)
    for kind, step in (("rec", 10), ("reason", 2)):
        for row in examples.filter(pl.col("kind") == kind).gather_every(step).iter_rows(named=True):
            prompt, continuation = texts_of(row, config)
            texts.append(prompt + continuation)
    items = pl.read_parquet(run.stage("prepare").path("items.parquet"), columns=["features", "year"])
    features = [feature_token(name) for name in catalogue_of(items).vocabulary]
    tokenizer = train_tokenizer(texts, features, config.student.bootstrap.vocab)
    scratch = local / ".tokenizer.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    tokenizer.save_pretrained(scratch)
    os.replace(scratch, local / "tokenizer")


def texts_of(row: dict[str, Any], config: Config, without: tuple[str, ...] = ()) -> tuple[str, str]:
    """(prompt, continuation) of an example."""
    if row.get("prompt") is not None:
        return row["prompt"], YES if row["label"] else NO
    context = Context.model_validate_json(row["context"])
    if row["kind"] == "reason":
        trace = Trace.model_validate_json(row["trace"])
        told = not (config.prompt.reason_first and row["row_id"] % 2)
        prompt = explain_prompt(context, trace.verdict if told else None, config.prompt, trace.template)
        return prompt, reasoning_target(trace, context, told=told)
    return decide_prompt(context, config.prompt, without), YES if row["label"] else NO


class Tokenize:
    """A Ray Data actor: examples to token sequences."""

    def __init__(self, config: Config, folder: str, drop: bool):
        self.config, self.drop = config, drop
        self.tokenizer = load_tokenizer(config, Path(folder))

    def __call__(self, batch: pa.Table) -> pa.Table:
        out: dict[str, list[Any]] = {name: [] for name in TOKENS.names}
        for row in batch.to_pylist():
            kind = row.get("kind") or "rec"
            prompt, continuation = texts_of(row, self.config, self.dropped(row))
            item = sequence(
                self.tokenizer,
                row["row_id"],
                row["user"],
                row["label"],
                prompt,
                continuation,
                reasoned=kind == "reason",
            )
            for name in ("user", "item", "pair"):
                out[f"soft_{name}"].append(item.soft.get(name, -1))
            out["ids"].append(item.ids)
            out["kind"].append(kind)
            out["answer"].append(item.answer)
            out["text_start"].append(item.text_start)
            for name in ("place", "row_id", "user", "label", "cluster"):
                out[name].append(row[name])
        return pa.table(out, schema=TOKENS)

    def dropped(self, row: dict[str, Any]) -> tuple[str, ...]:
        """Sections a training row's prompt loses, seeded by the row."""
        if not self.drop:
            return ()
        draws = np.random.default_rng([self.config.seed, row["row_id"]]).random(len(SECTIONS))
        rate = self.config.train.section_dropout
        return tuple(name for name, draw in zip(SECTIONS, draws, strict=True) if draw < rate)


def tokenize(config: Config, run: Run, local: Path, name: str, of_user: np.ndarray) -> None:
    """Tokenize one file of the mix with Ray Data into tokens/<name>/, once."""
    import ray
    import ray.data

    target = local / "tokens" / name
    if target.exists():
        return
    frame = pl.read_parquet(run.stage("mix").path(f"{name}.parquet")).with_row_index("place")
    of_row = of_user[frame["user"].to_numpy()]
    frame = frame.with_columns(pl.Series("cluster", of_row)).cast({"place": pl.Int64})
    table = frame.to_arrow()
    blocks = [table.slice(start, 2000) for start in range(0, table.num_rows, 2000)]
    scratch = local / "tokens" / f".{name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    ray.data.from_arrow(blocks).map_batches(
        Tokenize,
        fn_constructor_args=(config, str(local), name == "examples"),
        batch_format="pyarrow",
        batch_size=2000,
        compute=ray.data.ActorPoolStrategy(size=2 if frame.height > 4000 else 1),
        num_cpus=1,
    ).write_parquet(str(scratch))
    # Here and not in the actor: raised there, the error would reach a person as a page of Ray's own text.
    made = pl.read_parquet(scratch / "*.parquet", columns=["row_id", "ids"])
    lengths = made["ids"].list.len().to_numpy()
    check_lengths(made["row_id"].to_numpy(), lengths, config.student.max_length)
    os.replace(scratch, target)


def fit(config: Config, run: Run, local: Path, clusters: int) -> None:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    train = config.train
    settings = json.loads(Path(train.deepspeed).read_text())
    resolved = config.model_copy(
        update={"train": train.model_copy(update={"deepspeed": str(local / "deepspeed.json")})}
    )
    Folder(local).write_json("deepspeed.json", settings)
    drop_if_torn(local / "checkpoints")
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": resolved.model_dump(),
            "folder": str(local),
            "encode": str(run.stage("encode").local()),
            "clusters": clusters,
        },
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.use_gpu else {}),
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(local),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            # What a person follows are the points of the curve, not two long lines for every checkpoint.
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": QUIET if train.use_gpu else QUIET | MALLOC},
        ),
    )
    with own_interrupt():
        persist(trainer.fit, train.max_failures)
    shutil.rmtree(local / "checkpoints", ignore_errors=True)


def persist(fit: Callable[[], object], failures: int) -> None:
    """Call `fit` again, up to `failures` times, where a worker was lost while its group started.

    Ray Train counts a worker that dies at work itself; over one that dies before, it gives up. A second
    `fit` of the same name goes on from the last checkpoint.
    """
    from ray.exceptions import RayActorError
    from ray.train import ControllerError

    for left in reversed(range(failures + 1)):
        try:
            fit()
            return
        except ControllerError as error:
            if not left or not isinstance(error.controller_failure, RayActorError):
                raise


@contextmanager
def own_interrupt() -> Iterator[None]:
    """Give Ctrl-C back afterwards: Ray Train leaves its handler behind, which would start a cluster."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def drop_if_torn(checkpoints: Path) -> None:
    """Remove checkpoints whose list a kill cut off, which Ray would refuse to read; the phase starts over."""
    snapshot = checkpoints / SNAPSHOT
    try:
        if snapshot.exists():
            json.loads(snapshot.read_bytes())
    except ValueError:
        shutil.rmtree(checkpoints)


def finish(
    config: Config,
    run: Run,
    local: Path,
    clusters: Clusters,
    of_user: np.ndarray,
    vectors: np.ndarray,
) -> dict[str, Any]:
    """Calibrate every adapter on validation rows, through the gate that serves; gather the curves."""
    valid = pl.read_parquet(run.stage("mix").path("valid.parquet"), columns=["row_id", "label", "user"])
    row_ids, labels, users = (valid[name].to_numpy() for name in ("row_id", "label", "user"))
    logits = {name: np.load(local / name / "valid_logits.npy") for name in (GLOBAL, *clusters.names)}
    known = np.asarray(vectors[row_ids])
    members = np.bincount(of_user[of_user >= 0], minlength=len(clusters.names))
    table = expert_table(clusters, members, known, users, labels, logits, config.seed)
    published = {row["expert"] for row in table if row["published"]}
    names, gated = gate_logits(known, clusters, published, config.serve.gate, logits)
    maps = calibration.fit_all(names, gated, labels)
    maps[GLOBAL] = calibration.fit(logits[GLOBAL], labels)
    folder = Folder(local)
    lay_out(config, local, clusters)
    folder.write_json("student/calibration.json", maps)
    second_opinion(run, config.seed).save(local / "student" / TREES)
    curves = {name: json.loads((local / name / "done.json").read_bytes()) for name in phase_names(local)}
    folder.write_json("curves.json", curves)
    folder.write_json("experts.json", table)
    trained = [name for name in curves if name != GLOBAL]
    return {
        "experts": len(clusters.names),
        "published": len(published),
        "silhouette": round(clusters.silhouette, 4),
        "trainable": curves[GLOBAL]["trainable"],
        "valid_auc": round(curves[GLOBAL]["valid_auc"], 5),
        "valid_auc_gated": round(_auc(labels, gated), 5),
        "phases": len(trained) + 1,
    }


def second_opinion(run: Run, seed: int) -> Trees:
    """The trees that reflection asks beside the student, fitted on the same training rows."""
    vectors, labels, _ = training_rows(run)
    return Trees.fit(vectors, labels, seed)


def lay_out(config: Config, local: Path, clusters: Clusters) -> None:
    """Put together student/ from what the phases left."""
    student = local / "student"
    shutil.rmtree(student, ignore_errors=True)
    for name in (GLOBAL, *clusters.names):
        shutil.copytree(local / name / "adapter", student / "adapters" / name)
    shutil.copy(local / GLOBAL / PROJECTOR, student / PROJECTOR)
    if config.student.base is None:
        shutil.copytree(local / ANSWERS / "base", student / "model")
        shutil.copytree(local / "tokenizer", student / "model", dirs_exist_ok=True)
    with open(student / "clusters.npz", "wb") as file:
        clusters.save(file)


def expert_table(
    clusters: Clusters,
    members: np.ndarray,
    vectors: np.ndarray,
    users: np.ndarray,
    labels: np.ndarray,
    logits: dict[str, np.ndarray],
    seed: int,
) -> list[dict[str, Any]]:
    """Each expert beside the global adapter on the validation rows of its cluster; `published` if it wins."""
    assigned, table = clusters.assign(vectors), []
    for number, name in enumerate(clusters.names):
        at = assigned == number
        gain = worth_publishing(labels[at], users[at], logits[name][at], logits[GLOBAL][at], seed).row()
        table.append(
            {
                "expert": name,
                "users": int(members[number]),
                "valid_users": gain.pop("users"),
                "valid_rows": gain.pop("rows"),
                "auc_expert": round(_auc(labels[at], logits[name][at]), 4),
                "auc_global": round(_auc(labels[at], logits[GLOBAL][at]), 4),
                **gain,
            }
        )
    return table


def phase_names(local: Path) -> list[str]:
    return sorted(path.parent.name for path in local.glob("*/done.json"))


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if 0 < labels.mean() < 1 else 0.5


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
