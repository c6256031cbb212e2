"""Prometheus beside the cluster of `make run`, and the dashboards' figures without Grafana.

    python -m pipelines.monitor up       start Prometheus, or find the one it left up
    python -m pipelines.monitor table    every panel of configs/grafana, and the alerts, as of now
    python -m pipelines.monitor down     end it (`make stop` does that too)

Prometheus listens on 127.0.0.1 alone, has no login, and keeps its data in .local/prometheus. It reads the
addresses of all nodes from the file that Ray's head keeps up to date, through a link: a new cluster only
needs a new link, which `up` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import cluster as clusters
from pipelines.cluster import HOST, Cluster, Process, free_port
from pipelines.env import ROOT, enter, state_folder
from ray_app.artifacts import Folder
from ray_app.errors import LaunchError, cli

STATE = "monitor.json"
PORT = 9090
"""Where Ray's dashboard looks for Prometheus if RAY_PROMETHEUS_HOST says nothing else."""
START_S = 30.0
RETENTION = "30d"
DISCOVERY = "prom_metrics_service_discovery.json"
"""Ray's name for its list of nodes, in the session folder."""
TARGETS = "prometheus/targets.json"
"""The link in .local that configs/prometheus/prometheus.yml names."""
INSTALL = "install it (Debian, Ubuntu: apt-get install --no-install-recommends prometheus)"

console = Console(highlight=False, soft_wrap=True)


class Monitor(BaseModel):
    """What `monitor.json` holds."""

    process: Process
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


@dataclass(frozen=True)
class Query:
    """One expression of a dashboard."""

    board: str
    panel: str
    expr: str
    legend: str
    unit: str


