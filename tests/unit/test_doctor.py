"""The doctor finds what is really wrong: each fault here is made, not feigned."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines import checks, checks_hardware
from pipelines.checks import Finding, Patient
from pipelines.cluster import Cluster, Process, free_port
from pipelines.doctor import CHECKS, examine
from ray_app.config import load

ROOT = Path(__file__).resolve().parents[2]


def patient(tmp_path: Path, *overrides: str, name: str = "local", root: Path = ROOT) -> Patient:
    return Patient(root, load(ROOT / "configs" / f"{name}.yaml", list(overrides)), str(tmp_path / "run"))


def states(found: list[Finding]) -> list[str]:
    return [one.state for one in found]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the doctor reads of a checkout."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    (root / ".local").mkdir(mode=0o700)
    return root


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder this process may read and not write. Root writes everywhere, so it becomes `nobody`."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    folder.chmod(0o555)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(before)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_version_other_than_the_locks_is_found_with_both_versions(checkout: Path, tmp_path: Path):
    lock = checkout / "requirements" / "cpu.txt"
    got = psutil.__version__
    lock.write_text(f"psutil==0.0.1\nno-such-package==1.0\nnumpy=={checks.installed('numpy')}\n")
    (found,) = checks.lock(patient(tmp_path, root=checkout))
    assert found.state == "fail"
    assert found.found == f"psutil {got} (==0.0.1), no-such-package missing (==1.0)"
    assert "make setup" in found.remedy


def test_a_lock_that_is_installed_is_ok_whatever_the_local_version(checkout: Path, tmp_path: Path):
    torch = (checks.installed("torch") or "").partition("+")[0]
    (checkout / "requirements" / "cpu.txt").write_text(f"# the lock\ntorch=={torch}  # 2.x+cpu is the same\n")
    (found,) = checks.lock(patient(tmp_path, root=checkout))
    assert (found.state, found.found) == ("ok", "1 packages as in requirements/cpu.txt")


def test_a_taken_port_is_found_with_its_owner(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = list(checks.ports(patient(tmp_path, f"serve.port={port}")))
    serve = next(one for one in found if "serve.port" in one.found)
    assert serve.state == "warn"
    assert f"pid {os.getpid()}" in serve.found


def test_a_port_of_this_checkouts_cluster_is_ours(checkout: Path, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        me = Process.of(psutil.Process())
        cluster = Cluster(head=me, gcs_port=port, dashboard_port=free_port(), scratch=str(tmp_path))
        (checkout / ".local" / "cluster.json").write_text(cluster.model_dump_json())
        found = list(checks.ports(patient(tmp_path, f"ray.port={port}", root=checkout)))
    assert found[0] == Finding("ports", "ok", f"ray.port {port} is in use by this checkout")


def test_a_run_folder_that_cannot_be_written_is_found(closed_folder: Path):
    here = Patient(ROOT, load(ROOT / "configs" / "local.yaml"), str(closed_folder / "run"))
    (found,) = checks.storage(here)
    assert found.state == "fail"
    assert "Permission denied" in found.found


def test_a_run_folder_below_a_file_is_found(tmp_path: Path):
    (tmp_path / "run").write_text("not a folder")
    (found,) = checks.storage(patient(tmp_path))
    assert found.state == "fail"


def test_a_writable_run_folder_is_left_as_it_was(tmp_path: Path):
    found = list(checks.storage(patient(tmp_path)))
    assert [one.check for one in found] == ["run folder", "clock"]
    assert states(found) == ["ok", "ok"]
    assert list((tmp_path / "run").iterdir()) == []


def test_object_storage_without_its_package_is_found(tmp_path: Path):
    here = Patient(ROOT, load(ROOT / "configs" / "local.yaml"), "gcs://bucket/run")
    if checks.installed("gcsfs"):
        pytest.skip("gcsfs is installed here")
    (found,) = checks.storage(here)
    assert found.state == "fail"
    assert "gcs" in found.remedy


def test_a_clock_that_differs_from_the_storages_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = time.time
    monkeypatch.setattr(checks.time, "time", lambda: now() - 3600)
    found = list(checks.storage(patient(tmp_path)))
    assert found[1].state == "fail"
    assert found[1].found.startswith(("3600 s", "3599 s"))


def test_a_token_that_others_can_read_is_found(checkout: Path, tmp_path: Path):
    token = checkout / ".local" / "token"
    token.write_text("secret")
    token.chmod(0o644)
    (found,) = checks.token(patient(tmp_path, root=checkout))
    assert found == Finding("token", "fail", "mode 644: others can read it", "chmod 600 .local/token")
    token.chmod(0o600)
    assert states(list(checks.token(patient(tmp_path, root=checkout)))) == ["ok"]
    token.write_text("\n")
    assert states(list(checks.token(patient(tmp_path, root=checkout)))) == ["fail"]


def test_looking_for_a_token_makes_none(checkout: Path, tmp_path: Path):
    assert states(list(checks.token(patient(tmp_path, root=checkout)))) == ["ok"]
    assert not (checkout / ".local" / "token").exists()


def test_authentication_that_is_switched_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (found,) = checks.token(patient(tmp_path))
    assert found.state == "fail"


def test_a_model_that_is_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    here = patient(tmp_path, "student.base=nobody/no-such-model", "reason.engine.kind=vllm",
                   f"reason.engine.model={tmp_path / 'none'}")  # fmt: skip
    found = list(checks.models(here))
    assert states(found) == ["fail", "fail"]
    assert "hf download nobody/no-such-model" in found[1].remedy


def test_a_model_folder_without_safetensors_is_found(tmp_path: Path):
    base = tmp_path / "model"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"")
    here = patient(tmp_path, f"student.base={base}")
    assert states(list(checks.models(here))) == ["fail"]
    (base / "model.safetensors").write_bytes(b"")
    assert states(list(checks.models(here))) == ["ok"]


def test_a_missing_key_of_an_endpoint_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = patient(tmp_path, "reason.engine.kind=openai", "reason.engine.api_key_env=TEACHER_KEY")
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    assert states(list(checks.models(here))) == ["fail"]
    monkeypatch.setenv("TEACHER_KEY", "x")
    assert states(list(checks.models(here))) == []


def test_missing_data_wordnet_and_bleurt_are_found(tmp_path: Path):
    here = patient(tmp_path, f"data.cache={tmp_path / 'cache'}", f"evaluate.bleurt={tmp_path / 'bleurt'}")
    assert states(list(checks.inputs(here))) == ["warn"]
    assert states(list(checks.wordnet(here))) == ["warn"]
    assert states(list(checks.bleurt(here))) == ["fail"]
    named = patient(tmp_path, "data.source=files", f"data.interactions={tmp_path / 'none.csv'}")
    assert states(list(checks.inputs(named))) == ["fail"]


def test_a_database_without_its_driver_is_found(tmp_path: Path):
    for url, state in (
        ("postgresql+pg8000://host/name", "fail"),
        ("postgresql+psycopg://host/name", "ok"),
        ("sqlite:///x.db", "ok"),
    ):
        assert states(list(checks.store(patient(tmp_path, f"serve.store={url}")))) == [state]


def test_a_machine_that_is_too_small_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks_hardware, "wanted", lambda config: (1e18, 1e18))
    found = {one.check: one.state for one in checks_hardware.capacity(patient(tmp_path))}
    assert found["disk"] == found["memory"] == "fail"


def test_shared_memory_below_the_object_store_is_found(tmp_path: Path):
    found = {
        one.check: one for one in checks_hardware.capacity(patient(tmp_path, "ray.object_store_mb=900000000"))
    }
    assert found["/dev/shm"].state == "warn"
    assert "--shm-size" in found["/dev/shm"].remedy


def nvidia_smi(folder: Path, line: str) -> None:
    """A program of that name that prints one GPU, as the driver's own does."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{line}'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)


