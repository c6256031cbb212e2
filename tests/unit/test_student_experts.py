"""Clusters, the gate's rule by hand, and calibration that finds what was put in."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ray_app.config import GateConfig
from ray_app.errors import DataError
from ray_app.student import calibration
from ray_app.student.experts import GLOBAL, Clusters, choose, cluster_users, gate_logits

EVERY = {"expert-0", "expert-1", "expert-2"}


def axes(temperature: float = 1.0, **gate: float) -> tuple[Clusters, GateConfig]:
    """Three clusters whose means are the axes of a plane and its opposite; no standardisation."""
    centres = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    return Clusters(np.zeros(2), np.ones(2), centres, 0.5), GateConfig(temperature=temperature, **gate)


def softmax(*values: float) -> np.ndarray:
    e = np.exp(np.array(values))
    return e / e.sum()


def test_a_user_on_a_mean_gets_its_expert():
    clusters, config = axes(temperature=0.1)
    choice = choose(np.array([2.0, 0.0]), clusters, EVERY, config)
    assert (choice.name, choice.weights, choice.lead) == ("expert-0", {"expert-0": 1.0}, "expert-0")
    assert list(choice.gate.values()) == pytest.approx(softmax(10, 0, -10))


def test_the_threshold_of_one_expert_is_single_plus_margin_over_n():
    clusters, _ = axes()
    user = np.array([1.0, 1.0])
    half = math.sqrt(0.5)
    w = softmax(half / 0.2, half / 0.2, -half / 0.2)
    assert w[0] < 0.5
    config = GateConfig(temperature=0.2, single=0.4, margin=0.2, entropy=1.0)
    assert w[0] > 0.4 + 0.2 / 3
    assert choose(user + np.array([1e-6, 0]), clusters, EVERY, config).name == "expert-0"
    config = GateConfig(temperature=0.2, single=0.4, margin=0.36, entropy=1.0)
    assert w[0] < 0.4 + 0.36 / 3
    assert choose(user, clusters, EVERY, config).name == "blend"


def test_a_blend_weighs_all_experts_by_the_softmax():
    clusters, config = axes(temperature=0.5, single=0.7, entropy=0.99)
    choice = choose(np.array([1.0, 1.0]), clusters, EVERY, config)
    half = math.sqrt(0.5) / 0.5
    expected = softmax(half, half, -half)
    assert choice.name == "blend"
    assert [choice.weights[f"expert-{n}"] for n in range(3)] == pytest.approx(expected)
    assert sum(choice.weights.values()) == pytest.approx(1)
    assert choice.lead in ("expert-0", "expert-1")


def test_a_user_like_all_clusters_gets_the_global_adapter():
    clusters, config = axes(temperature=5.0)
    choice = choose(np.array([1.0, 1.0]), clusters, EVERY, config)
    entropy = -sum(w * math.log(w) for w in choice.gate.values())
    assert entropy > 0.95 * math.log(3)
    assert (choice.name, choice.weights) == (GLOBAL, {GLOBAL: 1.0})
    nobody = choose(np.zeros(2), clusters, EVERY, config)
    assert nobody.name == GLOBAL
    assert list(nobody.gate.values()) == pytest.approx([1 / 3] * 3)


def test_unpublished_experts_are_the_global_adapter():
    clusters, sharp = axes(temperature=0.1)
    assert choose(np.array([2.0, 0.0]), clusters, {"expert-1"}, sharp).weights == {GLOBAL: 1.0}
    _, wide = axes(temperature=0.5, single=0.7, entropy=0.99)
    choice = choose(np.array([1.0, 1.0]), clusters, {"expert-1"}, wide)
    half = math.sqrt(0.5) / 0.5
    w = softmax(half, half, -half)
    assert choice.name == "blend"
    assert choice.weights == {GLOBAL: pytest.approx(w[0] + w[2]), "expert-1": pytest.approx(w[1])}
    assert choose(np.array([1.0, 1.0]), clusters, set(), wide).name == GLOBAL


@given(arrays(np.float32, 2, elements=st.floats(-100, 100, width=32)), st.floats(0.02, 3))
def test_weights_always_sum_to_one_and_name_what_exists(user, temperature):
    clusters, config = axes(temperature=temperature)
    choice = choose(user, clusters, {"expert-0"}, config)
    assert sum(choice.weights.values()) == pytest.approx(1)
    assert sum(choice.gate.values()) == pytest.approx(1)
    assert set(choice.weights) <= {"expert-0", GLOBAL}
    assert choice.lead in choice.weights


def blobs(counts: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.array([[0, 0, 0], [8, 0, 0], [0, 8, 0], [0, 0, 8]])
    return np.concatenate(
        [centre + rng.normal(size=(n, 3)) for centre, n in zip(centres, counts, strict=False)]
    )


def test_the_number_of_clusters_is_found_and_users_are_assigned_to_theirs():
    vectors = blobs((40, 40, 40, 40))
    clusters = cluster_users(vectors, 2, 6, seed=1)
    assert clusters.names == ["expert-0", "expert-1", "expert-2", "expert-3"]
    assert clusters.silhouette > 0.5
    assigned = clusters.assign(vectors)
    groups = [set(assigned[start : start + 40]) for start in range(0, 160, 40)]
    assert sorted(map(tuple, groups)) == [(0,), (1,), (2,), (3,)]


def test_clusters_are_seeded_and_survive_their_file(tmp_path):
    vectors = blobs((30, 30, 30))
    one, two = (cluster_users(vectors, 3, 3, seed=1) for _ in range(2))
    assert np.array_equal(one.centres, two.centres)
    file = io.BytesIO()
    one.save(file)
    (tmp_path / "c.npz").write_bytes(file.getvalue())
    loaded = Clusters.load(tmp_path / "c.npz")
    assert loaded.silhouette == one.silhouette
    for name in ("mean", "scale", "centres"):
        assert np.array_equal(getattr(loaded, name), getattr(one, name))
    assert np.array_equal(loaded.assign(vectors), one.assign(vectors))


def test_a_number_that_leaves_a_cluster_nearly_empty_is_passed_over():
    vectors = blobs((60, 60, 60, 3))
    assert len(cluster_users(vectors, 3, 4, seed=1).names) == 3


def test_one_expert_may_be_asked_for():
    assert cluster_users(blobs((20, 20)), 1, 1, seed=1).names == ["expert-0"]


def test_fewer_users_than_clusters_is_named():
    with pytest.raises(DataError, match=r"3 users have training rows.*train\.min_experts 3: lower"):
        cluster_users(blobs((3,)), 3, 5, seed=1)
    assert len(cluster_users(blobs((2, 2, 2)), 3, 9, seed=1).names) in (3, 4, 5)


def drawn(slope: float, offset: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n)
    return logits, (rng.random(n) < 1 / (1 + np.exp(-(slope * logits + offset)))).astype(int)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.4, -0.7), (2.5, 1.0)])
def test_calibration_finds_slope_and_offset(slope, offset):
    found = calibration.fit(*drawn(slope, offset, 20_000))
    assert found == pytest.approx((slope, offset), abs=0.12)


def test_few_rows_stay_near_the_identity_and_no_order_is_ever_turned_round():
    assert calibration.fit(np.array([1.0]), np.array([1])) == pytest.approx((1, 0), abs=0.3)
    logits, labels = drawn(-1.0, 0.0, 2000)
    assert calibration.fit(logits, labels)[0] == 1e-3


def test_each_adapter_has_its_map_and_a_small_or_one_sided_one_takes_the_common_one():
    own, common = drawn(0.5, 0.5, 4000, 1), drawn(1.5, -0.5, 4000, 2)
    few, alike = drawn(1, 0, calibration.MIN_ROWS - 1, 3), (np.ones(300), np.ones(300, int))
    names = np.repeat(["expert-0", GLOBAL, "expert-1", "blend"], [4000, 4000, len(few[0]), 300])
    logits, labels = (np.concatenate(parts) for parts in zip(own, common, few, alike, strict=True))
    maps = calibration.fit_all(names, logits, labels)
    assert set(maps) == {GLOBAL, "expert-0"}
    assert maps["expert-0"] == pytest.approx((0.5, 0.5), abs=0.12)
    assert maps[GLOBAL] == calibration.fit(logits, labels)
    p = calibration.apply_all(maps, names, logits)
    for at in (0, 4000, 8000, len(names) - 1):
        assert p[at] == pytest.approx(calibration.apply(maps, str(names[at]), float(logits[at])))


def test_calibrated_shares_are_the_shares_that_happen():
    logits, labels = drawn(0.3, -1.0, 20_000)
    maps = calibration.fit_all(np.full(20_000, GLOBAL), logits, labels)
    p = calibration.apply_all(maps, np.full(20_000, GLOBAL), logits)
    for low in (0.1, 0.2, 0.3, 0.4):
        inside = (p >= low) & (p < low + 0.1)
        assert labels[inside].mean() == pytest.approx(p[inside].mean(), abs=0.03)


def test_extreme_logits_are_safe():
    maps = {GLOBAL: (1.0, 0.0)}
    assert calibration.apply(maps, GLOBAL, 1e4) == 1.0
    assert calibration.apply(maps, GLOBAL, -1e4) == 0.0
    slope, offset = calibration.fit(np.array([1e3, -1e3] * 50), np.array([1, 0] * 50))
    assert np.isfinite([slope, offset]).all()


def test_rows_get_the_logit_of_the_gates_choice_and_only_published_experts_are_needed():
    clusters, sharp = axes(temperature=0.1)
    users = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    logits = {GLOBAL: np.array([1.0, 2.0, 3.0]), "expert-0": np.array([10.0, 20.0, 30.0])}
    names, gated = gate_logits(users, clusters, {"expert-0"}, sharp, logits)
    assert names.tolist() == ["expert-0", GLOBAL, GLOBAL]
    assert gated.tolist() == [10.0, 2.0, 3.0]
    _, wide = axes(temperature=0.5, single=0.7, entropy=0.99)
    names, gated = gate_logits(np.array([[1.0, 1.0]]), clusters, {"expert-0"}, wide, logits)
    half = math.sqrt(0.5) / 0.5
    w = softmax(half, half, -half)
    assert names.tolist() == ["blend"]
    assert gated == pytest.approx(w[0] * 10 + (w[1] + w[2]) * 1)


def test_cross_fitted_probabilities_come_from_other_users():
    """Labels that one user's logits explain perfectly do not sharpen that user's own map."""
    logits, labels = drawn(0.4, -0.7, 20_000)
    users = np.arange(20_000) % 50
    adapters = np.full(20_000, GLOBAL)
    p = calibration.cross_fitted(adapters, logits, labels, users, seed=1)
    both = calibration.apply_all(calibration.fit_all(adapters, logits, labels), adapters, logits)
    assert p == pytest.approx(both, abs=0.03)
    changed = np.where(users == 3, 1 - labels, labels)
    again = calibration.cross_fitted(adapters, logits, changed, users, seed=1)
    assert np.array_equal(again[users == 3], p[users == 3])
    assert not np.array_equal(again, p)


def test_cross_fitting_one_user_is_defined():
    p = calibration.cross_fitted(np.full(4, GLOBAL), np.zeros(4), np.array([0, 1, 1, 1]), np.zeros(4), seed=1)
    assert p == pytest.approx([0.5] * 4)
