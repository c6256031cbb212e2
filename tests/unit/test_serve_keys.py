"""API keys: their lines, their limits, their rotation, and where they must be there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ray_app.errors import ConfigError
from ray_app.telemetry import Telemetry
from serve import keys as module
from serve.keys import FILE, LINES, Door, Keys, Refused, check_hosts, make, parse
from serve.limits import Limits, Pace

DAY = 86_400.0
START = 1_800_000_000.0  # 2027-01-15


def line(name: str, secret: str, *options: str) -> str:
    return " ".join([name, hashlib.sha256(secret.encode()).hexdigest(), *options])


def door(*lines: str, clock=lambda: START) -> Door:
    return Door(Keys("\n".join(lines), "test"), clock)


def bearer(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {secret}".encode()}


def refusal(door: Door, headers: dict[bytes, bytes], writes: bool = False) -> Refused:
    with pytest.raises(Refused) as error:
        door.enter(headers, writes)
    return error.value


@pytest.mark.parametrize("headers", [bearer("s1"), {b"x-api-key": b"s1"}, {b"authorization": b"bearer  s1 "}])
def test_a_key_opens_in_either_header(headers):
    assert door(line("shop", "s1")).enter(headers, writes=True).name == "shop"


@pytest.mark.parametrize(
    "headers", [{}, bearer("s2"), bearer(""), {b"authorization": b"Basic czE="}, bearer("\xff")]
)
def test_without_a_known_key_nobody_comes_in(headers):
    assert refusal(door(line("shop", "s1")), headers).status == 401


def test_a_reading_key_does_not_write_and_an_old_one_is_over():
    two = door(line("eye", "s1", "scope=read"), line("old", "s2", "until=2027-01-14"))
    assert two.enter(bearer("s1"), writes=False).name == "eye"
    assert refusal(two, bearer("s1"), writes=True).status == 403
    assert "2027-01-14" in refusal(two, bearer("s2")).detail
    assert door(line("new", "s3", "until=2027-01-15")).enter(bearer("s3"), False).name == "new"


def test_so_many_a_minute_and_no_more_each_key_by_itself():
    now = [START]
    two = door(line("a", "s1", "per_minute=3"), line("b", "s2", "per_minute=3"), clock=lambda: now[0])
    for _ in range(3):
        two.leave(two.enter(bearer("s1"), False))
    late = refusal(two, bearer("s1"))
    assert (late.status, late.retry_s) == (429, 20)
    two.enter(bearer("s2"), False)
    now[0] += 20
    two.enter(bearer("s1"), False)
    assert refusal(two, bearer("s1")).status == 429


def test_so_many_at_once_and_no_more():
    one = door(line("a", "s1", "at_once=1"))
    key = one.enter(bearer("s1"), False)
    assert refusal(one, bearer("s1")).status == 429
    one.leave(key)
    one.enter(bearer("s1"), False)


def test_a_changed_file_rotates_keys_and_a_broken_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    file = tmp_path / "keys"
    file.write_text(f"# two\n{line('old', 's1')}\n")
    keys = Keys.of({FILE: str(file)})
    assert keys.find("s1").name == "old"
    for time, text, known in [
        (1, line("new", "s2"), "s2"),
        (2, "nonsense", "s2"),
        (3, line("x", "s3"), "s3"),
    ]:
        file.write_text(text)
        os.utime(file, (time, time))
        assert keys.find(known) is not None
    assert keys.find("s1") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shop", "no SHA-256"),
        ("shop 1234", "no SHA-256"),
        (line("sh/op", "s"), "name 'sh/op'"),
        (line("shop", "s", "per_minute=0"), "'per_minute=0'"),
        (line("shop", "s", "scope=all"), "'scope=all'"),
        (line("shop", "s", "until=soon"), "line 1"),
        (line("a", "s") + "\n" + line("b", "s"), "line 2: the key of 'a' again"),
        ("# nobody", "holds no key"),
    ],
)
def test_unusable_lines_are_named(text, words):
    with pytest.raises(ConfigError, match=words):
        parse(text, "test")


def test_the_environment_gives_lines_or_a_file(tmp_path):
    assert Keys.of({}) is None
    assert Keys.of({LINES: f"{line('a', 's1')};{line('b', 's2')}"}).find("s2").name == "b"
    with pytest.raises(ConfigError, match="both set"):
        Keys.of({LINES: "x", FILE: "y"})
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.of({FILE: str(tmp_path / "gone")})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_key(host):
    check_hosts([host], None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.4", "example.com", ""])
def test_every_other_address_does(host):
    with pytest.raises(ConfigError, match=LINES):
        check_hosts(["127.0.0.1", host], None)
    check_hosts([host], Keys(line("a", "s"), "test"))


def test_the_builder_refuses_an_open_service_without_keys(tmp_path, monkeypatch):
    from serve.app import build

    config = tmp_path / "open.yaml"
    config.write_text("serve: {host: 0.0.0.0}\n")
    monkeypatch.delenv(LINES, raising=False)
    with pytest.raises(ConfigError, match="answer everybody"):
        build({"config": str(config), "run": str(tmp_path)})


def test_a_made_key_opens_and_its_line_does_not_hold_it():
    secret, text = make("shop", ["per_minute=60"])
    assert secret not in text
    assert parse(text, "test")[hashlib.sha256(secret.encode()).hexdigest()].per_minute == 60


def test_the_command_shows_the_key_once():
    command = [sys.executable, "-m", "serve.keys"]
    made = subprocess.run([*command, "shop"], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert made.returncode == 0
    secret = made.stderr.split()[-1]
    assert Keys(made.stdout, "test").find(secret).name == "shop"
    wrong = subprocess.run([*command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)


def test_over_http_refusals_are_problems_and_operation_needs_no_key():
    api = FastAPI()
    for path in ("/v1/items", "/v1/interactions", "/healthz", "/"):
        api.add_api_route(path, lambda: "in", methods=["GET", "POST"])
    text = f"{line('a', 's1', 'per_minute=2')}\n{line('eye', 's2', 'scope=read')}"
    api.add_middleware(Limits, pace=Pace(9, 9, 9.0), telemetry=Telemetry(), keys=Keys(text, "test"))
    client = TestClient(api)
    assert [client.get(path).status_code for path in ("/healthz", "/", "/v1/items")] == [200, 200, 401]
    refused = client.get("/v1/items")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-request-id"]
    good = {"X-API-Key": "s1"}
    assert [client.get("/v1/items", headers=good).status_code for _ in range(3)] == [200, 200, 429]
    assert int(client.get("/v1/items", headers=good).headers["retry-after"]) >= 1
    reader = {"Authorization": "Bearer s2"}
    assert client.get("/v1/items", headers=reader).status_code == 200
    assert client.post("/v1/interactions", headers=reader).status_code == 403
