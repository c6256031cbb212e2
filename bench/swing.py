"""Speed of Swing, side by side in one run: our kernels, cosine, Flink ML's algorithm, plain Python.

    python -m bench.swing [--large] [--only ml100k|A|B] [--seed 7] [--json FILE]

| data | users x items x interactions | limits |
|---|---|---|
| ml100k | MovieLens-100K, 943 x 1,682 x 100,000 | none: exact |
| A | generated, 100k x 20k x 4.7 M | at most 1000 users per item |
| B (--large) | generated, 1 M x 100k x 19 M | at most 1000 users per item |

Each contender runs alone in a process of its own, on one thread, after a warm-up on one item that
compiles or loads its kernel. Times are of the computation from prepared arrays to top-100 rows, the least
of up to 5 runs within 5 s; CPU seconds are the measure, since the wall clock depends on what else runs.
Memory is the peak during the computation, the process and its input included. Slow contenders compute a
sample of the items, evenly spread over popularity; their times are scaled by the cost of all items over
that of the sample.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from bench import swing_reference
from bench.zipf import zipf
from ray_app.config import DataConfig, SwingConfig
from ray_app.data import sources
from ray_app.swing import items as swing
from ray_app.swing.items import ItemGraph, balance, read_only

SIZES = {"A": (100_000, 20_000, 5_000_000), "B": (1_000_000, 100_000, 20_000_000)}
LIMITS: dict[str, dict[str, Any]] = {
    "ml100k": {"max_users_per_item": 1 << 30, "max_behavior": 1 << 30},
    "A": {"max_users_per_item": 1000, "max_behavior": 1000},
    "B": {"max_users_per_item": 1000, "max_behavior": 1000},
}
COSINE = "implicit, cosine"
CONTENDERS = {
    "swing, auto": "ml100k A B",
    "swing, item-centric": "ml100k A B",
    "swing, user-centric": "ml100k",
    COSINE: "ml100k A B",
    "Flink ML's merge per pair": "ml100k A B",
    "Python sets": "ml100k A",
}
SAMPLES = {
    "Flink ML's merge per pair": {"ml100k": 8, "A": 100, "B": 1000},
    "Python sets": {"ml100k": 40, "A": 5000},
}
"""Every how many-th item a slow contender computes."""
TASKS = 64


def main() -> None:
    text = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser("bench.swing", description=__doc__, formatter_class=text)
    arguments.add_argument("--large", action="store_true", help="also data B")
    arguments.add_argument("--only", choices=list(LIMITS))
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = arguments.parse_args()
    console, report = Console(width=120), {}
    if importlib.util.find_spec("implicit") is None:
        console.print(
            "implicit is not installed, so no cosine: pip install --no-deps -r requirements/bench.txt"
        )
    names = [options.only] if options.only else ["ml100k", "A", *(["B"] if options.large else [])]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            users, items = movielens() if name == "ml100k" else zipf(*SIZES[name], options.seed)
            file = Path(folder) / f"{name}.npz"
            np.savez(file, users=users, items=items)
            report[name] = compare(console, name, str(file))
        if "A" in names:
            report["growth"] = growth(console, Path(folder), options.seed, report["A"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def compare(console: Console, name: str, file: str) -> dict[str, Any]:
    facts = alone(_describe, file, name)
    rows = {}
    for contender, where in CONTENDERS.items():
        same_as_auto = contender == f"swing, {facts['kernel']}"
        installed = contender != COSINE or importlib.util.find_spec("implicit")
        if name in where.split() and installed and not same_as_auto:
            rows[contender] = alone(_measure, file, name, contender)
    ours, cosine = rows["swing, auto"], rows.get(COSINE)
    table = Table(title=f"{name}: {facts['users']:,} users x {facts['items']:,} items x {facts['pairs']:,}")
    for column in ("", "CPU s", "wall s", "peak MB", "updates/s", "x ours", "x cosine", "items"):
        table.add_column(column, justify="left" if not column else "right")
    for contender, row in rows.items():
        label = f"swing ({facts['kernel']}, by the rule)" if row is ours else contender
        table.add_row(
            label,
            f"{row['cpu']:.3g}",
            f"{row['wall']:.3g}",
            f"{row['peak_mb']:,.0f}",
            "-" if contender == COSINE else f"{facts['updates'] / row['cpu'] / 1e6:,.1f} M",
            f"{row['cpu'] / ours['cpu']:.2f}",
            f"{row['cpu'] / cosine['cpu']:.2f}" if cosine else "-",
            "all" if row["every"] == 1 else f"1 in {row['every']}, scaled",
        )
    console.print(table)
    console.print(
        f"{facts['updates']:,} score updates. Costliest of about {TASKS} tasks over the mean, in steps: "
        f"{facts['imbalance']:.2f}; without a cap on users {facts['imbalance_uncapped']:.2f} (with whole "
        f"rows only, item-centric: {facts['imbalance_whole']:.2f}).\n"
    )
    return {**facts, "contenders": rows}


def growth(console: Console, folder: Path, seed: int, whole: dict[str, Any]) -> list[dict[str, float]]:
    """Time and steps of the item-centric kernel on a quarter, a half and all of A's users."""
    rows = []
    table = Table(title="A at three sizes, item-centric")
    for column in ("users", "interactions", "steps", "CPU s", "ns a step"):
        table.add_column(column, justify="right")
    for n in (25_000, 50_000):
        users, items = zipf(n, 20_000, 50 * n, seed)
        file = folder / "growth.npz"
        np.savez(file, users=users, items=items)
        facts = alone(_describe, str(file), "A")
        cpu = alone(_measure, str(file), "A", "swing, item-centric")["cpu"]
        rows.append({**{name: facts[name] for name in ("users", "pairs", "steps")}, "cpu": cpu})
    cpu = whole["contenders"]["swing, auto"]["cpu"]
    rows.append({**{name: whole[name] for name in ("users", "pairs", "steps")}, "cpu": cpu})
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("users", "pairs", "steps"))
        table.add_row(*counts, f"{row['cpu']:.2f}", f"{row['cpu'] / row['steps'] * 1e9:.2f}")
    console.print(table)
    return rows


