"""`make run` and `make stop`: the whole system on this machine.

    python -m pipelines.local up [--config FILE] [--set KEY=VALUE ...]
    python -m pipelines.local status
    python -m pipelines.local down

`up` starts a Ray cluster with token authentication (or finds the one it left up), runs the pipeline on
it as a job, deploys the published bundle, asks the service for one user's recommendations and leaves it
up. `down` ends what `up` started and nothing else.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape

from pipelines import cluster as clusters
from pipelines import deploy as service
from pipelines import monitor
from pipelines.common import open_run, parser
from pipelines.env import ROOT, enter, state_folder
from pipelines.setup import remove_stale_locks
from pipelines.submit import absolute_paths, pipeline_command, run_job
from ray_app.errors import LaunchError, cli
from ray_app.records import Recommendation

console = Console(highlight=False, soft_wrap=True)


class Steps:
    """Says which step runs, and in the end how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        console.print(f"[bold]{name}[/] {what}")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def summary(self) -> str:
        parts = [f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items()]
        return f"{', '.join(parts)}; together {sum(self.seconds.values()):.1f} s"


def up(options: argparse.Namespace) -> None:
    config, _ = open_run(options)
    options.set = [*options.set, *absolute_paths(config)]
    options.config = str(Path(options.config).absolute())
    config, run = open_run(options)
    logging.getLogger("ray").setLevel(logging.WARNING)
    steps = Steps()
    with _alone(ROOT):
        for lock in remove_stale_locks(ROOT / ".local" / "torch_extensions"):
            console.print(f"removed {lock}, left by a build that was killed")
        with steps.step("cluster", f"Ray with {config.ray.num_cpus} logical CPUs"):
            cluster = clusters.ensure(ROOT, config.ray, say=_say)
            _say(f"dashboard {cluster.dashboard}")
        with steps.step("pipeline", f"all stages as a Ray job, into {run.folder.uri}"):
            more = ["--force"] if options.force else []
            command = pipeline_command(options.config, run.folder.uri, options.set, more)
            with open(state_folder(ROOT) / "pipeline.log", "w") as log:
                uri = run.folder.uri
                package = run_job(ROOT, cluster.dashboard, command, uri, lambda text: _both(text, log))
        clusters.save_state(ROOT, cluster)
        with steps.step("service", "one replica per agent, from the published bundle"):
            made_from = {
                "config": str(service.effective_config(ROOT, config)),
                "run": run.folder.uri,
                "package": package,
                "bundle": service.keep(run),
            }
            cluster = service.deploy(ROOT, cluster, made_from, config.serve.host, config.serve.port, say=_say)
        with steps.step("answer", "asked over HTTP"):
            answer = service.ask(cluster)
        show(answer)
        clusters.save_state(ROOT, cluster)
        _where(cluster, run.folder.uri, steps)


def _say(text: str) -> None:
    console.print(f"  {escape(text)}")


def _both(text: str, log: TextIO) -> None:
    print(text, end="", flush=True)
    log.write(text)
    log.flush()


def show(answer: Recommendation) -> None:
    """Print an answer as a person reads it."""
    console.print(f"\n[bold]Recommended to user {escape(answer.user_id)}[/]")
    if answer.degraded:
        console.print(f"[yellow]degraded: {escape(answer.degraded_reason)}[/]")
    for place, entry in enumerate(answer.items, start=1):
        head = f"[bold]{place}. {escape(entry.item.title)}[/]"
        doubted = ", after reflection" if entry.reflection else ""
        console.print(f"{head}  score {entry.score:.2f}, confidence {entry.confidence:.2f}{doubted}")
        for line in entry.explanation.text.splitlines():
            console.print(f"   {escape(line)}")
    console.print()


def _where(cluster: clusters.Cluster, run: str, steps: Steps) -> None:
    base = service.base_url(cluster)
    token = ROOT / ".local" / "token"
    for name, place in (
        ("page", f"{base}/"),
        ("API", f"{base}/docs"),
        ("report", f"{run}/report/report.html"),
        ("dashboard", f"{cluster.dashboard}  (asks for the token in {token})"),
        ("time", steps.summary()),
        ("stop with", "make stop"),
    ):
        console.print(f"[bold]{name:<10}[/]{escape(place)}")


def down(_: argparse.Namespace) -> None:
    if monitor.down(ROOT):
        console.print("stopped: Prometheus")
    known = clusters.load_state(ROOT)
    if known is None:
        console.print("nothing to stop: no cluster of this checkout is recorded")
        return
    count = clusters.stop(ROOT, known)
    console.print(f"stopped: {count} processes" if count else "stopped: its processes had already ended")


def status(_: argparse.Namespace) -> None:
    known = clusters.load_state(ROOT)
    if known is None:
        console.print("down: no cluster of this checkout is recorded")
        return
    if not clusters.is_healthy(ROOT, known):
        raise LaunchError(f"the recorded cluster at {known.address} does not answer: make stop, or make run")
    running = clusters.members(known)
    memory = sum(one.memory_info().rss for one in running if one.is_running()) / 2**30
    if watching := monitor.load_state(ROOT):
        console.print(f"metrics   {watching.url}/graph")
    console.print(f"cluster   up, {len(running)} processes, {memory:.1f} GB, dashboard {known.dashboard}")
    if known.serve_port is None:
        console.print("service   not deployed")
        return
    state, message = service.serve_status(ROOT, known)
    ready = "ready" if service.is_ready(known) else "not ready"
    console.print(f"service   {state.lower()}, {ready}, {service.base_url(known)}/  {escape(message)}")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One launch at a time in a checkout."""
    with open(state_folder(root) / "launch.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError("another `make run` is at work in this checkout: wait for it") from error
        yield


def arguments() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(description="The whole system on this machine.")
    commands = main_parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("up", parents=[parser("")], add_help=False, help="start, run, deploy, ask")
    run.set_defaults(act=up)
    commands.add_parser("status", help="say what is up").set_defaults(act=status)
    commands.add_parser("down", help="end what up started").set_defaults(act=down)
    return main_parser


def main() -> None:
    options = arguments().parse_args()
    enter(ROOT, "pipelines.local")
    # A terminated launcher stops its job as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.act(options)
    except KeyboardInterrupt:
        print("\ninterrupted: what is still up ends with make stop", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    cli(main)
