"""What Ray adds to Swing: CPU seconds of the whole job, every process counted, beside the kernel's alone.

    python -m bench.swing_ray [--data ml100k|A|B] [--users] [--cpus 2]

The *kernel* is one call for all rows in one process, *preparation* is what makes its arrays from ids. The
*job* is a process that starts a private Ray session, prepares, computes the rows in tasks and writes the
Parquet table. *In tasks* is the kernel's part of the job: as many processes as CPUs run it at the same
time, and share the caches and the memory bus. The same job on five interactions is the *fixed* part.
--users adds similar users to all. Parameters are the defaults. Processes are sampled five times a second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.swing import SIZES, alone, movielens
from bench.zipf import zipf
from ray_app.config import Config, RayConfig
from ray_app.swing.items import item_rows
from ray_app.swing.spool import ITEM_COLUMNS, USER_COLUMNS, Spool
from ray_app.swing.standalone import DEFAULTS, SEED, Events
from ray_app.swing.table import Rows
from ray_app.swing.users import user_rows


def main() -> None:
    text = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser("bench.swing_ray", description=__doc__, formatter_class=text)
    arguments.add_argument("--data", choices=["ml100k", *SIZES], default="A")
    arguments.add_argument("--users", action="store_true", help="items and similar users")
    arguments.add_argument("--cpus", type=int, default=2)
    arguments.add_argument("--job", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.job:
        job(options.job, options.users, options.cpus)
        return
    with tempfile.TemporaryDirectory() as folder:
        users, items = movielens() if options.data == "ml100k" else zipf(*SIZES[options.data], seed=7)
        file, tiny = f"{folder}/rows.npz", f"{folder}/tiny.npz"
        np.savez(file, users=users, items=items)
        np.savez(tiny, users=np.array([1, 1, 2, 2, 3]), items=np.array([1, 2, 1, 2, 1]))
        prepared, kernel = alone(one_process, file, options.users)
        words = [sys.executable, "-m", "bench.swing_ray", "--cpus", str(options.cpus)]
        words += ["--users"] * options.users
        fixed, _, _ = tree([*words, "--job", tiny])
        whole, own, resident = tree([*words, "--job", file])
        tasks = sum(float(spent.read_text()) for spent in Path(folder).glob("rows.npz.*"))
    marginal, both = whole - fixed, kernel + prepared
    print(
        f"{options.data}{' with users' if options.users else ''}, CPU s: kernel {kernel:.1f}, preparation "
        f"{prepared:.1f}; job {whole:.1f}, of which fixed {fixed:.1f} and in tasks {tasks:.1f}\n"
        f"job without its fixed part: {marginal / kernel:.3f} x kernel, "
        f"{marginal / both:.3f} x kernel and preparation, {marginal / tasks:.3f} x in tasks, "
        f"{marginal / (tasks + prepared):.3f} x in tasks and preparation\n"
        f"peak of a worker: {own:,.0f} MB of its own, {resident:,.0f} MB with the shared arrays"
    )


def one_process(file: str, with_users: bool) -> tuple[float, float]:
    """CPU seconds of preparation and of the kernels (loaded before)."""
    started = time.process_time()
    events = _events(file)
    graph = events.graph(DEFAULTS)
    index = events.index(DEFAULTS, SEED) if with_users else None
    prepared = time.process_time() - started
    none = np.empty(0, np.int32)
    item_rows(graph, none, DEFAULTS, seed=SEED)
    if index:
        user_rows(index, none)
    started = time.process_time()
    item_rows(graph, np.arange(graph.n_items, dtype=np.int32), DEFAULTS, seed=SEED)
    if index:
        user_rows(index, np.arange(index.n_users, dtype=np.int32))
    return prepared, time.process_time() - started


def job(file: str, with_users: bool, cpus: int) -> None:
    """What the stand-alone command does, from arrays."""
    from pipelines.common import start_ray
    from pipelines.neighbours import parts, stream

    events = _events(file)
    graph = events.graph(DEFAULTS)
    start_ray(Config(ray=RayConfig(num_cpus=cpus, object_store_mb=512 + len(events.users) * 64 // 2**20)))
    with tempfile.TemporaryDirectory() as folder:
        near = Spool(graph.n_items)
        tasks = graph.split(parts(graph.n_items), DEFAULTS.max_users_per_item)
        stream(near, timed(partial(item_rows, config=DEFAULTS, seed=SEED), file), graph, tasks)
        near.write_parquet(f"{folder}/items.parquet", events.item_ids, ITEM_COLUMNS)
        if with_users:
            index = events.index(DEFAULTS, SEED)
            alike = Spool(index.n_users)
            stream(alike, timed(user_rows, file), index, index.split(parts(index.n_users)))
            alike.write_parquet(f"{folder}/users.parquet", events.user_ids, USER_COLUMNS)


def timed(compute: Callable[..., Rows], file: str) -> Callable[..., Rows]:
    """The same, leaving the CPU seconds of every call in a file."""

    def run(index: Any, rows: np.ndarray) -> Rows:
        started = time.process_time()
        found = compute(index, rows)
        Path(f"{file}.{uuid.uuid4().hex}").write_text(str(time.process_time() - started))
        return found

    return run


def tree(command: list[str]) -> tuple[float, float, float]:
    """Run a command: CPU seconds of it and all that it starts; peak MB of a Ray worker, without and with
    the memory that it shares."""
    spent, own, resident = {}, 0.0, 0.0
    process = subprocess.Popen(command)
    top = psutil.Process(process.pid)
    while process.poll() is None:
        for one in [top, *_children(top)]:
            try:
                times, memory, words = one.cpu_times(), one.memory_info(), one.cmdline()
                spent[one.pid, one.create_time()] = times.user + times.system
            except psutil.Error:
                continue
            if words and words[0].startswith("ray::MapBatches"):
                own = max(own, (memory.rss - memory.shared) / 2**20)
                resident = max(resident, memory.rss / 2**20)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}")
    return sum(spent.values()), own, resident


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _events(file: str) -> Events:
    with np.load(file) as arrays:
        return Events.of(arrays["users"], arrays["items"])


if __name__ == "__main__":
    main()
