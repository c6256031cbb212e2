"""Archives from the package registry, fetched once, checked by hash, kept in a cache.

Public data that a package carries (a MovieLens copy, WordNet) is had this way wherever packages can
be installed, behind proxies and mirrors too. Nothing is imported or installed from such an archive.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ray_app.artifacts import file_hash
from ray_app.errors import DataError


def fetch(requirement: str, sha256: str, cache: Path, *, source: bool = False) -> Path:
    """The archive of a pinned requirement (`recbole==1.2.1`), as a file in `<cache>/packages`.

    A cached file is used, without the network, only if its SHA-256 is right. pip checks the hash of
    what it downloads before it opens it; the file enters the cache by a rename, so processes that
    fetch at once do no harm. `source` takes the sdist instead of the wheel.

    Raises DataError if the registry cannot be reached or has a file with another hash.
    """
    folder = cache.expanduser() / "packages"
    for file in _candidates(folder, requirement):
        if file_hash(file) == sha256:
            return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as scratch:
        _download(requirement, sha256, Path(scratch), folder, source)
        (archive,) = Path(scratch).iterdir()
        found = file_hash(archive)
        if found != sha256:
            raise DataError(_wrong_hash(requirement, sha256))
        target = folder / archive.name
        os.replace(archive, target)
    return target


def _candidates(folder: Path, requirement: str) -> list[Path]:
    """Cached files that bear the project's name (PEP 503 spelling)."""
    project = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    prefix = _spelling(project) + "-"
    files = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(file for file in files if file.is_file() and _spelling(file.name).startswith(prefix))


def _spelling(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _download(requirement: str, sha256: str, scratch: Path, folder: Path, source: bool) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write(f"{requirement} --hash=sha256:{sha256}\n")
        pinned.flush()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--require-hashes"]
        command += ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
        command += ["--dest", str(scratch), "--requirement", pinned.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise DataError(_wrong_hash(requirement, sha256))
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
    raise DataError(
        f"{requirement} cannot be downloaded ({causes[-1].removeprefix('ERROR: ')}): connect to a package "
        f"registry, or put the file with SHA-256 {sha256} into {folder}"
    )


def _wrong_hash(requirement: str, sha256: str) -> str:
    return (
        f"the registry's file for {requirement} does not have SHA-256 {sha256}: it was changed on the way "
        "or replaced; use a registry that serves the original"
    )
