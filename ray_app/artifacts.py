"""The run folder: what a stage writes, when it counts as done, and what it cost.

A run is a folder (or any fsspec URI) with one folder per stage. A stage first leaves `started.json`
with its fingerprint, writes its files, and commits by writing `manifest.json` last. So:

- no manifest: incomplete; files of an earlier attempt are kept only if the fingerprint is the same
  and the stage resumes, otherwise they are removed;
- manifest with the same fingerprint: up to date, skipped;
- the fingerprint covers the config keys that matter, the fingerprints of the stages read, the input
  files and the version of the code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import psutil

from ray_app import __version__
from ray_app.errors import ArtifactError, ConfigError

MANIFEST = "manifest.json"
STARTED = "started.json"
S3_LOCK = "requirements/cluster.txt"


def filesystem(uri: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it). Raises ConfigError for a scheme that nothing here serves."""
    scheme = uri.partition("://")[0]
    try:
        # Other processes write too: what a listing said a while ago is no answer.
        return fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        s3 = scheme in ("s3", "s3a")
        remedy = f"pip install --no-deps -r {S3_LOCK}" if s3 else f"install fsspec's package for {scheme}"
        raise ConfigError(f"{uri} is on a storage whose package is not installed: {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"{uri} is on no storage that is known here: use s3:// or a path") from error


class Folder:
    """Files under one URI. Writes are atomic: a reader sees the old file, none, or the whole new one."""

    def __init__(self, uri: str | Path):
        self.fs, path = filesystem(str(uri))
        self.root = path.rstrip("/")
        self.is_local = "file" in _protocols(self.fs)
        self.uri = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def path(self, name: str) -> str:
        """Path or URI of a file, as polars, pyarrow and Ray Data take it."""
        return f"{self.uri}/{name}"

    def exists(self, name: str) -> bool:
        return self.fs.exists(f"{self.root}/{name}")

    def read(self, name: str) -> bytes:
        try:
            return self.fs.cat_file(f"{self.root}/{name}")
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.path(name)} does not exist: run the stage that makes it") from error

    def write(self, name: str, content: bytes) -> None:
        with self.replacing(name) as local:
            Path(local).write_bytes(content)

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise ArtifactError(
                f"{self.path(name)} is not JSON: remove it and run its stage again"
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2, sort_keys=True).encode())

    @contextmanager
    def replacing(self, name: str) -> Iterator[str]:
        """Yield a local scratch path; on success its content becomes the file, atomically and durably."""
        target = f"{self.root}/{name}"
        if not self.is_local:
            with tempfile.TemporaryDirectory() as scratch:
                local = os.path.join(scratch, "file")
                yield local
                self.fs.put_file(local, target)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        local = os.path.join(os.path.dirname(target), f".partial-{uuid.uuid4().hex}")
        open(local, "xb").close()  # not mkstemp, whose files nobody but the owner may read
        try:
            yield local
            with open(local, "rb") as written:
                os.fsync(written.fileno())
            os.replace(local, target)
        finally:
            if os.path.exists(local):
                os.remove(local)

    def names(self, under: str = "") -> list[str]:
        """All finished files, relative to the folder, sorted."""
        base = f"{self.root}/{under}".rstrip("/")
        if not self.fs.exists(base):
            return []
        found = (path[len(self.root) + 1 :] for path in self.fs.find(base))
        return sorted(name for name in found if "/.partial-" not in f"/{name}")

    def clear(self) -> None:
        """Remove everything, marks first: what a killed removal leaves is neither done nor to be resumed."""
        for name in (MANIFEST, STARTED):
            if self.exists(name):
                self.fs.rm(f"{self.root}/{name}")
        if self.fs.exists(self.root):
            self.fs.rm(self.root, recursive=True)
        if not self.is_local:
            copies, key = self._copies()
            shutil.rmtree(copies.path(key), ignore_errors=True)
            Path(copies.path(f"{key}.json")).unlink(missing_ok=True)

    def folder(self, name: str) -> Folder:
        return Folder(self.path(name))

    def local(self) -> Path:
        """A local copy of the folder (itself, where it is local): for memory maps and model loaders.

        What a stage writes into the copy of its own folder reaches the folder by `upload`.
        """
        if self.is_local:
            return Path(self.root)
        copies, key = self._copies()
        had = copies.read_json(f"{key}.json") if copies.exists(f"{key}.json") else {}
        # ukey tells versions apart where sizes do not: most arrays keep their size when made again.
        has = {name: self.fs.ukey(f"{self.root}/{name}") for name in self.names()}
        for name, mark in has.items():
            if had.get(name) != mark or not copies.exists(f"{key}/{name}"):
                with copies.replacing(f"{key}/{name}") as local:
                    self.fs.get_file(f"{self.root}/{name}", local)
        for name in had.keys() - has.keys():
            Path(copies.path(f"{key}/{name}")).unlink(missing_ok=True)
        copies.write_json(f"{key}.json", has)
        copy = Path(copies.path(key))
        copy.mkdir(exist_ok=True)
        return copy

    def upload(self) -> None:
        """Send to the folder what was written into its local copy and did not come from it."""
        if self.is_local:
            return
        copies, key = self._copies()
        if not copies.exists(f"{key}.json"):
            return
        had, copy = copies.read_json(f"{key}.json"), copies.folder(key)
        for name in copy.names():
            if name not in had:
                with self.replacing(name) as local:
                    shutil.copyfile(copy.path(name), local)

    def _copies(self) -> tuple[Folder, str]:
        """Where local copies are kept on this machine, and this folder's name there."""
        copies = Folder(Path(tempfile.gettempdir()) / "rationale")
        return copies, hashlib.sha256(self.uri.encode()).hexdigest()[:16]


