"""The service while its store is locked, full or gone: feedback is refused in time, never lost once taken."""

from __future__ import annotations

import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
from starlette.testclient import TestClient

from ray_app.bundle import Bundle
from ray_app.data import schema
from ray_app.data.store import Store
from ray_app.errors import OverloadedError
from ray_app.records import Interaction
from serve.ingress import make_api
from tests.bundles import LinearStudent
from tests.pages import make_front
from tests.postgres import Server

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


@pytest.fixture
def on_postgres(bundle: Bundle, postgres: Server) -> Iterator[Store]:
    """A store with the bundle's items and users."""
    store = Store(postgres.new_database())
    tables = [pl.read_parquet(bundle.path / f"{name}.parquet") for name in ("items", "users")]
    none = pl.DataFrame(
        {"row_id": 0, "user": 0, "item": 0, "timestamp": 0, "rating": 0.0, "label": 0}
    ).clear()
    store.load(*tables, none, version=bundle.version)
    yield store
    store.close()


def test_what_postgresql_acknowledged_is_there_after_kill_9(on_postgres: Store, postgres: Server):
    """The server's own default would acknowledge before writing: `synchronous_commit` is off there."""
    acknowledged: list[str] = []
    refused: list[str] = []
    after: list[str] = []
    enough, up = threading.Event(), threading.Event()

    def add(key: str) -> bool:
        one = Interaction(user_id="u1", item_id="i7", timestamp=1_000_000_000, label=1)
        return on_postgres.add(one, event="like", key=key)

    def write(name: int) -> None:
        for number in range(100_000):
            key = f"{name}-{number}"
            try:
                add(key)
            except OverloadedError:
                refused.append(key)
                break
            acknowledged.append(key)
            if len(acknowledged) >= 300:
                enough.set()
        up.wait(60)
        assert add(f"{name}-after")
        after.append(f"{name}-after")

    writers = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for writer in writers:
        writer.start()
    assert enough.wait(60)
    postgres.kill()
    try:
        deadline = time.monotonic() + 30
        while len(refused) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        postgres.start()
        up.set()
    for writer in writers:
        writer.join()
    assert len(refused) == len(after) == 4
    assert len(acknowledged) >= 300
    assert not any(add(key) for key in acknowledged), "acknowledged and lost"
    for key in refused:  # its commit may have come through
        add(key)
    assert on_postgres.counts()["feedback"] == len(acknowledged) + len(refused) + len(after)


def test_the_service_outlives_a_postgresql_that_is_restarted(bundle, on_postgres, postgres):
    with TestClient(make_api(make_front(bundle, LinearStudent(), on_postgres))) as service:
        assert rate(service, "a").status_code == 201
        assert still_recommends(service)
        postgres.stop()
        try:
            assert refused(rate(service, "b"))
            assert refused(service.get("/v1/users/u9"))
            assert refused(service.get("/readyz"))
            assert still_recommends(service), "what is known of the user needs no database"
        finally:
            postgres.start()
        assert service.get("/readyz").status_code == 200
        assert rate(service, "b").json()["stored"] is True
        assert rate(service, "a").json()["stored"] is False


def test_a_postgresql_that_became_read_only_refuses_feedback(bundle, on_postgres, postgres):
    """As after a failover, where the old primary goes on as a standby."""
    with TestClient(make_api(make_front(bundle, LinearStudent(), on_postgres))) as service:
        assert rate(service, "a").status_code == 201
        postgres.set_read_only(True)
        try:
            assert refused(rate(service, "b"))
            assert still_recommends(service)
        finally:
            postgres.set_read_only(False)
        assert rate(service, "b").json()["stored"] is True


def test_a_store_without_a_free_connection_refuses_in_time(on_postgres, monkeypatch):
    monkeypatch.setattr(schema, "LOCKED_S", LOCKED_S)
    store = Store(on_postgres._engine.url.render_as_string(hide_password=False))
    taken = [store._engine.connect() for _ in range(15)]
    with pytest.raises(OverloadedError, match="QueuePool limit"):
        store.version()
    for connection in taken:
        connection.close()
    assert store.version() is not None
    store.close()
