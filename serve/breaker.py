"""Nobody waits for a student that is silent: a circuit breaker (Nygard, Release It!, 2nd ed., 2018, ch. 5).

It opens when the student was asked and has said nothing for a while, to whomever. Until it says something
again, whoever would ask gets EngineError at once, and a token is asked for in the background, again and
again, so that no request has to be the one that finds out. Those who waited already go on waiting, as long
as they will.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray_app.errors import EngineError

PAUSE_S = 0.5
"""Between two questions to a student that does not answer."""
Work = Callable[..., Awaitable[Any]]
log = logging.getLogger(__name__)


class Breaker:
    """Of one student. `probe` asks it for a token; `silence_s` without a word is silence."""

    def __init__(self, probe: Work, silence_s: float):
        self._probe = probe
        self._silence_s = silence_s
        self._waiting = 0
        self._heard = 0.0
        self._open = False
        self._trial: asyncio.Task[None] | None = None

    def guard(self, work: Work) -> Work:
        """`work`, which asks the student, or EngineError while it is silent."""

        async def guarded(*args: Any) -> Any:
            if self._silent():
                raise EngineError(f"it had said nothing to anybody for {self._silence_s:g} s")
            return await self._listen(work, *args)

        return guarded

    async def healthy(self) -> None:
        """The student answers the probe, however silent it was. Raises as `probe` does."""
        await self._listen(self._probe)

    async def _listen(self, work: Work, *args: Any) -> Any:
        if not self._waiting:
            self._heard = time.monotonic()
        self._waiting += 1
        try:
            found = await work(*args)
            self._speaks()
            return found
        finally:
            self._silent()
            self._waiting -= 1

    def _silent(self) -> bool:
        silence_s = time.monotonic() - self._heard
        if not self._open and self._waiting and silence_s >= self._silence_s:
            log.warning("the student has said nothing for %.1f s: answers do without it", silence_s)
            self._open = True
            if self._trial is None or self._trial.done():
                self._trial = asyncio.ensure_future(self._try())
        return self._open

    def _speaks(self) -> None:
        self._heard = time.monotonic()
        if self._open:
            log.warning("the student speaks again")
            self._open = False

    async def _try(self) -> None:
        while self._open:
            try:
                async with asyncio.timeout(self._silence_s):
                    await self.healthy()
            except Exception as error:  # whatever it is, it is no token
                log.info("the student is silent still: %r", error)
                await asyncio.sleep(PAUSE_S)
