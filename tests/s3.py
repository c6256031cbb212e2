"""A real S3 server process on loopback (moto's), and the environment of its clients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import httpx

BUCKET = "rationale"


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Start it with one bucket, point every client of this process and its children at it; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(folder / "s3.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                httpx.put(f"{address}/{BUCKET}", trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                assert server.poll() is None, (folder / "s3.log").read_text()
                assert time.monotonic() < end, "the S3 server did not come up"
                time.sleep(0.1)
        with mock.patch.dict(os.environ, environment(address)):
            yield address
    finally:
        server.kill()
        server.wait(10)


def environment(address: str) -> dict[str, str]:
    """What fsspec, polars and pyarrow read; `AWS_ALLOW_HTTP` is polars' for a server without TLS."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
    }
