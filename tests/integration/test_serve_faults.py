"""Real faults of the served graph, in real processes, while requests arrive: what is lost, for how long.

Each test prints a line; `docs/reliability.md` holds a table of them. One session for all.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from bench.graph import served
from bench.load import Sample, load
from ray_app.artifacts import Folder
from ray_app.bundle import MANIFEST, Bundle, seal
from serve.settings import Settings
from tests.bundles import USERS_COUNT, Breakable, LinearStudent, make_bundle, store_url

pytestmark = pytest.mark.heavy
DEADLINE_S = 10.0
RATE, SECONDS, AFTER_S = 4.0, 30.0, 4.0
AGENTS = ["Retrieval", "Swing", "Reasoning", "Reflection", "Explanation"]


class Service(NamedTuple):
    base: str
    folder: Path
    client: httpx.Client

    def ready(self, limit_s: float = 150.0) -> float:
        """Seconds until /readyz says so."""
        began = time.monotonic()
        while True:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return time.monotonic() - began
            except httpx.HTTPError:
                pass
            assert time.monotonic() - began < limit_s, "not ready in time"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("bundle")
    bundle = make_bundle(folder, deadline_s=DEADLINE_S)
    settings = Settings(bundle.config, str(folder), store_url(folder))
    with (
        served(settings, lambda *_: Breakable(folder), 4) as base,
        httpx.Client(base_url=base, timeout=60, trust_env=False) as client,
    ):
        made = Service(base, folder, client)
        made.ready()
        yield made


def replicas(agent: str) -> list[psutil.Process]:
    """Processes of this session that serve the agent."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ServeReplica" in words and f":{agent}" in words:
            found.append(process)
    return found


def kill(agent: str, how: signal.Signals = signal.SIGKILL) -> None:
    mine = replicas(agent)
    assert mine, f"no replica of {agent}"
    for process in mine:
        os.kill(process.pid, how)


def under_load(
    service: Service, fault: Callable[[], Any], name: str, seconds: float = SECONDS
) -> list[Sample]:
    """Samples of a load in which the fault happens; every request was answered, or refused as a problem."""
    body = lambda n: {"user_id": f"u{n % (USERS_COUNT - 1)}", "k": 2}  # noqa: E731
    samples = asyncio.run(load(service.base, RATE, seconds, body, DEADLINE_S, {AFTER_S: fault}))
    counts = {status: sum(one.status == status for one in samples) for status in {s.status for s in samples}}
    bad = [one for one in samples if one.status != 200 or one.degraded]
    last = max((one.due + one.ms / 1000 for one in bad), default=AFTER_S)
    degraded = sum(one.degraded for one in samples)
    print(
        f"\n{name}: {len(samples)} requests, by status {counts}, degraded {degraded}, "
        f"all well again {last - AFTER_S:.1f} s after the fault, slowest {max(s.ms for s in samples):.0f} ms"
    )
    assert set(counts) <= {200, 503}, counts
    assert all(one.retry_after for one in samples if one.status == 503)
    assert max(one.ms for one in samples) < 1000 * (DEADLINE_S + 1)
    assert samples[-1].status == 200
    return samples


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_that_is_killed_comes_back_and_nothing_hangs(service: Service, agent: str):
    service.ready()
    samples = under_load(service, lambda: kill(agent), f"kill -9 {agent}")
    lost = sum(one.status != 200 for one in samples)
    assert lost <= len(samples) // 2
    if agent == "Reasoning":
        assert any(one.degraded for one in samples)


@pytest.mark.parametrize("agent", ["Swing", "Reasoning"])
def test_a_replica_that_is_told_to_end_loses_no_more_than_one_that_is_killed(service: Service, agent: str):
    service.ready()
    samples = under_load(service, lambda: kill(agent, signal.SIGTERM), f"SIGTERM {agent}")
    assert sum(one.status != 200 for one in samples) <= len(samples) // 2


def another(student: Callable[[Path], Any], bundle: Bundle) -> Any:
    """An application beside the service, to run under a route of its own."""
    from serve.app import application
    from serve.settings import Settings

    settings = Settings(bundle.config, str(bundle.path), store_url(bundle.path))
    return application(settings, lambda *_: student(bundle.path))


