"""Stage `prepare`: read the data, reject bad rows with a reason, split by time, number users and items."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.common import stage_main
from pipelines.publish import store_url
from ray_app import records
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.config import Config, DataConfig
from ray_app.data import feedback, sources, tables
from ray_app.data.clean import check_rejects, clean
from ray_app.data.codes import encode
from ray_app.data.split import SPLITS, check_split, time_split
from ray_app.errors import DataError

OWN = "own"


def spec(config: Config, run: Run) -> StageSpec:
    """Writes interactions, items, users and rejects/* (schemas in `ray_app.records`)."""
    data = config.data
    # Paths do not matter, contents do: the hashes stand for them.
    elsewhere = {"cache", "path", "interactions", "items", "users", "store_feedback"}
    inputs, collected = sources.content_hashes(data), feedback_of(config, run)
    if collected is not None:
        # Read once, so that what is hashed is what is taken in, whatever the service stores meanwhile.
        text = collected.select(*feedback.KEYS, "rating", "label").write_csv()
        inputs["feedback"] = hashlib.sha256(text.encode()).hexdigest()
    return StageSpec(
        name="prepare",
        body=lambda folder: prepare(data, folder, collected),
        keys=data.model_dump(exclude=elsewhere),
        inputs=inputs,
    )


def feedback_of(config: Config, run: Run) -> pl.DataFrame | None:
    """What the service collected, if the run is to learn from it. Its own store may not be there yet."""
    url = config.data.store_feedback
    if url is None:
        return None
    if url == OWN:
        url = store_url(config, run)
        if not feedback.is_there(url):
            return None
    return feedback.read_feedback(url)


def prepare(config: DataConfig, folder: Folder, collected: pl.DataFrame | None = None) -> dict[str, Any]:
    """Write the stage's files; returns its counts. Rejects are written before they can stop the run."""
    raw = sources.read(config, many=_read_with_ray)
    from_source = raw.interactions.height
    if collected is not None:
        raw.interactions = feedback.joined(raw.interactions, collected)
    taken = clean(raw, config)
    for table, rejected in taken.rejects.items():
        _write(folder, f"rejects/{table}.parquet", rejected, records.REJECTS)
    check_rejects(raw, taken.rejects, config.max_reject_rate, folder.path("rejects"))

    if "split" in taken.interactions.columns:
        check_split(taken.interactions, allow_empty_test=config.allow_empty_test)
        split = taken.interactions["split"]
    else:
        split = time_split(taken.interactions["timestamp"], config.split)
    interactions, items, users = encode(taken, split)
    _write(folder, "interactions.parquet", interactions, records.INTERACTIONS)
    _write(folder, "items.parquet", items, records.ITEMS)
    _write(folder, "users.parquet", users, records.USERS)

    sizes = {name: int((split == name).sum()) for name in SPLITS}
    return {
        "users": users.height,
        "items": items.height,
        "interactions": interactions.height,
        **sizes,
        "evaluated_on": "test" if sizes["test"] else "valid",
        "rejected": sum(rejected.height for rejected in taken.rejects.values()),
        "years_unread": taken.years_unread,
        **({} if collected is None else {"feedback": raw.interactions.height - from_source}),
        "positive_share": round(interactions["label"].cast(pl.Float64).sum() / interactions.height, 4),
    }


def _read_with_ray(uris: list[str]) -> pl.DataFrame:
    """The files of a folder, each parsed in a task of its own, wherever the cluster has room."""
    import ray

    files = ray.data.from_items([{"uri": uri} for uri in uris], override_num_blocks=len(uris))
    parsed = files.map_batches(_parse, batch_size=1, batch_format="numpy")
    blocks: Any = ray.get(list[Any](parsed.to_arrow_refs()))
    frame = pl.concat([pl.DataFrame(pl.from_arrow(block)) for block in blocks], how="diagonal")
    if "_error" in frame.columns:
        raise DataError(frame["_error"].drop_nulls()[0])
    return frame.sort("_file", "_line")


def _parse(batch: Any) -> pa.Table:
    """One file; its error travels as a row, since Ray Data would bury it in a stack trace."""
    try:
        return tables.read(str(batch["uri"][0])).to_arrow()
    except DataError as error:
        return pa.table({"_error": [str(error)]})


def _write(folder: Folder, name: str, frame: pl.DataFrame, schema: pa.Schema) -> None:
    with folder.replacing(name) as local:
        pq.write_table(frame.select(schema.names).to_arrow().cast(schema), local, compression="zstd")


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
