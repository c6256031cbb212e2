"""What vLLM 0.32 needs: before it is imported, and on a CPU."""

from __future__ import annotations

import os
from typing import Any

from ray_app.config import EngineConfig


def prepare(*, in_process: bool) -> None:
    """Environment and one repair. in_process: the engine core runs in this process (one device)."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Of the teacher's form, which a large vocabulary and busy cores make slow. The default is for strangers'.
    os.environ.setdefault("VLLM_REGEX_COMPILATION_TIMEOUT_S", "120")
    if in_process:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    _shield_llvmlite()


def _shield_llvmlite() -> None:
    """Let vLLM's scan of all modules pass over llvmlite (which numba brings).

    The scan asks every object for `__dict__`; llvmlite's library wrapper answers any name, this one too,
    with a function, and the scan fails on it. Names with double underscores are no library functions.
    """
    from llvmlite.binding import ffi

    wrapper: Any = type(ffi.lib)
    answer = wrapper.__getattr__
    if getattr(answer, "shielded", False):
        return

    def guarded(self: object, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(self, name)

    guarded.shielded = True  # pyright: ignore[reportFunctionMemberAccess]
    wrapper.__getattr__ = guarded


def cpu_arguments(config: EngineConfig) -> dict[str, Any]:
    """Engine arguments on a CPU; none on a GPU.

    Prompts stay in one piece: vLLM 0.32 takes back a seeded request's draw after each piece of a prompt,
    which a CPU's generator cannot do ("CPU Generator does not use offset"). The cache's blocks have 32
    tokens, the least that the CPU's kernels take at full speed, in place of 128: only whole blocks are
    shared, and what a user's prompts have in common is often shorter than 128.
    """
    if config.kv_cache_mb is None:
        return {}
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, config.max_model_len),
        "block_size": 32,
    }