def queries(root: Path) -> Iterator[Query]:
    """Every expression of the dashboards, in the order of their panels."""
    for path in sorted((root / "configs" / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            unit = panel["fieldConfig"]["defaults"].get("unit", "")
            for target in panel["targets"]:
                yield Query(board["title"], panel["title"], target["expr"], target["legendFormat"], unit)


def ask(url: str, expr: str) -> list[tuple[dict[str, str], float]]:
    """An instant query's vector: (labels, value) per series. Raises LaunchError if Prometheus refuses it."""
    answer = httpx.post(f"{url}/api/v1/query", data={"query": expr}, timeout=10.0, trust_env=False)
    body = answer.json()
    if body["status"] != "success":
        raise LaunchError(f"Prometheus refuses {expr!r}: {body['error']}: correct the query")
    return [(one["metric"], float(one["value"][1])) for one in body["data"]["result"]]


def page(url: str, name: str) -> str:
    """Where a page of Prometheus is: Debian's build has the classic ones alone."""
    found = httpx.get(f"{url}/{name}", timeout=10.0, trust_env=False).status_code == 200
    return f"{url}/{name}" if found else f"{url}/classic/{name}"


def load_state(root: Path) -> Monitor | None:
    """The recorded Prometheus if it still runs."""
    file = root / ".local" / STATE
    if not file.exists():
        return None
    known = Monitor.model_validate_json(file.read_text())
    return known if known.process.live() else None


def link_targets(root: Path, cluster: Cluster) -> None:
    """Point the link at the list of nodes that this cluster's head writes."""
    link = state_folder(root) / TARGETS
    link.parent.mkdir(exist_ok=True)
    scratch = link.with_name(".targets")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(Path(cluster.scratch) / DISCOVERY)
    os.replace(scratch, link)


def up(root: Path, cluster: Cluster, port: int = PORT, say: Callable[[str], Any] = print) -> Monitor:
    """Prometheus on this cluster: the one recorded, otherwise a new one, ready and with a node answering.

    Raises LaunchError if it is not installed, ends at once, or reaches no node within half a minute.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise LaunchError(f"there is no program `prometheus` on PATH: {INSTALL}")
    link_targets(root, cluster)
    known = load_state(root)
    if known is None:
        known = _start(root, program, port, say)
    _wait(root, known)
    return known


def _start(root: Path, program: str, port: int, say: Callable[[str], Any]) -> Monitor:
    chosen = free_port(port)
    if chosen != port:
        say(f"port {port} is taken: Prometheus' port is {chosen}")
    folder = state_folder(root) / "prometheus"
    command = [
        program,
        f"--config.file={root / 'configs' / 'prometheus' / 'prometheus.yml'}",
        f"--web.listen-address={HOST}:{chosen}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--storage.tsdb.retention.time={RETENTION}",
    ]
    with open(folder / "prometheus.log", "w") as log:
        child = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    monitor = Monitor(process=Process.of(psutil.Process(child.pid)), port=chosen)
    Folder(state_folder(root)).write(STATE, monitor.model_dump_json(indent=2).encode())
    return monitor


def _wait(root: Path, monitor: Monitor) -> None:
    """Until a node has been scraped."""
    log, deadline = root / ".local" / "prometheus" / "prometheus.log", time.monotonic() + START_S
    while True:
        if monitor.process.live() is None:
            raise LaunchError(f"Prometheus ended at once: see {log}")
        try:
            if any(value == 1 for _, value in ask(monitor.url, 'up{job="ray"}')):
                return
        except (httpx.HTTPError, ValueError):
            pass  # not listening yet
        if time.monotonic() > deadline:
            raise LaunchError(f"Prometheus reached no Ray node in {START_S:.0f} s: see {monitor.url}/targets")
        time.sleep(0.3)


def down(root: Path, grace_s: float = 10.0) -> bool:
    """End the recorded Prometheus; return whether there was one. Its data stays."""
    known = load_state(root)
    process = known.process.live() if known else None
    if process:
        process.terminate()
        gone, _ = psutil.wait_procs([process], timeout=grace_s)
        if not gone:
            process.kill()
            process.wait(grace_s)
    (root / ".local" / STATE).unlink(missing_ok=True)
    return process is not None


def table(root: Path, url: str) -> tuple[Table, Table]:
    """The dashboards' figures and the alerts, as of now."""
    figures = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("dashboard", "panel", "series", "now"):
        figures.add_column(column, overflow="fold", justify="right" if column == "now" else "left")
    for query in queries(root):
        found = ask(url, query.expr) or [({}, float("nan"))]
        for labels, value in found:
            series = re.sub(r"\{\{(\w+)\}\}", lambda m, of=labels: of.get(m[1], ""), query.legend)
            shown = "no data" if value != value else f"{value:,.4g} {UNITS.get(query.unit, '')}"
            figures.add_row(query.board, query.panel, escape(series), shown)
    alerts = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("alert", "state", "what to do"):
        alerts.add_column(column, overflow="fold")
    answer = httpx.get(f"{url}/api/v1/rules", timeout=10.0, trust_env=False).json()
    for rule in (rule for group in answer["data"]["groups"] for rule in group["rules"]):
        alerts.add_row(rule["name"], rule["state"], rule["annotations"]["action"])
    return figures, alerts


UNITS = {
    "s": "s",
    "ms": "ms",
    "bytes": "B",
    "decmbytes": "MB",
    "reqps": "/s",
    "percent": "%",
    "percentunit": "of 1",
}
"""Grafana's units, written out."""


def _running(root: Path) -> Cluster:
    known = clusters.load_state(root)
    if known is None or not clusters.is_healthy(root, known):
        raise LaunchError("no cluster of this checkout is up: make run")
    return known


def _up(options: argparse.Namespace) -> None:
    monitor = up(ROOT, _running(ROOT), options.port, say=console.print)
    for name, place in (
        ("queries", f"{monitor.url}/graph"),
        ("nodes", page(monitor.url, "targets")),
        ("alerts", page(monitor.url, "alerts")),
        ("figures", "python -m pipelines.monitor table"),
        ("dashboards", "configs/grafana/*.json: import into Grafana, with this Prometheus as source"),
        ("stop with", "make stop (the data stays in .local/prometheus/data)"),
    ):
        console.print(f"[bold]{name:<11}[/]{escape(place)}")


def _table(_: argparse.Namespace) -> None:
    known = load_state(ROOT)
    if known is None:
        raise LaunchError("no Prometheus of this checkout is up: make monitor")
    for part in table(ROOT, known.url):
        console.print(part)


def _down(_: argparse.Namespace) -> None:
    console.print("Prometheus stopped" if down(ROOT) else "no Prometheus of this checkout was up")


def main() -> None:
    parser = argparse.ArgumentParser(description="Prometheus beside the cluster of make run.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start it")
    start.add_argument("--port", type=int, default=PORT, help="preferred port (%(default)s)")
    start.set_defaults(act=_up)
    commands.add_parser("table", help="the dashboards' figures").set_defaults(act=_table)
    commands.add_parser("down", help="end it").set_defaults(act=_down)
    options = parser.parse_args()
    enter(ROOT, "pipelines.monitor")
    options.act(options)


if __name__ == "__main__":
    cli(main)
