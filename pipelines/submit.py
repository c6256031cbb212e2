"""The pipeline as a Ray job: package the code, submit, follow the log.

    python -m pipelines.submit --config FILE [--address URL] [--run FOLDER] [--set KEY=VALUE ...]
                               [--tag KEY=VALUE ...] [--detach] [--from STAGE] [--until STAGE] [--force]

Without --address the job goes to the cluster that `make run` left up here; with it, to any cluster that
takes this checkout's token, through the address of its dashboard. Given again, the command follows the job
that is at work on this run folder; if none is, a new one goes on where the last ended, since finished
stages are skipped. Ctrl-C leaves the job running. `ray job` lists, follows and stops it as any other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines import cluster as clusters
from pipelines.common import open_run
from pipelines.env import ROOT, enter, passed_on
from ray_app.config import Config
from ray_app.errors import ConfigError, LaunchError, cli

EXCLUDES = [
    *(".git", ".venv", ".local", "runs", "tests", "docs", "bench", "__pycache__"),
    *(".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache", ".numba_cache"),
]
"""What the code package leaves out: Ray refuses large ones, and jobs need none of it."""
LIMIT_MB = 50
"""Of a package, before compression. Ray itself takes 500 MB, and keeps it in the memory of its head."""
PATH_KEYS = [
    ("data", "path"),
    ("data", "interactions"),
    ("data", "items"),
    ("data", "users"),
    ("student", "base"),
    ("evaluate", "bleurt"),
]
"""Config values that may be paths on this machine."""


def absolute_paths(config: Config) -> list[str]:
    """Overrides that make relative paths absolute: the job runs in another folder."""
    values = {key: getattr(getattr(config, key[0]), key[1]) for key in PATH_KEYS}
    return [
        f"{section}.{key}={Path(value).expanduser().absolute()}"
        for (section, key), value in values.items()
        if value and "://" not in value and Path(value).expanduser().exists()
    ]


def pipeline_command(
    config: str, run: str, overrides: Sequence[str], more: Sequence[str] = (), python: str = sys.executable
) -> str:
    """The job's entrypoint; paths are absolute, since a job runs in a copy of the code."""
    words = [python, "-m", "pipelines.run", "--config", config, "--run", run]
    return shlex.join([*words, *(f"--set={override}" for override in overrides), *more])


def check_size(root: Path) -> None:
    """Raises LaunchError, naming what is largest, if the package of `root` would exceed LIMIT_MB."""
    # Ray's own walk, which knows .gitignore and .rayignore as well: another would count other files.
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: Counter[str] = Counter()

    def weigh(path: Path) -> None:
        if path.is_file():
            sizes["/".join(path.relative_to(root).parts[:2])] += path.stat().st_size

    _dir_travel(root, [_get_excludes(root, EXCLUDES)], weigh, include_gitignore=True)
    total = sum(sizes.values()) / 2**20
    if total > LIMIT_MB:
        largest = ", ".join(f"{name} ({size / 2**20:.0f} MB)" for name, size in sizes.most_common(3))
        raise LaunchError(
            f"the code package has {total:.0f} MB, at most {LIMIT_MB} travel; largest: {largest}: "
            f"move them out of the checkout, or name them in .gitignore or .rayignore"
        )


def client(root: Path, dashboard: str) -> Any:
    """A `ray.job_submission.JobSubmissionClient` with the token of this checkout."""
    os.environ.pop("RAY_ADDRESS", None)  # would outrank the address given
    from ray.job_submission import JobSubmissionClient

    # What it leaves out of a package, it left out on our behalf.
    logging.getLogger("ray").setLevel(logging.ERROR)
    headers = {"Authorization": f"Bearer {clusters.token(root)}"}
    try:
        return JobSubmissionClient(dashboard, headers=headers)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LaunchError(
            f"no job can be submitted at {dashboard} ({reason}): give --address as http://HOST:PORT of a "
            f"dashboard that takes the token in .local/token"
        ) from error


def start_job(jobs: Any, root: Path, command: str, **options: Any) -> str:
    """Submit `command` with a copy of the checkout's code; return the job's id. Options as Ray's."""
    check_size(root)
    runtime = {"working_dir": str(root), "excludes": EXCLUDES, "env_vars": passed_on()}
    return jobs.submit_job(entrypoint=command, runtime_env=runtime, **options)


def follow_job(jobs: Any, job: str, write: Callable[[str], Any]) -> Any:
    """Pass the job's log to `write` as it comes; return Ray's description of the finished job.

    Raises LaunchError with the log's last line if the job failed.
    """
    from ray.job_submission import JobStatus

    tail = _Tail(write)
    asyncio.run(_follow(jobs, job, tail))
    status = _wait(jobs, job, 30.0)
    info = jobs.get_job_info(job)
    if status != JobStatus.SUCCEEDED:
        reason = tail.last or " ".join((info.message or "no output").split())[:300]
        raise LaunchError(f"job {job} ended as {status.value}: {reason.removeprefix('error: ')}")
    return info