def test_an_application_that_ends_answers_what_it_has_at_work(service: Service, tmp_path: Path):
    from ray import serve

    from serve.app import end

    service.ready()
    bundle = make_bundle(tmp_path, deadline_s=DEADLINE_S)
    serve.run(another(Breakable, bundle), name="ending", route_prefix="/ending")

    def ask(n: int) -> httpx.Response:
        body = {"user_id": f"u{n}", "k": 2}
        return service.client.post("/ending/v1/recommendations", json=body)

    assert ask(1).status_code == 200
    with ThreadPoolExecutor(8) as pool:
        (tmp_path / "hung").touch()
        asked = [pool.submit(ask, n) for n in range(6)]
        time.sleep(1.0)
        ended = pool.submit(end, "ending", DEADLINE_S)
        time.sleep(1.0)
        late = ask(7)
        (tmp_path / "hung").unlink()
        answers = [one.result() for one in asked]
        assert ended.result() == 0
    assert (late.status_code, "the service ends" in late.json()["detail"]) == (503, True)
    assert "retry-after" in late.headers
    print(f"\napplication ended: {[answer.status_code for answer in answers]}")
    assert {answer.status_code for answer in answers} == {200}
    assert not any(answer.json()["degraded"] for answer in answers)
    assert service.client.get("/readyz").status_code == 200


def test_a_damaged_adapter_is_done_without_or_refused(service: Service, tmp_path: Path):
    from ray import serve

    service.ready()
    nearest = {"single": 0.01, "margin": 0.0}
    bundle = make_bundle(tmp_path, deadline_s=DEADLINE_S, gate=nearest)
    files = {name: folder / "adapter_model.safetensors" for name, folder in bundle.adapters.items()}
    for name, file in files.items():
        file.parent.mkdir(parents=True)
        file.write_text(name)
    seal(tmp_path, Folder(tmp_path).read_json(MANIFEST))
    files["expert-1"].write_text("cut off")
    app = another(lambda _: LinearStudent(), bundle)
    serve.run(app, name="damaged", route_prefix="/damaged")
    found = []
    for n in range(USERS_COUNT - 1):
        body = {"user_id": f"u{n}", "k": 1}
        answer = service.client.post("/damaged/v1/recommendations", json=body).json()
        found.append((answer["degraded"], answer["items"][0]["verdict"]["expert"]))
        assert answer["degraded"] == ("the adapter of expert-1" in answer["degraded_reason"])
    serve.delete("damaged")
    print(f"\ndamaged expert: {sum(one for one, _ in found)} of {len(found)} answers degraded")
    assert {degraded for degraded, _ in found} == {True, False}
    assert "expert-1" not in {expert for _, expert in found}
    files["global"].unlink()
    with pytest.raises(RuntimeError):
        serve.run(app, name="damaged", route_prefix="/damaged")
    assert "adapters/global@b1/adapter_model.safetensors" in str(serve.status().applications["damaged"])
    serve.delete("damaged")
    assert service.client.get("/readyz").status_code == 200


def test_an_ingress_that_is_killed_comes_back(service: Service):
    service.ready()
    body = lambda n: {"user_id": f"u{n % (USERS_COUNT - 1)}", "k": 2}  # noqa: E731
    samples = asyncio.run(
        load(service.base, RATE, SECONDS, body, DEADLINE_S, {AFTER_S: lambda: kill("Ingress")})
    )
    lost = [one for one in samples if one.status != 200]
    last = max((one.due + one.ms / 1000 for one in lost), default=AFTER_S)
    found = [one.status for one in lost]
    print(
        f"\nkill -9 Ingress: {len(samples)} requests, lost {found}, well again {last - AFTER_S:.1f} s after"
    )
    assert min(one.status for one in samples) >= 0
    assert samples[-1].status == 200


