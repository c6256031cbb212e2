"""The typed client against the real API, and the committed description of it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from ray_app.client import Client, ServiceError
from ray_app.records import Recommendation, TrailStep
from serve import openapi
from serve.ingress import make_api
from tests.bundles import LinearStudent
from tests.pages import make_front

ROOT = Path(__file__).parents[2]


@pytest.fixture
def service(bundle) -> Client:
    return Client(http=TestClient(make_api(make_front(bundle, LinearStudent(scale=3)))))


def canned(*answers: httpx.Response, waits: list[float] | None = None, **more) -> Client:
    """A client of a service that gives these answers in turn; `waits` takes what was slept."""
    left = list(answers)
    http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(lambda _: left.pop(0)))
    return Client(http=http, sleep=(waits if waits is not None else []).append, **more)


def refused(status: int, retry: str = "2") -> httpx.Response:
    body = {"status": status, "detail": "not now"}
    return httpx.Response(status, headers={"Retry-After": retry}, json=body)


ITEM = httpx.Response(200, json={"item_id": "i1", "title": "Heat"})


def test_every_call_gives_its_record(service):
    assert service.ready()["bundle"] == "b1"
    assert [(row.user_id, row.history) for row in service.users("u28")] == [("u28", 18)]
    assert service.user("u3", limit=2).user.user_id == "u3"
    assert service.items("tale 17")[0].item_id == service.item("i17").item_id == "i17"
    assert len(service.recommend("u3", 2, detail="trail").trail.steps) > 5
    assert service.explain("u3", "i5").items[0].item.item_id == "i5"
    assert service.recommend(liked=["i4", "i8"], disliked=["i7"], k=1).user_id == ""


def test_a_stream_gives_steps_and_the_answer(service):
    *steps, answer = service.stream("u3", 1)
    assert all(isinstance(step, TrailStep) for step in steps)
    assert isinstance(answer, Recommendation)
    with pytest.raises(ServiceError, match="'nobody'") as error:
        list(service.stream("nobody"))
    assert error.value.status == 404


def test_feedback_is_stored_once_however_often_it_is_sent(service):
    first = service.interact("u3", "i5", rating=4, key="k1")
    assert (first.stored, first.interaction.label) == (True, 1)
    assert not service.interact("u3", "i5", rating=4, key="k1").stored
    assert service.interact("u3", "i5", label=0).stored


def test_problems_are_raised_with_their_status_and_detail(service):
    with pytest.raises(ServiceError) as error:
        service.recommend("u3", k=0)
    assert error.value.status == 422
    assert error.value.problem["errors"][0]["field"] == "k"


def test_ids_are_quoted(service):
    with pytest.raises(ServiceError, match="'a/b\\?c'"):
        service.user("a/b?c")


def test_what_is_refused_for_now_is_asked_again_after_the_named_time():
    waits: list[float] = []
    assert canned(refused(503), refused(429, "7"), ITEM, waits=waits).item("i1").title == "Heat"
    assert waits == [2.0, 7.0]


@pytest.mark.parametrize(("status", "retry"), [(404, "1"), (422, "1"), (500, "1"), (401, "1"), (429, "3600")])
def test_what_will_not_change_is_not_asked_again(status, retry):
    waits: list[float] = []
    with pytest.raises(ServiceError) as error:
        canned(refused(status, retry), waits=waits).item("i1")
    assert (error.value.status, waits) == (status, [])


def test_it_gives_up_after_the_retries():
    with pytest.raises(ServiceError, match="not now"):
        canned(refused(503), refused(503), retries=1).item("i1")


def test_a_service_that_is_not_there_is_told():
    def gone(_):
        raise httpx.ConnectError("refused")

    http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(gone))
    with pytest.raises(ServiceError, match="is the service up") as error:
        Client(http=http, sleep=lambda _: None).item("i1")
    assert error.value.status == 0


def test_the_key_is_sent():
    seen = []
    transport = httpx.MockTransport(lambda request: (seen.append(request.headers), ITEM)[1])
    Client(key="k", http=httpx.Client(base_url="http://test", transport=transport)).item("i1")
    assert seen[0]["authorization"] == "Bearer k"


def test_the_committed_description_is_that_of_the_code():
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert committed == openapi.description(), "run: python -m serve.openapi > docs/openapi.json"
