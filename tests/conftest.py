"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the synthetic bundle: to read only."""
    from tests.bundles import make_bundle

    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(folder)
    return folder


@pytest.fixture
def bundle(published: Path, tmp_path: Path):
    """A copy of the synthetic bundle, for a test whose feedback goes into its store."""
    from ray_app.bundle import Bundle

    shutil.copytree(published, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")
