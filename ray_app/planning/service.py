"""Replicas of the Reasoning agent for a rate of requests, and how long one request takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ray_app.config import Config
from ray_app.planning.constants import value
from ray_app.planning.hardware import Gpu
from ray_app.planning.memory import engine_memory
from ray_app.planning.stages import Engine, on_gpu
from ray_app.planning.work import Size, student_shape, tokens_of


@dataclass(frozen=True)
class Service:
    requests_per_s: float
    read_tokens: float
    """Per request, behind the prefix cache."""
    written_tokens: float
    busy_s: float
    """Seconds of one replica that a request costs, beside others in its batch."""
    alone_s: float
    """Seconds a request takes with the replica to itself."""
    replicas: int
    gpus: float
    host_bytes: float
    """Of a replica with the bundle open."""


def plan_service(config: Config, size: Size, requests_per_s: float, gpu: Gpu | None) -> Service:
    """Per request: one shared prefix, `serve.candidates` targets behind it, reasons for the items shown,
    and a second look at the doubted ones."""
    serve, tokens = config.serve, tokens_of(config)
    shown, adapters = value("target_k"), value("adapters")
    looks = shown * value("doubted") * serve.reflection_rounds
    prompts = adapters * serve.candidates + 2 * looks
    read = adapters * (tokens.decide - tokens.target + serve.candidates * tokens.target)
    read += 2 * looks * tokens.decide + shown * tokens.explain
    written = shown * min(tokens.reason, serve.reasoning_tokens)
    if gpu and on_gpu(serve.engine):
        shape = student_shape(config)
        engine = Engine(shape, serve.engine, gpu)
        cache = engine_memory("serve.engine", shape, serve.engine, gpu).cache
        reading = engine.read_s(read, tokens.decide)
        busy = reading + engine.write_s(written, tokens.reasoned, cache)
        alone = reading + written / shown * engine.step_s(tokens.reasoned, round(shown))
        per_replica = serve.reasoning_gpus or serve.engine.tensor_parallel
    else:
        busy = prompts * value("score_cpu") + written * value("write_cpu")
        alone, per_replica = busy, 0.0
    replicas = max(1, math.ceil(requests_per_s * busy / value("utilisation")))
    host = 2 * value("process_bytes") + size.interactions * value("history_bytes")
    return Service(requests_per_s, read, written, busy, alone, replicas, replicas * per_replica, host)
