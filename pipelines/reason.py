"""reason: a diverse part of the training rows goes through the teacher; every trace is verified.

Reads `prepare`, and through the contexts `swing` and `encode`. Writes
`shards/<k>.parquet` (traces, accepted or not; records.TRACES), `dead/<k>.parquet` (rows the engine could
not serve, with reason and attempts), `quality.json` and the page `quality.html`.

A shard is written when all of its rows are done, and is the unit of resume. Everything drawn at random is
drawn from the row's id, so neither the number of engines nor a restart changes a trace. Rows that failed
are tried again, one at a time, when all shards are done; their traces are `shards/<k>-retry<n>.parquet`.
Last, the verified traces are curated over all shards, which may withdraw the acceptance of some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.common import stage_main
from pipelines.reason_journal import read_journals
from pipelines.reason_shards import (
    Contexts,
    OpenContexts,
    read_dead,
    shard_name,
    trace_row,
    work,
    write_table,
)
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.config import Config
from ray_app.errors import DataError, EngineError
from ray_app.records import TRACES, Trace
from ray_app.student.experts import cluster_by_last_row
from ray_app.teacher.curation import Curator
from ray_app.teacher.page import to_html
from ray_app.teacher.quality import Quality, Samples
from ray_app.teacher.selection import MIN_EARLIER, coverage, earlier_interactions, select, strata

HOW_ONLY = {
    "replicas", "tensor_parallel", "memory_fraction", "kv_cache_mb", "eager", "timeout_s", "api_key_env",
    "base_url",
}  # fmt: skip
"""Engine settings that decide how traces are made, not what they are."""


def open_contexts(config: Config, run_uri: str) -> Contexts:
    from pipelines.contexts import ContextSource

    return ContextSource.open(config, run_uri)


def spec(config: Config, run: Run, contexts: OpenContexts = open_contexts) -> StageSpec:
    how = {"batch_size": True, "attempts": True, "stall_s": True, "engine": HOW_ONLY}
    reason = config.reason.model_dump(exclude=how)  # pyright: ignore[reportArgumentType]
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
    worker([shard for shard in shards if not folder.exists(shard_name(shard["shard"]))])
    for attempt in range(2, config.reason.attempts + 1):
        worker(list(_to_retry(folder, shards, attempt)), attempt)
    dead = [row for shard in shards for row in read_dead(folder, shard["shard"])]
    if dead and len(dead) == len(chosen):
        raise EngineError(f"no row could be served; the first failed with: {dead[0]['reason']}")
    lost, seconds = read_journals(folder)
    report = judge(config, folder, strata_of) | {
        "engine": config.reason.engine.kind,
        "model": config.reason.engine.model,
        "selected": len(chosen),
        "coverage_of_data": covered,
        "dead": len(dead),
        "dead_reasons": dict(Counter(row["reason"] for row in dead)),
        "engines_lost": lost,
        "engine_seconds": round(seconds, 1),
    }
    report["seconds_per_accepted"] = round(seconds / max(1, report["accepted"]), 4)
    folder.write_json("quality.json", report)
    folder.write("quality.html", to_html(report, run.name).encode())
    counts = ("rows", "traces", "accepted", "acceptance", "tokens", "dead")
    modes = {mode: facts["accepted"] for mode, facts in report["by_mode"].items()}
    return {
        **{name: report[name] for name in counts},
        **{mode: modes.get(mode, 0) for mode in ("blind", "reflected", "hinted")},
        "rejects": report["rejects"],
    }


def judge(config: Config, folder: Folder, strata_of: dict[int, str]) -> dict[str, Any]:
    """Curate the traces, shard by shard, and sum them up; only shards that change are written again."""
    curator, quality, samples = Curator(config.reason.keep, config.reason.token_budget), Quality(), Samples()
    for name in folder.names("shards"):
        rows = pq.read_table(folder.path(name), schema=TRACES).to_pylist()
        changed = False
        for row_id, group in groupby(rows, key=lambda row: row["row_id"]):
            own = list(group)
            before = [Trace.model_validate_json(row["trace"]) for row in own]
            for row, old, new in zip(own, before, curator.curate(before), strict=True):
                quality.add(new, strata_of[row_id])
                samples.add(new, row["context"])
                if new is not old:
                    row.update(trace_row(new, row["context"]))
                    changed = True
        if changed:
            write_table(folder, name, pa.Table.from_pylist(rows, schema=TRACES))
    return quality.report() | curator.report() | {"samples": samples.report()}


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
    clusters = user_clusters(config, run, rows)[users]
    stratum = strata(train["label"].to_numpy(), clusters, items, main[items])
    picked = select(stratum, size, config.seed, spread=(users, items))
    row_ids, labels = train["row_id"].to_numpy()[picked], train["label"].to_numpy()[picked]
    chosen = [(int(row_id), bool(label)) for row_id, label in zip(row_ids, labels, strict=True)]
    strata_of = dict(zip((row_id for row_id, _ in chosen), stratum[picked], strict=True))
    return chosen, strata_of, coverage(picked, users, items, stratum, config.seed)


def user_clusters(config: Config, run: Run, rows: pl.DataFrame) -> np.ndarray:
    """Cluster of each user code by the collaborative vector at the user's last training row; else -1."""
    number = min(config.reason.clusters, rows.filter(pl.col("split") == "train")["user"].n_unique() - 1)
    if number < 2:
        return np.full(int(rows["user"].max()) + 1, -1, np.int32)  # pyright: ignore[reportArgumentType]
    vectors = np.load(run.stage("encode").local() / "user.npy", mmap_mode="r")
    return cluster_by_last_row(rows, vectors, number, number, config.seed)[1]


def _to_retry(folder: Folder, shards: list[dict], attempt: int) -> Iterator[dict]:
    """Per shard, the failed rows that have had the attempts before this one."""
    for shard in shards:
        failed = {
            row["row_id"] for row in read_dead(folder, shard["shard"]) if row["attempts"] == attempt - 1
        }
        again = [row for row in shard["rows"] if row[0] in failed]
        if again:
            yield {"shard": shard["shard"], "rows": again}


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
