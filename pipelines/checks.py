"""What `pipelines.doctor` looks at: one function per subject, each yielding findings.

A finding is ok, warn (works, with something lost) or fail (will not work), and carries its remedy. Checks
change nothing that stays: what they write, they remove.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from pipelines.cluster import free_port, load_state
from pipelines.setup import PYTHONS, is_stamped, lock_hash
from ray_app.artifacts import Run
from ray_app.config import Config, EngineConfig
from ray_app.errors import RationaleError

State = Literal["ok", "warn", "fail"]
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""They do not load beside a CPU build of torch and then break `import transformers`."""
SKEW_S = 60.0
"""Object stores refuse requests whose clock is off by minutes."""


@dataclass(frozen=True)
class Finding:
    check: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """What is examined: a checkout, a config, its run folder."""

    root: Path
    config: Config
    run: str


def python(patient: Patient) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in PYTHONS:
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "fail", found, "make setup PYTHON=python3.11")


def lock(patient: Patient) -> Iterator[Finding]:
    """Installed packages against the lock: cpu.txt, or gpu.txt where vLLM's GPU build is installed."""
    name = "gpu.txt" if installed("vllm") else "cpu.txt"
    pins = requirements(patient.root / "requirements" / name)
    wrong = []
    for pin in pins:
        got = installed(pin.name)
        if got is None or not pin.specifier.contains(got, prereleases=True):
            wrong.append(f"{pin.name} {got or 'missing'} ({pin.specifier})")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        remedy = f"pip install --no-deps -r requirements/{name} (make setup, once .venv/installed is gone)"
        yield Finding("lock", "fail", ", ".join(wrong[:3]) + more, remedy)
    else:
        yield Finding("lock", "ok", f"{len(pins)} packages as in requirements/{name}")
    extra = [package for package in UNWANTED if name == "cpu.txt" and installed(package)]
    if extra:
        yield Finding("lock", "fail", f"{', '.join(extra)} installed", f"pip uninstall {' '.join(extra)}")