class Run:
    """A run folder: `stage(name)` is a stage's folder, `done(name)` its checked manifest."""

    def __init__(self, uri: str | Path):
        self.folder = Folder(uri)
        self.name = self.folder.root.rsplit("/", 1)[-1]

    def reach(self) -> None:
        """Raise ArtifactError, one line, unless storage that is not a local disk answers to our keys."""
        if self.folder.is_local:
            return
        place = self.folder.root.split("/", 1)[0]
        try:
            self.folder.fs.info(place)
        except FileNotFoundError:
            raise ArtifactError(f"bucket {place} of run {self.folder.uri} does not exist: make it") from None
        except Exception as error:  # each storage's client has its own; all mean that it is out of reach
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(
                f"run {self.folder.uri} cannot be reached ({reason}): set the storage's address and keys in "
                f"the environment, for S3 AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
            ) from error

    def stage(self, name: str) -> Folder:
        return self.folder.folder(name)

    def done(self, name: str) -> dict[str, Any]:
        """The manifest of a finished stage. Raises ArtifactError if it is not finished or was damaged."""
        folder = self.stage(name)
        if not folder.exists(MANIFEST):
            raise ArtifactError(f"stage {name} of run {self.folder.uri} is not finished: run it first")
        manifest = folder.read_json(MANIFEST)
        for file, size in manifest["files"].items():
            path = f"{folder.root}/{file}"
            if not folder.fs.exists(path) or folder.fs.size(path) != size:
                raise ArtifactError(
                    f"{folder.path(file)} is missing or not {size} bytes long: run stage {name} again"
                )
        return manifest


@dataclass
class Usage:
    """What a stage cost on this node: wall seconds, CPU seconds of all its processes, peak memory."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0


class Meter:
    """Samples this process, its children and, inside a Ray job, the node's Ray workers.

    Memory is the sum of unique set sizes where readable, so shared pages count once per process at most.
    """

    def __init__(self, interval_s: float = 1.0):
        self.usage = Usage()
        self._interval = interval_s
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="meter")

    def __enter__(self) -> Usage:
        self._begin = time.monotonic()
        self._start_epoch = time.time()
        self._sample()
        self._thread.start()
        return self.usage

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self.usage.seconds = time.monotonic() - self._begin

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        memory = 0
        for process in _processes():
            try:
                with process.oneshot():
                    times, key = process.cpu_times(), (process.pid, process.create_time())
                    memory += process.memory_info().rss - getattr(process.memory_info(), "shared", 0)
            except psutil.Error:
                continue
            spent = times.user + times.system
            born_before = key[1] < self._start_epoch
            self._first.setdefault(key, spent if born_before else 0.0)
            self._last[key] = spent
        self.usage.cpu_seconds = sum(self._last[key] - self._first[key] for key in self._last)
        self.usage.peak_memory_mb = max(self.usage.peak_memory_mb, memory / 2**20)


def _processes() -> list[psutil.Process]:
    me = psutil.Process()
    raylet = next((parent for parent in me.parents() if parent.name() == "raylet"), None)
    top = raylet or me
    return [top, *top.children(recursive=True)]


@dataclass
class StageSpec:
    """What decides whether a stage is up to date, and how it is made."""

    name: str
    body: Callable[[Folder], dict[str, Any]]
    """Writes the stage's files; returns counts for the manifest."""
    keys: dict[str, Any]
    """The config values that matter to it."""
    reads: list[str] = field(default_factory=list)
    """Names of the stages it reads."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Content hashes of files outside the run."""
    resumes: bool = False
    """Whether files of a killed attempt may be built upon."""


def fingerprint(run: Run, spec: StageSpec) -> str:
    upstream = {name: run.done(name)["fingerprint"] for name in spec.reads}
    facts = {"keys": spec.keys, "reads": upstream, "inputs": spec.inputs, "code": __version__}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def is_current(run: Run, spec: StageSpec) -> bool:
    """Whether the stage is finished, undamaged and made from what it would be made from now."""
    try:
        return run.done(spec.name)["fingerprint"] == fingerprint(run, spec)
    except ArtifactError:
        return False


def execute(run: Run, spec: StageSpec, *, force: bool = False) -> dict[str, Any]:
    """Run a stage unless it is up to date; return its manifest."""
    mark = fingerprint(run, spec)
    if not force and is_current(run, spec):
        return run.done(spec.name) | {"skipped": True}
    folder = run.stage(spec.name)
    started = folder.read_json(STARTED) if folder.exists(STARTED) else {}
    resuming = spec.resumes and not folder.exists(MANIFEST) and started.get("fingerprint") == mark
    if not resuming:
        folder.clear()
        folder.write_json(STARTED, {"fingerprint": mark})
    with Meter() as usage:
        counts = spec.body(folder)
        folder.upload()
    files = {name: folder.fs.size(f"{folder.root}/{name}") for name in folder.names()}
    manifest = {
        "stage": spec.name,
        "fingerprint": mark,
        "keys": json.loads(json.dumps(spec.keys, default=str)),
        "reads": spec.reads,
        "inputs": spec.inputs,
        "counts": counts,
        "resumed": resuming,
        "seconds": round(usage.seconds, 2),
        "cpu_seconds": round(usage.cpu_seconds, 2),
        "peak_memory_mb": round(usage.peak_memory_mb, 1),
        "versions": versions(),
        "files": files,
    }
    folder.write_json(MANIFEST, manifest)
    return manifest


def versions() -> dict[str, str]:
    names = ("ray", "torch", "transformers", "peft", "deepspeed", "polars", "numpy")
    return {"rationale": __version__} | {name: version(name) for name in names}


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
