"""What the documents name exists: make targets, modules, files, links, config keys, HTTP paths."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from ray_app.config import Config, load
from serve.ingress import Front, make_api
from tests.docs import DOCS, ROOT

SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
FOLDERS = "bench|configs|docs|pipelines|ray_app|requirements|serve|tests"
FILE = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w|cluster\.yaml)")
KEY = re.compile(rf"(?!ray\.(?:data|serve|train)\.)({'|'.join(Config.model_fields)})(\.[a-z_0-9]+)+")
"""A config key; ray.data and its like are Ray's own modules."""


def names(documents: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in documents]


each_document = pytest.mark.parametrize("document", DOCS, ids=names(DOCS))


def code_of(text: str) -> list[str]:
    """Code spans and the lines of fenced blocks."""
    blocks = [line for _, body in FENCE.findall(text) for line in body.splitlines()]
    return [*blocks, *SPAN.findall(FENCE.sub("", text))]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors_of(text: str) -> set[str]:
    """Anchors that a hosting site gives the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_make_targets_exist(document: Path):
    code = "\n".join(code_of(document.read_text()))
    named = set(re.findall(r"\bmake ((?!\w+=)[a-z-]+)", code))
    assert named <= make_targets()


def test_every_make_target_is_documented():
    told = re.findall(r"`make ([a-z-]+)`", (ROOT / "docs" / "operations.md").read_text())
    assert set(told) == make_targets()


@each_document
def test_modules_to_run_exist(document: Path):
    named = re.findall(r"-m ((?:pipelines|ray_app|serve|tests)\.[\w.]+)", document.read_text())
    assert [module for module in named if find_spec(module) is None] == []


@each_document
def test_files_named_exist(document: Path):
    named = {name for code in code_of(document.read_text()) for name in FILE.findall(code)}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@each_document
def test_relative_links_resolve(document: Path):
    broken = []
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        path, _, anchor = link.partition("#")
        target = document if not path else document.parent / path
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    assert broken == []


@each_document
def test_config_keys_exist(document: Path):
    unknown = []
    for span in code_of(document.read_text()):
        key = span.partition("=")[0].partition(":")[0].strip()
        if KEY.fullmatch(key) and not known(key):
            unknown.append(key)
    assert unknown == []


def known(key: str) -> bool:
    """Whether a dotted name leads to a field of the config, or is a module of ours (`serve.app`)."""
    at: Any = Config
    for part in key.split("."):
        if not (isinstance(at, type) and issubclass(at, BaseModel) and part in at.model_fields):
            return (ROOT / f"{key.replace('.', '/')}.py").exists()
        at = at.model_fields[part].annotation
    return True


def test_config_examples_load(tmp_path: Path):
    blocks = [
        (path, body) for path in DOCS for kind, body in FENCE.findall(path.read_text()) if kind == "yaml"
    ]
    assert blocks
    for path, body in blocks:
        file = tmp_path / f"{path.stem}.yaml"
        file.write_text(body)
        assert load(file).model_dump(exclude_unset=True) == yaml.safe_load(body)


def api_paths() -> dict[str, set[str]]:
    """Path -> methods of the API; no route is called, so its collaborators are left out."""
    collaborators = dict.fromkeys(Front.__dataclass_fields__)
    front = Front(**(collaborators | {"config": Config(), "versions": {"rationale": "test"}}))  # type: ignore[arg-type]
    found: dict[str, set[str]] = {}
    for route in make_api(front).routes:
        path = getattr(route, "path", "").replace(":path}", "}")
        found.setdefault(path, set()).update(getattr(route, "methods", None) or ())
    return found


def test_http_paths_in_the_api_document_exist():
    text = (ROOT / "docs" / "api.md").read_text()
    paths = api_paths()
    told = re.findall(r"\b(GET|POST) (/[\w/{}]*)", "\n".join(re.findall(r"^## (.+)$", text, re.MULTILINE)))
    assert told
    assert [(method, path) for method, path in told if method not in paths.get(path, ())] == []
    for called in re.findall(r"http://127\.0\.0\.1:8000(/[\w/]+)", text):
        assert any(re.fullmatch(re.sub(r"\{\w+\}", r"[^/]+", path), called) for path in paths), called


def test_every_route_of_the_api_is_documented():
    told = (ROOT / "docs" / "api.md").read_text()
    for path, methods in api_paths().items():
        if path.startswith("/v1/"):
            assert all(f"{method} {path}" in told for method in methods - {"HEAD"}), path


@each_document
def test_documents_name_no_place_of_a_machine(document: Path):
    assert re.findall(r"(?<![\w.~$/-])/(?:home|root|work|Users|mnt)/\S*", document.read_text()) == []
