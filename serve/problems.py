"""Errors as problem+json (RFC 9457): what was wrong, the value got, what to do; never a stack trace."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ray_app.errors import DataError, EngineError, NotFoundError, OverloadedError

RETRY_S = 1
VALUE_CHARS = 80
TITLES = {
    400: "The body cannot be read",
    401: "Who is asking?",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    413: "The body is too large",
    422: "The request cannot be used",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available just now",
    504: "Too late",
}
STATUSES = ((NotFoundError, 404), (DataError, 422), (OverloadedError, 503), (EngineError, 503))
LATE = "no answer within serve.deadline_s: ask for fewer items, or again later"
FAILED = "the service failed on this request: its log says why"
logger = logging.getLogger("rationale.ingress")


class InvalidRequestError(DataError):
    """A value of a request that its schema alone cannot judge."""


class WrongField(BaseModel):
    field: str
    message: str
    value: str


class Problem(BaseModel):
    """The body of every error; members that it does not name are allowed."""

    type: str
    title: str
    status: int
    detail: str
    """One line: what was wrong, the value, what to do."""
    errors: list[WrongField] = []
    """Every field of a request that could not be used."""


def body_of(status: int, detail: str, **more: Any) -> dict[str, Any]:
    title = TITLES.get(status, "The request failed")
    return {"type": "about:blank", "title": title, "status": status, "detail": detail} | more


def told(error: Exception) -> dict[str, Any]:
    """What a response to this error of an agent would hold, for where it is too late for a status."""
    if isinstance(error, TimeoutError):
        return body_of(504, LATE)
    for kind, status in STATUSES:
        if isinstance(error, kind):
            return body_of(status, str(error))
    logger.error("an answer that was being streamed failed", exc_info=error)
    return body_of(500, FAILED)


def problem(status: int, detail: str, retry_s: int = RETRY_S, **more: Any) -> Response:
    """The response; 429 and 503 tell when to come back, 401 how to say who asks."""
    body = body_of(status, detail, **more)
    headers = {"Retry-After": str(retry_s)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    # ASCII: a value that is quoted back may hold what UTF-8 cannot.
    return Response(json.dumps(body), status, headers, media_type="application/problem+json")


def install(api: FastAPI) -> None:
    """Have every error of the API answered as a problem."""
    for kind, status in STATUSES:
        api.add_exception_handler(kind, _answering(status))
    api.add_exception_handler(TimeoutError, _late)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(Exception, _unexpected)


def _answering(status: int) -> Any:
    async def answer(_: Request, error: Exception) -> Response:
        return problem(status, str(error))

    return answer


async def _late(_: Request, __: Exception) -> Response:
    return problem(504, LATE)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        reason = found[0].get("ctx", {}).get("error", "")
        return problem(400, f"the body is not JSON ({reason}): send an object as /openapi.json describes")
    fields = [
        {
            "field": ".".join(str(part) for part in one["loc"][1:]) or "body",
            "message": one["msg"],
            "value": _short(one["input"]),
        }
        for one in found
    ]
    first = fields[0]
    detail = f"{first['field']}: {first['message']} (got {first['value']})"
    return problem(422, detail, errors=fields)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = problem(
        error.status_code,
        f"{request.method} {request.url.path[:VALUE_CHARS]}: {error.detail}: see /openapi.json",
    )
    answer.headers.update(error.headers or {})
    return answer


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, FAILED)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARS else f"{text[: VALUE_CHARS - 3]}..."
