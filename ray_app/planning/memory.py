"""What one GPU must hold, whether it does, and what would.

An engine (vLLM) needs its weights, the activations of one full batch, its own overhead, and room for the
keys and values of at least one sequence of `max_model_len`. A training worker needs weights (shared out
under ZeRO-3), gradients and optimizer state of what it trains (shared out from ZeRO-2), DeepSpeed's
buffers, and what a batch leaves for the backward pass, which dominates: there is no checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_app.config import Config, EngineConfig
from ray_app.planning.constants import value
from ray_app.planning.hardware import GPUS, Gpu
from ray_app.planning.models import BYTES, Architecture
from ray_app.planning.work import tokens_of


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    of: str
    """Config key of what runs there."""
    gpu: Gpu
    parts: dict[str, float]
    limit: float
    cache: float = 0.0
    """Bytes left for keys and values, of an engine."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def engine_memory(key: str, shape: Architecture, engine: EngineConfig, gpu: Gpu) -> Memory:
    """An engine on each of its `tensor_parallel` GPUs."""
    ways, batch = engine.tensor_parallel, value("engine_tokens")
    activations = 2 * batch * (3 * shape.hidden + 3 * shape.inner / ways)
    choices = 8 * value("engine_batch") * shape.vocab / ways
    fixed = {
        "weights": shape.weight_bytes(engine.dtype, engine.quantization) / ways,
        "activations": activations + choices,
        "engine": value("engine_bytes"),
    }
    limit = gpu.memory * engine.memory_fraction
    one = engine.max_model_len * shape.kv_bytes(engine.dtype) / ways
    return Memory(key, gpu, fixed | {"one sequence": one}, limit, max(0.0, limit - sum(fixed.values())))


def train_memory(config: Config, shape: Architecture, gpu: Gpu, deepspeed: dict[str, Any]) -> Memory:
    """A training worker; `deepspeed` is the content of its settings file."""
    zero = deepspeed.get("zero_optimization", {})
    stage, workers = zero.get("stage", 0), config.train.workers
    width = BYTES[config.student.dtype]
    trained = shape.lora_parameters(config.student.lora) if config.student.base else shape.parameters
    # gradient, and in float32 master copy and AdamW's two moments
    state = trained * (width + (12 if width == 2 else 8))
    buffers = value("bucket") * width * (2 if zero.get("overlap_comm", stage == 3) else 1)
    if stage == 3:
        buffers += min(value("live"), shape.parameters) * width
    batch = config.train.batch_tokens
    tokens = tokens_of(config)
    text = batch * tokens.reason / tokens.reasoned
    parts = {
        "weights": shape.weight_bytes(config.student.dtype) / (workers if stage == 3 else 1),
        "optimizer": state / (workers if stage >= 2 else 1),
        "buffers": (buffers if stage >= 2 else 0) + value("train_bytes"),
        "activations": batch * shape.saved_bytes(config.student.dtype),
        # of a batch of reasoning rows: 16 or 32 bit from the model, then float32 and its gradient
        "logits": text * shape.vocab * (width + 8),
    }
    return Memory("train", gpu, parts, gpu.memory)


def engine_remedies(key: str, shape: Architecture, engine: EngineConfig, gpu: Gpu) -> Iterator[str]:
    """Single changes to an engine that does not fit, each of which would make it fit."""
    for ways in (2, 4, 8):
        more = engine.model_copy(update={"tensor_parallel": ways})
        even = shape.heads % ways == 0 and shape.kv_heads % ways == 0
        if even and ways > engine.tensor_parallel and engine_memory(key, shape, more, gpu).fits:
            yield f"{key}.tensor_parallel {ways} ({ways} GPUs per replica)"
            break
    if engine.quantization is None:
        less = engine.model_copy(update={"quantization": "awq_marlin"})
        if engine_memory(key, shape, less, gpu).fits:
            yield f"a 4-bit checkpoint with {key}.quantization awq_marlin"
    other = next((name for name in GPUS if engine_memory(key, shape, engine, GPUS[name]).fits), None)
    if other:
        yield f"--gpu {other}"


def train_remedies(config: Config, shape: Architecture, gpu: Gpu, deepspeed: dict[str, Any]) -> Iterator[str]:
    """Single changes to training that does not fit, each of which would make it fit."""

    def fits(on: Gpu = gpu, zero: dict[str, Any] = deepspeed, **update: Any) -> bool:
        changed = config.model_copy(update={"train": config.train.model_copy(update=update)})
        return train_memory(changed, shape, on, zero).fits

    batch = config.train.batch_tokens
    while batch > config.student.max_length and not fits(batch_tokens=batch):
        batch //= 2
    if fits(batch_tokens=batch):
        yield f"train.batch_tokens {batch}"
    stage3 = {"zero_optimization": {"stage": 3}}
    wanted = next(
        (n for n in (2, 4, 8, 16) if n >= config.train.workers and fits(zero=stage3, workers=n)), None
    )
    if wanted and not fits(batch_tokens=batch):
        yield f"ZeRO-3 with train.workers {wanted}"
    if other := next((name for name in GPUS if fits(on=GPUS[name])), None):
        yield f"--gpu {other}"
