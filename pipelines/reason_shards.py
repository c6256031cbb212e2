"""Shards of rows, worked through by Ray Data actors that each hold an engine; one file per shard."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from ray_app import errors
from ray_app.artifacts import Folder, Run
from ray_app.config import Config, EngineConfig
from ray_app.engines.cache import CachedEngine
from ray_app.engines.interface import Engine, make_engine
from ray_app.errors import EngineError, RationaleError
from ray_app.records import TRACES, Context, Trace
from ray_app.teacher.refinement import Outcome, Refiner, Row

DEAD = pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("attempts", pa.int32())])
"""`dead/*.parquet`: rows without a trace because the engine could not serve them."""
MAX_ATTEMPTS = 2
"""A row's chances to be served."""
MAX_DEATHS = 3
PROGRESS_S = 5.0


class Contexts(Protocol):
    """Contexts of rows, as pipelines.contexts.ContextSource builds them."""

    def build(self, row_ids: Sequence[int]) -> list[Context]: ...


OpenContexts = Callable[[Config, str], Contexts]


def shard_name(number: int, retry: bool = False) -> str:
    return f"shards/{number:05d}{'-retry' if retry else ''}.parquet"


def dead_name(number: int) -> str:
    return f"dead/{number:05d}.parquet"


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

    @cached_property
    def _contexts(self) -> Contexts:
        return self._open_contexts()

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(self._config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        failures = {"error": "", "message": ""}
        try:
            for shard, retry, row_ids, labels in zip(*batch.to_pydict().values(), strict=True):
                self._shard(shard, retry, row_ids, labels)
        except RationaleError as error:
            failures = {"error": type(error).__name__, "message": str(error)}
        return pa.Table.from_pylist([failures])

    def _shard(self, shard: int, retry: bool, row_ids: list[int], labels: list[bool]) -> None:
        """Write the traces last: a shard whose file exists is done, its dead letters too."""
        outcome, contexts = Outcome(), dict[int, Context]()
        size = 1 if retry else self._config.reason.batch_size
        for start in range(0, len(row_ids), size):
            part = slice(start, start + size)
            built = self._contexts.build(row_ids[part])
            contexts |= dict(zip(row_ids[part], built, strict=True))
            rows = [Row(*row) for row in zip(row_ids[part], built, labels[part], strict=True)]
            done = self._reason(rows)
            outcome.traces += done.traces
            outcome.failed |= done.failed
            self._tally.add.remote(len(rows), len(done.failed))
        dead = [
            {"row_id": row_id, "reason": reason, "attempts": MAX_ATTEMPTS if retry else 1}
            for row_id, reason in sorted(outcome.failed.items())
        ]
        ordered = sorted(outcome.traces, key=lambda trace: (trace.row_id, trace.path))
        traces = [_trace_row(trace, contexts[trace.row_id]) for trace in ordered]
        files = [(dead_name(shard), dead, DEAD), (shard_name(shard, retry), traces, TRACES)]
        # A retry's traces come first: until its dead letters are replaced too, it is simply done again.
        for name, table, schema in reversed(files) if retry else files:
            with self._folder.replacing(name) as path:
                pq.write_table(pa.Table.from_pylist(table, schema=schema), path, compression="zstd")

    def _reason(self, rows: list[Row]) -> Outcome:
        """One batch; if the engine dies over it, its rows failed and a new engine takes over.

        An engine that dies MAX_DEATHS times in a row is not the rows' fault: its error ends the stage.
        """
        config = self._config
        refiner = Refiner(self._engine, config.reason, config.prompt, config.seed)
        try:
            outcome = refiner.run(rows)
        except EngineError as error:
            self._deaths += 1
            if self._deaths >= MAX_DEATHS:
                raise
            self._engine.close()
            self._engine = open_engine(config)
            return Outcome(failed={row.row_id: f"engine died: {error}" for row in rows})
        self._deaths = 0
        return outcome


def open_engine(config: Config) -> Engine:
    """The teacher's engine; behind the cache unless it is as quick as the cache."""
    engine = make_engine(config.reason.engine)
    if config.reason.engine.kind == "evidence":
        return engine
    return CachedEngine(engine, Folder(os.path.expanduser(config.data.cache)).folder("reason"))


@ray.remote(num_cpus=0)
class Tally:
    """Counts rows over all workers."""

    def __init__(self) -> None:
        self._rows = self._failed = 0

    def add(self, rows: int, failed: int) -> None:
        self._rows += rows
        self._failed += failed

    def get(self) -> tuple[int, int]:
        return self._rows, self._failed


def work(
    config: Config, run: Run, contexts: OpenContexts, folder: Folder, shards: list[dict], *, retry: bool
) -> None:
    """Work through shards with one actor per engine replica; returns when all files are written."""
    if not shards:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    tally: Any = Tally.remote()
    engine = config.reason.engine
    table = [
        {
            "shard": shard["shard"],
            "retry": retry,
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
    with _Progress(tally, total, "reason retry" if retry else "reason"):
        for row in dataset.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])


def _gpus(engine: EngineConfig) -> int | None:
    on_gpu = engine.kind == "vllm" and ray.cluster_resources().get("GPU", 0) > 0
    return engine.tensor_parallel if on_gpu else None


class _Progress:
    """Prints rows done, rate and time left every few seconds."""

    def __init__(self, tally: Any, total: int, name: str):
        self._tally, self._total, self._name = tally, total, name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._begin = time.monotonic()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(PROGRESS_S):
            rows, failed = ray.get(self._tally.get.remote())
            rate = rows / (time.monotonic() - self._begin)
            left = f"{(self._total - rows) / rate:.0f} s left" if rows else "starting"
            print(
                f"{self._name}: {rows}/{self._total} rows, {failed} failed, {rate:.0f} rows/s, {left}",
                flush=True,
            )


def _trace_row(trace: Trace, context: Context) -> dict[str, Any]:
    columns = ("row_id", "path", "accepted", "mode", "rounds", "template", "tokens", "reason")
    own = {name: getattr(trace, name) for name in columns}
    return own | {"trace": trace.model_dump_json(), "context": context.model_dump_json()}