def requirements(file: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def compiled(patient: Patient) -> Iterator[Finding]:
    """DeepSpeed's op, which a first training would otherwise compile for over a minute."""
    stamp = patient.root / ".local" / "torch_extensions" / "built"
    if is_stamped(stamp, lock_hash(patient.root)):
        yield Finding("compiled op", "ok", "built for this lock")
    elif shutil.which("c++"):
        yield Finding("compiled op", "warn", "not built for this lock", "make setup")
    else:
        yield Finding("compiled op", "fail", "no C++ compiler (c++)", "install g++, then make setup")


def ports(patient: Patient) -> Iterator[Finding]:
    ours = our_ports(patient.root)
    for key, port in (
        ("ray.port", patient.config.ray.port),
        ("ray.dashboard_port", patient.config.ray.dashboard_port),
        ("serve.port", patient.config.serve.port),
    ):
        if port in ours:
            yield Finding("ports", "ok", f"{key} {port} is in use by this checkout")
        elif free_port(port) == port:
            yield Finding("ports", "ok", f"{key} {port} is free")
        else:
            remedy = f"make run takes another one and says which; or set {key}"
            yield Finding("ports", "warn", f"{key} {port} is taken by {listener(port)}", remedy)


def our_ports(root: Path) -> set[int | None]:
    cluster = load_state(root)
    if cluster is None or cluster.head.live() is None:
        return set()
    return {cluster.gcs_port, cluster.dashboard_port, cluster.serve_port}


def listener(port: int) -> str:
    """Who listens on a port, as far as this user may see."""
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
        if listens and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def token(patient: Patient) -> Iterator[Finding]:
    """The file that `pipelines.env.token_file` makes; looked at, not made."""
    file = patient.root / ".local" / "token"
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        mode = os.environ["RAY_AUTH_MODE"]
        yield Finding(
            "token", "fail", f"RAY_AUTH_MODE is {mode}: Ray would start open", "unset RAY_AUTH_MODE"
        )
    elif not file.exists():
        yield Finding("token", "ok", "none yet: made at the first start")
    elif (facts := file.stat()).st_mode & 0o077:
        remedy = f"chmod 600 {file.relative_to(patient.root)}"
        yield Finding("token", "fail", f"mode {facts.st_mode & 0o777:o}: others can read it", remedy)
    elif not file.read_text().strip():
        yield Finding("token", "fail", "the file is empty", "remove .local/token: a new one is made")
    else:
        yield Finding("token", "ok", "readable by its owner alone")


def storage(patient: Patient) -> Iterator[Finding]:
    """Writes, reads and removes a file in the run folder; its time stamp tells the clock's error."""
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        run = Run(patient.run)
        run.reach()
        folder = run.folder
        before = time.time()
        folder.write(name, b"probe")
        try:
            same = folder.read(name) == b"probe"
            changed = folder.fs.modified(f"{folder.root}/{name}").timestamp()
        finally:
            folder.fs.rm(f"{folder.root}/{name}")
    except RationaleError as error:
        trouble, _, remedy = str(error).rpartition(": ")
        yield Finding("run folder", "fail", trouble, remedy)
        return
    except OSError as error:
        reason = " ".join(str(error).split())[:160]
        remedy = "set the storage's address and keys" if "://" in patient.run else "choose another --run"
        yield Finding("run folder", "fail", f"{patient.run} cannot be written: {reason}", remedy)
        return
    if not same:
        yield Finding(
            "run folder", "fail", f"{patient.run} does not give back what was written", "another --run"
        )
        return
    yield Finding("run folder", "ok", f"{patient.run} can be written")
    skew = max(0.0, before - changed, changed - time.time())
    if skew > SKEW_S:
        yield Finding(
            "clock", "fail", f"{skew:.0f} s apart from the storage's", "set this machine's clock (NTP)"
        )
    else:
        yield Finding("clock", "ok", f"within {max(1.0, skew):.0f} s of the storage's")


def store(patient: Patient) -> Iterator[Finding]:
    """The driver of the service's database; no connection is made."""
    url = patient.config.serve.store
    if url is None:
        return
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = sa.make_url(url)
        parsed.get_dialect().import_dbapi()
    except (ImportError, ArgumentError) as error:
        yield Finding(
            "store", "fail", " ".join(str(error).split())[:120], "install the driver serve.store names"
        )
    else:
        yield Finding("store", "ok", f"driver of {parsed.get_backend_name()} is installed")


def inputs(patient: Patient) -> Iterator[Finding]:
    data = patient.config.data
    if data.source == "files":
        for key in ("interactions", "items", "users"):
            path = getattr(data, key)
            if path and "://" not in path and not Path(path).expanduser().exists():
                yield Finding("data", "fail", f"data.{key} {path} does not exist", f"correct data.{key}")
            elif path:
                yield Finding("data", "ok", f"data.{key} {path}")
        return
    cached = any(Path(data.cache).expanduser().glob("packages/recbole-*"))
    if data.path or cached:
        yield Finding("data", "ok", data.path or "MovieLens-100K is in the cache")
    else:
        yield Finding("data", "warn", "MovieLens-100K is not cached", "prepare fetches it; or give data.path")


def wordnet(patient: Patient) -> Iterator[Finding]:
    target = Path(patient.config.data.cache).expanduser() / "nltk_data" / "corpora" / "wordnet"
    if (target / "data.noun").is_file():
        yield Finding("WordNet", "ok", "in the cache")
    else:
        yield Finding(
            "WordNet", "warn", "not in the cache", f"evaluate fetches it; or put its files into {target}"
        )


def bleurt(patient: Patient) -> Iterator[Finding]:
    folder = patient.config.evaluate.bleurt
    if folder is None:
        yield Finding("BLEURT", "ok", "evaluate.bleurt is not set: it will not be computed")
    elif (Path(folder).expanduser() / "config.json").is_file():
        yield Finding("BLEURT", "ok", folder)
    else:
        yield Finding(
            "BLEURT", "fail", f"no checkpoint in {folder}", "put BLEURT-20 there or unset evaluate.bleurt"
        )


def models(patient: Patient) -> Iterator[Finding]:
    config = patient.config
    engines = {key: getattr(config, key).engine for key in ("reason", "evaluate", "serve")}
    wanted = {f"{key}.engine": one.model for key, one in engines.items() if is_weights(one)}
    if config.student.base:
        wanted["student.base"] = config.student.base
    for key, model in wanted.items():
        where, complete = weights(model)
        if where is None:
            remedy = (
                f"hf download {model}, or name a folder" if "/" in model else "name a folder or a hub model"
            )
            yield Finding("models", "fail", f"{key} {model} is neither a folder nor in the hub cache", remedy)
        elif not complete:
            remedy = "get the safetensors files: others are not loaded"
            yield Finding("models", "fail", f"{key} {where} holds no safetensors", remedy)
        else:
            yield Finding("models", "ok", f"{key} {model}")
    for key, one in engines.items():
        if one.kind == "openai" and one.api_key_env and not os.environ.get(one.api_key_env):
            yield Finding(
                "models",
                "fail",
                f"{key}.engine wants a key in {one.api_key_env}",
                f"export {one.api_key_env}",
            )


def is_weights(engine: EngineConfig) -> bool:
    return engine.kind == "vllm" and engine.model != "bundle"


def weights(model: str) -> tuple[Path | None, bool]:
    """(folder of a model or None, whether safetensors are in it); the hub's cache is looked up offline."""
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            file = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            file = None
        if not isinstance(file, str):
            return None, False
        folder = Path(file).parent
    return folder, any(folder.glob("*.safetensors"))
