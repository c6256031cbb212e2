"""Each command in the documents is run by a test, or is marked as needing what is not here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs import DOCS, ROOT, RUN_BY, SESSION, THIS_SUITE, commands, is_marked
from tests.unit.test_docs import make_targets

HERE = {"make", "curl", "git", ".ci/advisories", "export", "cd", "diff", "ls", "cat", "mkdir", "cp"}
"""Beside Python's modules and what the venv's bin has."""


def trouble(command: str, section: str) -> str:
    """Why a command could not be given here; empty if it can, or says that it cannot."""
    if is_marked(section):
        return ""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[:3] and words[1:3] == ["-m", "pipelines.env"]:
        words = words[3:]
    if not words:
        return ""
    program = words[0].removeprefix(".venv/bin/")
    if re.fullmatch(r"python[\d.]*", program):
        return _module(words[2], words[3:]) if words[1] == "-m" else _file(words[1])
    if program == "make":
        return (
            ""
            if set(re.findall(r"^[a-z-]+$", "\n".join(words[1:]), re.MULTILINE)) <= make_targets()
            else "target"
        )
    installed = (ROOT / ".venv" / "bin" / program).exists()
    return "" if program in HERE or installed else f"{program} is neither here nor marked"


def _module(name: str, words: list[str]) -> str:
    """Whether the module exists and it, or a module beside it, knows the options."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return f"no module {name}"
    if not name.startswith(("pipelines.", "serve.", "bench.")):
        return ""
    text = "".join(path.read_text() for path in sorted(Path(spec.origin).parent.glob("*.py")))
    options = [word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")]
    text += (
        ROOT / "ray_app" / "config.py"
    ).read_text()  # the command for Swing alone has an option per field
    known = {
        one for one in options if re.search(rf'"(?:--)?{re.escape(one)}"|^    {one}: ', text, re.MULTILINE)
    }
    unknown = sorted(set(options) - known)
    return f"{name} has no {', '.join(unknown)}" if unknown else ""


def _file(name: str) -> str:
    return "" if (ROOT / name).exists() or name == "-c" else f"no file {name}"


@pytest.mark.parametrize("document", DOCS, ids=[path.name for path in DOCS])
def test_commands_can_be_given_or_say_what_they_need(document: Path):
    found = [(command, trouble(command, section)) for command, section in commands(document.read_text())]
    assert [one for one in found if one[1]] == []


@pytest.mark.parametrize("document", DOCS, ids=[path.name for path in DOCS])
def test_commands_are_run_by_a_test_or_say_what_they_need(document: Path):
    missed = [
        command
        for command, section in commands(document.read_text())
        if command not in SESSION
        and not THIS_SUITE.fullmatch(command)
        and not is_marked(section)
        and not any(re.fullmatch(pattern, command) for pattern in RUN_BY)
    ]
    assert missed == []


def test_what_is_said_to_run_a_command_exists_and_every_command_of_the_list_is_in_a_document():
    for test in RUN_BY.values():
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(), test
    told = {command for path in DOCS for command, _ in commands(path.read_text())}
    assert [one for one in SESSION if one not in told] == []
    assert [one for one in RUN_BY if not any(re.fullmatch(one, command) for command in told)] == []


def test_the_doctor_looks_at_a_machine_for_gpus(tmp_path: Path):
    """Without a GPU the command ends with 1 and says so among its findings."""
    words = ["--config", "configs/gpu.yaml", "--run", str(tmp_path), "--json"]
    command = [sys.executable, "-m", "pipelines.doctor", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    found = {one["check"]: one for one in json.loads(done.stdout)}
    assert done.returncode == int(any(one["state"] == "fail" for one in found.values()))
    assert found["GPU"]["found"]
