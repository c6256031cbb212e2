"""GPUs: memory, dense bfloat16 operations and memory bandwidth, from NVIDIA's data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from ray_app.errors import ConfigError
from ray_app.planning.constants import value


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: int
    """Nominal memory."""
    teraflops: float
    """Dense bfloat16, 10^12 operations per second."""
    gigabytes_per_s: float

    @property
    def memory(self) -> float:
        """Usable bytes."""
        return self.gib * 2**30 * value("usable")


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("L4-24", 24, 121, 300),
        Gpu("A10G-24", 24, 70, 600),
        Gpu("A100-40", 40, 312, 1555),
        Gpu("L40S-48", 48, 362, 864),
        Gpu("A100-80", 80, 312, 2039),
        Gpu("H100-80", 80, 989, 3350),
        Gpu("H200-141", 141, 989, 4800),
    )
}
"""By name, smallest memory first."""


def gpu_of(name: str) -> Gpu:
    if name not in GPUS:
        raise ConfigError(f"GPU {name} is unknown: give one of {', '.join(GPUS)}")
    return GPUS[name]