def test_gpus_are_looked_for_only_where_the_config_uses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(checks_hardware.gpus(patient(tmp_path))) == []
    (found,) = checks_hardware.gpus(patient(tmp_path, name="gpu"))
    assert found.state == "fail"
    assert "nvidia-smi shows none" in found.found


def test_a_gpu_that_is_too_small_for_the_config_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nvidia_smi(tmp_path, "NVIDIA A100-PCIE-40GB, 40960, 580.65.06")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(checks_hardware, "torch_finding", lambda: Finding("GPU", "ok", "torch"))
    teacher = {"model": "Qwen/Qwen2.5-32B-Instruct", "quantization": "null", "dtype": "bfloat16"}
    overrides = [f"reason.engine.{key}={value}" for key, value in teacher.items()]
    here = patient(tmp_path, *overrides, name="gpu")
    found = [one for one in checks_hardware.gpus(here) if one.state == "fail"]
    assert "reason.engine (Qwen/Qwen2.5-32B-Instruct, bfloat16) needs 70.5" in found[0].found
    assert "--gpu A100-80" in found[0].remedy


def test_every_failure_and_warning_carries_a_remedy_in_one_line(tmp_path: Path):
    broken = patient(tmp_path, "student.base=nobody/none", "serve.store=nonsense", name="production")
    for one in examine(broken):
        assert one.state == "ok" or one.remedy, one
        assert "\n" not in one.found + one.remedy


def test_the_command_ends_with_1_where_something_fails_and_prints_json(tmp_path: Path):
    command = [sys.executable, "-m", "pipelines.doctor", "--json", "--run", str(tmp_path / "run")]
    broken = subprocess.run([*command, f"--set=evaluate.bleurt={tmp_path}"], cwd=ROOT, capture_output=True,
                            text=True, timeout=60)  # fmt: skip
    assert broken.returncode == 1
    found = json.loads(broken.stdout)
    assert {"check": "BLEURT", "state": "fail"}.items() <= found[-1].items()
    assert {one["check"] for one in found} >= {"python", "lock", "ports", "token", "run folder", "WordNet"}
    assert next(iter(CHECKS)) == found[0]["check"]
