"""The weights of reflection's synthesis: their fit, what they are worth, and where they are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit

from ray_app.agents.interface import SecondLook
from ray_app.agents.reflection import ReflectionAgent
from ray_app.agents.synthesis import (
    DEFAULT,
    MIN_ROWS,
    NEUTRAL,
    Weights,
    features,
    fit,
    judged,
    learn,
    synthesis,
)
from ray_app.artifacts import Folder
from ray_app.bundle import MANIFEST, SYNTHESIS, Bundle, seal, synthesis_weights
from ray_app.config import ServeConfig


def made(
    n: int, weights: Weights, seed: int = 0, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Doubted rows whose labels follow from `weights`: first decisions near .5, looks further apart."""
    rng = np.random.default_rng(seed)
    rows = np.column_stack([rng.normal(0, 0.25, n), rng.normal(0, 1, (n, 6)), np.ones(n)])
    labels = (rng.random(n) < expit((rows @ weights.array()) / noise)).astype(float)
    return rows, labels, rng.integers(0, n // 5, n)


LOOKS = Weights(
    initial=0.2, history=0.8, similar=0.3, pool=0.0, segment=-0.2, reweighed=0.1, reasoned=0.3, offset=0.1
)


def test_features_by_hand():
    looks = [
        SecondLook({"history": 0.4, "pool": 0.7}, {"expert-0": 0.3}, 0.9, 0.8),
        SecondLook({"history and similar": 0.2}, {}, 0.9),
    ]
    expected = [
        logit(0.6),
        (logit(0.4) + logit(0.2)) / 2,
        logit(0.2),
        logit(0.7),
        logit(0.3),
        logit(0.9),
        logit(0.8),
        1.0,
    ]
    assert features(0.6, looks) == pytest.approx(expected)


def test_looks_that_were_not_taken_leave_their_weight_to_the_first_decision():
    assert features(0.7, [SecondLook({}, {})]) == pytest.approx([*[logit(0.7)] * 7, 1.0])
    assert synthesis(0.7, [SecondLook({}, {})]) == pytest.approx(0.7)
    assert synthesis(0.7, [], Weights(initial=9.0)) == 0.7
    assert sum(DEFAULT.array()) == pytest.approx(1.0)


def test_the_fit_finds_the_weights_that_made_the_labels():
    rows, labels, _ = made(20_000, LOOKS)
    found = fit(rows, labels).array() * 0.5
    assert found == pytest.approx(LOOKS.array(), abs=0.06)


def test_few_rows_hardly_move_the_prior():
    rows, labels, _ = made(5, LOOKS)
    assert fit(rows, labels).array() == pytest.approx(DEFAULT.array(), abs=0.3)


def test_fitted_decisions_are_better_on_rows_that_no_weight_has_seen():
    weights, report = learn(*made(2000, LOOKS), 50, 7)
    assert weights != NEUTRAL
    for measured in (report, judged(*made(2000, LOOKS, seed=1), weights, 50, 7)):
        before, after, gain = measured["before"], measured["after"], measured["auc_gain"]
        assert after["auc"] > before["auc"]
        assert after["accuracy"] > before["accuracy"]
        assert gain["value"] == pytest.approx(after["auc"] - before["auc"])
        assert 0 < gain["low"] < gain["value"] < gain["high"]
        more = measured["accuracy_gain"]
        assert more["value"] == pytest.approx(after["accuracy"] - before["accuracy"])
        assert 0 < more["low"] < more["value"] < more["high"]
        assert measured["p"] < 0.01


def test_where_looks_say_nothing_the_first_decision_is_kept():
    rng = np.random.default_rng(3)
    rows = np.column_stack([rng.normal(0, 1, 600), rng.normal(0, 1, (600, 6)), np.ones(600)])
    labels = (rng.random(600) < expit(rows[:, 0])).astype(float)
    weights, report = learn(rows, labels, np.arange(600), 20, 7)
    assert report["after"]["log_loss"] >= report["before"]["log_loss"]
    assert weights == NEUTRAL
    kept = judged(rows, labels, np.arange(600), weights, 20, 7)
    assert kept["before"] == kept["after"]
    assert (kept["turned"], kept["auc_gain"]["value"], kept["p"]) == (0, 0.0, 1.0)


def test_turned_decisions_are_counted_and_tested_in_pairs():
    rows = np.zeros((6, 8))
    rows[:, 0] = [-1, -1, -1, 1, 1, -1]
    rows[:, 1] = [9, 9, 9, -9, 9, -9]
    rows[:, 4] = rows[:, 0]
    labels = np.array([1.0, 1, 1, 1, 1, 0])
    weights = Weights(initial=0, history=1, similar=0, pool=0, segment=0, reweighed=0)
    found = judged(rows, labels, np.array([1, 1, 2, 2, 3, 3]), weights, 20, 7)
    assert (found["rows"], found["users"]) == (6, 3)
    assert found["before"]["accuracy"] == pytest.approx(3 / 6)
    assert found["after"]["accuracy"] == pytest.approx(5 / 6)
    assert found["accuracy_gain"]["value"] == pytest.approx(2 / 6)
    assert (found["turned"], found["better"], found["worse"]) == (4, 3, 1)
    assert found["looks"] == {
        "history": pytest.approx(4.5 / 5), "similar": 0.5, "pool": 0.5, "reweighed": 0.5, "reasoned": 0.5,
    }  # fmt: skip
    assert found["p"] == pytest.approx(0.625)  # 2 * (C(4,0) + C(4,1)) / 2^4


@pytest.mark.parametrize("labels", [np.ones(500), np.arange(MIN_ROWS - 1) % 2, np.empty(0)])
def test_without_rows_or_with_one_label_the_first_decision_is_kept(labels):
    rows, _, users = made(500, LOOKS)
    n = len(labels)
    weights, report = learn(rows[:n], labels.astype(float), users[:n], 20, 7)
    assert weights == NEUTRAL
    assert report["rows"] == n
    assert report["before"] == report["after"]


def test_one_user_can_neither_be_learnt_from_nor_give_an_interval():
    rows, labels, _ = made(500, LOOKS)
    weights, report = learn(rows, labels, np.zeros(500), 20, 7)
    assert weights == NEUTRAL
    assert report["auc_gain"] == {"value": 0.0, "low": None, "high": None}


def test_a_bundle_keeps_them_and_the_agent_uses_them(bundle):
    assert bundle.synthesis == DEFAULT
    (bundle.path / SYNTHESIS).write_text(json.dumps(LOOKS.as_dict()))
    seal(bundle.path, json.loads((bundle.path / MANIFEST).read_bytes()))
    assert Bundle.open(bundle.path).synthesis == synthesis_weights(Folder(bundle.path)) == LOOKS
    assert ReflectionAgent(ServeConfig(), LOOKS)._weights == LOOKS
