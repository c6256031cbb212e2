"""What a run and its service will cost, before they run.

    python -m pipelines.plan --config configs/gpu.yaml --gpu A100-80
    python -m pipelines.plan --config configs/production.yaml --gpu H100-80 \\
        --users 1000000 --items 200000 --interactions 100000000 --requests-per-s 50
    python -m pipelines.plan --config configs/local.yaml --beside runs/local     a finished run's costs too

The model is arithmetic over tokens, operations and bytes (`ray_app/planning`); its constants and where
they are from: --constants. A config that cannot fit ends with exit code 2 and says what would.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from ray_app.artifacts import MANIFEST, Run
from ray_app.config import Config, load
from ray_app.errors import ConfigError, cli
from ray_app.planning.constants import TABLE
from ray_app.planning.hardware import GPUS, gpu_of
from ray_app.planning.service import Service, plan_service
from ray_app.planning.stages import Pipeline, plan_pipeline, uses_gpu
from ray_app.planning.work import Size

ML_100K = Size(943, 1682, 100_000)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description="What a run and its service will cost.")
    arguments.add_argument("--config", default="configs/local.yaml", help="YAML file (%(default)s)")
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override")
    for name in ("users", "items", "interactions"):
        arguments.add_argument(f"--{name}", type=positive, help="size of the data (MovieLens-100K's)")
    arguments.add_argument("--requests-per-s", type=float, default=1.0, help="load to plan for (%(default)s)")
    arguments.add_argument("--gpu", help=f"one of {', '.join(GPUS)} (default: A100-80 where GPUs are used)")
    arguments.add_argument("--cpus", type=positive, help="CPU cores for the stages without a model")
    arguments.add_argument("--price", type=float, help="of one GPU hour, in your currency")
    arguments.add_argument("--beside", metavar="RUN", help="folder of a finished run of this config")
    arguments.add_argument("--json", action="store_true", help="print JSON")
    arguments.add_argument("--constants", action="store_true", help="print the model's constants and sources")
    return arguments


def positive(text: str) -> int:
    """A whole number above zero; 100_000 and 1e8 are read too."""
    number = float(text)
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(number)


def size_of(config: Config, options: argparse.Namespace) -> Size:
    given = {name: getattr(options, name) for name in ("users", "items", "interactions")}
    if config.data.source == "files" and None in given.values():
        missing = " ".join(f"--{name} N" for name, number in given.items() if number is None)
        raise ConfigError(f"data.source is files, whose size a plan does not read: give {missing}")
    return Size(**(asdict(ML_100K) | {name: number for name, number in given.items() if number}))


def make(config: Config, options: argparse.Namespace) -> tuple[Pipeline, Service]:
    if options.requests_per_s <= 0:
        raise ConfigError(f"--requests-per-s {options.requests_per_s:g} is not above 0")
    name = options.gpu or ("A100-80" if uses_gpu(config) else None)
    gpu = gpu_of(name) if name else None
    size = size_of(config, options)
    own = psutil.cpu_count(logical=False) or 1
    cores = options.cpus or (config.ray.num_cpus if gpu else own)
    settings = Path(config.train.deepspeed)
    if not settings.is_file():
        raise ConfigError(f"train.deepspeed {settings} does not exist: give one of configs/deepspeed/*.json")
    pipeline = plan_pipeline(config, size, cores, gpu, json.loads(settings.read_text()))
    return pipeline, plan_service(config, size, options.requests_per_s, gpu)


def as_json(pipeline: Pipeline, service: Service) -> dict[str, Any]:
    return {
        "size": asdict(pipeline.size),
        "work": asdict(pipeline.work),
        "cores": pipeline.cores,
        "gpu": pipeline.gpu.name if pipeline.gpu else None,
        "stages": [asdict(stage) for stage in pipeline.stages],
        "total": {name: pipeline.total(name) for name in ("wall_s", "cpu_s", "gpu_hours", "disk_bytes")},
        "memory": [
            {"of": one.of, "parts": one.parts, "total": one.total, "limit": one.limit, "cache": one.cache}
            for one in pipeline.memory
        ],
        "service": asdict(service),
    }


def draw(console: Console, config: Config, pipeline: Pipeline, service: Service, price: float | None) -> None:
    size, work, gpu = pipeline.size, pipeline.work, pipeline.gpu
    hardware = f"{gpu.name} GPUs and {pipeline.cores} CPU cores" if gpu else f"{pipeline.cores} CPU cores"
    console.print(
        f"[bold]{config.name}[/]: {size.users:,} users, {size.items:,} items, "
        f"{size.interactions:,} interactions, on {hardware}"
    )
    console.print(
        f"{work.reasoned_rows:,} rows reasoned about in {work.traces:,} traces; "
        f"{work.rec_examples + work.reason_examples:,} examples; "
        f"{sum(work.phases.values()) / 1e6:,.1f} M training tokens"
    )
    console.print(stage_table(pipeline))
    if pipeline.memory:
        console.print(memory_table(pipeline))
    console.print(
        f"service at {service.requests_per_s:g} requests/s: {service.replicas:,} reasoning "
        f"replica{'s' if service.replicas > 1 else ''}"
        + (f" on {service.gpus:,.0f} GPUs" if service.gpus else "")
        + f" (a request reads {service.read_tokens:,.0f} tokens and writes {service.written_tokens:,.0f}: "
        f"{duration(service.busy_s)} of a replica, {duration(service.alone_s)} alone); "
        f"{amount(service.host_bytes)} of memory each for the bundle"
    )
    if service.replicas > config.serve.reasoning_max_replicas:
        console.print(
            f"[yellow]serve.reasoning_max_replicas is {config.serve.reasoning_max_replicas}: "
            f"raise it to {service.replicas}[/]"
        )
    if price is not None:
        console.print(
            f"cost: {pipeline.total('gpu_hours') * price:,.0f} for the run, "
            f"{service.gpus * price * 24:,.0f} a day for the service"
        )


def stage_table(pipeline: Pipeline) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("stage")
    for name in ("wall", "CPU hours", "GPUs", "GPU hours", "memory", "storage"):
        table.add_column(name, justify="right")
    for stage in pipeline.stages:
        table.add_row(
            stage.name,
            duration(stage.wall_s),
            f"{stage.cpu_s / 3600:,.2f}",
            str(stage.gpus or "-"),
            f"{stage.gpu_hours:,.1f}" if stage.gpus else "-",
            amount(stage.host_bytes),
            amount(stage.disk_bytes),
        )
    table.add_section()
    table.add_row(
        "all",
        duration(pipeline.total("wall_s")),
        f"{pipeline.total('cpu_s') / 3600:,.2f}",
        "",
        f"{pipeline.total('gpu_hours'):,.1f}" if pipeline.gpu else "-",
        "",
        amount(pipeline.total("disk_bytes")),
    )
    return table


def beside_table(pipeline: Pipeline, run: Run) -> Table:
    """Plan, measured and their ratio for each stage that the run has finished."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("stage")
    for name in ("wall", "CPU", "memory", "storage"):
        table.add_column(f"{name}: plan", justify="right")
        table.add_column("run", justify="right")
        table.add_column("x", justify="right")
    for stage in pipeline.stages:
        found = run.stage(stage.name)
        if not found.exists(MANIFEST):
            continue
        manifest = found.read_json(MANIFEST)
        pairs = (
            (duration, stage.wall_s, manifest["seconds"]),
            (duration, stage.cpu_s, manifest["cpu_seconds"]),
            (amount, stage.host_bytes, manifest["peak_memory_mb"] * 2**20),
            (amount, stage.disk_bytes, sum(manifest["files"].values())),
        )
        cells = [
            (told(plan), told(real), f"{real / plan:.2f}" if plan else "-") for told, plan, real in pairs
        ]
        table.add_row(stage.name, *(cell for three in cells for cell in three))
    return table


def memory_table(pipeline: Pipeline) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("on each GPU")
    table.add_column("needs", justify="right")
    table.add_column("may use", justify="right")
    table.add_column("of which")
    for one in pipeline.memory:
        parts = ", ".join(f"{name} {amount(count)}" for name, count in one.parts.items())
        spare = f"; {amount(one.cache)} for keys and values" if one.cache else ""
        table.add_row(one.of, amount(one.total), amount(one.limit), parts + spare)
    return table


def duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86_400:,.3g} days"


def amount(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def main() -> None:
    options = parser().parse_args()
    if options.constants:
        for name, constant in TABLE.items():
            print(f"{name:<20} {constant.value:<10.4g} {constant.unit:<32} {constant.source}")
        return
    config = load(options.config, options.set)
    pipeline, service = make(config, options)
    if options.json:
        json.dump(as_json(pipeline, service), sys.stdout, indent=2)
        print()
    else:
        draw(Console(), config, pipeline, service, options.price)
        if options.beside:
            Console(width=160).print(beside_table(pipeline, Run(options.beside)))


if __name__ == "__main__":
    cli(main)
