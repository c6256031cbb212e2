"""Structured logs: a JSON object per line that names the request, or the run and stage, it belongs to.

    RATIONALE_LOGS=json    in the environment of the launcher, a job or a replica

Without it a person reads: the pipeline prints its lines, and the service logs only what went wrong.
`with about(request="..."): ...` adds fields to every line inside, across awaits too.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache

VARIABLE = "RATIONALE_LOGS"
_fields: ContextVar[dict[str, str] | None] = ContextVar("fields", default=None)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """What the lines logged inside belong to."""
    token = _fields.set(known() | fields)
    try:
        yield
    finally:
        _fields.reset(token)


def known() -> dict[str, str]:
    """The fields of here and now."""
    return _fields.get() or {}


class JsonLines(logging.Formatter):
    """One object per line. All but ASCII is escaped, so that no text of a user's can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= known() | getattr(record, "facts", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Stdout(logging.Handler):
    """Asks for stdout at every line: Ray's workers and test runners put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), flush=True)
        except Exception:
            self.handleError(record)


def wanted() -> bool:
    """Whether the environment asks for JSON lines."""
    return os.environ.get(VARIABLE) == "json"


@cache
def set_up() -> None:
    """Send what the loggers under `rationale` say to stdout as JSON lines, if they are wanted. Once."""
    if not wanted():
        return
    handler = _Stdout()
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("rationale")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def tell(text: str, **facts: object) -> None:
    """A line of a pipeline's progress: the text for a person, or a JSON line with the facts."""
    if wanted():
        set_up()
        logging.getLogger("rationale.pipeline").info(text, extra={"facts": facts})
    else:
        print(text, flush=True)
