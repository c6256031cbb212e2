"""The doctor's look at disk, memory and GPUs, against what the cost model says the config wants."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipelines.checks import Finding, Patient
from ray_app.config import Config
from ray_app.planning.hardware import Gpu
from ray_app.planning.stages import memories, plan_pipeline, refusal, uses_gpu
from ray_app.planning.work import Size

ML_100K = Size(943, 1682, 100_000)
ROOM = 2e9
"""Bytes to leave free on a disk: logs, caches, scratch copies."""
LEAST_MEMORY = 4e9
SHM = Path("/dev/shm")
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


def capacity(patient: Patient) -> Iterator[Finding]:
    """Disk under the run folder, memory and shared memory."""
    config = patient.config
    disk, memory = wanted(config)
    if "://" not in patient.run:
        place = nearest(Path(patient.run))
        free = shutil.disk_usage(place).free
        yield compare("disk", free, disk, f"free under {place}", "free space or choose another --run")
    machine = psutil.virtual_memory()
    if machine.total < memory:
        remedy = "a machine with more memory, or fewer interactions"
        yield Finding("memory", "fail", f"{gigabytes(machine.total)}; {gigabytes(memory)} wanted", remedy)
    else:
        yield compare("memory", machine.available, memory, "available", "end other programs", "warn")
    if SHM.is_dir():
        shared = config.ray.object_store_mb * 2**20
        remedy = "docker run --shm-size, or a smaller ray.object_store_mb: Ray takes the disk instead, slowly"
        yield compare("/dev/shm", shutil.disk_usage(SHM).free, shared, "free", remedy, "warn")


def wanted(config: Config) -> tuple[float, float]:
    """(bytes of disk, bytes of memory) of a run; beyond MovieLens-100K `pipelines.plan` has to be asked."""
    if config.data.source == "files" or uses_gpu(config):
        return ROOM, LEAST_MEMORY
    settings = json.loads(Path(config.train.deepspeed).read_text())
    plan = plan_pipeline(config, ML_100K, 1, None, settings)
    return ROOM + plan.total("disk_bytes"), max(stage.host_bytes for stage in plan.stages)


def compare(check: str, has: float, needs: float, what: str, remedy: str, state: str = "fail") -> Finding:
    found = f"{gigabytes(has)} {what}; {gigabytes(needs)} wanted"
    if has >= needs:
        return Finding(check, "ok", found)
    return Finding(check, "fail" if state == "fail" else "warn", found, remedy)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def nearest(path: Path) -> Path:
    """The folder itself or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def gpus(patient: Patient) -> Iterator[Finding]:
    """The GPUs of this machine, where the config uses any: present, reached by torch, large enough."""
    config = patient.config
    if not uses_gpu(config):
        return
    found = listed()
    if not found:
        remedy = "run this on a GPU node (its driver and nvidia-smi), or take configs/local.yaml"
        yield Finding("GPU", "fail", f"config {config.name} uses GPUs and nvidia-smi shows none", remedy)
        return
    for name, mebibytes, driver in found:
        yield Finding("GPU", "ok", f"{name}, {mebibytes / 1024:.0f} GB, driver {driver}")
    yield torch_finding()
    name, mebibytes, _ = min(found, key=lambda one: one[1])
    gpu = Gpu(name, round(mebibytes / 1024), 1, 1)
    settings = json.loads(Path(config.train.deepspeed).read_text())
    for memory in memories(config, gpu, settings):
        if memory.fits:
            yield Finding(
                "GPU", "ok", f"{memory.of} fits: {gigabytes(memory.total)} of {gigabytes(memory.limit)}"
            )
        else:
            what, _, remedy = refusal(config, memory, settings).partition(": would fit: ")
            yield Finding("GPU", "fail", what, remedy)


def listed() -> list[tuple[str, float, str]]:
    """(name, MiB, driver) of each GPU that nvidia-smi shows."""
    try:
        shown = subprocess.run(QUERY, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in shown.stdout.splitlines() if line.count(", ") == 2]
    return [(name, float(memory), driver) for name, memory, driver in rows]


def torch_finding() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", f"torch reaches CUDA {torch.version.cuda}")
    remedy = "install requirements/gpu.txt; a driver at least as new as that build's CUDA"
    return Finding("GPU", "fail", f"torch {torch.__version__} does not reach the GPU", remedy)
