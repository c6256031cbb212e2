"""Seconds, memory and bytes of each stage, from its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_app.config import Config, EngineConfig
from ray_app.errors import ConfigError
from ray_app.planning.constants import value
from ray_app.planning.hardware import Gpu
from ray_app.planning.memory import Memory, engine_memory, engine_remedies, train_memory, train_remedies
from ray_app.planning.models import Architecture, architecture_of
from ray_app.planning.work import Size, Work, snapshot_shares, student_shape, work_of


@dataclass(frozen=True)
class Stage:
    name: str
    wall_s: float
    cpu_s: float = 0.0
    gpus: int = 0
    gpu_hours: float = 0.0
    host_bytes: float = 0.0
    """All its processes on one node."""
    disk_bytes: float = 0.0


@dataclass(frozen=True)
class Pipeline:
    """The plan of a run: work, stages in order, and memory of everything that uses a GPU."""

    size: Size
    work: Work
    cores: int
    gpu: Gpu | None
    stages: list[Stage]
    memory: list[Memory] = field(default_factory=list)

    def total(self, name: str) -> float:
        return sum(getattr(stage, name) for stage in self.stages)


@dataclass(frozen=True)
class Engine:
    """A model on `tensor_parallel` GPUs: how fast it reads and writes."""

    shape: Architecture
    config: EngineConfig
    gpu: Gpu

    @property
    def _ways(self) -> float:
        """Speed-up of tensor parallelism."""
        ways, doublings = self.config.tensor_parallel, self.config.tensor_parallel.bit_length() - 1
        return ways * value("tensor_parallel") ** doublings

    def read_s(self, tokens: float, context: float) -> float:
        """Prefill, bound by arithmetic."""
        rate = self.gpu.teraflops * 1e12 * value("mfu_prefill") * self._ways
        return tokens * self.shape.flops(context / 2) / rate

    def batch(self, context: float, cache: float) -> int:
        """Sequences that run at once: as many as the cache holds, at most vLLM's limit."""
        one = context * self.shape.kv_bytes(self.config.dtype) / self.config.tensor_parallel
        return max(1, min(int(value("engine_batch")), int(cache / one)))

    def step_s(self, context: float, batch: int) -> float:
        """One token for each sequence of a batch: bound by reading weights and cache, or by arithmetic."""
        weights = self.shape.weight_bytes(self.config.dtype, self.config.quantization)
        moved = weights + batch * context * self.shape.kv_bytes(self.config.dtype)
        reading = moved / (self.gpu.gigabytes_per_s * 1e9 * value("bandwidth") * self._ways)
        rate = self.gpu.teraflops * 1e12 * value("mfu_prefill") * self._ways
        return max(reading, batch * self.shape.flops(context) / rate)

    def write_s(self, tokens: float, context: float, cache: float) -> float:
        batch = self.batch(context, cache)
        return tokens / batch * self.step_s(context, batch)


def on_gpu(engine: EngineConfig) -> bool:
    """Whether an engine runs on a GPU: one on a CPU names the size of its cache."""
    return engine.kind == "vllm" and engine.kv_cache_mb is None


def uses_gpu(config: Config) -> bool:
    engines = (config.reason.engine, config.evaluate.engine, config.serve.engine)
    return config.train.use_gpu or any(on_gpu(engine) for engine in engines)


def engine_shape(config: Config, engine: EngineConfig) -> Architecture:
    return student_shape(config) if engine.model == "bundle" else architecture_of(engine.model)


def plan_pipeline(
    config: Config, size: Size, cores: int, gpu: Gpu | None, deepspeed: dict[str, Any]
) -> Pipeline:
    """The plan of a run on `cores` CPU cores and, where the config asks for them, GPUs of one kind.

    Raises ConfigError, naming every part that cannot fit and what would.
    """
    if uses_gpu(config) != (gpu is not None):
        kind = "uses GPUs: name one with --gpu" if gpu is None else "uses no GPU: drop --gpu"
        raise ConfigError(f"config {config.name} {kind}")
    memory = list(memories(config, gpu, deepspeed)) if gpu else []
    if refusals := [refusal(config, one, deepspeed) for one in memory if not one.fits]:
        raise ConfigError("; ".join(refusals))
    work = work_of(config, size)
    of = {one.of: one for one in memory}
    stages = [
        *data_stages(config, size, work, cores),
        reason_stage(config, work, cores, of.get("reason.engine")),
        mix_stage(config, size, work, cores),
        train_stage(config, work, cores, gpu),
        reflect_stage(config, size, of.get("evaluate.engine")),
        evaluate_stage(config, work, cores, of.get("evaluate.engine")),
        publish_stage(config, size),
    ]
    return Pipeline(size, work, cores, gpu, stages, memory)


