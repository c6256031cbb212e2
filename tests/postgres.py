"""A real PostgreSQL server process on a Unix socket, from the binaries that the system has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

LIMIT_S = 60.0
SETTINGS = (
    "listen_addresses=", "shared_buffers=16MB", "max_connections=60",
    # Worse for durability than any server should be: the store has to ask for what it needs.
    "synchronous_commit=off", "wal_writer_delay=10s",
)  # fmt: skip
COLLATION = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en")
"""Sorts `a` before `B`, as hosted databases do and SQLite does not."""


def binaries() -> Path | None:
    """Folder of `initdb` and `postgres`: on the PATH, or Debian's newest."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    folders = [*debian, *([Path(found).parent] if found else [])]
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


class Server:
    """One server with its data in `folder`. As root it runs as the user `postgres`, for it refuses root."""

    def __init__(self, programs: Path, folder: Path):
        self._programs, self._folder = programs, folder
        self._data, self._log = folder / "data", folder / "postgres.log"
        self._owner = (
            {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        if self._owner:
            shutil.chown(folder, "postgres", "postgres")
        initdb = [str(programs / "initdb"), "--pgdata", str(self._data), "--username=rationale"]
        self._run([*initdb, "--auth=trust", "--no-sync", *COLLATION])
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://rationale@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """URL of an empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers; the backends of one that was killed may linger a little."""
        end = time.monotonic() + LIMIT_S
        settings = [f"-c{one}" for one in (*SETTINGS, f"unix_socket_directories={self._folder}")]
        while True:
            if self._process is None or self._process.poll() is not None:
                self._process = self._begin(
                    [str(self._programs / "postgres"), "-D", str(self._data), *settings]
                )
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of the postmaster; its backends notice and leave."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def set_read_only(self, on: bool) -> None:
        """What transactions may do from now on. Clients are disconnected, so that none goes on as before."""
        with self._connect() as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {on}")
            connection.execute("SELECT pg_reload_conf()")
        while True:
            with self._connect() as connection:
                shown = connection.execute("SHOW default_transaction_read_only").fetchone()
                if shown == ("on" if on else "off",):
                    others = (
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'"
                    )
                    connection.execute(others)
                    return
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """A fast shutdown, which disconnects clients and writes everything; SIGQUIT does the first only."""
        assert self._process is not None
        self._process.send_signal(how)
        try:
            self._process.wait(LIMIT_S)
        finally:
            self._process.kill()
            self._process.wait()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self._folder), user="rationale", dbname="postgres", autocommit=True, connect_timeout=10
        )

    def _begin(self, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **self._owner)

    def _run(self, command: list[str]) -> None:
        assert self._begin(command).wait(LIMIT_S) == 0, self._log.read_text()


@contextmanager
def postgres_server(programs: Path) -> Iterator[Server]:
    """Its folder is not pytest's, which no other user may enter; a socket's path must be short, too."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = Server(programs, Path(folder))
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
