"""Regression on a user's residuals: against the textbook formula, and what its columns add up to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.collab.kriging import COLUMNS, KERNEL, posterior

RNG = np.random.default_rng(0)
N_ITEMS = 12
LISTS = [sorted(set(RNG.integers(0, 5, RNG.integers(0, 4)).tolist())) for _ in range(N_ITEMS)]
INDPTR = np.cumsum([0, *map(len, LISTS)]).astype(np.int64)
FEATURES = np.array([code for codes in LISTS for code in codes], np.int32)
YEAR = np.array([0, *RNG.integers(1930, 2000, N_ITEMS - 1)], np.float32)
LATENT = RNG.normal(size=(N_ITEMS, 3)).astype(np.float32)
LATENT[3] = 0


def kernel_of(i: int, a: int, j: int, b: int) -> np.ndarray:
    """Terms of item i, rated a-th, and item j, rated b-th: level, drift, features, year, latent."""
    both = len(set(LISTS[i]) & set(LISTS[j]))
    norms = float(np.linalg.norm(LATENT[i]) * np.linalg.norm(LATENT[j]))
    return np.array(
        [
            KERNEL.level,
            KERNEL.drift * np.exp(-abs(a - b) / KERNEL.drift_length),
            KERNEL.features * both / np.sqrt(len(LISTS[i]) * len(LISTS[j])) if both else 0.0,
            KERNEL.year * np.exp(-abs(YEAR[i] - YEAR[j]) / KERNEL.year_span) if YEAR[i] and YEAR[j] else 0.0,
            KERNEL.latent * max(float(LATENT[i] @ LATENT[j]) / norms, 0.0) if norms else 0.0,
        ]
    )


def textbook(items: list[int], residuals: np.ndarray, target: int) -> np.ndarray:
    n = len(items)
    gram = np.array([[kernel_of(i, a, j, b).sum() for b, j in enumerate(items)] for a, i in enumerate(items)])
    own = kernel_of(target, n, target, n).sum()
    if n == 0:
        return np.array([0, 0, 0, 0, 0, 0, np.sqrt(own)])
    row = np.array([kernel_of(target, n, j, b) for b, j in enumerate(items)])
    noisy = gram + KERNEL.noise * np.eye(n)
    parts = np.linalg.solve(noisy, residuals) @ row
    k = row.sum(1)
    return np.array([parts.sum(), *parts, np.sqrt(own - k @ np.linalg.solve(noisy, k))])


def ask(items, residuals, start, end, targets, window=256):
    ends = (np.array(at, np.int64) for at in (start, end))
    return posterior(
        np.array(items, np.int32),
        np.array(residuals, np.float32),
        *ends,
        np.array(targets, np.int32),
        INDPTR,
        FEATURES,
        YEAR,
        LATENT,
        window,
    )


histories = st.lists(
    st.tuples(st.integers(0, N_ITEMS - 1), st.floats(-1, 1, width=32)), min_size=0, max_size=14
)


@settings(deadline=None)  # the first call compiles
@given(st.lists(histories, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_any_order_of_rows_gives_the_textbook_posterior(users, random):
    items = [item for history in users for item, _ in history]
    residuals = np.array([value for history in users for _, value in history])
    offsets = np.cumsum([0, *map(len, users)])
    rows = [
        (offsets[user], offsets[user] + seen, random.randrange(N_ITEMS))
        for user, history in enumerate(users)
        for seen in range(len(history) + 1)
    ]
    random.shuffle(rows)
    start, end, targets = zip(*rows, strict=True)
    found = ask(items, residuals, start, end, targets)
    expected = [textbook(items[a:b], residuals[a:b], target) for a, b, target in rows]
    assert found == pytest.approx(np.array(expected), abs=1e-5)


def test_one_rating_by_hand():
    """One rating of the item itself: mean = k r / (k + noise), sd^2 = k - k'^2 / (k + noise)."""
    k = KERNEL.level + KERNEL.drift + KERNEL.features + KERNEL.year + KERNEL.latent
    item = next(i for i in range(1, N_ITEMS) if LISTS[i] and i != 3)
    near = k - KERNEL.drift * (1 - np.exp(-1 / KERNEL.drift_length))
    mean, *_, sd = ask([item], [0.5], [0], [1], [item])[0]
    assert mean == pytest.approx(near * 0.5 / (k + KERNEL.noise), rel=1e-5)
    assert sd**2 == pytest.approx(k - near**2 / (k + KERNEL.noise), rel=1e-5)


def test_terms_add_up_and_a_known_taste_is_less_uncertain():
    items, residuals = RNG.integers(0, N_ITEMS, 30), RNG.normal(size=30) / 3
    found = ask(items, residuals, [0, 0], [0, 30], [5, 5])
    assert found[:, 0] == pytest.approx(found[:, 1:6].sum(1), abs=1e-6)
    assert found[0].tolist()[:6] == [0] * 6
    assert found[1, COLUMNS.index("sd")] < found[0, COLUMNS.index("sd")]


def test_the_window_forgets_in_steps():
    items, residuals = RNG.integers(0, N_ITEMS, 40), RNG.normal(size=40) / 3
    ends = [8, 9, 10, 11, 40]
    found = ask(items, residuals, [0] * 5, ends, [5] * 5, window=8)
    seen = [(0, 8), (2, 9), (2, 10), (4, 11), (32, 40)]
    expected = [textbook(items[a:b].tolist(), residuals[a:b], 5) for a, b in seen]
    assert found == pytest.approx(np.array(expected), abs=1e-5)
