"""A silent student is asked by nobody but the breaker's own probe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ray_app.errors import EngineError
from serve import breaker as module
from serve.breaker import Breaker

SILENCE_S = 0.1


class Student:
    """Answers with its argument while `well` is set."""

    def __init__(self):
        self.well = asyncio.Event()
        self.well.set()
        self.asked = self.probed = 0
        self.fault: Exception | None = None

    async def decide(self, number: int) -> int:
        self.asked += 1
        if self.fault:
            raise self.fault
        await self.well.wait()
        return number

    async def healthy(self) -> None:
        self.probed += 1
        if self.fault:
            raise self.fault
        await self.well.wait()


def run(body: Callable[[Student, Breaker, Callable[..., Awaitable[Any]]], Awaitable[None]]) -> None:
    async def main() -> None:
        student = Student()
        breaker = Breaker(student.healthy, SILENCE_S)
        await body(student, breaker, breaker.guard(student.decide))

    asyncio.run(main())


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


async def until(said: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not said():
            await asyncio.sleep(0.01)


def test_a_student_that_speaks_is_asked():
    async def body(student, breaker, decide):
        assert [await decide(n) for n in range(3)] == [0, 1, 2]
        await asyncio.sleep(2 * SILENCE_S)  # nobody asks, so it is not silence
        assert await decide(3) == 3
        assert student.probed == 0

    run(body)


def test_while_it_is_silent_nobody_waits_and_those_who_did_are_answered_in_the_end():
    async def body(student, breaker, decide):
        student.well.clear()
        early = asyncio.create_task(decide(1))
        await asyncio.sleep(2 * SILENCE_S)
        for _ in range(5):
            with pytest.raises(EngineError, match="said nothing"):
                await asyncio.wait_for(decide(2), SILENCE_S / 2)
        assert student.asked == 1
        await until(lambda: student.probed >= 2)
        student.well.set()
        assert await early == 1
        assert await decide(3) == 3

    run(body)


def test_one_caller_after_the_other_learns_from_the_first_who_gave_up():
    async def body(student, breaker, decide):
        student.well.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(decide(1), 1.5 * SILENCE_S)
        with pytest.raises(EngineError, match="said nothing"):
            await decide(2)
        student.well.set()
        await asyncio.sleep(3 * SILENCE_S)  # its probe finds out, without a request
        assert await decide(3) == 3

    run(body)


def test_a_caller_that_gives_up_early_proves_nothing():
    async def body(student, breaker, decide):
        student.well.clear()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(decide(1), SILENCE_S / 4)
        student.well.set()
        assert await decide(2) == 2
        assert student.probed == 0

    run(body)


def test_a_student_that_answers_somebody_is_not_silent_to_the_slowest():
    async def body(student, breaker, decide):
        async def slow() -> str:
            await asyncio.sleep(3 * SILENCE_S)
            return "late"

        waiting = asyncio.create_task(breaker.guard(slow)())
        while not waiting.done():
            assert await decide(1) == 1
            await asyncio.sleep(SILENCE_S / 5)
        assert await waiting == "late"
        assert student.probed == 0

    run(body)


@pytest.mark.parametrize("fault", [EngineError("it died"), OSError("whatever else")])
def test_a_probe_that_fails_is_tried_again_and_readiness_ends_the_silence(fault):
    async def body(student, breaker, decide):
        student.well.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(decide(1), 1.5 * SILENCE_S)
        student.fault = fault
        probed = student.probed
        await until(lambda: student.probed >= probed + 3)
        with pytest.raises(EngineError, match="said nothing"):
            await decide(2)
        student.fault = None
        student.well.set()
        await breaker.healthy()
        assert await decide(3) == 3

    run(body)
