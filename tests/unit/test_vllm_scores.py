"""Scores of the student on vLLM when the engine gives other tokens than it was asked for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ray_app.engines.student import Scoring
from ray_app.engines.vllm_setup import prepare
from ray_app.engines.vllm_student import TRIES, VllmStudent
from ray_app.errors import EngineError

YES, NO, OTHER = 7, 9, 11


def answer(given: dict[int, float]) -> Any:
    named = {token: SimpleNamespace(logprob=value) for token, value in given.items()}
    return SimpleNamespace(outputs=[SimpleNamespace(logprobs=[named])])


class Forgetful(VllmStudent):
    """An engine that gives prompt `b` other tokens so many times."""

    def __init__(self, times: int):
        self.yes, self.no, self.times, self.asked = YES, NO, times, []
        self._projector: Any = SimpleNamespace(direct=None)

    async def _all(self, jobs: list[Any], work: str = "") -> list[Any]:
        self.asked.append([prompt for prompt, *_ in jobs])
        return [self._answer(prompt) for prompt, *_ in jobs]

    def _answer(self, prompt: str) -> Any:
        if prompt == "b" and len(self.asked) <= self.times:
            return answer({YES: -0.1, OTHER: -2.0})
        return answer({YES: -1.0, NO: -float(ord(prompt))})


def requests() -> list[Scoring]:
    return [Scoring(prompt, {}, "global") for prompt in "abc"]


def test_a_prompt_that_got_other_tokens_is_scored_again_and_by_itself():
    prepare(in_process=True)
    engine = Forgetful(times=TRIES - 1)
    logits = asyncio.run(engine.score(requests()))
    assert np.array_equal(logits, [ord(prompt) - 1 for prompt in "abc"])
    assert engine.asked == [["a", "b", "c"], ["b"], ["b"]]


def test_one_that_never_gets_them_is_an_error_of_the_engine():
    prepare(in_process=True)
    with pytest.raises(EngineError, match="1 of 3 prompts neither Yes nor No, 3 times"):
        asyncio.run(Forgetful(times=TRIES).score(requests()))
