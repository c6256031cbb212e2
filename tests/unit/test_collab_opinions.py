"""What users of like taste thought: by hand, against dense matrices, and blind to what comes later."""

import numpy as np
import pytest

from ray_app.collab.features import Histories
from ray_app.collab.opinions import DAMPING, FLOOR, RATERS, Crowd, opinions


def asked(known: Histories, user: int, target: int, now: int, n_items: int, window: int = 256) -> np.ndarray:
    who, moment = np.array([user]), np.array([now])
    start, end = known.before(who, moment)
    crowd = Crowd.of(known, n_items)
    told = known.items, known.residuals, start, end, np.array([target], np.int32), moment
    return opinions(*told, crowd, window)[0]


def histories(rows: list[tuple[int, int, float, int]], users: int) -> Histories:
    """Of (user, item, residual, time), sorted by time."""
    user, item, residual, time = (np.array(column) for column in zip(*rows, strict=True))
    labels = np.zeros(len(rows))
    return Histories.build(user.astype(np.int32), item, labels, residual, time, users)


TASTES = [
    (0, 0, 0.5, 1),
    (1, 0, 0.4, 2),
    (2, 0, -0.4, 3),
    (1, 2, 0.6, 4),
    (2, 2, -0.5, 5),
]
"""User 1 agrees with user 0 about item 0, user 2 does not; both have rated item 2."""


def test_by_hand():
    agrees = 0.5 * 0.4 / (0.5 * np.hypot(0.4, 0.6) + DAMPING)
    differs = -0.5 * 0.4 / (0.5 * np.hypot(0.4, 0.5) + DAMPING)
    both = (agrees * 0.6 + differs * -0.5) / (agrees - differs + FLOOR)
    alike = agrees * 0.6 / (agrees + FLOOR)
    assert asked(histories(TASTES, 3), 0, 2, 9, 3) == pytest.approx([both, alike], rel=1e-5)


def test_only_what_was_before_the_moment_counts():
    """A rating at the moment itself, whatever it says, is not seen: neither of the target nor of a rater."""
    known = asked(histories(TASTES, 3), 0, 2, 5, 3)
    for told in (-0.9, 0.9):
        later = [*TASTES[:4], (2, 2, told, 5), (1, 1, told, 5), (0, 1, told, 6)]
        assert np.array_equal(asked(histories(later, 3), 0, 2, 5, 3), known)
    assert asked(histories(TASTES, 3), 0, 2, 4, 3) == pytest.approx([0, 0])  # nobody has rated it yet


def test_without_raters_or_without_a_history_there_is_no_opinion():
    known = histories(TASTES, 4)
    assert asked(known, 0, 1, 9, 3) == pytest.approx([0, 0])
    assert asked(known, 3, 2, 9, 3) == pytest.approx([0, 0])


def test_against_dense_matrices():
    rng, users, items = np.random.default_rng(0), 12, 20
    rows = [
        (int(rng.integers(users)), item, float(rng.normal() / 2), time)
        for time, item in enumerate(np.tile(np.arange(items), 9))
    ]
    rows = list({(user, item): (user, item, r, time) for user, item, r, time in rows}.values())
    known = histories(sorted(rows, key=lambda row: row[3]), users)
    matrix, rated = np.zeros((users, items)), np.zeros((users, items), bool)
    for user, item, residual, _ in rows:
        matrix[user, item], rated[user, item] = np.float32(residual), True
    for user, target in ((0, 3), (5, 11), (11, 19)):
        others = np.flatnonzero(rated[:, target])
        norms = np.sqrt((matrix[others] ** 2).sum(1) * (matrix[user] ** 2).sum())
        w = matrix[others] @ matrix[user] / (norms + DAMPING)
        told, positive = matrix[others, target], w.clip(0)
        expected = [
            (w * told).sum() / (abs(w).sum() + FLOOR),
            (positive * told).sum() / (positive.sum() + FLOOR),
        ]
        assert asked(known, user, target, 1000, items) == pytest.approx(expected, rel=1e-5)


def test_only_the_latest_raters_and_ratings_count():
    """The first rater is pushed out by `RATERS` that came later; a short window forgets what was shared."""
    crowd = [(0, 0, 0.5, 1), (1, 0, 0.5, 2), (1, 1, 0.9, 3)]
    strangers = [(user, 1, 0.9, 10 + user) for user in range(2, 2 + RATERS)]
    assert asked(histories(crowd, 2), 0, 1, 500, 3)[1] > 0
    assert asked(histories(crowd + strangers, 2 + RATERS), 0, 1, 500, 3) == pytest.approx([0, 0])
    longer = [*crowd, (0, 2, 0.5, 4)]
    assert asked(histories(longer, 2), 0, 1, 500, 3, window=1) == pytest.approx([0, 0])
