"""The documents as a site: every page is in the navigation, the generated page is current, links hold."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without importing what it names."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def entries(node: object) -> list[str]:
    """Every page in a navigation."""
    if isinstance(node, str):
        return [node]
    inner = node.values() if isinstance(node, dict) else node
    return [page for one in inner for page in entries(one)]  # type: ignore[union-attr]


def test_every_page_is_in_the_navigation_once():
    navigation = entries(yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)["nav"])
    assert sorted(navigation) == PAGES


def test_the_page_of_all_config_keys_is_current():
    made = runpy.run_path(str(ROOT / ".ci" / "config_page.py"))["page"]()
    current = (ROOT / "docs" / "configs.md").read_text()
    assert current == made, "run .venv/bin/python .ci/config_page.py --write"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "data" / "index.html").is_file()
    assert "mermaid" in (tmp_path / "site" / "concepts" / "index.html").read_text()
