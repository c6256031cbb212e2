"""`python -m pipelines.swing --interactions FILE --out DIR`: the neighbours of one file, without a run.

Reads CSV, TSV or Parquet; writes `items.parquet`, `users.parquet` and `summary.json`. The two tables
replace earlier ones only when both are complete; the summary comes last. Whatever is wrong with the
options, the file or the folder is said before Ray starts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.common import start_ray
from ray_app import __version__
from ray_app.artifacts import Folder, Meter
from ray_app.config import Config, RayConfig, SwingConfig
from ray_app.errors import ConfigError
from ray_app.swing.files import COLUMNS, read
from ray_app.swing.items import ItemGraph
from ray_app.swing.spool import ITEM_COLUMNS, USER_COLUMNS, Spool
from ray_app.swing.standalone import SEED, Events, parameters
from ray_app.swing.users import user_rows
from ray_app.swing.weights import PRESETS

FIELDS = {name: field for name, field in SwingConfig.model_fields.items() if name != "snapshots"}
"""The parameters that are flags; snapshots are of the stage alone."""
OWN = ("out", "columns", "preset", "seed", *FIELDS)
STAGE = ("config", "run", "set", "force")
SHOWN = 8
"""Rows of each table that are printed."""


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """What `--interactions` brings with it. Only flags that were given become attributes."""
    group = arguments.add_argument_group("neighbours of one file, without a run")
    group.add_argument("--interactions", metavar="FILE", help="CSV, TSV or Parquet, told by its suffix")
    group.add_argument("--out", metavar="DIR", default=argparse.SUPPRESS, help="folder for the results")
    group.add_argument(
        "--columns",
        metavar="OURS=FILE'S,...",
        default=argparse.SUPPRESS,
        help="names of the file's columns: user_id=customer,item_id=sku. timestamp and strength are "
        "optional; strength=rating lets ratings weigh the similarity of users",
    )
    group.add_argument(
        "--preset", choices=list(PRESETS), default=argparse.SUPPRESS, help="weights of a published version"
    )
    group.add_argument(
        "--seed", type=int, metavar="N", default=argparse.SUPPRESS, help=f"of samples (default: {SEED})"
    )
    group = arguments.add_argument_group("parameters, with --interactions (see docs/swing.md)")
    for name, field in FIELDS.items():
        told = (field.description or "").replace("\n", " ").replace("%", "%%")
        default = "off" if field.default is None or field.default is False else field.default
        group.add_argument(
            _flag(name),
            default=argparse.SUPPRESS,
            help=f"{told} (default: {default})".strip(),
            **_shape(field.annotation),
        )


def _shape(kind: Any) -> dict[str, Any]:
    """How a flag takes a value of this type; the value itself is checked with the others."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return {"metavar": "N" if kind is int else "X"}


def is_asked_for(options: argparse.Namespace, arguments: argparse.ArgumentParser) -> bool:
    """Whether --interactions was given. Raises ConfigError for flags that belong to the other use."""
    given = [name for name in OWN if hasattr(options, name)]
    if options.interactions is None:
        if given:
            raise ConfigError(
                f"{_flag(given[0])} goes with --interactions FILE: for the stage of a run use "
                f"--set swing.KEY=VALUE"
            )
        return False
    for name in STAGE:
        if getattr(options, name) != arguments.get_default(name):
            raise ConfigError(f"{_flag(name)} is for the stage of a run: leave it out with --interactions")
    if "out" not in given:
        raise ConfigError("--interactions without --out: name the folder for the results")
    return True


def run(options: argparse.Namespace) -> None:
    """Check everything, start Ray, compute, write, show."""
    preset, seed = getattr(options, "preset", None), getattr(options, "seed", SEED)
    config = parameters(preset, **{name: getattr(options, name) for name in FIELDS if hasattr(options, name)})
    folder = _writable(options.out)
    frame = read(options.interactions, getattr(options, "columns", ""))
    events = Events.of(*(frame.get_column(name, default=None) for name in COLUMNS))
    graph = events.graph(config)

    store_mb = 512 + len(frame) * 64 // 2**20  # both indexes, and the blocks on their way
    cpus = max(2, len(os.sched_getaffinity(0)))
    with Meter() as usage:
        start_ray(Config(ray=RayConfig(num_cpus=cpus, object_store_mb=store_mb)))
        counts = compute(events, graph, config, seed, folder)
    summary = {
        "interactions": options.interactions,
        "rows": len(frame),
        "users": len(events.user_ids),
        "items": len(events.item_ids),
        **counts,
        "preset": preset,
        "parameters": config.model_dump(include=set(FIELDS)),
        "seed": seed,
        "seconds": round(usage.seconds, 2),
        "cpu_seconds": round(usage.cpu_seconds, 2),
        "peak_memory_mb": round(usage.peak_memory_mb, 1),
        "version": __version__,
    }
    folder.write_json("summary.json", summary)
    show(folder, summary)


def compute(
    events: Events, graph: ItemGraph, config: SwingConfig, seed: int, folder: Folder
) -> dict[str, Any]:
    """Write both tables with Ray Data; returns the counts for the summary."""
    from pipelines.neighbours import parts, stream, stream_items

    n_users, n_items = len(events.user_ids), len(events.item_ids)
    near, alike = Spool(n_items), Spool(n_users)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        item_bar = progress.add_task("items", total=n_items)
        user_bar = progress.add_task("users", total=n_users)
        balance = stream_items(near, graph, config, seed, partial(progress.advance, item_bar))
        index = events.index(config, seed)
        stream(alike, user_rows, index, index.split(parts(n_users)), partial(progress.advance, user_bar))
    with folder.replacing("items.parquet") as items, folder.replacing("users.parquet") as users:
        near.write_parquet(items, events.item_ids, ITEM_COLUMNS)
        alike.write_parquet(users, events.user_ids, USER_COLUMNS)
    return {"item_pairs": near.pairs, "user_pairs": alike.pairs, "task_imbalance": balance}


def show(folder: Folder, summary: dict[str, Any]) -> None:
    """Print the first rows of both tables and where they are."""
    console = Console()
    for name in ("items", "users"):
        path = folder.path(f"{name}.parquet")
        first = pl.scan_parquet(path).head(SHOWN).collect()
        pairs = summary[f"{name[:-1]}_pairs"]
        table = Table(*first.columns, title=f"{name}.parquet: {len(first)} of {pairs:,} rows")
        for row in first.iter_rows():
            table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else escape(str(cell)) for cell in row))
        console.print(table)
    counts = ", ".join(f"{summary[name]:,} {name}" for name in ("users", "items", "rows"))
    cost = f"CPU {summary['cpu_seconds']:.1f} s, {summary['peak_memory_mb']:.0f} MB"
    console.print(f"{counts} in {summary['seconds']:.1f} s ({cost}): {escape(folder.uri)}", soft_wrap=True)


def _writable(out: str) -> Folder:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written to ({error.strerror}): name another folder"
        ) from error
    return Folder(Path(out).absolute())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
