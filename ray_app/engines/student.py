"""What the agents ask of the student, whatever runs it.

Implemented by `engines.vllm_student`. Scores are logits of Yes against No; texts are the student's
reasoning behind its cards (see `prompts.cards`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Scoring:
    """One decision to score."""

    prompt: str
    """`prompts.student.decide_prompt`"""
    vectors: dict[str, np.ndarray]
    """user, item, pair: float32 [width]"""
    adapter: str
    """`global` or an expert's name"""


@dataclass(frozen=True)
class Writing:
    """One reasoning to write for a decided answer."""

    prompt: str
    """`prompts.student.explain_prompt`"""
    vectors: dict[str, np.ndarray]
    adapter: str
    grammar: str
    """EBNF that the text must match (`prompts.grammar`), or empty for free text."""
    max_tokens: int


class StudentEngine(Protocol):
    """The student as a service. Raises EngineError when the engine has died."""

    async def score(self, requests: list[Scoring]) -> np.ndarray:
        """float32 [n]: score of Yes against No, a logit, of each request."""
        ...

    async def write(self, requests: list[Writing]) -> list[str]:
        """The likeliest texts, in order."""
        ...

    async def healthy(self) -> None:
        """Generate one token; raises EngineError if that fails."""
        ...
