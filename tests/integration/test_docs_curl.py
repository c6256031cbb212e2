"""Every curl command of the documents against the API on the synthetic bundle, whose ids are put in."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.docs import DOCS, commands
from tests.integration.test_page import served
from tests.pages import page_server

pytestmark = pytest.mark.slow
IDS = {"1": "u1", "3": "u3"}, {"50": "i5", "172": "i17", "1": "i1"}
"""The documents' users and items -> those of the synthetic bundle."""
REQUESTS = sorted(
    {
        command
        for path in DOCS
        for command, _ in commands(path.read_text())
        if command.startswith("curl ") and ":8000" in command
    }
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(page_server(tmp_path_factory.mktemp("bundle"))) as address:
        yield address


def put_in(command: str) -> str:
    """The command with ids that exist."""
    users, items = IDS
    for key, ids in (("user_id", users), ("item_id", items)):
        command = re.sub(rf'("{key}": )"(\d+)"', lambda at, ids=ids: f'{at[1]}"{ids[at[2]]}"', command)
    command = re.sub(r"\[([^\[\]]+)\]", lambda at: re.sub(r"\d+", lambda one: items[one[0]], at[0]), command)
    command = re.sub(r"/v1/users/(\d+)", lambda at: f"/v1/users/{users[at[1]]}", command)
    return re.sub(r"/v1/items/(\d+)", lambda at: f"/v1/items/{items[at[1]]}", command)


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_of_the_documents_are_answered(address: str, request_: str):
    words = put_in(request_).replace("http://127.0.0.1:8000", address)
    command = f"{words} --max-time 60 -o /dev/null -w '%{{http_code}}'"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=90)
    # One of them shows what an unusable value is answered.
    expected = "422" if '"k": "5"' in request_ else "20[01]"
    assert re.fullmatch(expected, done.stdout), (command, done.stdout, done.stderr)


def test_there_are_requests_in_the_documents():
    assert len(REQUESTS) > 8
