"""The HTTP API over plain agents: answers, and every way to ask wrongly."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from ray_app.bundle import Bundle
from ray_app.errors import OverloadedError
from ray_app.records import Recommendation
from serve.ingress import PAGE, make_api
from serve.limits import MAX_BODY
from tests.bundles import LinearStudent
from tests.pages import make_front


def client_of(bundle: Bundle, student: LinearStudent | None = None, **changed) -> TestClient:
    front = make_front(bundle, student or LinearStudent(), **changed)
    return TestClient(make_api(front), raise_server_exceptions=False)


@pytest.fixture
def client(bundle: Bundle) -> TestClient:
    return client_of(bundle)


def ask(client: TestClient, **body):
    return client.post("/v1/recommendations", json={"user_id": "u3"} | body)


def problem_of(answer, status: int) -> dict:
    """The problem of an answer, checked to be one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail"} <= set(body)
    assert body["status"] == status
    assert "\n" not in body["detail"]
    return body


def test_recommendations(client):
    answer = ask(client, k=3, detail="brief")
    assert answer.status_code == 200
    found = Recommendation.model_validate_json(answer.content)
    assert len(found.items) == 3
    assert all(len(entry.explanation.sentences) == 1 for entry in found.items)
    assert found.versions["bundle"] == "b1"


def test_explanation_of_one_item(client):
    answer = client.post("/v1/explanations", json={"user_id": "u3", "item_id": "i5", "detail": "detailed"})
    assert answer.status_code == 200
    assert [entry["item"]["item_id"] for entry in answer.json()["items"]] == ["i5"]


def test_a_degraded_answer_says_so(bundle):
    answer = ask(client_of(bundle, LinearStudent(dies=("score",))))
    assert answer.status_code == 200
    assert answer.json()["degraded"]
    assert "died" in answer.json()["degraded_reason"]


def test_feedback_is_in_the_history_and_out_of_the_recommendations(client):
    top = ask(client, k=1).json()["items"][0]["item"]["item_id"]
    answer = client.post("/v1/interactions", json={"user_id": "u3", "item_id": top, "rating": 2})
    assert answer.status_code == 201
    assert answer.json()["interaction"]["label"] == 0
    newest = client.get("/v1/users/u3", params={"limit": 1}).json()["history"]
    assert [(one["item"]["item_id"], one["rating"]) for one in newest] == [(top, 2.0)]
    assert top not in {entry["item"]["item_id"] for entry in ask(client, k=50).json()["items"]}


@pytest.mark.parametrize("place", ["header", "body"])
def test_a_known_key_answers_200_and_stores_nothing(client, place):
    body = {"user_id": "u3", "item_id": "i5", "label": 1} | ({"key": "k-1"} if place == "body" else {})
    headers = {"Idempotency-Key": "k-1"} if place == "header" else {}
    answers = [client.post("/v1/interactions", json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert [answer.json()["stored"] for answer in answers] == [True, False]


def test_users_and_items_are_listed(client):
    assert client.get("/v1/users", params={"limit": 2}).json() == {
        "users": [{"user_id": "u0", "history": 18}, {"user_id": "u1", "history": 18}]
    }
    assert [u["user_id"] for u in client.get("/v1/users?prefix=u28").json()["users"]] == ["u28"]
    assert client.get("/v1/items?q=tale%2017").json()["items"][0]["item_id"] == "i17"
    assert client.get("/v1/items/i17").json()["title"] == "Drama Tale 17"


def test_ready_only_when_a_token_was_generated(bundle):
    assert client_of(bundle).get("/readyz").json()["bundle"] == "b1"
    dead = client_of(bundle, LinearStudent(dies=("healthy",)))
    assert "not ready" in problem_of(dead.get("/readyz"), 503)["detail"]
    assert dead.get("/healthz").status_code == 200


def test_the_page_and_its_files_are_served_and_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/run").headers["content-security-policy"] == page.headers["content-security-policy"]
    for name in sorted(path.name for path in PAGE.iterdir() if path.suffix != ".html"):
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200
        assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")


def test_the_api_describes_itself(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/recommendations", "/v1/explanations", "/v1/interactions", "/v1/users"}
    assert "application/problem+json" in paths["/v1/recommendations"]["post"]["responses"]["404"]["content"]


@pytest.mark.parametrize("content", ["", "{", "k=5", '{"user_id": "u3"} x'])
def test_a_body_that_is_not_json(client, content):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/recommendations", content=content, headers=headers)
    problem_of(answer, 422 if content == "" else 400)


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"k": 0}, "k", "0"),
        ({"k": 51}, "k", "51"),
        ({"k": "5"}, "k", "'5'"),
        ({"k": True}, "k", "True"),
        ({"detail": "long"}, "detail", "'long'"),
        ({"user_id": ""}, "user_id", "''"),
        ({"user_id": 3}, "user_id", "3"),
        ({"users": 3}, "users", "3"),
        ({"high_stakes": "maybe"}, "high_stakes", "'maybe'"),
        ({"high_stakes": 1}, "high_stakes", "1"),
    ],
)
def test_unusable_values_are_named(client, body, field, value):
    detail = problem_of(ask(client, **body), 422)["detail"]
    assert detail.startswith(f"{field}: ")
    assert value in detail


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either rating or label"),
        ({"rating": 4, "label": 1}, "either rating or label"),
        ({"rating": "4"}, "rating: Input should be a valid number"),
        ({"rating": 6}, "rating: 6 is out of range: send 0 to 5"),
        ({"label": 2}, "label"),
        ({"label": 1, "timestamp": -1}, "timestamp -1"),
        ({"label": 1, "timestamp": 10**30}, "timestamp"),
        ({"label": 1, "event": "history"}, "event 'history'"),
        ({"label": 1, "user_id": "a\nb"}, "user id"),
    ],
)
def test_unusable_feedback(client, body, words):
    answer = client.post("/v1/interactions", json={"user_id": "u3", "item_id": "i5"} | body)
    assert words in problem_of(answer, 422)["detail"]


