"""Stage mix: the training examples, 80 % Yes/No rows and 20 % verified reasoning, exactly as configured.

Writes examples.parquet and valid.parquet (records.EXAMPLES) and, for a bootstrapped base, corpus.parquet:
every training row as a short Yes/No prompt without the optional sections.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.common import stage_main
from pipelines.contexts import ContextSource
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.collab.evidence import NO_PEERS, History
from ray_app.config import Config
from ray_app.errors import DataError
from ray_app.prompts.student import SECTIONS, decide_prompt
from ray_app.records import EXAMPLES
from ray_app.student.mixing import balance

CORPUS = pa.schema(
    [("row_id", pa.int64()), ("user", pa.int32()), ("label", pa.int8()), ("prompt", pa.string())]
)
CHUNK = 500
EMPTY = History(*(np.empty(0, kind) for kind in (np.int32, "f4", "f4", "f4", np.int64)))


def spec(config: Config, run: Run) -> StageSpec:
    return StageSpec(
        name="mix",
        body=lambda folder: mix_stage(config, run, folder),
        keys={
            "mix": config.mix.model_dump(),
            "prompt": config.prompt.model_dump(),
            "valid_rows": config.train.valid_rows,
            "bootstrap": config.student.base is None,
            "seed": config.seed,
        },
        reads=["prepare", "swing", "encode", "reason"],
    )


class Rows:
    """A Ray Data actor that turns row ids into Yes/No examples."""

    def __init__(self, config: Config, run_uri: str):
        self.source = ContextSource.open(config, run_uri)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        row_ids = batch["row_id"].tolist()
        contexts = self.source.build(row_ids)
        return pa.table(
            {
                "row_id": row_ids,
                "kind": ["rec"] * len(row_ids),
                "user": self.source.users[row_ids].astype(np.int32),
                "label": self.source.labels[row_ids].astype(np.int8),
                "context": [context.model_dump_json() for context in contexts],
                "trace": [None] * len(row_ids),
            },
            schema=EXAMPLES,
        )


def mix_stage(config: Config, run: Run, folder: Folder) -> dict[str, Any]:
    source = ContextSource(config, run)
    traces = accepted_traces(run)
    train = np.flatnonzero(source.splits == "train")
    valid = np.flatnonzero(source.splits == "valid")
    rng = np.random.default_rng(config.seed)
    n_rec, n_reason = balance(len(train), traces.height, config.mix.reason_share)
    if n_reason == 0:
        raise DataError(
            f"stage reason accepted {traces.height} traces for {len(train)} training rows, too few for "
            f"mix.reason_share={config.mix.reason_share}: raise reason.fraction or reason.paths"
        )
    rec = np.sort(rng.choice(train, n_rec, replace=False))
    held = np.sort(rng.choice(valid, min(config.train.valid_rows, len(valid)), replace=False))
    reason = traces[np.sort(rng.choice(traces.height, n_reason, replace=False))]
    chosen = np.asarray(reason["row_id"].to_numpy())
    reasoned = pa.table(
        {
            "row_id": chosen,
            "kind": ["reason"] * n_reason,
            "user": source.users[chosen].astype(np.int32),
            "label": source.labels[chosen].astype(np.int8),
            "context": reason["context"].to_list(),
            "trace": reason["trace"].to_list(),
        },
        schema=EXAMPLES,
    )
    answers = yes_no_rows(config, run, np.concatenate([rec, held]))
    write(folder, "examples.parquet", pa.concat_tables([answers.slice(0, n_rec), reasoned]))
    write(folder, "valid.parquet", answers.slice(n_rec))
    counts = {"rec": n_rec, "reason": n_reason, "valid": len(held), "traces": traces.height}
    if config.student.base is None:
        write(folder, "corpus.parquet", corpus(config, source, train))
        counts["corpus"] = len(train)
    return counts


def accepted_traces(run: Run) -> pl.DataFrame:
    """Accepted traces in (row, path) order."""
    shards = pl.scan_parquet(run.stage("reason").path("shards/*.parquet"))
    return shards.filter(pl.col("accepted")).sort("row_id", "path").collect()


def yes_no_rows(config: Config, run: Run, row_ids: np.ndarray) -> pa.Table:
    """Examples of rows, in the order given, built in parallel."""
    import ray
    import ray.data

    ids = pa.table({"row_id": row_ids.astype(np.int64)})
    chunks = [ids.slice(start, CHUNK) for start in range(0, len(row_ids), CHUNK)]
    dataset = ray.data.from_arrow(chunks).map_batches(
        Rows,
        fn_constructor_args=(config, run.folder.uri),
        batch_size=CHUNK,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    )
    blocks: Any = ray.get(dataset.to_arrow_refs())  # pyright: ignore[reportCallIssue, reportArgumentType]
    made = pa.concat_tables(blocks).cast(EXAMPLES)
    where = {int(row): at for at, row in enumerate(made["row_id"].to_numpy())}
    return made.take([where[int(row)] for row in row_ids])


def corpus(config: Config, source: ContextSource, rows: np.ndarray) -> pa.Table:
    gatherer, prompts = source.gatherer(-1), []
    start, end = source.histories.before(source.users[rows], source.timestamps[rows])
    counts = (end - start).tolist()
    for row, seen in zip(rows.tolist(), counts, strict=True):
        count, rate, _, like_rate, _ = source.rolling[row]
        context = gatherer.context(
            source.user_ids[source.users[row]],
            EMPTY,
            int(source.timestamps[row]),
            int(source.targets[row]),
            count,
            rate,
            like_rate,
            NO_PEERS,
            np.empty(0, np.int32),
        ).model_copy(update={"history_count": seen})
        prompts.append(decide_prompt(context, config.prompt, SECTIONS))
    labels = source.labels[rows].astype(np.int8)
    users = source.users[rows].astype(np.int32)
    return pa.table({"row_id": rows, "user": users, "label": labels, "prompt": prompts}, schema=CORPUS)


def write(folder: Folder, name: str, table: pa.Table) -> None:
    with folder.replacing(name) as local:
        pq.write_table(table, local, compression="zstd")


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
