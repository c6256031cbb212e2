"""Shards of rows, worked through by Ray Data actors that each hold an engine; one file per shard."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from pipelines.reason_journal import Journal
from pipelines.reason_progress import Progress, Tally
from ray_app import errors
from ray_app.artifacts import Folder, Run
from ray_app.config import Config, EngineConfig
from ray_app.engines.cache import CachedEngine
from ray_app.engines.interface import Engine, make_engine
from ray_app.errors import ArtifactError, EngineError, RationaleError
from ray_app.prompts.teacher import TEMPLATES, teacher_prompt
from ray_app.records import TRACES, Context, Trace
from ray_app.teacher.leaks import PromptAudit
from ray_app.teacher.refinement import Outcome, Refiner, Row

DEAD = pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("attempts", pa.int32())])
"""`dead/*.parquet`: rows without a trace because the engine could not serve them."""
MAX_DEATHS = 3
"""Batches in succession over which an engine may fail before its error ends the stage."""


class Contexts(Protocol):
    """Contexts of rows, as pipelines.contexts.ContextSource builds them."""

    def build(self, row_ids: Sequence[int]) -> list[Context]: ...


OpenContexts = Callable[[Config, str], Contexts]


def shard_name(number: int, attempt: int = 1) -> str:
    return f"shards/{number:05d}{f'-retry{attempt}' if attempt > 1 else ''}.parquet"


def dead_name(number: int) -> str:
    return f"dead/{number:05d}.parquet"


def read_dead(folder: Folder, shard: int) -> list[dict[str, Any]]:
    """The dead letters of a shard."""
    name = dead_name(shard)
    return pq.read_table(folder.path(name), schema=DEAD).to_pylist() if folder.exists(name) else []


class ShardWorker:
    """A Ray Data actor that holds an engine and turns shards of rows into files of traces.

    Engine and contexts are opened with the first shard, and errors of ours are returned with it by name
    and message: raised here, they would reach the driver as a page of Ray's own text.
    """

    def __init__(self, config: Config, run: Run, contexts: OpenContexts, folder: Folder, tally: Any):
        self._config = config
        self._open_contexts = partial(contexts, config, run.folder.uri)
        self._folder = folder
        self._tally = tally
        self._deaths = 0
        self._contexts: Contexts | None = None
        self._engine: Engine | None = None
        self._audit = PromptAudit()

    def __call__(self, batch: pa.Table) -> pa.Table:
        failures = {"error": "", "message": ""}
        try:
            for shard, attempt, row_ids, labels in zip(*batch.to_pydict().values(), strict=True):
                self._shard(shard, attempt, dict(zip(row_ids, labels, strict=True)))
        except RationaleError as error:
            failures = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            place = error.filename or self._folder.uri
            message = f"{place}: {error.strerror or error}: mend that, then run the stage again"
            failures = {"error": ArtifactError.__name__, "message": f"{message}; finished shards are kept"}
        return pa.Table.from_pylist([failures])

    def _shard(self, shard: int, attempt: int, labels: dict[int, bool]) -> None:
        """Write the traces last: a shard whose file exists is done, its dead letters too."""
        config = self._config.reason
        journal = Journal(self._folder, shard, config.attempts)
        self._tally.begins.remote(shard, len(labels) if attempt > 1 else 0)
        if journal.loss:
            self._tally.lost.remote(f"shard {shard}: {journal.loss}")
        quarantined = {row: why for row, why in journal.quarantined().items() if row in labels}
        outcome, contexts = Outcome(failed=dict(quarantined)), dict[int, Context]()
        self._tally.add.remote(shard, len(quarantined), len(quarantined), 0)
        for row_ids in self._batches(labels, journal, alone=attempt > 1):
            engine = self._ready(journal)
            with self._watched(journal, row_ids):
                assert self._contexts
                built = self._contexts.build(row_ids)
                contexts |= dict(zip(row_ids, built, strict=True))
                rows = [Row(row, context, labels[row]) for row, context in zip(row_ids, built, strict=True)]
                self._look(rows)
                done = self._reason(engine, rows)
            outcome.traces += done.traces
            outcome.failed |= done.failed
            accepted = len({trace.row_id for trace in done.traces if trace.accepted})
            self._tally.add.remote(shard, len(rows), len(done.failed), accepted)
        self._write(shard, attempt, outcome, contexts, set(quarantined))
        self._tally.ends.remote(shard)
        journal.ends()

    def _batches(self, labels: dict[int, bool], journal: Journal, *, alone: bool) -> list[list[int]]:
        """Suspects one at a time and first, so that another death costs no more than their time."""
        suspects = [row for row in journal.suspects() if row in labels]
        left = sorted(labels.keys() - set(suspects) - journal.quarantined().keys())
        size = 1 if alone else self._config.reason.batch_size
        return [[row] for row in suspects] + [left[at : at + size] for at in range(0, len(left), size)]

    def _ready(self, journal: Journal) -> Engine:
        """The engine, started if need be; contexts too."""
        if self._contexts is None:
            self._contexts = self._open_contexts()
        if self._engine is None:
            journal.starts()
            with _limited(self._config.reason.stall_s):
                self._engine = open_engine(self._config)
            journal.started()
        return self._engine

    @contextmanager
    def _watched(self, journal: Journal, row_ids: list[int]):
        journal.begins(row_ids)
        with _limited(self._config.reason.stall_s):
            yield
        journal.served()

    def _look(self, rows: list[Row]) -> None:
        """Stop before the engine sees prompts that tell the label."""
        prompt = self._config.prompt
        if not self._audit.full:
            self._audit.add((teacher_prompt(row.context, TEMPLATES[0], prompt), row.label) for row in rows)

    def _reason(self, engine: Engine, rows: list[Row]) -> Outcome:
        """One batch; if the engine fails over it, its rows failed and a new engine takes over.

        An engine that fails MAX_DEATHS times in a row is not the rows' fault: its error ends the stage.
        """
        config = self._config
        try:
            outcome = Refiner(engine, config.reason, config.prompt, config.seed).run(rows)
        except EngineError as error:
            self._deaths += 1
            if self._deaths >= MAX_DEATHS:
                raise
            self._engine = None
            engine.close()
            self._tally.lost.remote(f"the engine failed over {len(rows)} rows and is started again: {error}")
            return Outcome(failed={row.row_id: f"engine died: {error}" for row in rows})
        self._deaths = 0
        return outcome

    def _write(
        self, shard: int, attempt: int, outcome: Outcome, contexts: dict[int, Context], quarantined: set[int]
    ) -> None:
        limit = self._config.reason.attempts
        dead = {row["row_id"]: row for row in read_dead(self._folder, shard)} if attempt > 1 else {}
        for row in {*contexts, *quarantined}:
            dead.pop(row, None)
        for row, reason in outcome.failed.items():
            attempts = limit if row in quarantined else attempt
            dead[row] = {"row_id": row, "reason": reason, "attempts": attempts}
        ordered = sorted(outcome.traces, key=lambda trace: (trace.row_id, trace.path))
        traces = [trace_row(trace, contexts[trace.row_id].model_dump_json()) for trace in ordered]
        letters = [dead[row] for row in sorted(dead)]
        files = [(dead_name(shard), letters, DEAD), (shard_name(shard, attempt), traces, TRACES)]
        # A retry's traces come first: until its dead letters are replaced too, it is simply done again.
        for name, table, schema in reversed(files) if attempt > 1 else files:
            write_table(self._folder, name, pa.Table.from_pylist(table, schema=schema))


@contextmanager
def _limited(seconds: float):
    """End this process, with all its threads' stacks on stderr, if the block takes longer.

    The limit is kept by a thread that needs no interpreter lock, so it holds in native code too.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    with folder.replacing(name) as path:
        pq.write_table(table, path, compression="zstd")