def test_nan_is_no_rating(client):
    answer = client.post(
        "/v1/interactions",
        content='{"user_id": "u3", "item_id": "i5", "rating": NaN}',
        headers={"Content-Type": "application/json"},
    )
    assert problem_of(answer, 422)["detail"].startswith("rating: ")


@pytest.mark.parametrize(("name", "status"), [("nobody", 404), ("x" * 256, 404), ("\ud800", 422)])
def test_unknown_ids(client, name, status):
    body = json.dumps({"user_id": name})  # ASCII: also for what UTF-8 has no bytes for
    headers = {"Content-Type": "application/json"}
    problem_of(client.post("/v1/recommendations", content=body, headers=headers), status)


def test_unknown_items_users_and_paths(client):
    unknown = {"user_id": "u3", "item_id": "nothing"}
    assert "'nothing'" in problem_of(client.post("/v1/explanations", json=unknown), 404)["detail"]
    problem_of(client.post("/v1/interactions", json=unknown | {"label": 1}), 404)
    problem_of(client.get("/v1/users/nobody"), 404)
    problem_of(client.get("/v1/items/nothing"), 404)
    problem_of(client.get("/v2/users"), 404)
    answer = client.get("/v1/recommendations")
    problem_of(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_large_body_is_refused_unread(client):
    problem_of(ask(client, user_id="x" * MAX_BODY), 413)


def test_a_late_answer(bundle):
    async def slow(*_):
        raise TimeoutError

    assert "deadline" in problem_of(ask(client_of(bundle, fetch=slow)), 504)["detail"]


def test_an_overloaded_agent_tells_when_to_come_back(bundle):
    async def full(*_):
        raise OverloadedError("Reasoning has a full queue: send the request again")

    answer = ask(client_of(bundle, decide=full))
    problem_of(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1


def test_a_fault_of_our_own_tells_nothing_about_the_inside(bundle):
    async def broken(*_):
        raise KeyError("secret")

    assert "secret" not in problem_of(ask(client_of(bundle, decide=broken)), 500)["detail"]


def test_more_requests_than_can_wait_are_refused_at_once(bundle):
    import httpx

    few = bundle.config.serve.model_copy(update={"max_ongoing": 2, "max_queued": 0})
    config = bundle.config.model_copy(update={"serve": few})
    gate = asyncio.Event()

    async def held(*_):
        await gate.wait()
        raise OverloadedError("enough")

    front = make_front(bundle, LinearStudent(), fetch=held)
    front = type(front)(**(vars(front) | {"config": config}))

    async def burst():
        transport = httpx.ASGITransport(make_api(front))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            body = {"user_id": "u3"}
            waiting = [asyncio.create_task(http.post("/v1/recommendations", json=body)) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = await http.post("/v1/recommendations", json=body)
            alive = await http.get("/healthz")
            gate.set()
            await asyncio.gather(*waiting)
            again = await http.get("/v1/items/i5")
        return refused, alive, again

    refused, alive, again = asyncio.run(burst())
    assert "2 requests are at work" in problem_of(refused, 503)["detail"]
    assert refused.headers["retry-after"]
    assert (alive.status_code, again.status_code) == (200, 200)


def test_every_answer_has_a_request_id(client):
    assert client.get("/healthz").headers["x-request-id"]
    assert client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/healthz", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"
