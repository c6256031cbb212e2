"""Latent item vectors: from co-occurrence alone, aligned over time, and never zero for a cold item."""

import numpy as np
import pytest
import scipy.sparse as sp

from ray_app.collab.latent import item_vectors

N_USERS, N_ITEMS, D = 60, 24, 4


def interactions(seed: int = 0, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Users of four groups who mostly take items of their group; items 22 and 23 are never taken."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, N_USERS, n)
    own = rng.random(n) < 0.8
    items = np.where(own, rng.integers(0, 5, n) * 4 + users % 4, rng.integers(0, 20, n))
    return users, items


def content() -> sp.csr_matrix:
    """Item i has feature i mod 4; item 23 has none."""
    matrix = np.eye(4)[np.arange(N_ITEMS) % 4]
    matrix[23] = 0
    return sp.csr_matrix(matrix)


def vectors(users, items, previous=None, dimensions=D, seed=7):
    return item_vectors(users, items, N_USERS, N_ITEMS, dimensions, content(), previous, seed)


def test_items_taken_together_lie_together():
    found = vectors(*interactions())
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = unit[:20] @ unit[:20].T
    same = np.arange(20)[:, None] % 4 == np.arange(20) % 4
    assert cosine[same].mean() > cosine[~same].mean() + 0.5
    assert np.linalg.norm(found, axis=1).mean() == pytest.approx(1, abs=1e-6)
    assert found.dtype == np.float32


def test_a_cold_item_is_the_mean_of_its_kind_and_one_without_features_the_mean_of_all():
    found = vectors(*interactions())
    known = found[:20]
    assert found[22] == pytest.approx(known[2::4].mean(axis=0), abs=1e-5)
    assert found[23] == pytest.approx(known.mean(axis=0), abs=1e-5)
    assert (np.linalg.norm(found, axis=1) > 0).all()


def test_a_rotated_snapshot_is_turned_back():
    first = vectors(*interactions())
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))
    again = vectors(*interactions(), previous=first @ turn)
    assert again == pytest.approx(first @ turn, abs=1e-5)


def test_the_next_snapshot_is_aligned_without_a_change_of_its_geometry():
    users, items = interactions(n=900)
    first = vectors(users[:600], items[:600])
    free, aligned = vectors(users, items), vectors(users, items, previous=first)
    assert aligned @ aligned.T == pytest.approx(free @ free.T, abs=1e-4)
    assert np.linalg.norm(aligned - first) <= np.linalg.norm(free - first) + 1e-6
    assert np.linalg.norm(aligned - first) < 0.5 * np.linalg.norm(first)


def test_repeated_ratings_and_the_order_of_rows_do_not_matter():
    users, items = interactions()
    order = np.random.default_rng(2).permutation(len(users))
    assert vectors(users[order], items[order]) == pytest.approx(vectors(users, items), abs=1e-5)
    twice = vectors(np.tile(users, 2), np.tile(items, 2))
    assert twice == pytest.approx(vectors(users, items), abs=1e-5)


def test_nothing_known_is_zeros_and_does_not_fail():
    none = np.empty(0, np.int64)
    assert not vectors(none, none).any()
    assert not vectors(none, none, previous=vectors(*interactions())).any()


def test_a_catalogue_smaller_than_the_dimensions_fills_what_it_can():
    users, items = interactions()
    found = vectors(users, items, dimensions=40)
    assert found.shape == (N_ITEMS, 40)
    assert np.isfinite(found).all()
    few = item_vectors(users, items % 3, N_USERS, 3, 16, content()[:3], None, 7)
    assert few.shape == (3, 16)
    assert np.isfinite(few).all()