def test_a_hung_engine_is_done_without_and_then_replaced(service: Service):
    service.ready()
    try:
        samples = under_load(service, (service.folder / "hung").touch, "engine hung", seconds=16.0)
        assert all(one.status == 200 for one in samples)
        assert any(one.degraded for one in samples)
        began, old = time.monotonic(), {one.pid for one in replicas("Reasoning")}
        while old & {one.pid for one in replicas("Reasoning")}:
            assert time.monotonic() - began < 240, "the hung replica was not replaced"
            time.sleep(0.5)
        print(f"\nengine hung: replica replaced {time.monotonic() - began:.0f} s after that load")
    finally:
        (service.folder / "hung").unlink(missing_ok=True)
    service.ready()
    answer = service.client.post("/v1/recommendations", json={"user_id": "u3", "k": 2})
    assert not answer.json()["degraded"]


def appears(file: Path) -> None:
    began = time.monotonic()
    while not file.exists():
        assert time.monotonic() - began < 0.5 * DEADLINE_S, f"nothing was {file.name}"
        time.sleep(0.05)


def test_a_client_that_goes_ends_the_work_for_it(service: Service):
    service.ready()
    for name in ("hanging", "dropped"):
        (service.folder / name).unlink(missing_ok=True)
    (service.folder / "hung").touch()
    try:
        headers = {"accept": "text/event-stream"}
        with service.client.stream(
            "POST", "/v1/recommendations", json={"user_id": "u3"}, headers=headers
        ) as answer:
            assert answer.status_code == 200
            appears(service.folder / "hanging")
        began = time.monotonic()
        appears(service.folder / "dropped")
        print(f"\nclient gone: its work was called off after {time.monotonic() - began:.2f} s")
    finally:
        (service.folder / "hung").unlink()


def rate(service: Service, key: str, user: str = "u5") -> httpx.Response:
    body = {"user_id": user, "item_id": "i7", "label": 1, "key": key}
    return service.client.post("/v1/interactions", json=body)


def test_an_acknowledged_interaction_survives_kill_9(service: Service):
    service.ready()
    known = [rate(service, f"k{n}", f"new{n}").status_code for n in range(5)]
    kill("Retrieval")
    assert known == [201] * 5
    service.ready()
    for n in range(5):
        assert rate(service, f"k{n}", f"new{n}").json()["stored"] is False
        assert service.client.get(f"/v1/users/new{n}").json()["count"] == 1


def test_a_locked_store_refuses_feedback_in_time_and_goes_on_answering(service: Service):
    service.ready()
    with sqlite3.connect(service.folder / "store.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        answer = rate(service, "locked")
        spent = time.monotonic() - began
        well = service.client.post("/v1/recommendations", json={"user_id": "u6", "k": 2})
        other.execute("ROLLBACK")
    print(f"\nstore locked: {answer.status_code} after {spent:.1f} s, recommendations {well.status_code}")
    assert (answer.status_code, well.status_code) == (503, 200)
    assert "retry-after" in answer.headers
    assert spent < 1.5 * DEADLINE_S
    assert rate(service, "locked").status_code == 201


def test_a_full_disk_refuses_feedback_and_goes_on_answering(service: Service):
    service.ready()
    (replica,) = replicas("Retrieval")
    before = resource.prlimit(replica.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(replica.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        answer = rate(service, "full")
        well = service.client.post("/v1/recommendations", json={"user_id": "u8", "k": 2})
    finally:
        resource.prlimit(replica.pid, resource.RLIMIT_FSIZE, before)
    print(f"\nstore full: {answer.status_code}, recommendations {well.status_code}")
    assert (answer.status_code, well.status_code) == (503, 200)
    assert rate(service, "full").status_code == 201


def test_a_store_that_is_gone_acknowledges_nothing(service: Service):
    service.ready()
    files = [service.folder / f"store.sqlite{end}" for end in ("", "-wal", "-shm")]
    assert rate(service, "before").status_code in (200, 201)
    moved = [file.rename(file.with_name(f"moved-{file.name}")) for file in files if file.exists()]
    answer = rate(service, "gone")
    for file in files:
        file.unlink(missing_ok=True)
    for file in moved:
        file.rename(file.with_name(file.name.removeprefix("moved-")))
    print(f"\nstore gone: {answer.status_code}")
    assert answer.status_code == 503
    assert rate(service, "gone").json()["stored"] is True
    assert rate(service, "before").json()["stored"] is False
