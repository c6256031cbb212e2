"""The phases of training: a base of our own, one global adapter, one adapter per cluster of users.

Each phase is a model with some parameters trainable, a set of sequences and a number of passes; what it
leaves is small (a base, or an adapter and a projector) and is what the next phase starts from.

    language    all parameters     the mix's reasoning rows                          -> base/
    answers     all parameters     the mix, and every training row as a short prompt -> base/, projector.pt
    global      LoRA, projector    the mix                                           -> adapter/, projector.pt
    expert-N    LoRA               the mix of cluster N's users, from the global one -> adapter/

All start from a projector whose scaling, and direct part if there is one, were fitted before.
The first two make a base where the config names none. They follow each other because they need different
things: the attention heads that copy facts from a prompt take thousands of steps, and steps on answers in
between hold them up; answers are learnt in a few hundred, and the reasoning rows among them keep the
language. The other way round, language would cost the answers again, more than an adapter can make good.
"""

from __future__ import annotations

import os
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

LANGUAGE, ANSWERS = "language", "answers"
PROJECTOR, MAPS = "projector.pt", "maps."
"""A projector's file, and how the names of its maps begin there."""
BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Phase:
    name: str
    epochs: float
    learning_rate: float
    """Of AdamW."""
    source: str | None = None
    """The phase whose base, projector and adapter it starts from, as far as that leaves them."""
    cluster: int | None = None
    """Only rows of this cluster's users."""
    projector_rate: float | None = None
    """AdamW's learning rate for the projector, where it has one of its own."""
    matrix_rate: float | None = None
    """Learning rate of Muon for the matrices inside the transformer; None leaves them to AdamW."""

    @property
    def whole(self) -> bool:
        """Whether it trains all parameters of the base."""
        return self.name in (LANGUAGE, ANSWERS)

    @property
    def new_projector(self) -> bool:
        """Whether its projector starts anew."""
        return self.whole or self.source is None

    @property
    def warm(self) -> bool:
        """Whether it starts from the global adapter."""
        return self.cluster is not None


def phases(config: Config, clusters: int) -> list[Phase]:
    train, found, source = config.train, [], None
    if config.student.base is None:
        own, source = config.student.bootstrap, ANSWERS
        rate = own.learning_rate
        found.append(Phase(LANGUAGE, own.language_epochs, rate, matrix_rate=own.matrix_learning_rate))
        found.append(Phase(ANSWERS, 1.0, rate / 2, LANGUAGE, projector_rate=rate))
    projector_rate = train.projector_learning_rate
    found.append(Phase(GLOBAL, train.epochs, train.learning_rate, source, projector_rate=projector_rate))
    for number in range(clusters):
        expert = Phase(f"expert-{number}", train.expert_epochs, train.learning_rate / 2, GLOBAL, number)
        found.append(expert)
    return found


def load_base(config: Config, folder: Path) -> Any:
    """The base LM: made in this run (`folder`/answers/base) or named by the config."""
    return load_lm(config.student.base or str(folder / ANSWERS / "base"), config)


def load_lm(source: str, config: Config) -> Any:
    from transformers import AutoModelForCausalLM

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
    if phase.name == LANGUAGE:
        lm = tiny_llama(config.student.bootstrap, tokenizer, config.student.max_length, config.seed)
    elif phase.name == ANSWERS:
        lm = load_lm(str(folder / LANGUAGE / "base"), config)
    else:
        lm = load_base(config, folder)
    torch.manual_seed(config.seed)
    own = config.student
    projector = Projector(widths, lm.config.hidden_size, own.projector_dropout, own.direct)
    if phase.new_projector:
        begin(projector, folder)
    else:
        projector.load_state_dict(torch.load(folder / str(phase.source) / PROJECTOR, weights_only=True))
    if projector.direct is not None:
        projector.direct.requires_grad_(False)
    if phase.warm:
        from peft import PeftModel

        lm = PeftModel.from_pretrained(lm, str(folder / GLOBAL / "adapter"), is_trainable=True)
        projector.requires_grad_(False)
    elif not phase.whole:
        lm = with_lora(lm, own.lora, "default")
    return Student(lm, projector, *answer_ids(tokenizer), config.train.pair_weight)


def optimizer(phase: Phase, student: Student, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; with a `matrix_rate`, Muon for the matrices of the transformer's layers.

    Muon (Jordan et al. 2024) steps along the nearest orthogonal matrix to the momentum.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    if phase.matrix_rate is None:
        projector = [p for p in student.projector.parameters() if p.requires_grad]
        groups = [{"params": _without(parameters, projector), "lr": phase.learning_rate}]
        if projector:
            groups.append({"params": projector, "lr": phase.projector_rate or phase.learning_rate})
        return torch.optim.AdamW(groups, betas=BETAS, weight_decay=weight_decay)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    matrices = [p for p in student.lm.model.layers.parameters() if p.ndim == 2]
    rest = _without(parameters, matrices)
    for group, by_muon in ((matrices, True), (rest, False)):
        for p in group:
            setattr(p, "use_muon", by_muon)  # noqa: B010 - DeepSpeed looks for it
    shared = {"weight_decay": weight_decay}
    return MuonWithAuxAdam(
        [
            {"params": matrices, "use_muon": True, "lr": phase.matrix_rate, **shared},
            {"params": rest, "use_muon": False, "lr": phase.learning_rate, "betas": BETAS, **shared},
        ]
    )


def _without(
    parameters: list[torch.nn.Parameter], taken: list[torch.nn.Parameter]
) -> list[torch.nn.Parameter]:
    """Those that are not among `taken`, by identity: tensors compare by value."""
    gone = {id(p) for p in taken}
    return [p for p in parameters if id(p) not in gone]


def save_start(projector: Projector, folder: Path) -> None:
    """Write what every new projector begins with: all but the maps, whose size the LM decides."""
    state = {key: value for key, value in projector.state_dict().items() if not key.startswith(MAPS)}
    scratch = folder / f".{PROJECTOR}.partial"
    torch.save(state, scratch)
    os.replace(scratch, folder / PROJECTOR)


def begin(projector: Projector, folder: Path) -> None:
    """Give a new projector what `save_start` wrote. Raises RuntimeError where that does not fit."""
    maps = {key: value for key, value in projector.state_dict().items() if key.startswith(MAPS)}
    projector.load_state_dict(maps | torch.load(folder / PROJECTOR, weights_only=True))


def save(phase: Phase, student: Student, folder: Path) -> None:
    """Write what the phase leaves. Under ZeRO-3 the caller gathers the parameters first."""
    target = folder / phase.name
    target.mkdir(parents=True, exist_ok=True)
    if phase.whole:
        student.lm.save_pretrained(target / "base")
    else:
        student.lm.save_pretrained(target / "adapter")
    if not phase.warm and phase.name != LANGUAGE:
        torch.save(student.projector.state_dict(), target / PROJECTOR)
