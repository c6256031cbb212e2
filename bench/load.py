"""Open-loop load on the service: requests leave when they are due, whether or not others were answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

PATIENCE_S = 5.0
"""A request that takes so much longer than the deadline hangs."""


@dataclass(frozen=True)
class Sample:
    """One request."""

    due: float
    """Seconds since the load began."""
    ms: float
    """From when it was due until it was answered."""
    status: int
    """0: no answer at all, the connection broke; -1: none in time, it hung."""
    degraded: bool = False
    retry_after: bool = False
    timings: dict[str, float] | None = None


async def load(
    base: str,
    rate: float,
    seconds: float,
    body: Callable[[int], dict[str, Any]],
    deadline_s: float,
    faults: dict[float, Callable[[], Any]] | None = None,
) -> list[Sample]:
    """Ask for recommendations `rate` times a second; `faults` are called so many seconds after the begin."""
    began = time.monotonic()
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=200)
    async with httpx.AsyncClient(
        base_url=base, timeout=deadline_s + PATIENCE_S, limits=limits, trust_env=False
    ) as client:

        async def ask(number: int) -> Sample:
            due = number / rate
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            try:
                answer = await client.post("/v1/recommendations", json=body(number))
            except httpx.TimeoutException:
                return Sample(due, _since(began, due), -1)
            except httpx.TransportError:
                return Sample(due, _since(began, due), 0)
            ms, found = _since(began, due), answer.json() if answer.status_code == 200 else {}
            return Sample(
                due,
                ms,
                answer.status_code,
                found.get("degraded", False),
                "retry-after" in answer.headers,
                found.get("timings_ms"),
            )

        async def break_something(after: float, fault: Callable[[], Any]) -> None:
            await asyncio.sleep(after)
            await asyncio.to_thread(fault)

        broken = [asyncio.create_task(break_something(*one)) for one in (faults or {}).items()]
        samples = await asyncio.gather(*(ask(number) for number in range(int(rate * seconds))))
        await asyncio.gather(*broken)
    return samples


def _since(began: float, due: float) -> float:
    return 1000 * (time.monotonic() - began - due)
