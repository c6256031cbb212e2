"""Speed of the service from measured samples. Load is open-loop: requests arrive at a rate, whether or
not earlier ones were answered, so that a slow service cannot hide its queue."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ray_app.errors import DataError


def latency(milliseconds: ArrayLike) -> dict[str, float]:
    """Percentiles `p50`, `p95`, `p99` and `max` of request latencies, each from its *due* arrival time.

    Percentiles interpolate linearly; `samples` says how many there were. Raises DataError for none.
    """
    samples = np.asarray(milliseconds, dtype=np.float64)
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all() or samples.min() < 0:
        raise DataError(f"latencies must be a row of finite times >= 0, got {samples!r:.80}")
    p50, p95, p99 = np.percentile(samples, [50, 95, 99])
    return {
        "samples": len(samples),
        "p50": float(p50),
        "p95": float(p95),
        "p99": float(p99),
        "max": float(samples.max()),
    }


def throughput(arrivals: ArrayLike, latencies_ms: ArrayLike) -> float:
    """Answers per second, from the first arrival to the last answer. `arrivals` are seconds, any origin."""
    start, spent = np.asarray(arrivals, np.float64), np.asarray(latencies_ms, np.float64) / 1000
    if start.shape != spent.shape or not len(start):
        raise DataError(f"{len(start)} arrivals for {len(spent)} latencies: give one each, at least one")
    elapsed = float((start + spent).max() - start.min())
    return len(start) / elapsed if elapsed > 0 else float("inf")
