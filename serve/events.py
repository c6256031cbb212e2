"""Answers as server-sent events: each step of the agents as it happens, then the answer.

    event: step      data: {"number": 3, "agent": "reasoning", "work": "decide", "ms": null, ...}
    event: answer    data: the Recommendation
    event: problem   data: what a problem+json response would hold; the answer does not come then

(WHATWG HTML, 9.2.) A step comes twice: when it begins, with `ms` null, and when it is done. The response
begins once the first step is done, so that an unknown user is a plain 404. A client that goes ends the work.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ray_app.agents.trail import Watch
from ray_app.records import Recommendation, TrailStep
from serve.problems import told

EVENTS = "text/event-stream"
QUIET_S = 5.0
"""After so long without a step a comment is sent, so that proxies keep the connection."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Work = Callable[[Watch], Awaitable[Recommendation]]


def wants_events(accept: str | None) -> bool:
    """Whether a request's Accept header asks for a stream."""
    return any(part.split(";")[0].strip().lower() == EVENTS for part in (accept or "").split(","))


async def stream(work: Work) -> Response:
    """The response once the first step is done. Raises what `work` raises before that."""
    queue: asyncio.Queue[TrailStep | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        first: list[TrailStep] = []
        while not first or first[-1].ms is None:
            step = await queue.get()
            if step is None:
                break
            first.append(step)
        if task.done() and task.exception() is not None:
            await task
    except BaseException:
        task.cancel()
        raise
    return Stream(task, first, queue)


class Stream(Response):
    """Sends what is in `first` and comes into `queue` until it holds None, then the task's outcome."""

    media_type = EVENTS

    def __init__(
        self,
        task: asyncio.Future[Recommendation],
        first: list[TrailStep],
        queue: asyncio.Queue[TrailStep | None],
    ):
        super().__init__(None, headers=HEADERS)
        del self.headers["content-length"]
        self._task, self._first, self._queue = task, first, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        except OSError:
            pass  # the client went while it was written to
        finally:
            for one in (sending, leaving, self._task):
                one.cancel()
            await asyncio.gather(sending, leaving, self._task, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def tell(text: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        for step in self._first:
            await tell(event("step", step.model_dump(mode="json")))
        while not (self._task.done() and self._queue.empty()):
            try:
                step = await asyncio.wait_for(self._queue.get(), QUIET_S)
            except TimeoutError:
                await tell(": at work\n\n")
                continue
            if step is not None:
                await tell(event("step", step.model_dump(mode="json")))
        try:
            await tell(event("answer", (await self._task).model_dump(mode="json")))
        except Exception as error:
            await tell(event("problem", told(error)))
        await tell("", more=False)


def event(name: str, data: Any) -> str:
    """One event; ASCII, so that no line break but ours is in it."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