def alone(function: Any, *arguments: Any) -> Any:
    """What the function returns, called in a new process."""
    os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def movielens() -> tuple[np.ndarray, np.ndarray]:
    frame = sources.read(DataConfig()).interactions
    user, item = (frame[name].cast(pl.Int32).to_numpy() - 1 for name in ("user_id", "item_id"))
    return user, item


def _load(file: str, name: str) -> tuple[ItemGraph, SwingConfig]:
    config = SwingConfig(min_behavior=1, k=100, normalize="none", **LIMITS[name])
    with np.load(file) as arrays:
        users, items = arrays["users"], arrays["items"]
    return ItemGraph.build(users, items, int(users.max()) + 1, int(items.max()) + 1, config), config


def _describe(file: str, name: str) -> dict[str, Any]:
    graph, config = _load(file, name)
    users = int(np.count_nonzero(np.diff(graph.user_ptr)))
    updates, steps = _counted(graph, config.max_users_per_item)
    _, uncapped = _counted(graph, 1 << 30)
    return {
        "users": users,
        "items": int(np.count_nonzero(np.diff(graph.item_ptr))),
        "pairs": len(graph.user_items),
        "kernel": "user-centric" if graph.user_centric(config.max_users_per_item) else "item-centric",
        "updates": int(updates.sum()),
        "steps": int(steps.sum()),
        "imbalance": _imbalance(graph, steps, config.max_users_per_item),
        "imbalance_uncapped": _imbalance(graph, uncapped, 1 << 30),
        "imbalance_whole": _worst([uncapped[task].sum() for task in balance(graph.costs(1 << 30), TASKS)]),
    }


def _counted(graph: ItemGraph, cap: int) -> np.ndarray:
    return swing_reference.count_updates(*graph.csr, read_only(graph.item_ids), cap, 7)


def _imbalance(graph: ItemGraph, steps: np.ndarray, cap: int) -> float:
    """Costliest task over the mean as dealt out on Ray, from the steps int64[n_items] of whole rows."""
    loads = [steps[task].sum() for task in graph.split(TASKS, cap)]
    loads += [sum(steps[rank] / n for rank, _, n in task) for task in graph.split_shares(TASKS, cap)]
    return _worst(loads)


def _worst(loads: list[float]) -> float:
    return float(np.max(loads) / np.mean(loads))


def _measure(file: str, name: str, contender: str) -> dict[str, float]:
    graph, config = _load(file, name)
    every = SAMPLES.get(contender, {}).get(name, 1)
    ranks = np.arange(0, graph.n_items, every, dtype=np.int32)
    if contender == COSINE:
        import scipy.sparse as sp
        from implicit.nearest_neighbours import CosineRecommender  # pyright: ignore[reportMissingImports]

        def run(_: np.ndarray) -> None:
            CosineRecommender(K=config.k, num_threads=1).fit(matrix, show_progress=False)

        shape = (len(graph.user_ptr) - 1, graph.n_items)
        ones = np.ones(len(graph.user_items))
        matrix = sp.csr_matrix((ones, graph.user_items, graph.user_ptr), shape=shape)
        warm = matrix
        matrix = warm[:2]
        run(ranks)
        matrix = warm
    else:
        run = {
            "swing, auto": lambda ranks: swing.item_rows(graph, ranks, config, seed=7),
            "swing, item-centric": lambda ranks: swing.item_centric_rows(graph, ranks, config, seed=7),
            "swing, user-centric": lambda _: swing.user_centric_rows(graph, config),
            "Flink ML's merge per pair": lambda ranks: swing_reference.merge_rows(graph, ranks, config, 7),
            "Python sets": lambda ranks: swing_reference.python_rows(graph, ranks, config, 7),
        }[contender]
        run(ranks if name == "ml100k" and every == 1 else ranks[-1:])
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    runs = []
    while len(runs) < 5 and sum(cpu for cpu, _ in runs) < 5:
        cpu, wall = time.process_time(), time.perf_counter()
        run(ranks)
        runs.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = min(runs)
    costs = graph.costs(config.max_users_per_item).astype(float)
    scale = costs.sum() / costs[ranks].sum()
    return {"cpu": cpu * scale, "wall": wall * scale, "peak_mb": _peak() / 2**20, "every": every}


def _peak() -> float:
    """Peak of the resident memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
