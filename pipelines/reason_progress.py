"""How far the teacher is: rows, rate and time left, and every engine that was lost on the way."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_app.logs import tell

EVERY_S = 5.0


class Counts:
    """Rows, failed and accepted ones. What a worker told of a shard before it was lost is taken back when
    another begins that shard anew, so that no row counts twice."""

    def __init__(self) -> None:
        self._done = np.zeros(3, int)
        self._now: dict[int, np.ndarray] = {}
        self._losses: list[str] = []

    def begins(self, shard: int, again: int) -> None:
        """A shard is begun; `again`: its rows that failed before, if they are tried again."""
        self._now[shard] = np.array([-again, -again, 0])

    def add(self, shard: int, rows: int, failed: int, accepted: int) -> None:
        self._now[shard] += [rows, failed, accepted]

    def ends(self, shard: int) -> None:
        self._done += self._now.pop(shard)

    def lost(self, what: str) -> None:
        self._losses.append(what)

    def get(self) -> tuple[int, int, int, list[str]]:
        """Rows so far, and the losses since the last call."""
        losses, self._losses = self._losses, []
        rows, failed, accepted = (self._done + sum(self._now.values())).tolist()
        return rows, failed, accepted, losses


class Tally:
    """Counts rows over all workers."""

    @staticmethod
    def here() -> Any:
        """An actor on the driver's own node, so that it outlives every other node."""
        node = ray.get_runtime_context().get_node_id()
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        pinned: Any = ray.remote(num_cpus=0)(Counts).options(scheduling_strategy=place)
        return pinned.remote()


class Progress:
    """Tells rows done, rate and time left every few seconds while rows come, and losses at once."""

    def __init__(self, tally: Any, total: int, name: str):
        self._tally, self._total, self._name = tally, total, name
        self._told = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._begin = self._last = time.monotonic()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._tell()

    def _tell(self) -> None:
        rows, failed, accepted, losses = ray.get(self._tally.get.remote())
        for loss in losses:
            tell(f"{self._name}: {loss}", event="engine lost")
        now = time.monotonic()
        if rows != self._told:
            self._told, self._last = rows, now
        elif now - self._last < 12 * EVERY_S:
            return
        rate = rows / (now - self._begin)
        left = f"{max(0, self._total - rows) / rate:.0f} s left" if rows else "starting"
        idle = f", none for {now - self._last:.0f} s" if now - self._last > 4 * EVERY_S else ""
        tell(
            f"{self._name}: {rows}/{self._total} rows, {accepted} accepted, {failed} failed, "
            f"{rate:.1f} rows/s, {left}{idle}",
            event="progress",
            rows=rows,
            of=self._total,
            accepted=accepted,
            failed=failed,
            rows_per_s=round(rate, 2),
        )
