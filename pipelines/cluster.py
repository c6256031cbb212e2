"""The local Ray cluster of this checkout: start a head, find it again, end it and nothing else.

`.local/cluster.json` records the head's ports and every process that descends from it, each as a pid
with its creation time, so that a pid used again by someone else is never mistaken for ours.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.env import environment, state_folder, token_file
from ray_app.artifacts import Folder
from ray_app.config import RayConfig
from ray_app.errors import ConfigError, LaunchError

STATE = "cluster.json"
START_S = 180.0
"""Until the head answers: seconds on a machine with nothing else to do, over a minute on one with much."""
HOST = "127.0.0.1"


class Process(BaseModel):
    """A process, safe against reuse of its pid."""

    model_config = ConfigDict(frozen=True)

    pid: int
    created: float

    @classmethod
    def of(cls, process: psutil.Process) -> Process:
        return cls(pid=process.pid, created=process.create_time())

    def live(self) -> psutil.Process | None:
        """The running process, or None if it ended (a zombie has ended)."""
        try:
            process = psutil.Process(self.pid)
            # A corrected clock moves all creation times a little; a pid does not come round that soon.
            same = abs(process.create_time() - self.created) < 2
        except psutil.NoSuchProcess:
            return None
        return process if same and _runs(process) else None


class Cluster(BaseModel):
    """What `cluster.json` holds."""

    head: Process
    """`ray start --block`: leader of its own session, ancestor of all the others."""
    processes: list[Process] = []
    """Every descendant as last seen."""
    gcs_port: int
    dashboard_port: int
    scratch: str
    """Ray's folder for sockets and logs."""
    serve_port: int | None = None
    deployed: dict[str, str] = {}
    """What the running service was made from."""
    previous: dict[str, str] = {}
    """What the service before it was made from."""
    app: str = "rationale"
    """Name of the running service's application."""

    @property
    def address(self) -> str:
        return f"{HOST}:{self.gcs_port}"

    @property
    def dashboard(self) -> str:
        return f"http://{HOST}:{self.dashboard_port}"


def load_state(root: Path) -> Cluster | None:
    """The recorded cluster, running or not. Raises LaunchError if the record is damaged."""
    file = root / ".local" / STATE
    if not file.exists():
        return None
    try:
        return Cluster.model_validate_json(file.read_text())
    except ValidationError as error:
        raise LaunchError(f"{file} is damaged: end its Ray processes by hand, then remove it") from error


def save_state(root: Path, cluster: Cluster) -> None:
    """Record the cluster with all its processes of now."""
    Folder(state_folder(root)).write(STATE, _snapshot(cluster).model_dump_json(indent=2).encode())


def _snapshot(cluster: Cluster) -> Cluster:
    return cluster.model_copy(update={"processes": [Process.of(one) for one in members(cluster)]})