def memories(config: Config, gpu: Gpu, deepspeed: dict[str, Any]) -> Iterator[Memory]:
    for key in ("reason", "evaluate", "serve"):
        engine = getattr(config, key).engine
        if on_gpu(engine):
            yield engine_memory(f"{key}.engine", engine_shape(config, engine), engine, gpu)
    if config.train.use_gpu:
        yield train_memory(config, student_shape(config), gpu, deepspeed)


def refusal(config: Config, memory: Memory, deepspeed: dict[str, Any]) -> str:
    """One line: what does not fit, by how much, and what would."""
    if memory.of == "train":
        what = f"training {config.student.base or 'the bootstrapped student'}"
        remedies = train_remedies(config, student_shape(config), memory.gpu, deepspeed)
    else:
        engine = getattr(config, memory.of.partition(".")[0]).engine
        what = f"{memory.of} ({engine.model}, {engine.quantization or engine.dtype})"
        remedies = engine_remedies(memory.of, engine_shape(config, engine), engine, memory.gpu)
    largest = max(memory.parts, key=lambda name: memory.parts[name])
    return (
        f"{what} needs {memory.total / 1e9:.1f} GB per GPU ({largest} {memory.parts[largest] / 1e9:.1f}) "
        f"and {memory.gpu.name} offers {memory.limit / 1e9:.1f}: "
        f"would fit: {' or '.join(remedies) or 'a smaller model'}"
    )


def session_bytes() -> float:
    """A stage's own process and what Ray runs beside it until the session ends."""
    return value("process_bytes") + value("workers_bytes")


def pair_bytes(config: Config, size: Size) -> float:
    return size.items * min(config.swing.k, size.items) * value("pair_bytes")


def data_stages(config: Config, size: Size, work: Work, cores: int) -> Iterator[Stage]:
    rows, base, session = size.interactions, value("process_bytes"), value("session")
    workers = value("workers_bytes")
    prepare = rows * value("prepare_row")
    yield Stage(
        "prepare",
        prepare,
        prepare,
        host_bytes=base + rows * value("frame_bytes"),
        disk_bytes=rows * value("prepare_bytes"),
    )
    swing = work.swing_steps * value("swing_step")
    pairs = pair_bytes(config, size)
    snapshots = sum(share * rows * value("graph_bytes") + pairs for share in snapshot_shares(config))
    yield Stage(
        "swing",
        2 * session + swing / min(cores, 64),
        swing + 2 * session,
        host_bytes=base + workers + rows * (value("graph_bytes") + value("frame_bytes")) + pairs,
        disk_bytes=snapshots,
    )
    encode = rows * value("encode_row")
    yield Stage(
        "encode",
        encode,
        encode,
        host_bytes=base + workers + rows * (value("vector_bytes") + value("frame_bytes")),
        disk_bytes=rows * value("vector_bytes"),
    )


def reason_stage(config: Config, work: Work, cores: int, memory: Memory | None) -> Stage:
    engine, host = config.reason.engine, session_bytes()
    disk = work.traces * value("trace_bytes")
    cpu = work.traces * value("trace_cpu") + value("session")
    if memory is None:
        return Stage("reason", value("session") + cpu / cores, cpu, host_bytes=host, disk_bytes=disk)
    teacher, tokens = Engine(engine_shape(config, engine), engine, memory.gpu), work.tokens
    context = tokens.teacher_prompt + tokens.teacher_answer / 2
    seconds = teacher.read_s(work.traces * tokens.teacher_prompt, tokens.teacher_prompt)
    seconds += teacher.write_s(work.traces * tokens.teacher_answer, context, memory.cache)
    wall = value("engine_start") + seconds / engine.replicas
    gpus = engine.replicas * engine.tensor_parallel
    return Stage("reason", wall, cpu, gpus, wall * gpus / 3600, host, disk)


def mix_stage(config: Config, size: Size, work: Work, cores: int) -> Stage:
    cpu = work.contexts * value("context")
    return Stage(
        "mix",
        value("session") + cpu / cores,
        cpu + value("session"),
        host_bytes=session_bytes() + size.interactions * (value("frame_bytes") + value("graph_bytes")),
        disk_bytes=work.sequences * value("example_bytes"),
    )


