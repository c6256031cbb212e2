"""The ablation table on the small run: what is shared is linked, what differs is trained, all is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipelines.ablate import ROWS, Scored, ablate, markdown
from pipelines.contexts import ContextSource
from pipelines.rivals import load_vectors
from ray_app.artifacts import Run
from ray_app.config import overridden
from ray_app.errors import ConfigError
from ray_app.student.model import SOFT_NAMES, Projector

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def measured(trained_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("ablated") / "run"
    shutil.copytree(trained_run.run.folder.root, root)
    run = Run(root)
    seeds = [trained_run.config.seed]
    return run, ablate(trained_run.config, run, seeds, ["full", "soft-tokens", "experts", "direct", "lm"])


def inode(run: Run, name: str) -> int:
    return Path(run.folder.path(name)).stat().st_ino


def test_every_row_is_measured_beside_the_models_on_the_same_features(measured):
    run, table = measured
    assert table == run.stage("ablation").read_json("ablation.json")
    assert set(table["variants"]) == {
        "student", "without experts", "without direct", "without lm", "without soft tokens",
        "trees", "logistic regression",
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


def test_the_parts_of_the_score_add_up_to_it(measured, trained_run):
    run, _ = measured
    config, vectors = trained_run.config, load_vectors(run)
    scored = Scored(config, run, ContextSource(config, run), vectors)
    total = scored.logits["global"]
    lm, direct = scored.part("direct", total), scored.part("lm", total)
    share = config.student.direct
    np.testing.assert_allclose((1 - share) * lm + share * direct, total, atol=1e-5)
    assert np.std(direct) > 0.05 and np.std(lm) > 1e-3
    state = torch.load(run.stage("train").path("global/projector.pt"))
    projector = Projector.load(state, config.student.bootstrap.hidden)
    read = {name: torch.from_numpy(vectors[name][scored.rows]) for name in SOFT_NAMES}
    with torch.no_grad():
        served = projector.eval().score(torch.from_numpy(lm), read)
    np.testing.assert_allclose(served, total, atol=1e-5)


def test_a_part_that_is_off_already_makes_no_row(measured, trained_run, capsys):
    run, before = measured
    seeds = [trained_run.config.seed]
    bare = overridden(trained_run.config, ["student.direct=0"])
    assert "without direct" not in ablate(bare, run, seeds, ["full", "direct"])["variants"]
    assert "no row without direct: the configuration has student.direct=0" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="all of --rows off already"):
        ablate(bare, run, seeds, ["direct"])
    run.stage("ablation").write_json("ablation.json", before)


def test_the_table_is_markdown(measured):
    lines = markdown(measured[1]).splitlines()
    assert lines[0].startswith("| | AUC | UAUC | UAUC null | NDCG@5 | MAP@5 | Snapshot | ECE |")
    assert len(lines) == 2 + 7
    assert set(ROWS) >= {"full", "soft-tokens", "text", "experts", "reasoning", "pairwise"}
