"""`make setup`: the venv from the lock, then DeepSpeed's compiled op. A second call returns at once.

The first half runs in the system's Python, so this file imports the standard library only. Each half
leaves a stamp with the lock's hash as its last act; what a killed attempt left is not trusted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.env import ROOT, state_folder, token_file

PYTHONS = ((3, 11), (3, 12))


class SetupError(Exception):
    """Set-up cannot go on; one line that says what to do."""


def lock_file(root: Path) -> Path:
    return root / "requirements" / "cpu.txt"


def lock_hash(root: Path) -> str:
    """SHA-256 of the lock and of the Python it is installed for."""
    python = "{}.{}".format(*sys.version_info[:2])
    return hashlib.sha256(python.encode() + lock_file(root).read_bytes()).hexdigest()


def is_stamped(stamp: Path, mark: str) -> bool:
    return stamp.is_file() and stamp.read_text() == mark


def install(root: Path) -> None:
    """Make `.venv` hold what the lock says."""
    if sys.version_info[:2] not in PYTHONS:
        raise SetupError(f"Python {sys.version.split()[0]} will not do: make setup PYTHON=python3.11")
    venv = root / ".venv"
    stamp, unfinished = venv / "installed", venv / "installing"
    if is_stamped(stamp, lock_hash(root)):
        return
    if unfinished.exists():
        # pip was killed: it may take a half-copied package for an installed one.
        shutil.rmtree(venv)
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pins = sum("==" in line for line in lock_file(root).read_text().splitlines())
    print(f"installing {pins} packages into .venv (4 GB, about 3 minutes)", flush=True)
    stamp.unlink(missing_ok=True)
    unfinished.touch()
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-deps", "-qq", "-r"]
    failed = subprocess.run([*pip, str(lock_file(root))]).returncode
    unfinished.unlink()
    if failed:
        raise SetupError("pip could not install requirements/cpu.txt: its message stands above")
    _check_torch(venv)
    stamp.write_text(lock_hash(root))


def _check_torch(venv: Path) -> None:
    code = "import torch; print(torch.version.cuda)"
    result = subprocess.run([str(venv / "bin" / "python"), "-c", code], capture_output=True, text=True)
    if result.stdout.strip() != "None":
        raise SetupError(
            "pip took a CUDA build of torch: remove .venv, name PyTorch's CPU wheel index in "
            "PIP_EXTRA_INDEX_URL and run make setup again"
        )


def remove_stale_locks(folder: Path) -> list[Path]:
    """Remove build locks under `folder` that no live process holds; return them.

    torch's JIT builder waits for ever for a `lock` file. Its maker keeps the file open, so one that
    nobody has open belonged to a process that was killed.
    """
    locks = list(folder.glob("*/lock"))
    held = _open_files() if locks else set()
    stale = [lock for lock in locks if str(lock.resolve()) not in held]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def _open_files() -> set[str]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(os.readlink(link))
        except OSError:  # closed meanwhile, or another user's
            continue
    return found


def build_ops() -> None:
    """Compile DeepSpeed's shared-memory collectives, which every training worker loads."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    builder = accelerator and accelerator.create_op_builder("ShareMemCommBuilder")
    if not builder:
        raise SetupError("DeepSpeed knows no shared-memory op for this machine's accelerator")
    builder.load(verbose=False)


def prepare_ops(root: Path) -> None:
    """Have `build_ops` run once in the venv, in the environment of all other processes."""
    folder = root / ".local" / "torch_extensions"
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_locks(folder)
    stamp = folder / "built"
    if is_stamped(stamp, lock_hash(root)):
        return
    if shutil.which("c++") is None:
        raise SetupError("no C++ compiler (c++): DeepSpeed needs one, install g++")
    print("compiling DeepSpeed's shared-memory op (about 90 s)", flush=True)
    log = root / ".local" / "ops.log"
    python = str(root / ".venv" / "bin" / "python")
    command = [python, "-m", "pipelines.env", python, "-m", "pipelines.setup", "ops"]
    with open(log, "w") as output:
        failed = subprocess.run(command, cwd=root, stdout=output, stderr=subprocess.STDOUT).returncode
    if failed:
        raise SetupError(f"DeepSpeed's op did not compile: see {log}")
    stamp.write_text(lock_hash(root))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two set-ups in one checkout take turns."""
    with open(folder / "setup.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    began = time.monotonic()
    try:
        if sys.argv[1:] == ["ops"]:
            build_ops()
            return
        with alone(state_folder(ROOT)):
            token_file(ROOT)
            install(ROOT)
            prepare_ops(ROOT)
    except (SetupError, OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"set up ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
