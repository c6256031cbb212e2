"""The pipeline as a Ray job: package the code, submit, follow the log, stop on Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.cluster import Cluster, token
from ray_app.errors import LaunchError

EXCLUDES = [
    *(".git", ".venv", ".local", "runs", "tests", "docs", "bench", "__pycache__"),
    *(".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache", ".numba_cache"),
]
"""What the code package leaves out: Ray refuses large ones, and jobs need none of it."""


def pipeline_command(config: str, run: str, overrides: Sequence[str], more: Sequence[str] = ()) -> str:
    """The job's entrypoint; paths are absolute, since a job runs in a copy of the code."""
    words = [sys.executable, "-m", "pipelines.run", "--config", config, "--run", run]
    return shlex.join([*words, *(f"--set={override}" for override in overrides), *more])


def client(root: Path, cluster: Cluster) -> Any:
    """A `ray.job_submission.JobSubmissionClient` with the cluster's token."""
    os.environ.pop("RAY_ADDRESS", None)  # would outrank the address given
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(cluster.dashboard, headers={"Authorization": f"Bearer {token(root)}"})


def run_job(root: Path, cluster: Cluster, command: str, write: Callable[[str], Any]) -> str:
    """Run `command` as a job on a copy of the checkout's code; return the URI of that copy.

    The log goes to `write` as it comes. Raises LaunchError with the log's last line if the job fails;
    on KeyboardInterrupt stops the job, waits for its end and lets the interrupt go on.
    """
    from ray.job_submission import JobStatus

    jobs = client(root, cluster)
    runtime = {"working_dir": str(root), "excludes": EXCLUDES}
    job = jobs.submit_job(entrypoint=command, runtime_env=runtime)
    tail = _Tail(write)
    try:
        asyncio.run(_follow(jobs, job, tail))
        status = _wait(jobs, job, 30.0)
    except KeyboardInterrupt:
        jobs.stop_job(job)
        _wait(jobs, job, 30.0)
        raise
    info = jobs.get_job_info(job)
    if status != JobStatus.SUCCEEDED:
        reason = tail.last or " ".join((info.message or "no output").split())[:300]
        raise LaunchError(f"job {job} ended as {status.value}: {reason.removeprefix('error: ')}")
    return info.runtime_env["working_dir"]


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
