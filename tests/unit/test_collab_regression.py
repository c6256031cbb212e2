"""The logistic regression on the collaborative vectors."""

import numpy as np
import pytest
from scipy.special import expit

from ray_app.collab.regression import FAR, Regression


def made(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Vectors of which one entry of `pair` decides."""
    rng = np.random.default_rng(seed)
    vectors = {name: rng.normal(5, 2, (n, width)) for name, width in (("user", 3), ("item", 2), ("pair", 2))}
    labels = (rng.random(n) < expit(vectors["pair"][:, 1] - 5)).astype(float)
    return vectors, labels


def test_it_finds_what_decides():
    fitted = Regression.fit(*made(20_000))
    assert fitted.weights[:6] == pytest.approx(np.zeros(6), abs=0.06)
    assert fitted.weights[6] == pytest.approx(2.0, abs=0.1), "one standard deviation is two units"
    vectors, _ = made(200, seed=1)
    assert fitted.p_yes(vectors) == pytest.approx(expit(vectors["pair"][:, 1] - 5), abs=0.06)


def test_one_label_gives_the_smoothed_rate_to_everybody():
    vectors, _ = made(8)
    assert Regression.fit(vectors, np.ones(8)).p_yes(vectors) == pytest.approx(np.full(8, 0.9))


def test_an_outlier_counts_no_further_than_some_standard_deviations():
    fitted = Regression.fit(*made(500))
    row = {name: values[:1].copy() for name, values in made(1)[0].items()}
    row["pair"][0, 1] = 1e9
    far = fitted.p_yes(row)
    row["pair"][0, 1] = fitted.mean[6] + FAR / fitted.scale[6]
    assert fitted.p_yes(row) == pytest.approx(far)
