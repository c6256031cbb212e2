"""What a hop between two deployments costs: the floor under the graph's overhead.

    python -m bench.hop [--calls 300]

One deployment asks another, which answers with what it was given and does nothing else, through a handle as
the agents do it. Prints the time of a call by the size of its argument.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SIZES = (100, 20_000, 200_000)
"""Bytes that go there and back."""
WARM_UP = 30
"""Calls that do not count."""


class Echo:
    async def __call__(self, given: bytes) -> bytes:
        return given


class Asker:
    def __init__(self, echo: Any):
        self.echo = echo

    async def __call__(self, calls: int, size: int) -> list[float]:
        """Milliseconds of each call."""
        given, found = bytes(size), []
        for _ in range(calls + WARM_UP):
            began = time.perf_counter()
            await self.echo.remote(given)
            found.append(1000 * (time.perf_counter() - began))
        return found[WARM_UP:]


async def asked(asker: Any, calls: int) -> dict[int, list[float]]:
    return {size: await asker.remote(calls, size) for size in SIZES}


def main() -> None:
    import ray
    from ray import serve

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--calls", type=int, default=300)
    calls = arguments.parse_args().calls
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        asker: Any = serve.run(
            serve.deployment(Asker).bind(serve.deployment(Echo).bind()), name="hop", route_prefix=None
        )
        table = Table("bytes", "p50 ms", "p95 ms", title=f"A hop, {calls} calls")
        for size, found in asyncio.run(asked(asker, calls)).items():
            table.add_row(f"{size:,}", *(f"{np.percentile(found, q):.1f}" for q in (50, 95)))
        Console().print(table)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
