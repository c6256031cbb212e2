"""The service while its store is locked, full or gone: feedback is refused in time, never lost once taken."""

from __future__ import annotations

import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from ray_app.bundle import Bundle
from ray_app.data import schema
from serve.ingress import make_api
from tests.bundles import LinearStudent
from tests.pages import make_front

LOCKED_S = 0.5


@pytest.fixture
def service(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(schema, "LOCKED_S", LOCKED_S)
    with TestClient(make_api(make_front(bundle, LinearStudent()))) as client:
        yield client


def rate(service: TestClient, key: str) -> httpx.Response:
    return service.post("/v1/interactions", json={"user_id": "u5", "item_id": "i7", "label": 1, "key": key})


def still_recommends(service: TestClient) -> bool:
    answer = service.post("/v1/recommendations", json={"user_id": "u6", "k": 2})
    return answer.status_code == 200 and not answer.json()["degraded"]


def refused(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and "retry-after" in answer.headers


def test_a_locked_store_refuses_feedback_in_time(service, bundle):
    with sqlite3.connect(bundle.path / "store.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert refused(rate(service, "a"))
        assert LOCKED_S <= time.monotonic() - began < bundle.config.serve.deadline_s
        assert still_recommends(service)
        other.execute("ROLLBACK")
    assert rate(service, "a").status_code == 201


def test_a_full_disk_refuses_feedback_and_keeps_what_it_has(service, bundle):
    assert rate(service, "a").status_code == 201
    assert still_recommends(service)  # so that nothing is left to compile, and to write to a cache
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        answer = rate(service, "b")
        well = still_recommends(service)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert refused(answer)
    assert well
    assert rate(service, "b").json()["stored"] is True
    assert rate(service, "a").json()["stored"] is False


def moved(path: Path, to: Path) -> None:
    for end in ("", "-wal", "-shm"):
        if (file := path.with_name(path.name + end)).exists():
            file.replace(to.with_name(to.name + end))


def test_a_store_that_is_gone_takes_nothing_in_and_can_be_put_back(service, bundle):
    """A connection to a removed file goes on as if nothing had happened; what it takes in is lost."""
    store, aside = bundle.path / "store.sqlite", bundle.path / "aside.sqlite"
    assert rate(service, "a").status_code == 201
    moved(store, aside)
    assert refused(rate(service, "b"))
    assert refused(service.get("/v1/users/u9"))
    moved(aside, store)
    assert rate(service, "b").json()["stored"] is True
    assert rate(service, "a").json()["stored"] is False
    assert still_recommends(service)
