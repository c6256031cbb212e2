"""Each command in the documents can be given here, or is marked as needing what is not here."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.unit.test_docs import DOCS, ROOT, make_targets

MARKS = ("GPU", "cloud", "Cloud", "Kubernetes", "Docker")
"""Written in bold before the commands that need it."""
HERE = {"make", "curl", "git", ".ci/advisories", "export", "cd", "diff", "ls", "cat", "mkdir", "cp"}
"""Beside Python's modules and what the venv's bin has."""
BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[tuple[str, str]]:
    """(command, all text of its section before it) of every line of the shell blocks."""
    found = []
    for block in BLOCK.finditer(text):
        before = text[: block.start()]
        section = before[before.rfind("\n## ") + 1 :]
        joined = re.sub(r"\\\n\s*", " ", block[2])
        lines = (re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines())
        found += [(line, section) for line in lines if line and not line.startswith("#")]
    return found


def trouble(command: str, section: str) -> str:
    """Why a command could not be given here; empty if it can, or says that it cannot."""
    if any(f"**{mark}" in section for mark in MARKS):
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
