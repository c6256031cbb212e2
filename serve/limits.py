"""What stands before the routes: a request id, API keys, a limit on bodies, a limit on requests at work.

Here every request to /v1 comes in and every answer goes out, so here they are counted, traced and, with
RATIONALE_LOGS=json, logged: route, status and milliseconds, not the ids that a path or a body names.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_app import tracing
from ray_app.telemetry import OTHER, ROUTES, Telemetry
from serve.keys import Door, Keys, Refused
from serve.problems import problem

MAX_BODY = 64 * 1024
FAILED = 500
FEWER = 0.75
POLL_S = 0.05
access = logging.getLogger("rationale.access")
REQUEST_ID = re.compile(rb"[\w.-]{1,64}")
VERSION = "/v1/"
TRACE = ("traceparent", "tracestate")
WRITES = "interactions"
"""The route that a key which may only read does not open."""


class Pace:
    """How many requests may be at work: so many as are answered within `target_s`, at most `most`.

    Additive increase, multiplicative decrease (Chiu and Jain 1989): one more for every `limit` requests that
    were answered in time while the limit was reached, a quarter fewer when one took longer, and then not
    again until those admitted before have gone. So a queue never grows beyond what a deadline allows,
    whatever the machine can do.
    """

    def __init__(self, begin: int, most: int, target_s: float):
        self.limit = float(begin)
        self.working = 0
        self.closed = False
        self._most, self._target = most, target_s
        self._lowered = float("-inf")

    @property
    def full(self) -> bool:
        return self.closed or self.working >= int(self.limit)

    async def close(self, limit_s: float) -> int:
        """Let nobody in any more and wait, up to so long, until all that are in are answered; how many are
        left."""
        self.closed = True
        ends = time.monotonic() + limit_s
        while self.working and time.monotonic() < ends:
            await asyncio.sleep(POLL_S)
        return self.working

    def learn(self, began: float, ended: float, working: int) -> None:
        """Of a request that was answered: when it began and ended, in seconds, and how many were at work."""
        if ended - began <= self._target:
            if working >= self.limit - 1:
                self.limit = min(float(self._most), self.limit + 1 / self.limit)
        elif began > self._lowered:
            self.limit, self._lowered = max(1.0, FEWER * self.limit), ended


class Limits:
    """ASGI middleware. More requests to /v1 than `pace` allows are refused at once, with Retry-After; with
    `keys`, so is whoever brings none, or asks too much with theirs."""

    def __init__(self, app: ASGIApp, pace: Pace, telemetry: Telemetry, keys: Keys | None = None):
        self._app = app
        self._pace = pace
        self._telemetry = telemetry
        self._door = Door(keys) if keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        # An exception that no handler knows is answered outside of here.
        status = FAILED

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name)]
            await send(message)

        if not _path(scope).startswith(VERSION):
            return await self._limited(scope, headers, receive, send_named)
        began, route = time.monotonic(), _route(_path(scope))
        context = {key: headers[key.encode()].decode("latin-1") for key in TRACE if key.encode() in headers}
        with tracing.request(f"{scope['method']} {VERSION}{route}", name.decode(), context) as span:
            try:
                return await self._admitted(scope, headers, receive, send_named)
            finally:
                span.set_attribute("http.response.status_code", status)
                if status >= 400:
                    self._telemetry.add("rationale_refusals", route=route, status=str(status))
                facts = {
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(1000 * (time.monotonic() - began), 2),
                }
                access.info("answered", extra={"facts": facts})

    async def _admitted(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send_named: Send
    ) -> None:
        if self._door is None:
            return await self._limited(scope, headers, receive, send_named)
        try:
            key = self._door.enter(headers, writes=_route(_path(scope)) == WRITES)
        except Refused as refused:
            refusal = problem(refused.status, refused.detail, refused.retry_s)
            return await refusal(scope, receive, send_named)
        try:
            return await self._limited(scope, headers, receive, send_named)
        finally:
            self._door.leave(key)

    async def _limited(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send_named: Send
    ) -> None:
        body = await _body(headers, receive)
        if body is None:
            refusal = problem(413, f"the body is larger than {MAX_BODY} bytes: send less")
            return await refusal(scope, receive, send_named)
        limited = _path(scope).startswith(VERSION)
        if limited and self._pace.full:
            state = "the service ends" if self._pace.closed else f"{self._pace.working} requests are at work"
            refusal = problem(503, f"{state}: send it again in a moment")
            return await refusal(scope, receive, send_named)
        began = time.monotonic()
        self._count(limited)
        try:
            return await self._app(scope, _replayed(body, receive), send_named)
        finally:
            if limited:
                self._pace.learn(began, time.monotonic(), self._pace.working)
            self._count(-limited)

    def _count(self, more: int) -> None:
        self._pace.working += more
        if more:
            self._telemetry.set("rationale_at_work", self._pace.working)


def _path(scope: Scope) -> str:
    """The path without the route that the whole application is served under."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _route(path: str) -> str:
    """The part after /v1/, without ids; `other` for what is no route."""
    name = path.removeprefix(VERSION).partition("/")[0]
    return name if name in ROUTES else OTHER


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
    """The whole body; None as soon as it is too large. Without one nothing is waited for."""
    if b"content-length" not in headers and b"transfer-encoding" not in headers:
        return b""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > MAX_BODY:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands the body over once more, then waits for the client as before."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
