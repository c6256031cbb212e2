"""EASE against its definition, cosine by hand, and choosing a penalty without looking ahead."""

import numpy as np
import pytest

from ray_app.evaluation import baselines
from ray_app.evaluation.baselines import cosine, ease, top, tuned

# Users 0..3 like items {0, 1}, {0, 1}, {1, 2}, {3}; item 4 is liked by nobody.
USERS = np.array([0, 0, 1, 1, 2, 2, 3])
ITEMS = np.array([0, 1, 0, 1, 1, 2, 3])


def test_cosine_by_hand():
    model = cosine(USERS, ITEMS, 5)
    assert model.scores(np.array([0])) == pytest.approx([0, 2 / np.sqrt(6), 0, 0, 0])
    assert model.scores(np.array([0, 2])) == pytest.approx([0, 2 / np.sqrt(6) + 1 / np.sqrt(3), 0, 0, 0])


def test_ease_is_the_least_squares_reconstruction_with_an_empty_diagonal():
    """Steck's problem column by column: ridge regression of an item on all others."""
    rng = np.random.default_rng(0)
    x = (rng.random((60, 7)) < 0.4).astype(float)
    model = ease(*np.nonzero(x), 7, 3.0)
    for column in range(7):
        others = np.delete(np.arange(7), column)
        a = x[:, others]
        expected = np.linalg.solve(a.T @ a + 3.0 * np.eye(6), a.T @ x[:, column])
        assert model.weights[others, column] == pytest.approx(expected)
        assert model.weights[column, column] == 0


@pytest.mark.parametrize("model", [cosine(USERS, ITEMS, 5), ease(USERS, ITEMS, 5, 1.0)])
def test_what_was_never_liked_scores_nothing_and_adds_nothing(model):
    assert model.scores(np.array([4])) == pytest.approx(np.zeros(5))
    assert model.scores(np.array([], np.int64)) == pytest.approx(np.zeros(5))
    assert model.score(np.array([0, 1]), 4) == 0
    liked = np.array([0, 4])
    assert [model.score(liked, item) for item in range(5)] == pytest.approx(model.scores(liked))


def test_a_pair_given_twice_counts_once():
    twice = cosine(np.r_[USERS, USERS], np.r_[ITEMS, ITEMS], 5)
    assert twice.weights == pytest.approx(cosine(USERS, ITEMS, 5).weights)


def test_a_catalogue_above_the_limit_keeps_the_most_liked_items(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_ITEMS", 2)
    model = cosine(USERS, ITEMS, 5)
    assert model.place.tolist() == [0, 1, -1, -1, -1]


def test_top_leaves_out_what_was_seen():
    assert top(np.array([3.0, 1.0, 3.0, 2.0]), np.array([0]), 2).tolist() == [2, 3]


def test_the_penalty_is_the_one_that_ranks_best():
    right, wrong = (
        cosine(np.array([0, 0]), np.array([0, 1]), 4),
        cosine(np.array([0, 0]), np.array([0, 2]), 4),
    )
    histories, goals = [np.array([0])], [{1}]

    def make(penalty: float):
        return right if penalty == 5 else wrong

    assert tuned(make, histories, histories, goals, 1, [1, 5, 9]) == 5
    assert tuned(make, [], [], [], 1, [1, 5, 9]) == 5
    assert tuned(lambda _: wrong, histories, histories, [{3}], 1, [1, 5, 9]) == 1
