"""Answers as server-sent events, without Ray: their order, their errors, and a client that goes."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from ray_app.errors import OverloadedError
from ray_app.records import Recommendation, TrailStep
from serve.events import event, wants_events
from serve.ingress import make_api
from tests.bundles import LinearStudent
from tests.pages import make_front

BODY = {"user_id": "u3", "k": 2}
STREAM = {"Accept": "text/event-stream"}


def streamed(bundle, body=BODY, path="recommendations", **changed):
    api = make_api(make_front(bundle, LinearStudent(scale=3), **changed))
    client = TestClient(api, raise_server_exceptions=False)
    return client.post(f"/v1/{path}", json=body, headers=STREAM)


def events(text: str) -> list[tuple[str, dict]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_every_step_comes_when_it_begins_and_when_it_is_done_and_the_answer_last(bundle):
    answer = streamed(bundle)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    *steps, (last, data) = events(answer.text)
    assert {name for name, _ in steps} == {"step"}
    told = [TrailStep.model_validate(step) for _, step in steps]
    assert [step.work for step in told[:4]] == ["fetch", "fetch", "propose", "propose"]
    assert [step.ms is None for step in told] == [True, False] * (len(told) // 2)
    assert last == "answer"
    assert len(Recommendation.model_validate(data).items) == 2


def test_one_item_and_a_visitor_are_streamed_too(bundle):
    body = {"item_id": "i5", "liked": ["i4"], "detail": "trail"}
    *_, (last, data) = events(streamed(bundle, body, "explanations").text)
    assert (last, data["user_id"]) == ("answer", "")
    assert data["trail"]["steps"]


@pytest.mark.parametrize(
    ("body", "status"), [({"user_id": "nobody"}, 404), ({"user_id": "u3", "k": 99}, 422), ({}, 422)]
)
def test_what_fails_before_the_first_step_is_done_is_a_plain_problem(bundle, body, status):
    answer = streamed(bundle, body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_what_fails_later_is_an_event(bundle):
    async def full(*_):
        await asyncio.sleep(0.05)
        raise OverloadedError("Swing has a full queue: send the request again")

    *_, (last, data) = events(streamed(bundle, propose=full).text)
    assert (last, data["status"]) == ("problem", 503)

    async def broken(*_):
        await asyncio.sleep(0.05)
        raise KeyError("secret")

    answer = streamed(bundle, propose=broken)
    assert events(answer.text)[-1][1]["status"] == 500
    assert "secret" not in answer.text


def test_a_client_that_goes_ends_the_work(bundle):
    """The ASGI application is driven by hand: the client goes after the first chunk."""
    ended = asyncio.Event()

    async def forever(*_):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.set()
            raise

    api = make_api(make_front(bundle, LinearStudent(), propose=forever))
    sent: list[dict] = []
    chunk = asyncio.Event()

    async def receive():
        if not sent and not chunk.is_set() and not receive.given:
            receive.given = True
            return {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}
        await chunk.wait()
        return {"type": "http.disconnect"}

    receive.given = False

    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.body":
            chunk.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/recommendations",
        "raw_path": b"/v1/recommendations",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "headers": [
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream"),
            (b"content-length", b"1"),
        ],
    }
    asyncio.run(asyncio.wait_for(api(scope, receive, send), 20))
    assert ended.is_set()
    assert sent[0]["status"] == 200


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream", True),
        ("application/json;q=0.5, Text/Event-Stream; charset=utf-8", True),
    ],
)
def test_a_stream_comes_only_when_it_is_asked_for(accept, expected):
    assert wants_events(accept) is expected


def test_text_cannot_break_out_of_its_event():
    assert event("answer", {"title": "a\n\nevent: b\u2028"}).count("\n") == 3
