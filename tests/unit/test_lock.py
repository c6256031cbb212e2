"""The lock files agree with each other."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "requirements"


def pins(name: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (FOLDER / name).read_text().splitlines())
    found = [line.split("==") for line in lines if "==" in line]
    assert len({package.lower() for package, _ in found}) == len(found), "a package is pinned twice"
    return {package.lower(): version for package, version in found}


def test_what_clusters_add_is_what_the_tests_ran_with():
    lock = pins("cpu.txt")
    both = {name: version for name, version in pins("cluster.txt").items() if name in lock}
    assert {"s3fs", "boto3", "python-dateutil", "psycopg", "psycopg-binary"} <= set(both)
    assert both == {name: lock[name] for name in both}
