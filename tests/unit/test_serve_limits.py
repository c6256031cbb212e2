"""How many requests are let in: as many as are answered in time."""

from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from ray_app.telemetry import Telemetry
from serve.limits import Limits, Pace


def test_answers_in_time_raise_the_limit_by_one_for_every_limit_of_them():
    pace = Pace(4, 6, 2.0)
    pace.learn(0.0, 1.0, working=4)
    assert pace.limit == pytest.approx(4.25)
    for _ in range(20):
        pace.learn(0.0, 1.0, working=6)
    assert pace.limit == 6


def test_a_limit_that_is_not_reached_is_not_raised():
    pace = Pace(4, 9, 2.0)
    pace.learn(0.0, 1.0, working=2)
    assert pace.limit == 4


def test_a_late_answer_lowers_it_once_for_all_that_were_let_in_before():
    pace = Pace(8, 8, 2.0)
    pace.learn(0.0, 3.0, working=8)
    pace.learn(1.0, 3.5, working=7)
    assert pace.limit == 6
    pace.learn(3.1, 6.0, working=5)
    assert pace.limit == pytest.approx(4.5)
    for n in range(20):
        pace.learn(10.0 * n, 10.0 * n + 9, working=1)
    assert pace.limit == 1


async def _app(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_limits_hold_under_any_route_that_the_application_is_served_under():
    """While one bundle follows another both have routes of their own."""
    for root in ("", "/next"):
        client = TestClient(Limits(_app, Pace(0, 0, 1.0), Telemetry()), root_path=root)
        assert client.get(f"{root}/v1/users").status_code == 503
        assert client.get(f"{root}/healthz").status_code == 200


def test_a_service_that_ends_lets_nobody_in_and_waits_for_those_who_are():
    async def story() -> tuple[int, int]:
        pace = Pace(4, 6, 2.0)
        pace.working = 1
        early = await pace.close(0.0)
        asyncio.get_running_loop().call_later(0.1, setattr, pace, "working", 0)
        return early, await pace.close(5.0)

    assert asyncio.run(story()) == (1, 0)
    pace = Pace(4, 6, 2.0)
    asyncio.run(pace.close(0.0))
    answer = TestClient(Limits(_app, pace, Telemetry())).post("/v1/recommendations")
    assert answer.status_code == 503
    assert "the service ends" in answer.json()["detail"]
    assert "retry-after" in answer.headers
