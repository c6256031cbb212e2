"""Text engines: the contract, told once.

An engine turns requests into texts. It keeps the order of the requests, draws every text from the
request's own seed (so results depend neither on batching nor on the number of engines), and knows two
kinds of fault:

- *recoverable*: one request cannot be served (its prompt is too long, the server refused it). Its
  `Generation` comes back with `error` set and no texts; the others are served.
- *fatal*: the engine itself is gone. `generate` raises EngineError; the caller may make a new engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

from ray_app.config import EngineConfig
from ray_app.records import Context


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to be answered `n` times."""

    id: str
    prompt: str
    context: Context
    """What the prompt was made from: engines without a language model read it instead of the prompt."""
    template: str
    n: int
    temperature: float
    max_tokens: int
    seed: int
    round: int = 0
    """0: a first answer; more: a reflection on `previous`."""
    hint: bool | None = None
    """The label, where the request gives it away. None: the request is blind."""
    previous: str = ""
    """The engine's own earlier answer that it is asked to doubt."""
    reasons: tuple[str, ...] = ()
    """Steps without a conclusion, where the request asks which answer they lead to."""
    form: str = ""
    """Regular expression that the text must match, for engines that can force it; empty: any text."""


@dataclass(frozen=True)
class Generation:
    """The texts for one request, with the tokens each cost; or the error that prevented them."""

    id: str
    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    error: str = ""


class Engine(Protocol):
    """What a text engine does. `name` is its kind, `model` what stands behind it."""

    name: str
    model: str

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """One Generation per request, in order. Raises EngineError if the engine has died."""
        ...

    def close(self) -> None:
        """Release memory, connections and processes."""
        ...


_ENGINES = {
    "evidence": ("ray_app.engines.evidence", "EvidenceEngine"),
    "openai": ("ray_app.engines.openai", "OpenAIEngine"),
    "vllm": ("ray_app.engines.vllm", "VllmEngine"),
}


def make_engine(config: EngineConfig) -> Engine:
    """Start the configured engine; its module, and so vllm or httpx, is imported only now.

    Raises EngineError, one line, if it cannot start (no such model, no key, no memory).
    """
    module, name = _ENGINES[config.kind]
    return getattr(import_module(module), name)(config)
