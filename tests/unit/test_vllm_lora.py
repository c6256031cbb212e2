"""LoRA by matrix products gives what vLLM's own loop over tokens gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ray_app.engines.vllm_lora import add_lora_linear
from ray_app.engines.vllm_setup import prepare

INPUTS, RANK, SLICES = 12, 8, (16, 4, 4)


def stacked(adapters: int, dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    a = tuple(torch.randn(adapters, 1, RANK, INPUTS).to(dtype) for _ in SLICES)
    return a, tuple(torch.randn(adapters, 1, size, RANK).to(dtype) for size in SLICES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("named", [[0, 0, 0, 0, 0], [2, 0, 0, 1, 2], [1], [0, 2, 0, 2, 0]])
def test_it_gives_what_vllm_gives(named: list[int], dtype: torch.dtype):
    prepare(in_process=True)
    from vllm.lora.ops.torch_ops import bgmv_expand_slice, bgmv_shrink

    torch.manual_seed(0)
    indices, (a, b) = torch.tensor(named), stacked(3, dtype)
    x, y = torch.randn(len(named), INPUTS).to(dtype), torch.randn(len(named), sum(SLICES)).to(dtype)
    expected, start = y.clone(), 0
    for one, other, size in zip(a, b, SLICES, strict=True):
        inner = torch.zeros(len(named), RANK)
        bgmv_shrink(x, one, inner, indices, 0.5)
        bgmv_expand_slice(inner, other, expected, indices, start, size, True)
        start += size
    add_lora_linear(SimpleNamespace(token_lora_indices=indices), y, x, a, b, 0.5, SLICES)
    torch.testing.assert_close(y, expected, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-4)


def test_tokens_without_an_adapter_stay_as_they_are():
    torch.manual_seed(0)
    a, b = stacked(2, torch.float32)
    x, y = torch.randn(4, INPUTS), torch.randn(4, sum(SLICES))
    before = y.clone()
    add_lora_linear(SimpleNamespace(token_lora_indices=torch.tensor([-1, 1, -1, 1])), y, x, a, b, 1.0, SLICES)
    assert torch.equal(y[[0, 2]], before[[0, 2]])
    by_hand = torch.cat([x[1] @ one[1, 0].T @ other[1, 0].T for one, other in zip(a, b, strict=True)])
    torch.testing.assert_close(y[1] - before[1], by_hand, rtol=1e-4, atol=1e-4)
