"""Shapes of decoder-only language models, and what follows from them per token.

Parameter counts are exact for the models listed (they equal the published checkpoints').
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ray_app.config import BootstrapConfig, LoraSection
from ray_app.errors import ConfigError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}


@dataclass(frozen=True)
class Architecture:
    """Llama's layout: attention with grouped keys and values, gated MLP, two norms per layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    """Size of a head."""
    inner: int
    """Width of the MLP."""
    vocab: int
    tied: bool = False
    """Whether input and output embeddings are one matrix."""
    bias: bool = False
    """Whether queries, keys and values have biases (Qwen2)."""

    @property
    def linear(self) -> int:
        """Parameters inside the layers, those that quantisation shrinks."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        attention = self.hidden * (2 * queries + 2 * keys)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def parameters(self) -> int:
        biases = self.layers * (self.heads + 2 * self.kv_heads) * self.head if self.bias else 0
        norms = self.hidden * (2 * self.layers + 1)
        return self.linear + biases + norms + self.vocab * self.hidden * (1 if self.tied else 2)

    def weight_bytes(self, dtype: str, quantization: str | None = None) -> float:
        """Bytes of all weights; 4-bit schemes keep a 16-bit scale and a 4-bit zero per 128 weights."""
        full = BYTES[dtype]
        if quantization is None:
            return self.parameters * full
        return self.linear * bits_per_weight(quantization) / 8 + (self.parameters - self.linear) * 2

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of keys and values per token of context."""
        return 2 * self.layers * self.kv_heads * self.head * BYTES[dtype]

    def flops(self, context: float) -> float:
        """Operations of one forward pass per token, at a mean context of so many tokens.

        Two per parameter that multiplies (the output embedding is only used where a loss or a choice
        needs it, so it is left out), and 4 * queries per earlier token and layer for attention.
        """
        return 2 * self.linear + 4 * self.layers * self.heads * self.head * context

    def saved_bytes(self, dtype: str) -> float:
        """Bytes that one token leaves for the backward pass of LoRA, without checkpointing.

        Counted with saved-tensor hooks on transformers' Llama (a test does so again): per layer 3 inner +
        2 keys + 5 hidden values; in bfloat16 the norms work in float32, which makes 20 bytes of hidden.
        """
        keys = self.kv_heads * self.head
        if BYTES[dtype] == 4:
            return self.layers * 4 * (3 * self.inner + 2 * keys + 5.1 * self.hidden)
        return self.layers * (6 * self.inner + 4 * keys + 20.3 * self.hidden)

    def lora_parameters(self, lora: LoraSection) -> int:
        widths = {
            "q_proj": (self.hidden, self.heads * self.head),
            "k_proj": (self.hidden, self.kv_heads * self.head),
            "v_proj": (self.hidden, self.kv_heads * self.head),
            "o_proj": (self.heads * self.head, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }
        return self.layers * lora.r * sum(sum(widths[name]) for name in lora.target_modules)


KNOWN = {
    "Qwen2.5-0.5B": Architecture(24, 896, 14, 2, 64, 4864, 151936, tied=True, bias=True),
    "Qwen2.5-1.5B": Architecture(28, 1536, 12, 2, 128, 8960, 151936, tied=True, bias=True),
    "Qwen2.5-7B": Architecture(28, 3584, 28, 4, 128, 18944, 152064, bias=True),
    "Qwen2.5-14B": Architecture(48, 5120, 40, 8, 128, 13824, 152064, bias=True),
    "Qwen2.5-32B": Architecture(64, 5120, 40, 8, 128, 27648, 152064, bias=True),
    "Qwen2.5-72B": Architecture(80, 8192, 64, 8, 128, 29568, 152064, bias=True),
    "Llama-3.2-1B": Architecture(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "Llama-3.2-3B": Architecture(28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "Llama-3-8B": Architecture(32, 4096, 32, 8, 128, 14336, 128256),
    "Llama-3.1-8B": Architecture(32, 4096, 32, 8, 128, 14336, 128256),
    "Llama-3.3-70B": Architecture(80, 8192, 64, 8, 128, 28672, 128256),
}
"""From the models' published config.json files."""


def bits_per_weight(quantization: str) -> float:
    scheme = quantization.lower()
    if "awq" in scheme or "gptq" in scheme:
        return 4 + (16 + 4) / 128
    if "fp8" in scheme or "int8" in scheme:
        return 8
    raise ConfigError(f"quantization {quantization} is not in the cost model: use awq, gptq, fp8 or int8")


def architecture_of(model: str) -> Architecture:
    """By name, or from the config.json of a model's folder."""
    file = Path(model).expanduser() / "config.json"
    if file.is_file():
        return from_config(json.loads(file.read_bytes()))
    for name, shape in KNOWN.items():
        if name.lower() in model.lower():
            return shape
    raise ConfigError(
        f"the shape of model {model} is unknown: "
        f"name a folder with its config.json, or one of {', '.join(KNOWN)}"
    )


def from_config(facts: dict) -> Architecture:
    """From a config.json as transformers writes it."""
    heads = facts["num_attention_heads"]
    return Architecture(
        layers=facts["num_hidden_layers"],
        hidden=facts["hidden_size"],
        heads=heads,
        kv_heads=facts.get("num_key_value_heads", heads),
        head=facts.get("head_dim") or facts["hidden_size"] // heads,
        inner=facts["intermediate_size"],
        vocab=facts["vocab_size"],
        tied=facts.get("tie_word_embeddings", False),
        bias=facts.get("attention_bias", facts.get("model_type") == "qwen2"),
    )


def bootstrapped(config: BootstrapConfig) -> Architecture:
    """The small Llama that a run makes for itself (`student.model.tiny_llama`)."""
    size = config.hidden // config.heads
    inner = config.hidden * 3
    return Architecture(
        config.layers, config.hidden, config.heads, config.heads, size, inner, config.vocab, tied=True
    )
