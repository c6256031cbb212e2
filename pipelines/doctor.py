"""Whether this machine can run a config: what is wrong, and what to do about it.

    python -m pipelines.doctor [--config FILE] [--run FOLDER] [--json]

Each finding is ok, warn or fail with its remedy in one line. Exit code 1 if anything fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import checks, checks_hardware
from pipelines.checks import Finding, Patient
from pipelines.common import parser
from pipelines.env import ROOT
from ray_app.config import load
from ray_app.errors import RationaleError, cli

CHECKS: dict[str, Callable[[Patient], Iterator[Finding]]] = {
    "python": checks.python,
    "lock": checks.lock,
    "compiled op": checks.compiled,
    "disk and memory": checks_hardware.capacity,
    "GPU": checks_hardware.gpus,
    "ports": checks.ports,
    "token": checks.token,
    "run folder": checks.storage,
    "store": checks.store,
    "data": checks.inputs,
    "models": checks.models,
    "WordNet": checks.wordnet,
    "BLEURT": checks.bleurt,
}
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def examine(patient: Patient) -> list[Finding]:
    """All findings; a check that ends with an error of ours is a finding itself."""
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            found += check(patient)
        except RationaleError as error:
            found.append(Finding(name, "fail", str(error)))
    return found


def draw(console: Console, found: list[Finding]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "check", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for one in found:
        state = f"[{COLOURS[one.state]}]{one.state}[/]"
        table.add_row(state, one.check, escape(one.found), escape(one.remedy))
    console.print(table)
    count = {state: sum(one.state == state for one in found) for state in COLOURS}
    console.print(", ".join(f"{number} {state}" for state, number in count.items()))


def main() -> None:
    arguments = parser("Whether this machine can run a config.")
    arguments.add_argument("--json", action="store_true", help="print JSON")
    options = arguments.parse_args()
    config = load(options.config, options.set)
    run = options.run or f"{config.runs}/{config.name}"
    where = run if "://" in run else str(Path(run).expanduser().absolute())
    found = examine(Patient(ROOT, config, where))
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        draw(Console(), found)
    sys.exit(any(one.state == "fail" for one in found))


if __name__ == "__main__":
    cli(main)
