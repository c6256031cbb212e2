"""The ablation table on the small run: what is shared is linked, what differs is trained, all is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from pipelines.ablate import ROWS, ablate, markdown
from ray_app.artifacts import Run
from ray_app.config import overridden
from ray_app.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def measured(trained_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("ablated") / "run"
    shutil.copytree(trained_run.run.folder.root, root)
    run = Run(root)
    seeds = [trained_run.config.seed]
    return run, ablate(trained_run.config, run, seeds, ["full", "soft-tokens", "experts"])


def inode(run: Run, name: str) -> int:
    return Path(run.folder.path(name)).stat().st_ino


def test_every_row_is_measured_beside_the_models_on_the_same_features(measured):
    run, table = measured
    assert table == run.stage("ablation").read_json("ablation.json")
    assert set(table["variants"]) == {
        "student", "without experts", "without soft tokens", "trees", "logistic regression",
    }  # fmt: skip
    for entry in table["variants"].values():
        assert 0 <= entry["auc"]["mean"] <= 1
        assert entry["auc"]["spread"] is None
    valid = pl.read_parquet(run.stage("mix").path("valid.parquet"))
    logits = np.load(run.stage("train").local() / "global" / "valid_logits.npy")
    auc = roc_auc_score(valid["label"], logits)
    assert table["variants"]["without experts"]["auc"]["mean"] == pytest.approx(auc)
    assert table["rows"] == valid.height


def test_what_a_row_shares_with_the_run_is_linked_and_what_differs_is_its_own(measured):
    run, _ = measured
    seed = json.loads((run.stage("ablation").local() / "ablation.json").read_bytes())["seeds"][0]
    file = "encode/user.npy"
    for name in ("full", "soft-tokens"):
        assert inode(run, f"ablation/{name}-{seed}/{file}") == inode(run, file)
    adapter = "train/student/projector.pt"
    assert inode(run, f"ablation/full-{seed}/{adapter}") == inode(run, adapter)
    assert inode(run, f"ablation/soft-tokens-{seed}/{adapter}") != inode(run, adapter)
    run.done("train")


def test_without_soft_tokens_no_sequence_has_one(measured):
    run, _ = measured
    trial = next(Path(run.folder.path("ablation")).glob("soft-tokens-*"))
    tokens = pl.read_parquet(trial / "train" / "tokens" / "examples" / "*.parquet")
    assert (tokens.select("soft_user", "soft_item", "soft_pair") == -1).to_numpy().all()
    full = pl.read_parquet(run.stage("train").path("tokens/examples/*.parquet"))
    assert (full["soft_user"] >= 0).all()


def test_a_part_that_is_off_already_makes_no_row(measured, trained_run, capsys):
    run, before = measured
    seeds = [trained_run.config.seed]
    bare = overridden(trained_run.config, ["student.direct=0"])
    assert "without direct" not in ablate(bare, run, seeds, ["full", "direct"])["variants"]
    assert "no row without direct: student.direct=0 is the configuration" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--rows direct: the configuration has all of that off already"):
        ablate(bare, run, seeds, ["direct"])
    run.stage("ablation").write_json("ablation.json", before)


def test_the_table_is_markdown(measured):
    lines = markdown(measured[1]).splitlines()
    assert lines[0].startswith("| | AUC | UAUC | UAUC null | NDCG@5 | MAP@5 | Snapshot | ECE |")
    assert len(lines) == 2 + 5
    assert set(ROWS) >= {"full", "soft-tokens", "text", "experts", "reasoning", "pairwise"}
