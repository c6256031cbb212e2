"""How many replicas of Reasoning the work asks for: a policy of our own for Serve's autoscaler.

Ray Serve asks it every `metrics_interval_s`, and keeps to the limits and delays of the deployment itself.
It is sent to Serve's controller by value, which has not this project's code: it may call nothing of ours.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext


def queued_work(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """(replicas wanted, state: none).

    One for every `target_ongoing_requests` of the requests at work and waiting. As long as any wait for a
    replica to take them there is one more than now, however the sum looks: a queue is time that the deadline
    of a request does not come back from. And none is taken away before the queue is empty.
    """
    now, limits = context.current_num_replicas, context.config
    assert limits is not None, "an autoscaled deployment has its limits"
    wanted = math.ceil(context.total_num_requests / limits.get_target_ongoing_requests())
    if context.total_queued_requests > 0:
        wanted = max(wanted, now + 1)
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(wanted, low), high), {}
