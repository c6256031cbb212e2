"""What every stage's command line shares: arguments, the Ray session, one line per finished stage."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_app.artifacts import Run, StageSpec, execute, is_current
from ray_app.config import Config, load
from ray_app.errors import LaunchError, cli
from ray_app.logs import about, tell
from ray_app.telemetry import Telemetry

STAGES = ["prepare", "swing", "encode", "reason", "mix", "train", "reflect", "evaluate", "publish"]
"""In the order they run."""
KNOCK_S = 10.0
MakeSpec = Callable[[Config, Run], StageSpec]


def parser(description: str) -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--config", default="configs/local.yaml", help="YAML file (%(default)s)")
    arguments.add_argument("--run", help="run folder or URI (default: <runs>/<name> of the config)")
    arguments.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one config value"
    )
    arguments.add_argument("--force", action="store_true", help="run again even if up to date")
    return arguments


def open_run(options: argparse.Namespace) -> tuple[Config, Run]:
    """The checked config and its run folder (an absolute path where local: workers have another cwd)."""
    config = load(options.config, options.set)
    uri = options.run or f"{config.runs}/{config.name}"
    run = Run(uri if "://" in uri else Path(uri).expanduser().absolute())
    run.reach()
    return config, run


def start_ray(config: Config) -> None:
    """Join the cluster of the job, or start a private local one when run by hand.

    Raises LaunchError if Ray does not come up, or nothing listens where `RAY_ADDRESS` says.
    """
    import ray
    import ray.data

    if ray.is_initialized():
        return
    _knock(os.environ.get("RAY_ADDRESS", ""))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" not in os.environ and "RAY_JOB_ID" not in os.environ:
        options = {
            "address": "local",
            "num_cpus": config.ray.num_cpus,
            "object_store_memory": config.ray.object_store_mb * 2**20,
            "include_dashboard": False,
        }
    try:
        ray.init(**options)
    except Exception as error:  # a node that starts too slowly is a bare Exception of Ray's
        reason = " ".join(str(error).split())
        raise LaunchError(
            f"Ray did not start ({reason}): see whether the machine is busy or its disk or "
            f"shared memory full, then give the command again; finished stages are kept"
        ) from error


def _knock(address: str) -> None:
    """Where a host and a port are named, somebody has to listen there: Ray by itself warns for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except OSError as error:
        raise LaunchError(
            f"RAY_ADDRESS {address} does not answer ({error}): start that cluster, or unset RAY_ADDRESS "
            f"for a local one"
        ) from error


def report_line(manifest: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
        for key, value in manifest["counts"].items()
        if isinstance(value, int | float | str)
    )
    if manifest.get("skipped"):
        return f"{manifest['stage']:<9} up to date ({counts})"
    return (
        f"{manifest['stage']:<9} {manifest['seconds']:7.1f} s  CPU {manifest['cpu_seconds']:7.1f} s  "
        f"peak {manifest['peak_memory_mb']:6.0f} MB  {counts}"
    )


def stage_main(make_spec: MakeSpec, description: str) -> None:
    """Entry point of a single stage: `python -m pipelines.<stage>`."""

    cli(lambda: run_stage(make_spec, parser(description).parse_args()))
    sys.stdout.flush()


def run_stage(make_spec: MakeSpec, options: argparse.Namespace) -> None:
    """Run the stage as the options of `parser` say, and print its line."""
    config, run = open_run(options)
    spec = make_spec(config, run)
    make(spec, config, run, force=options.force)


def make(spec: StageSpec, config: Config, run: Run, *, force: bool) -> None:
    """Bring a stage up to date; tell what it cost, in the log and, if it had to run, in the metrics."""
    with about(run=run.name, stage=spec.name):
        if force or not is_current(run, spec):
            tell(f"{spec.name} ...", event="started")
            start_ray(config)
        manifest = execute(run, spec, force=force)
        skipped = manifest.get("skipped", False)
        if not skipped:
            Telemetry().stage(manifest)
        facts = {key: manifest[key] for key in ("seconds", "cpu_seconds", "peak_memory_mb", "counts")}
        tell(report_line(manifest), event="up to date" if skipped else "finished", **facts)
