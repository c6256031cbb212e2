"""The one environment of every process: set-up, tests, the Ray head and, through it, all jobs and replicas.

    python -m pipelines.env COMMAND [ARGUMENT ...]     runs COMMAND in it

Standard library only: the system's Python reads this file before the packages are installed.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def state_folder(root: Path) -> Path:
    """Folder of what belongs to this machine and not to git: token, compiled ops, cluster state."""
    folder = root / ".local"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def token_file(root: Path) -> Path:
    """The Ray token of this checkout, made on first use: 256 bits, readable by its owner alone.

    Raises PermissionError if others can read it, ValueError if it is empty.
    """
    target = state_folder(root) / "token"
    if not target.exists():
        scratch = target.with_name(f".token-{secrets.token_hex(8)}")
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link never replaces: of two launchers started together, both use the first one's token.
            os.link(scratch, target)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    facts = target.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(
            f"{target} has mode {facts.st_mode & 0o777:o}, so others may read the cluster's token: "
            f"remove it (a new one is made) or chmod 600 it"
        )
    if not target.read_text().strip():
        raise ValueError(f"{target} is empty: remove it, a new one is made")
    return target


def environment(root: Path) -> dict[str, str]:
    """Variables to lay over `os.environ`; the venv is the one whose Python calls this."""
    venv = Path(sys.prefix)
    local = root / ".local"
    variables = {
        "VIRTUAL_ENV": str(venv),
        # ninja and the venv's python first, for what DeepSpeed compiles and what jobs start.
        "PATH": f"{venv / 'bin'}{os.pathsep}{_without(venv / 'bin', os.environ.get('PATH', os.defpath))}",
        "PYTHONUNBUFFERED": "1",
        # Every model comes from the run folder: a hub look-up would only be a slow failure.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Intel's OpenMP would otherwise bind to the first core what is forked once torch is imported: all of
        # a Ray that a script starts,
        "KMP_AFFINITY": "none",
        # vLLM would pin each of its engines to it,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # and an engine inside an actor needs no further process: 4 s to start instead of 50.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_EXTENSIONS_DIR": str(local / "torch_extensions"),
        "NUMBA_CACHE_DIR": str(local / "numba"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(local / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A hop between agents costs 1 ms instead of 5. User code then shares the replica's event loop:
        # agents are async, and anything that blocks goes to a thread.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # The proxy is the only door: replicas open no HTTP port of their own.
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    }
    openmp = venv / "lib" / "libiomp5.so"
    if openmp.exists():
        # Intel's OpenMP: GNU's spins when engines share cores.
        others = os.environ.get("LD_PRELOAD", "").split(":")
        paths = [str(openmp), *(path for path in others if path not in ("", str(openmp)))]
        variables["LD_PRELOAD"] = ":".join(paths)
    return variables


def passed_on() -> dict[str, str]:
    """Of this process' environment, what a job or a deployment shall have as well."""
    names = (
        "RATIONALE_LOGS",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_TRACES_SAMPLER",
        "OTEL_TRACES_SAMPLER_ARG",
    )
    return {name: os.environ[name] for name in names if name in os.environ}


def _without(folder: Path, path: str) -> str:
    return os.pathsep.join(part for part in path.split(os.pathsep) if part != str(folder))


def enter(root: Path, module: str) -> None:
    """Start `python -m module` anew with the same arguments, unless this process has the environment."""
    wanted = environment(root)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # LD_PRELOAD and what libraries read at import take effect in a new process only.
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | wanted)


def main() -> None:
    if len(sys.argv) < 2:
        print("error: no command: python -m pipelines.env COMMAND [ARGUMENT ...]", file=sys.stderr)
        sys.exit(2)
    try:
        token_file(ROOT)
        variables = os.environ | environment(ROOT)
        os.execvpe(sys.argv[1], sys.argv[1:], variables)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
