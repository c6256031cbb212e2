"""reason: a diverse part of the training rows goes through the teacher; every trace is verified.

Reads `prepare`, and through the contexts `swing` and `encode`. Writes
`shards/<k>.parquet` (traces, accepted or not; records.TRACES), `dead/<k>.parquet` (rows the engine could
not serve, with reason and attempts) and `quality.json`.

A shard is written when all of its rows are done, and is the unit of resume. Everything drawn at random is
drawn from the row's id, so neither the number of engines nor a restart changes a trace. Rows that failed
are tried once more, one at a time, when all shards are done; their traces are `shards/<k>-retry.parquet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from pipelines.common import stage_main
from pipelines.reason_shards import MAX_ATTEMPTS, Contexts, OpenContexts, shard_name, work
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.config import Config
from ray_app.errors import DataError, EngineError
from ray_app.records import Trace
from ray_app.teacher.quality import Quality
from ray_app.teacher.selection import MIN_EARLIER, coverage, earlier_interactions, select, strata

HOW_ONLY = {
    "replicas", "tensor_parallel", "memory_fraction", "kv_cache_mb", "eager", "timeout_s", "api_key_env",
}  # fmt: skip
"""Engine settings that decide how traces are made, not what they are."""


def open_contexts(config: Config, run_uri: str) -> Contexts:
    from pipelines.contexts import ContextSource

    return ContextSource.open(config, run_uri)


def spec(config: Config, run: Run, contexts: OpenContexts = open_contexts) -> StageSpec:
    reason = config.reason.model_dump(exclude={"batch_size": True, "engine": HOW_ONLY})
    return StageSpec(
        name="reason",
        body=partial(_body, config, run, contexts),
        keys={"reason": reason, "prompt": config.prompt.model_dump(), "seed": config.seed},
        reads=["prepare", "swing", "encode"],
        resumes=True,
    )


def _body(config: Config, run: Run, contexts: OpenContexts, folder: Folder) -> dict[str, Any]:
    chosen, strata_of, covered = choose(config, run)
    shards = [
        {"shard": start // config.reason.shard_rows, "rows": chosen[start : start + config.reason.shard_rows]}
        for start in range(0, len(chosen), config.reason.shard_rows)
    ]
    worker = partial(work, config, run, contexts, folder)
    worker([shard for shard in shards if not folder.exists(shard_name(shard["shard"]))], retry=False)
    worker(list(_to_retry(folder, shards)), retry=True)
    dead = [row for table in _dead(folder).values() for row in table]
    if dead and len(dead) == len(chosen):
        raise EngineError(f"no row could be served; the first failed with: {dead[0]['reason']}")
    quality, traces = Quality(), Counter[str]()
    for trace in read_traces(folder):
        quality.add(trace, strata_of[trace.row_id])
        traces[trace.mode] += trace.accepted
    report = quality.report() | {
        "engine": config.reason.engine.kind,
        "model": config.reason.engine.model,
        "selected": len(chosen),
        "coverage_of_data": covered,
        "dead": len(dead),
        "dead_reasons": dict(Counter(row["reason"] for row in dead)),
        "accepted_by_mode": dict(traces),
    }
    folder.write_json("quality.json", report)
    return {
        **{name: report[name] for name in ("rows", "traces", "accepted", "acceptance", "tokens", "dead")},
        "blind": traces["blind"],
        "reflected": traces["reflected"],
        "rejects": report["rejects"],
    }


def choose(config: Config, run: Run) -> tuple[list[tuple[int, bool]], dict[int, str], dict[str, float]]:
    """The rows to reason about as (row_id, label), the stratum of each, and the selection's coverage."""
    prepared = run.stage("prepare")
    rows = pl.read_parquet(prepared.path("interactions.parquet"))
    features = pl.read_parquet(prepared.path("items.parquet"), columns=["features"])["features"]
    main = np.array([names[0] if len(names) else "none" for names in features.to_list()], dtype=object)
    earlier = earlier_interactions(rows["user"].to_numpy(), rows["timestamp"].to_numpy())
    train = rows.filter((pl.col("split") == "train") & (pl.Series(earlier) >= MIN_EARLIER))
    size = round(config.reason.fraction * int((rows["split"] == "train").sum()))
    if not len(train) or not size:
        raise DataError(
            f"{len(train)} training rows have {MIN_EARLIER} earlier interactions and "
            f"reason.fraction {config.reason.fraction:g} asks for {size}: give more data or a larger fraction"
        )
    users, items = train["user"].to_numpy(), train["item"].to_numpy()
    stratum = strata(train["label"].to_numpy(), users, items, main[items])
    picked = select(stratum, size, config.seed)
    row_ids, labels = train["row_id"].to_numpy()[picked], train["label"].to_numpy()[picked]
    chosen = [(int(row_id), bool(label)) for row_id, label in zip(row_ids, labels, strict=True)]
    strata_of = dict(zip((row_id for row_id, _ in chosen), stratum[picked], strict=True))
    return chosen, strata_of, coverage(picked, users, items, stratum, config.seed)


def read_traces(folder: Folder) -> Iterator[Trace]:
    """Every trace of the stage, shard by shard."""
    for name in folder.names("shards"):
        for text in pl.read_parquet(folder.path(name), columns=["trace"])["trace"]:
            yield Trace.model_validate_json(text)


def _dead(folder: Folder) -> dict[int, list[dict[str, Any]]]:
    names = folder.names("dead")
    return {int(name[5:10]): pl.read_parquet(folder.path(name)).to_dicts() for name in names}


def _to_retry(folder: Folder, shards: list[dict]) -> Iterator[dict]:
    """Per shard, the failed rows that have an attempt left."""
    failed = {
        number: {row["row_id"] for row in rows if row["attempts"] < MAX_ATTEMPTS}
        for number, rows in _dead(folder).items()
    }
    for shard in shards:
        again = [row for row in shard["rows"] if row[0] in failed.get(shard["shard"], ())]
        if again:
            yield {"shard": shard["shard"], "rows": again}


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
