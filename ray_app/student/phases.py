"""The phases of training: bootstrap a base, one global adapter, one adapter per cluster of users.

Each phase is a model with some parameters trainable, a set of sequences and a number of passes; what it
leaves is small (a base, or an adapter and a projector) and is what the next phase starts from.

    bootstrap   all parameters     the corpus of short Yes/No rows, then the mix     -> base/, projector.pt
    global      LoRA, projector    the mix                                           -> adapter/, projector.pt
    expert-N    LoRA               the mix of cluster N's users, from the global one -> adapter/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ray_app.config import Config
from ray_app.errors import EngineError
from ray_app.student.experts import GLOBAL
from ray_app.student.model import Projector, Student, tiny_llama, with_lora
from ray_app.student.tokens import answer_ids

BOOTSTRAP = "bootstrap"
PROJECTOR = "projector.pt"


@dataclass(frozen=True)
class Phase:
    name: str
    epochs: float
    learning_rate: float
    cluster: int | None = None
    """Only rows of this cluster's users."""

    @property
    def warm(self) -> bool:
        """Whether it starts from the global adapter."""
        return self.cluster is not None


def phases(config: Config, clusters: int) -> list[Phase]:
    train, found = config.train, []
    if config.student.base is None:
        bootstrap = config.student.bootstrap
        found.append(Phase(BOOTSTRAP, bootstrap.epochs, bootstrap.learning_rate))
    found.append(Phase(GLOBAL, train.epochs, train.learning_rate))
    for number in range(clusters):
        found.append(Phase(f"expert-{number}", train.expert_epochs, train.learning_rate / 2, number))
    return found


def load_base(config: Config, folder: Path) -> Any:
    """The base LM: bootstrapped in this run (`folder`/bootstrap/base) or named by the config."""
    from transformers import AutoModelForCausalLM

    source = config.student.base or str(folder / BOOTSTRAP / "base")
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.student.dtype))
    except OSError as error:
        raise EngineError(
            f"student.base {source} cannot be loaded: give a folder with a causal LM's weights"
        ) from error


def load_tokenizer(config: Config, folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.student.base or str(folder / "tokenizer"))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build(phase: Phase, config: Config, folder: Path, tokenizer: Any, widths: Mapping[str, int]) -> Student:
    """The student of a phase with exactly its trainable parameters requiring gradients."""
    yes, no = answer_ids(tokenizer)
    dropout = config.student.projector_dropout
    if phase.name == BOOTSTRAP:
        lm = tiny_llama(config.student.bootstrap, tokenizer, config.student.max_length, config.seed)
        projector = Projector(widths, lm.config.hidden_size, dropout)
        return Student(lm, projector, yes, no, config.train.pair_weight)
    base = load_base(config, folder)
    torch.manual_seed(config.seed)
    projector = Projector(widths, base.config.hidden_size, dropout)
    warm_projector = folder / (GLOBAL if phase.warm else BOOTSTRAP) / PROJECTOR
    if warm_projector.exists():
        projector.load_state_dict(torch.load(warm_projector, weights_only=True))
    if phase.warm:
        from peft import PeftModel

        lm = PeftModel.from_pretrained(base, str(folder / GLOBAL / "adapter"), is_trainable=True)
        projector.requires_grad_(False)
    else:
        lm = with_lora(base, config.student.lora, "default")
    return Student(lm, projector, yes, no, config.train.pair_weight)


def save(phase: Phase, student: Student, folder: Path) -> None:
    """Write what the phase leaves. Under ZeRO-3 the caller gathers the parameters first."""
    target = folder / phase.name
    target.mkdir(parents=True, exist_ok=True)
    if phase.name == BOOTSTRAP:
        student.lm.save_pretrained(target / "base")
    else:
        student.lm.save_pretrained(target / "adapter")
    if not phase.warm:
        torch.save(student.projector.state_dict(), target / PROJECTOR)
