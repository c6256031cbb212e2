"""The train stage on Ray Train and DeepSpeed: two workers, kill -9, and the bundle that comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines import train
from pipelines.assemble import assemble
from pipelines.contexts import ContextSource
from ray_app.artifacts import Run, execute, is_current
from ray_app.bundle import Bundle
from ray_app.config import Config
from ray_app.errors import PromptTooLongError
from ray_app.student.experts import Clusters
from tests.runs import small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
ROOT = Path(__file__).parents[2]
QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
"""A checkpoint is handed over at the controller's next look at its workers."""


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        yield


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder.root, folder / "run")
    return Run(folder / "run")


@pytest.fixture(scope="module")
def tokenized(trained_run, tmp_path_factory) -> Run:
    """A run that was interrupted when all was ready for the first phase; each test goes on with a copy."""
    run = copy_of(trained_run.run, tmp_path_factory.mktemp("tokenized"))
    folder = run.stage("train").local()
    for path in folder.iterdir():
        if path.name in ("started.json", "tokens", "tokenizer"):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


@pytest.fixture(scope="module")
def undisturbed(trained_run, tmp_path_factory) -> tuple[Run, dict]:
    run = copy_of(trained_run.run, tmp_path_factory.mktemp("undisturbed"))
    return run, run.done("train")


def learned(run: Run) -> dict[str, np.ndarray]:
    """Every tensor that training left, by file and name."""
    folder = run.stage("train").local()
    found = {}
    for path in sorted(folder.glob("*/*/*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{key}": value for key, value in load_file(path).items()}
    for path in sorted(folder.glob("*/projector.pt")):
        state = torch.load(path, weights_only=True)
        found |= {f"{path.relative_to(folder)}:{key}": value.numpy() for key, value in state.items()}
    for path in sorted(folder.glob("*/valid_logits.npy")):
        found[str(path.relative_to(folder))] = np.load(path)
    return found


def test_two_workers_train_every_phase_and_agree_on_checkpoints(small_run, tokenized, tmp_path):
    run = copy_of(tokenized, tmp_path)
    config = small_config(small_run.inputs, workers=2, checkpoint_every_s=0.2)
    counts = execute(run, train.spec(config, run))["counts"]
    folder = run.stage("train").local()
    experts = [f"expert-{n}" for n in range(counts["experts"])]
    assert len(experts) >= 3
    assert counts["phases"] == 3 + len(experts)
    assert counts["trainable"] > 0
    curves = json.loads((folder / "curves.json").read_text())
    for phase in ("language", "answers", "global", *experts):
        points = curves[phase]["curve"]
        whole = phase in ("language", "answers")
        assert points[-1]["step"] == points[-1]["of"] or (not whole and len(points) > config.train.patience)
        assert all(0 <= point["valid_auc"] <= 1 for point in points)
    student = folder / "student"
    adapters = {
        name: load_file(next((student / "adapters" / name).glob("*.safetensors"))) for name in experts
    }
    base = load_file(next((student / "adapters" / "global").glob("*.safetensors")))
    assert len(base) == 2 * 2 * config.student.bootstrap.layers
    assert all(array.any() for array in base.values())
    for name, adapter in adapters.items():
        assert adapter.keys() == base.keys()
        assert any((adapter[key] != base[key]).any() for key in base), f"{name} learned nothing"
    calibration = json.loads((student / "calibration.json").read_text())
    assert set(calibration) <= {"global", "blend", *experts}
    assert all(slope > 0 for slope, _ in calibration.values())
    assert Clusters.load(student / "clusters.npz").names == experts
    assert (student / "model" / "model.safetensors").exists()
    assert (student / "projector.pt").exists()
    table = json.loads((folder / "experts.json").read_text())
    assert sum(row["users"] for row in table) == 60
    assert not (folder / "checkpoints").exists()
    assert not list(folder.glob(".*.partial"))
    board = EventAccumulator(str(folder / "tensorboard" / "global")).Reload()
    shown, last = board.Scalars("valid_uauc")[-1], curves["global"]["curve"][-1]
    assert shown.value == pytest.approx(last["valid_uauc"], abs=1e-5)
    assert [event.step for event in board.Scalars("loss_text")] == list(range(1, last["step"] + 1))


def test_it_is_current_until_something_changes_what_is_learned(small_run, undisturbed):
    run, _ = undisturbed
    for how in ({"workers": 2}, {"checkpoint_every_s": 9}, {"max_failures": 3}, {"threads": 2}):
        assert is_current(run, train.spec(small_config(small_run.inputs, **how), run))
    for what in ({"epochs": 0.7}, {"learning_rate": 1e-3}, {"max_experts": 4}):
        assert not is_current(run, train.spec(small_config(small_run.inputs, **what), run))


def kill_in_the_midst(process: subprocess.Popen, checkpoints: Path) -> dict:
    """kill -9 the training worker, the driver and all of its Ray, once `answers` has a checkpoint.

    Returns what that checkpoint says.
    """
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint of the answers phase"
        try:
            listed = json.loads((checkpoints / train.SNAPSHOT).read_text())
            last = checkpoints / listed["latest_checkpoint_result"]["checkpoint_dir_name"]
            state = json.loads((last / "place-0.json").read_text())
        except (OSError, ValueError, TypeError):  # not there yet, being written, or replaced meanwhile
            state = {"phase": None}
        if state["phase"] == "answers" and state["curve"]:
            break
        time.sleep(0.01)
    tree = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in tree if "RayTrainWorker" in " ".join(child.cmdline())]
    assert workers
    for victim in [*workers, psutil.Process(process.pid), *tree]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
    return state