def run_job(root: Path, dashboard: str, command: str, run: str, write: Callable[[str], Any]) -> str:
    """Run `command` as a job on a copy of the checkout's code; return the URI of that copy.

    Raises LaunchError as `follow_job`, and where a job is at work on the run folder `run` already; on
    KeyboardInterrupt stops the job, waits for its end and lets the interrupt go on.
    """
    jobs = client(root, dashboard)
    if earlier := at_work(jobs, run):
        raise LaunchError(
            f"job {earlier} is still at work on {run}: follow it with python -m pipelines.submit and the "
            f"same --config, or end it with make stop"
        )
    job = start_job(jobs, root, command, metadata={"run": run})
    try:
        return follow_job(jobs, job, write).runtime_env["working_dir"]
    except KeyboardInterrupt:
        jobs.stop_job(job)
        _wait(jobs, job, 30.0)
        raise


class _Tail:
    """Passes text on and remembers its last non-empty line."""

    def __init__(self, write: Callable[[str], Any]):
        self._write = write
        self._rest = ""
        self.last = ""

    def __call__(self, text: str) -> None:
        self._write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        full = [line.strip() for line in [*lines, self._rest] if line.strip()]
        self.last = full[-1] if full else self.last


async def _follow(jobs: Any, job: str, tail: _Tail) -> None:
    async for text in jobs.tail_job_logs(job):
        tail(text)


def _wait(jobs: Any, job: str, limit_s: float) -> Any:
    deadline = time.monotonic() + limit_s
    while not (status := jobs.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            raise LaunchError(f"job {job} is still {status.value} after {limit_s:.0f} s: see the dashboard")
        time.sleep(0.2)
    return status


def at_work(jobs: Any, run: str) -> str | None:
    """The job that is at work on this run folder: two would write over each other."""
    for one in jobs.list_jobs():
        if not one.status.is_terminal() and (one.metadata or {}).get("run") == run:
            return one.submission_id
    return None


def tags(pairs: Sequence[str], config: Config, run: str) -> dict[str, str]:
    """The job's metadata: run, config name, commit, and the pairs given."""
    found = {"run": run, "config": config.name}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in found or not key:
            raise ConfigError(f"--tag {pair!r} is not KEY=VALUE with a key of its own: use another")
        found[key] = value
    return found


def submit(options: argparse.Namespace, root: Path = ROOT) -> None:
    """What the command line asks for."""
    config, run = open_run(options)
    more = [
        f"--{name}={value}" for name, value in (("from", options.first), ("until", options.last)) if value
    ]
    more += ["--force"] if options.force else []
    if options.address:
        if not options.run and "://" not in config.runs and not Path(config.runs).is_absolute():
            raise ConfigError(
                f"run folder {config.runs!r} is relative: give --run a URI or a path that all nodes see"
            )
        file = Path(options.config).absolute()
        if not file.is_relative_to(root):
            raise ConfigError(f"--config {file} is outside the checkout, so it does not travel: copy it in")
        where, uri = options.address, options.run or f"{config.runs}/{config.name}"
        # Their Python and their paths, not ours.
        command = pipeline_command(str(file.relative_to(root)), uri, options.set, more, python="python")
    else:
        known = clusters.load_state(root)
        if known is None or not clusters.is_healthy(root, known):
            raise LaunchError("no cluster of this checkout is up: make run, or give --address")
        where, uri = known.dashboard, run.folder.uri
        overrides = [*options.set, *absolute_paths(config)]
        command = pipeline_command(str(Path(options.config).absolute()), uri, overrides, more)
    metadata, jobs = tags(options.tag, config, uri), client(root, where)
    job = at_work(jobs, uri)
    if job:
        print(f"job {job} is at work on {uri}: following it")
    else:
        placement = {"entrypoint_num_cpus": options.num_cpus, "entrypoint_resources": options.resources}
        job = start_job(jobs, root, command, metadata=metadata, **placement)
        print(f"job {job} started on {uri}", flush=True)
    if options.detach:
        return
    try:
        follow_job(jobs, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\njob {job} goes on: the same command follows it again, ray job stop {job} ends it")
        sys.exit(130)
    print(f"job {job} finished")


def _resources(text: str) -> dict[str, float]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(text)
    return found


def arguments() -> argparse.ArgumentParser:
    from pipelines.run import arguments as those_of_the_pipeline

    options = argparse.ArgumentParser(
        description="Run the pipeline, or a part of it, as a Ray job.",
        parents=[those_of_the_pipeline()],
        add_help=False,
    )
    options.add_argument("--address", metavar="URL", help="the cluster's dashboard (default: make run's)")
    options.add_argument(
        "--tag", action="append", default=[], metavar="KEY=VALUE", help="metadata of the job"
    )
    options.add_argument("--detach", action="store_true", help="do not follow the log")
    options.add_argument(
        "--entrypoint-num-cpus", dest="num_cpus", type=float, metavar="N", help="CPUs that the driver takes"
    )
    options.add_argument(
        "--entrypoint-resources", dest="resources", type=_resources, metavar="JSON", help='{"driver": 1}'
    )
    return options


def main() -> None:
    options = arguments().parse_args()
    enter(ROOT, "pipelines.submit")
    submit(options)


if __name__ == "__main__":
    cli(main)
