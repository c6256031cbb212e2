"""The student: a causal LM that reads soft tokens, and the two losses it learns from.

                        user, item, pair vectors
                                   |
    ids ── embedding ──●── projector puts its outputs at the soft positions
                       |
                 transformer (LoRA r=8 on q_proj, v_proj)
                       |
          hidden state at the answer ── logit(Yes) - logit(No)  ── binary cross entropy, pairwise loss
          hidden states of the text  ── next-token logits       ── language-model loss

With a share for `student.direct`, the score is that part of it, and of the logit difference the rest; the
losses are the LM's alone.

Soft tokens follow CoLLM (Zhang et al., arXiv 2310.19488). Logits are computed only where a loss needs them.
The pairwise loss is that of Bayesian personalised ranking (Rendle et al. 2009) over the rows of a batch that
belong to one user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ray_app.collab.features import VISIT
from ray_app.config import BootstrapConfig, LoraSection
from ray_app.student.direct import Direct, pairs_of, pairwise_loss

SOFT_NAMES = ("user", "item", "pair")


class Projector(nn.Module):
    """Maps each collaborative vector, its leading `widths[name]` entries, to an embedding by a two-layer MLP.

    Dropout falls on the inputs too, so that no single statistic is learnt by heart. `share`: of the score
    that comes from `direct`, which reads the same vectors and is kept here; 0 has none.
    """

    def __init__(self, widths: Mapping[str, int], hidden: int, dropout: float = 0.0, share: float = 0.0):
        super().__init__()
        inner = max(64, hidden)
        self.maps = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Dropout(dropout),
                    nn.Linear(width, inner),
                    nn.GELU(),
                    nn.Dropout(dropout),
                    nn.Linear(inner, hidden),
                )
                for name, width in widths.items()
            }
        )
        for name, width in widths.items():
            self.register_buffer(f"mean_{name}", torch.zeros(width))
            self.register_buffer(f"scale_{name}", torch.ones(width))
        self.direct = Direct(sum(widths.values()), share) if share else None

    @classmethod
    def load(cls, state: Mapping[str, torch.Tensor], hidden: int) -> Projector:
        """From a state dict. Raises RuntimeError where it does not fit."""
        widths = {key.removeprefix("mean_"): len(v) for key, v in state.items() if key.startswith("mean_")}
        projector = cls(widths, hidden, share=float(state.get("direct.share", 0.0)))
        projector.load_state_dict(state)
        return projector

    def fit_scaling(self, vectors: Mapping[str, torch.Tensor]) -> None:
        """Standardise inputs by the mean and standard deviation of training vectors."""
        for name, value in vectors.items():
            read = value[:, : self.widths[name]]
            getattr(self, f"mean_{name}").copy_(read.mean(0))
            getattr(self, f"scale_{name}").copy_(1 / read.std(0).clamp_min(1e-3))
        if self.direct is not None:
            self.direct.fit_scaling(_visits(vectors))

    @property
    def widths(self) -> dict[str, int]:
        """Length of each vector by name."""
        return {name: len(self.get_buffer(f"mean_{name}")) for name in self.maps}

    def forward(self, name: str, vectors: torch.Tensor) -> torch.Tensor:
        """(n, width or more) -> (n, hidden)"""
        return self.maps[name](self._scaled(name, vectors))

    def score(self, logits: torch.Tensor, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(n,) what the LM says of the rows with these whole vectors -> (n,) with the direct part."""
        if self.direct is None:
            return logits
        share = self.direct.share
        return (1 - share) * logits + share * self.direct(*self.read(vectors))

    def read(self, vectors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the direct part reads of whole vectors: all statistics, standardised, and the visits."""
        return torch.cat([self._scaled(name, vectors[name]) for name in self.maps], 1), _visits(vectors)

    def _scaled(self, name: str, vectors: torch.Tensor) -> torch.Tensor:
        mean = getattr(self, f"mean_{name}")
        scaled = (vectors[..., : len(mean)] - mean) * getattr(self, f"scale_{name}")
        return scaled.clamp(-6, 6).to(next(self.maps[name].parameters()).dtype)


def _visits(vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return vectors["user"][:, list(VISIT)]


@dataclass
class Batch:
    """A padded batch. Positions index the sequence; text targets are (row, position) pairs."""

    ids: torch.Tensor
    """(B, T)"""
    vectors: dict[str, torch.Tensor]
    """name -> (B, width)"""
    soft: dict[str, torch.Tensor]
    """name -> (B,) position, -1 where the prompt has none"""
    answer: torch.Tensor
    """(B,) position whose next token is the verdict"""
    labels: torch.Tensor
    """(B,) 0/1"""
    users: torch.Tensor
    """(B,)"""
    text_rows: torch.Tensor
    text_positions: torch.Tensor
    """(M,) positions whose next token is text to learn"""
    text_targets: torch.Tensor
    """(M,)"""
    answer_weight: torch.Tensor
    text_weight: torch.Tensor
    """(B,) loss weights"""


class Student(nn.Module):
    """A causal LM with a projector. `lm` may carry a PEFT adapter."""

    def __init__(self, lm: Any, projector: Projector, yes: int, no: int, pair_weight: float = 0.0):
        super().__init__()
        self.pair_weight = pair_weight
        self.lm = lm
        self.projector = projector
        self.yes, self.no = yes, no

    def embed(
        self, ids: torch.Tensor, vectors: Mapping[str, torch.Tensor], soft: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """(B, T) ids -> (B, T, H) input embeddings with the soft tokens in place."""
        embeddings = self.lm.get_input_embeddings()(ids)
        for name, positions in soft.items():
            rows = torch.nonzero(positions >= 0).squeeze(1)
            projected = self.projector(name, vectors[name][rows]).to(embeddings.dtype)
            embeddings = embeddings.index_put((rows, positions[rows]), projected)
        return embeddings

    def hidden(self, batch: Batch) -> torch.Tensor:
        """(B, T, H). Right-padded causal sequences need no mask: no position sees its right."""
        body = self.lm.get_base_model().model if hasattr(self.lm, "get_base_model") else self.lm.model
        embeddings = self.embed(batch.ids, batch.vectors, batch.soft)
        return body(inputs_embeds=embeddings, use_cache=False).last_hidden_state

    def answer_logits(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(B,) score of Yes against No: logit(Yes) - logit(No) at the answer, with the direct part."""
        return self.projector.score(self._lm_logits(hidden, batch), batch.vectors)

    def _lm_logits(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        at = hidden[torch.arange(len(hidden), device=hidden.device), batch.answer]
        head = self.lm.get_output_embeddings().weight
        return (at @ (head[self.yes] - head[self.no])).float()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Loss of a batch: weighted mean over rows, plus the pairwise loss; and the LM's answer logits."""
        hidden = self.hidden(batch)
        logits = self._lm_logits(hidden, batch)
        answer = F.binary_cross_entropy_with_logits(logits, batch.labels.float(), reduction="none")
        text_logits = self.lm.get_output_embeddings()(hidden[batch.text_rows, batch.text_positions])
        token = F.cross_entropy(text_logits.float(), batch.text_targets, reduction="none")
        count = torch.zeros_like(answer).index_add(0, batch.text_rows, torch.ones_like(token))
        text = torch.zeros_like(answer).index_add(0, batch.text_rows, token) / count.clamp_min(1)
        loss = (batch.answer_weight * answer + batch.text_weight * text).mean()
        if self.pair_weight:
            loss = loss + self.pair_weight * pairwise_loss(logits, pairs_of(batch.labels, batch.users))
        return {"loss": loss, "answer": answer.detach().mean(), "text": _mean(text, count), "logits": logits}


def _mean(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return (values * (count > 1)).sum().detach() / (count > 1).sum().clamp_min(1)


def tiny_llama(config: BootstrapConfig, tokenizer: Any, max_length: int, seed: int) -> Any:
    """A randomly initialised small Llama for a bootstrapped base."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.hidden * 3,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=max(1024, max_length),
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def with_lora(lm: Any, config: LoraSection, name: str) -> Any:
    """The LM with one trainable LoRA adapter; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(lm, lora, adapter_name=name)


def trainable(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
