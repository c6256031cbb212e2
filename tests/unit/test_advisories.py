"""`make lint` audits the lock where advisories are offered, and says so where they are not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose pip-audit says what it was asked and finds something."""
    (tmp_path / ".ci").mkdir()
    shutil.copy2(ROOT / ".ci" / "advisories", tmp_path / ".ci")
    program = tmp_path / ".local" / "audit" / "bin" / "pip-audit"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "audited $*"\nexit 1\n')
    program.chmod(0o755)
    return tmp_path


def audit(checkout: Path, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / ".ci" / "advisories", *words],
        env={"PATH": "/usr/bin:/bin", "ADVISORIES_URL": source},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_is_found_fails_lint_where_advisories_are_offered(checkout: Path):
    offered = checkout / "pip.json"
    offered.write_text('{"vulnerabilities": []}')
    done = audit(checkout, offered.as_uri(), "--if-offered")
    assert done.returncode == 1
    assert "-r requirements/cpu.txt" in done.stdout


@pytest.mark.parametrize("answer", ["{}", None])
def test_where_none_are_offered_lint_says_that_nothing_was_audited(checkout: Path, answer: str | None):
    source = checkout / "pip.json"
    if answer is not None:
        source.write_text(answer)
    done = audit(checkout, source.as_uri(), "--if-offered")
    assert (done.returncode, done.stdout) == (0, "")
    assert "advisories: NOT audited" in done.stderr


def test_the_audit_by_itself_does_not_depend_on_an_offer(checkout: Path):
    assert audit(checkout, "file:///nowhere").returncode == 1