def open_engine(config: Config) -> Engine:
    """The teacher's engine; behind the cache unless it is as quick as the cache."""
    engine = make_engine(config.reason.engine)
    if config.reason.engine.kind == "evidence":
        return engine
    return CachedEngine(engine, Folder(os.path.expanduser(config.data.cache)).folder("reason"))


def work(
    config: Config, run: Run, contexts: OpenContexts, folder: Folder, shards: list[dict], attempt: int = 1
) -> None:
    """Work through shards with one actor per engine replica; returns when all files are written.

    An actor that is lost is started again by Ray, and so is its shard; the journal keeps that finite.
    """
    if not shards:
        return
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    # Ray Data gives up after half an hour without a finished block; ours are shards, and watch themselves.
    settings.execution_no_progress_timeout_s = -1
    tally = Tally.here()
    engine = config.reason.engine
    table = [
        {
            "shard": shard["shard"],
            "attempt": attempt,
            "row_ids": [row_id for row_id, _ in shard["rows"]],
            "labels": [label for _, label in shard["rows"]],
        }
        for shard in shards
    ]
    dataset = ray.data.from_items(table, override_num_blocks=len(table)).map_batches(
        ShardWorker,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(engine.replicas, len(table))),
        fn_constructor_args=(config, run, contexts, folder, tally),
        num_gpus=_gpus(engine),
    )
    total = sum(len(row["row_ids"]) for row in table)
    with Progress(tally, total, "reason" if attempt == 1 else f"reason, attempt {attempt}"):
        for row in dataset.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])


def _gpus(engine: EngineConfig) -> int | None:
    on_gpu = engine.kind == "vllm" and ray.cluster_resources().get("GPU", 0) > 0
    return engine.tensor_parallel if on_gpu else None


def trace_row(trace: Trace, context: str) -> dict[str, Any]:
    """A row of TRACES; `context` is its JSON."""
    columns = ("row_id", "path", "accepted", "mode", "rounds", "template", "tokens", "reason")
    own = {name: getattr(trace, name) for name in columns}
    return own | {"trace": trace.model_dump_json(), "context": context}
