"""LoRA on vLLM's CPU backend by matrix products.

vLLM 0.32 has kernels for GPUs; on a CPU it looks up a copy of the adapter's matrices for every token and
multiplies token by token (`lora.ops.torch_ops`), which took nearly half of the tiny student's time. A batch
holds few adapters, so one product per adapter does the same. Rows without an adapter stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch


def multiply_by_adapter() -> None:
    """Replace the linear part of vLLM's LoRA on CPUs in this process; on other devices it is not used."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    PunicaWrapperCPU.add_lora_linear = add_lora_linear


def add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **_: Any,
) -> None:
    """y[i] += scale * B A x[i] in each slice of y, with A and B of token i's adapter.

    y: (tokens, sum of output_slices); x: (tokens, inputs); per slice, lora_a_stacked: (adapters, 1, rank,
    inputs) and lora_b_stacked: (adapters, 1, outputs, rank). `self.token_lora_indices` names each token's
    adapter, -1 for none.
    """
    adapters = self.token_lora_indices[: len(x)]
    for adapter in adapters.unique().tolist():
        if adapter < 0:
            continue
        of = torch.where(adapters == adapter)[0]
        rows = slice(None) if len(of) == len(x) else of
        own, start = x[rows].float(), 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            inner = scale * (own @ a[adapter, 0].float().T)
            y[rows, start : start + size] += inner.to(y.dtype) @ b[adapter, 0].to(y.dtype).T
            start += size
