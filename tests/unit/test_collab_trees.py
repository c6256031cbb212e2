"""Boosted trees on the collaborative vectors."""

import numpy as np
import pytest
from scipy.special import expit

from ray_app.collab.trees import Trees
from ray_app.evaluation.ranking import auc


def made(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Vectors of which two entries decide together: one tells whether the other speaks for or against."""
    rng = np.random.default_rng(seed)
    vectors = {name: rng.normal(0, 1, (n, width)) for name, width in (("user", 3), ("item", 2), ("pair", 2))}
    logits = 2 * vectors["user"][:, 0] * np.sign(vectors["pair"][:, 1])
    return vectors, (rng.random(n) < expit(logits)).astype(np.int8)


def test_they_find_what_no_linear_model_can():
    trees = Trees.fit(*made(8000), seed=1)
    vectors, labels = made(2000, seed=1)
    best = auc(labels, 2 * vectors["user"][:, 0] * np.sign(vectors["pair"][:, 1]))
    assert auc(labels, trees.p_yes(vectors)) == pytest.approx(best, abs=0.02)
    assert auc(labels, vectors["user"][:, 0]) < 0.55


def test_they_are_kept_to_the_bit_and_made_alike_by_one_seed(tmp_path):
    vectors, labels = made(600)
    trees = Trees.fit(vectors, labels, seed=3)
    trees.save(tmp_path / "trees.txt")
    for other in (Trees.load(tmp_path / "trees.txt"), Trees.fit(vectors, labels, seed=3, threads=2)):
        assert np.array_equal(other.p_yes(vectors), trees.p_yes(vectors))


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_gives_about_the_smoothed_rate_to_everybody(label):
    vectors, _ = made(8)
    expected = (8 * label + 1) / 10
    assert Trees.fit(vectors, np.full(8, label), 0).p_yes(vectors) == pytest.approx(np.full(8, expected))