def test_kill_minus_nine_and_resume_give_the_same_weights(small_run, tokenized, undisturbed, tmp_path):
    killed, config = copy_of(tokenized, tmp_path), small_run.config
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(small_config(small_run.inputs, checkpoint_every_s=0.05).model_dump()))
    command = [sys.executable, "-m", "pipelines.train", "--config", str(file), "--run", killed.folder.uri]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | QUICK
    folder = killed.stage("train").local()
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            seen = kill_in_the_midst(process, folder / "checkpoints")
        finally:
            process.kill()
            process.wait()
    assert not (folder / "manifest.json").exists()
    assert not (folder / "answers").exists()
    finished = (folder / "language" / "done.json").stat().st_mtime_ns
    (tmp_path / "two").mkdir()
    spread = copy_of(killed, tmp_path / "two")

    manifest = execute(killed, train.spec(config, killed))
    assert manifest["resumed"]
    assert (folder / "language" / "done.json").stat().st_mtime_ns == finished, "a finished phase was repeated"
    curve = json.loads((folder / "answers" / "done.json").read_text())["curve"]
    assert curve[: len(seen["curve"])] == seen["curve"], "training did not go on from its checkpoint"
    run, whole = undisturbed
    expected, found = learned(run), learned(killed)
    assert found.keys() == expected.keys()
    different = [name for name in expected if not np.array_equal(found[name], expected[name])]
    assert different == []
    for name in ("student/calibration.json", "experts.json"):
        assert killed.stage("train").read(name) == run.stage("train").read(name)
    assert manifest["counts"] == whole["counts"]
    goes_on_with_two_workers(small_config(small_run.inputs, workers=2), spread, seen)


def goes_on_with_two_workers(config: Config, run: Run, seen: dict) -> None:
    assert execute(run, train.spec(config, run))["resumed"]
    done = json.loads((run.stage("train").local() / "answers" / "done.json").read_text())
    kept = done["curve"][: len(seen["curve"])]
    assert [point["valid_uauc"] for point in kept] == [point["valid_uauc"] for point in seen["curve"]]
    assert [point["step"] for point in kept] == [-(-point["step"] // 2) for point in seen["curve"]]
    assert done["curve"][-1]["step"] == done["curve"][-1]["of"]


def test_a_prompt_above_the_models_length_is_one_line(small_run, tmp_path):
    run = copy_of(small_run.run, tmp_path)
    tree = small_run.config.model_dump()
    tree["student"]["max_length"] = 40
    config = type(small_run.config).model_validate(tree)
    with pytest.raises(PromptTooLongError) as caught:
        execute(run, train.spec(config, run))
    assert "have more tokens than student.max_length 40, row " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bundle_as_of_the_test_split_tells_what_the_rows_were_told(small_run, undisturbed, tmp_path):
    """No skew: vectors, history and rates from the bundle are those of stage encode, row by row."""
    run, _ = undisturbed
    manifest = assemble(small_run.config, run, tmp_path / "bundle", "test", "v1")
    bundle, source = Bundle.open(tmp_path / "bundle"), ContextSource(small_run.config, run)
    assert bundle.version == manifest["version"] == "v1"
    for name in ("global", *bundle.experts):
        assert (bundle.adapter(name) / "adapter_model.safetensors").exists()
    cut = int(source.timestamps[source.splits == "test"].min())
    assert bundle.cut < cut
    encode = run.stage("encode").local()
    rows = np.flatnonzero(source.timestamps == cut)
    for row in rows:
        user, target = int(source.users[row]), int(source.targets[row])
        history = bundle.history(source.user_ids[user], [])
        offline = source.history(user, cut)
        for name in ("items", "labels", "ratings", "residuals", "timestamps"):
            assert np.array_equal(getattr(history, name), getattr(offline, name), equal_nan=True)
        vectors = bundle.vectors(history, np.array([target]), cut)
        for name, values in vectors.items():
            assert np.array_equal(values[0], np.load(encode / f"{name}.npy")[row]), name
        assert bundle.like_rate(history) == pytest.approx(source.rolling[row, 3])
        assert bundle.statistics(np.array([target]))[0].tolist() == source.rolling[row, :3].tolist()
