"""All stages in order, on the run folder: skip what is up to date, go on where the last attempt ended.

    python -m pipelines.run --config configs/local.yaml [--from STAGE] [--until STAGE] [--force]

prepare   splits, users, items from the source
swing     item and user neighbours, from earlier rows only
encode    collaborative vectors
reason    the teacher's verified traces
mix       80 % Yes/No rows, 20 % reasoning
train     base, global LoRA, cluster LoRAs, projector, gate, calibration
reflect   weights of the agents' second looks
evaluate  metrics with intervals, beside baselines; the report
publish   the bundle that is served
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module

from pipelines.common import STAGES, make, open_run, parser
from pipelines.report import write_report
from ray_app.artifacts import MANIFEST, Run, StageSpec
from ray_app.config import Config
from ray_app.errors import ConfigError, cli
from ray_app.logs import about, tell


def chosen(first: str | None, last: str | None) -> list[str]:
    """The stages from `first` to `last`, both included."""
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in STAGES:
            raise ConfigError(f"{option} {name!r} is not a stage: give one of {', '.join(STAGES)}")
    begin = STAGES.index(first) if first else 0
    end = STAGES.index(last) if last else len(STAGES) - 1
    if begin > end:
        raise ConfigError(f"--from {first} comes after --until {last}: swap them")
    return STAGES[begin : end + 1]


def make_spec(name: str, config: Config, run: Run) -> StageSpec:
    """What the stage's module says: is imported only now, since some bring torch along."""
    return import_module(f"pipelines.{name}").spec(config, run)


def run_stages(names: list[str], config: Config, run: Run, *, force: bool = False) -> None:
    began = time.monotonic()
    for name in names:
        make(make_spec(name, config, run), config, run, force=force)
    with about(run=run.name):
        if run.stage("evaluate").exists(MANIFEST):
            tell(f"report    {write_report(config, run)}", event="report")
        seconds = time.monotonic() - began
        tell(f"total     {seconds:7.1f} s  {run.folder.uri}", event="total", seconds=round(seconds, 2))


def arguments() -> argparse.ArgumentParser:
    options = parser("Run the pipeline, or a part of it.")
    options.add_argument("--from", dest="first", metavar="STAGE", help="first stage (prepare)")
    options.add_argument("--until", dest="last", metavar="STAGE", help="last stage (publish)")
    return options


def main() -> None:
    options = arguments().parse_args()
    names = chosen(options.first, options.last)
    config, run = open_run(options)
    run_stages(names, config, run, force=options.force)


if __name__ == "__main__":
    cli(main)
