"""What stands before the routes: a request id, a limit on bodies, a limit on requests at work."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import problem

MAX_BODY = 64 * 1024
REQUEST_ID = re.compile(rb"[\w.-]{1,64}")


class Limits:
    """ASGI middleware. More than `at_once` requests to /v1 are refused at once, with Retry-After."""

    def __init__(self, app: ASGIApp, at_once: int):
        self._app = app
        self._at_once = at_once
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name)]
            await send(message)

        body = await _body(headers, receive)
        if body is None:
            refusal = problem(413, f"the body is larger than {MAX_BODY} bytes: send less")
            return await refusal(scope, receive, send_named)
        limited = scope["path"].startswith("/v1/")
        if limited and self._working >= self._at_once:
            refusal = problem(503, f"{self._working} requests are at work: send it again in a moment")
            return await refusal(scope, receive, send_named)
        self._working += limited
        try:
            return await self._app(scope, _replayed(body, receive), send_named)
        finally:
            self._working -= limited


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