def members(cluster: Cluster) -> list[psutil.Process]:
    """Live processes of the cluster: recorded ones, their descendants, and orphans of the head's session.

    A worker killed hard leaves its children (an engine, say) to init. They stay in the session that the
    head leads, and the kernel gives that number to no one else while any process is in it: so one live
    recorded process in it vouches for the others.
    """
    roots = [live for known in (cluster.head, *cluster.processes) if (live := known.live())]
    if any(_session(one.pid) == cluster.head.pid for one in roots):
        roots += [one for one in psutil.process_iter() if _session(one.pid) == cluster.head.pid]
    found = {one.pid: one for one in roots}
    for one in roots:
        with suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in one.children(recursive=True)}
    return [one for one in found.values() if _runs(one)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def free_port(preferred: int | None = None) -> int:
    """`preferred` if nobody listens on it, otherwise a port the kernel picks."""
    for port in [preferred, 0] if preferred else [0]:
        # All interfaces: a listener on any of them, with SO_REUSEPORT or without, is a conflict.
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
            if probe.family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                probe.listen(1)
            except OSError:
                continue
            return probe.getsockname()[1]
    raise LaunchError("no free TCP port on this machine: close what uses them")


def token(root: Path) -> str:
    """The cluster's token. Raises ConfigError if its file is not fit for use."""
    try:
        return token_file(root).read_text().strip()
    except (PermissionError, ValueError) as error:
        raise ConfigError(str(error)) from error


def api(root: Path, cluster: Cluster, timeout_s: float = 10.0) -> httpx.Client:
    """A client of the dashboard's HTTP API that carries the token."""
    headers = {"Authorization": f"Bearer {token(root)}"}
    return httpx.Client(base_url=cluster.dashboard, headers=headers, timeout=timeout_s, trust_env=False)


def is_healthy(root: Path, cluster: Cluster) -> bool:
    """Whether the head lives, takes our token, and has its node alive."""
    if cluster.head.live() is None:
        return False
    try:
        with api(root, cluster) as client:
            return client.get("/api/cluster_status").status_code == 200
    except httpx.HTTPError:
        return False


def scratch_folder(root: Path) -> Path:
    """A short path (Ray's socket names must fit 107 bytes), apart from every other Ray of this machine."""
    mark = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"rationale-{os.getuid()}-{mark}"


def start(root: Path, config: RayConfig, say: Callable[[str], Any] = print) -> Cluster:
    """Start a head with token authentication, its dashboard on 127.0.0.1, and wait until it answers.

    Raises LaunchError, after ending what it started, if it does not within a minute.
    """
    token(root)
    scratch = scratch_folder(root)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    ports = {"port": free_port(config.port), "dashboard-port": free_port(config.dashboard_port)}
    for name, wanted in (("port", config.port), ("dashboard-port", config.dashboard_port)):
        if ports[name] != wanted:
            say(f"port {wanted} is taken: Ray's {name} is {ports[name]}")
    # Ray has fixed defaults for these three, which a second cluster on the machine would run into.
    for name in ("ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"):
        ports[name] = free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--dashboard-host={HOST}", f"--temp-dir={scratch}"),
        *(f"--{name}={port}" for name, port in ports.items()),
        *(f"--num-cpus={config.num_cpus}", f"--object-store-memory={config.object_store_mb * 2**20}"),
    ]
    log = state_folder(root) / "head.log"
    # Draining gives other nodes time to take over; there are none.
    variables = os.environ | environment(root) | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    variables.pop("RAY_ADDRESS", None)
    with open(log, "w") as output:
        head = subprocess.Popen(
            command,
            cwd=root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster = Cluster(
        head=Process.of(psutil.Process(head.pid)),
        gcs_port=ports["port"],
        dashboard_port=ports["dashboard-port"],
        scratch=str(scratch),
    )
    save_state(root, cluster)
    try:
        deadline = time.monotonic() + START_S
        while not is_healthy(root, cluster):
            if head.poll() is not None:
                raise LaunchError(f"the Ray head ended at once ({_last_line(log)}): see {log}")
            if time.monotonic() > deadline:
                raise LaunchError(f"the Ray head does not answer after {START_S:.0f} s: see {log}")
            time.sleep(0.3)
    except BaseException:
        stop(root, cluster)
        raise
    save_state(root, cluster)
    return cluster


def _last_line(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def stop(root: Path, cluster: Cluster, grace_s: float = 8.0) -> int:
    """End the cluster's processes and forget it; return how many there were.

    SIGTERM to the head, which ends its own; then to whatever is left; then SIGKILL.
    Raises LaunchError, and keeps the record, if one survives that.
    """
    seen: set[int] = set()
    for number, head_only in ((signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGKILL, False)):
        # Before the head ends, write down what would no longer be found through it.
        cluster = _snapshot(cluster)
        seen |= {one.pid for one in cluster.processes}
        for known in [cluster.head] if head_only else cluster.processes:
            if live := known.live():
                with suppress(psutil.NoSuchProcess):
                    live.send_signal(number)
        if _all_gone(cluster, grace_s):
            shutil.rmtree(cluster.scratch, ignore_errors=True)
            (root / ".local" / STATE).unlink(missing_ok=True)
            return len(seen)
    left = ", ".join(str(one.pid) for one in members(cluster))
    raise LaunchError(f"processes {left} of the local cluster do not end: end them by hand")


def _all_gone(cluster: Cluster, grace_s: float) -> bool:
    deadline = time.monotonic() + grace_s
    while members(cluster):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def ensure(root: Path, config: RayConfig, say: Callable[[str], Any] = print) -> Cluster:
    """The recorded cluster if it is well, otherwise a new one in its place."""
    known = load_state(root)
    if known is not None:
        if is_healthy(root, known):
            return known
        say(f"the recorded cluster at {known.address} does not answer: replacing it")
        stop(root, known)
    return start(root, config, say)