def train_stage(config: Config, work: Work, cores: int, gpu: Gpu | None) -> Stage:
    """LoRA costs 4 forward passes' worth of operations per token and pair: 2 forward, 2 backward through
    frozen weights; a bootstrapped base trains all its weights, 6."""
    shape, train, tokens = student_shape(config), config.train, work.tokens
    passes = {name: 3.0 if name in ("answers", "language") else 2.0 for name in work.phases}
    flops = sum(count * passes[name] * shape.flops(tokens.dropped / 2) for name, count in work.phases.items())
    phases = 1 + (train.min_experts + train.max_experts) // 2 + 2 * (config.student.base is None)
    prompts = phases * (min(train.valid_rows, work.train_rows) + value("glances"))
    scored = prompts * tokens.decide * shape.flops(tokens.decide / 2)
    direct = work.train_rows * value("direct_row") if config.student.direct else 0
    fixed = value("session") + phases * value("phase") + direct
    tokenizing = work.sequences * value("tokenize")
    host = session_bytes() + value("control_bytes") + train.workers * value("trainer_bytes")
    host += work.sequences * value("sequence_bytes")
    # A bootstrapped base is left as it was after each of its two phases, and in the student.
    bases = 0 if config.student.base else 3
    disk = work.sequences * tokens.dropped * value("token_bytes") + bases * 4 * shape.parameters
    if gpu is None or not train.use_gpu:
        wide = min(cores, train.workers * train.threads)
        seconds = (flops + scored) / (wide * value("cpu_flops"))
        wall = fixed + tokenizing / min(cores, 2) + seconds
        return Stage("train", wall, fixed + tokenizing + wide * seconds, 0, 0, host, disk)
    rate = train.workers * gpu.teraflops * 1e12 * value("mfu_train")
    seconds = flops / rate + scored / (rate / train.workers)
    wall = fixed + tokenizing / 2 + seconds
    adapters = phases * shape.lora_parameters(config.student.lora) * 4
    busy = wall - tokenizing / 2
    return Stage("train", wall, tokenizing, train.workers, busy * train.workers / 3600, host, disk + adapters)


def reflect_stage(config: Config, size: Size, memory: Memory | None) -> Stage:
    """As many validation rows as are evaluated, and no more than there are, are decided about again."""
    rows = min(config.evaluate.rows, round(size.interactions * config.data.split.valid))
    host = session_bytes() + value("engine_host_bytes")
    cpu = value("reflect_fixed") + rows * value("reflect_row")
    if memory is None:
        return Stage("reflect", cpu, cpu, host_bytes=host, disk_bytes=8e6)
    wall = cpu + value("engine_start")
    gpus = config.evaluate.engine.tensor_parallel
    return Stage("reflect", wall, cpu, gpus, wall * gpus / 3600, host, 8e6)


def evaluate_stage(config: Config, work: Work, cores: int, memory: Memory | None) -> Stage:
    """Explanations are written twice: under the grammar and without."""
    settings, tokens = config.evaluate, work.tokens
    prompts = settings.rows + settings.catalogue_users * settings.catalogue_candidates
    written = 2 * settings.explanations * tokens.reason
    fixed, host = value("evaluate_fixed"), evaluate_bytes()
    if memory is None:
        cpu = fixed + prompts * value("score_cpu") + written * value("write_cpu")
        return Stage("evaluate", cpu, cpu, host_bytes=host, disk_bytes=1e7)
    engine = Engine(student_shape(config), settings.engine, memory.gpu)
    read = settings.rows * tokens.decide + settings.catalogue_users * (
        tokens.decide + settings.catalogue_candidates * tokens.target
    )
    seconds = engine.read_s(value("adapters") * read, tokens.decide)
    seconds += engine.write_s(written, tokens.reasoned, memory.cache)
    wall = fixed + value("engine_start") + seconds
    gpus = settings.engine.tensor_parallel
    return Stage("evaluate", wall, fixed, gpus, wall * gpus / 3600, host, 1e7)


def evaluate_bytes() -> float:
    return session_bytes() + value("engine_host_bytes") + value("rivals_bytes")


def publish_stage(config: Config, size: Size) -> Stage:
    """In one session with `evaluate`, whose memory the process keeps. The store is not in the run folder."""
    cpu = value("publish_fixed") + size.interactions * value("publish_row")
    own = 0 if config.student.base else 4 * student_shape(config).parameters
    disk = (
        size.interactions * (value("history_bytes") + value("graph_bytes")) + pair_bytes(config, size) + own
    )
    host = evaluate_bytes() + size.interactions * value("history_bytes")
    return Stage("publish", cpu, cpu, host_bytes=host, disk_bytes=disk)
