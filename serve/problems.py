"""Errors as problem+json (RFC 9457): what was wrong, the value got, what to do; never a stack trace."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ray_app.errors import DataError, EngineError, NotFoundError, OverloadedError

RETRY_S = 1
VALUE_CHARS = 80
TITLES = {
    400: "The body cannot be read",
    404: "Not found",
    405: "Method not allowed",
    413: "The body is too large",
    422: "The request cannot be used",
    500: "Internal error",
    503: "Not available just now",
    504: "Too late",
}
logger = logging.getLogger("rationale.ingress")


class InvalidRequestError(DataError):
    """A value of a request that its schema alone cannot judge."""


def problem(status: int, detail: str, **more: Any) -> Response:
    """The response; 503 tells when to come back."""
    title = TITLES.get(status, "The request failed")
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail} | more
    headers = {"Retry-After": str(RETRY_S)} if status == 503 else {}
    # ASCII: a value that is quoted back may hold what UTF-8 cannot.
    return Response(json.dumps(body), status, headers, media_type="application/problem+json")


def install(api: FastAPI) -> None:
    """Have every error of the API answered as a problem."""
    for kind, status in (
        (NotFoundError, 404),
        (DataError, 422),
        (OverloadedError, 503),
        (EngineError, 503),
    ):
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
    return problem(504, "no answer within serve.deadline_s: ask for fewer items, or again later")


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
    return problem(500, "the service failed on this request: its log says why")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARS else f"{text[: VALUE_CHARS - 3]}..."
