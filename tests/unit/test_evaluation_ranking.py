"""Ranking metrics: hand values, agreement with scikit-learn, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ray_app.errors import DataError
from ray_app.evaluation import ranking

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 1), st.integers(-5, 5)),
    min_size=2,
    max_size=60,
)


def columns(rows: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(column) for column in zip(*rows, strict=True))


@given(ROWS)
def test_auc_is_scikit_learns_with_ties(rows):
    _, _, labels, scores = columns(rows)
    assume(0 < labels.sum() < len(labels))
    assert ranking.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@given(ROWS)
def test_uauc_is_the_plain_mean_of_scikit_learns_auc_per_user(rows):
    users, _, labels, scores = columns(rows)
    expected = [
        float(roc_auc_score(labels[users == user], scores[users == user]))
        for user in np.unique(users)
        if 0 < labels[users == user].sum() < (users == user).sum()
    ]
    assume(expected)
    assert ranking.uauc(users, labels, scores) == pytest.approx(np.mean(expected))


@settings(max_examples=50)
@given(ROWS)
def test_every_metric_ignores_a_monotone_map_of_the_scores(rows):
    users, times, labels, scores = columns(rows)
    mapped = np.exp(scores / 2.0)
    for metric in (ranking.ndcg_exposed, ranking.map_exposed):
        assert metric(users, labels, scores, 3) == pytest.approx(
            metric(users, labels, mapped, 3), nan_ok=True
        )
    assert ranking.uauc(users, labels, scores) == pytest.approx(
        ranking.uauc(users, labels, mapped), nan_ok=True
    )
    assert ranking.snapshot_accuracy(users, times, labels, scores) == pytest.approx(
        ranking.snapshot_accuracy(users, times, labels, mapped), nan_ok=True
    )


@settings(max_examples=50)
@given(ROWS, st.randoms())
def test_the_order_of_the_rows_does_not_matter_to_the_auc_family(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    users, times, labels, scores = columns(rows)
    users2, times2, labels2, scores2 = columns(shuffled)
    assert ranking.uauc(users, labels, scores) == pytest.approx(
        ranking.uauc(users2, labels2, scores2), nan_ok=True
    )
    assert ranking.snapshot_accuracy(users, times, labels, scores) == pytest.approx(
        ranking.snapshot_accuracy(users2, times2, labels2, scores2), nan_ok=True
    )


def test_uauc_skips_users_with_one_label_or_one_row():
    users = ["a", "a", "a", "b", "b", "c"]
    labels = [1, 0, 0, 1, 1, 0]
    scores = [0.5, 0.5, 0.1, 0.9, 0.8, 0.3]
    # a: one tie (.5) and one right pair (1) of two; b has no negative, c one row.
    assert ranking.uauc(users, labels, scores) == 0.75
    assert np.isnan(ranking.user_auc(users, labels, scores)).tolist() == [False, True, True]


def test_snapshot_accuracy_pools_pairs_of_one_user_and_one_moment():
    users = [1, 1, 1, 1, 1, 2, 2]
    times = [5, 5, 5, 9, 9, 5, 5]
    labels = [1, 0, 0, 1, 0, 1, 0]
    scores = [0.6, 0.2, 0.6, 0.1, 0.9, 0.7, 0.3]
    # 1 at 5: right and tie; 1 at 9: wrong; 2 at 5: right. (1 + .5 + 0 + 1) / 4
    assert ranking.snapshot_accuracy(users, times, labels, scores) == 0.625


def test_snapshot_accuracy_ignores_what_is_constant_within_a_moment():
    rng = np.random.default_rng(0)
    users, times, labels = rng.integers(0, 9, 300), rng.integers(0, 4, 300), rng.integers(0, 2, 300)
    scores = rng.random(300)
    shift = rng.normal(size=(9, 4))[users, times] * 10
    assert ranking.snapshot_accuracy(users, times, labels, scores) == pytest.approx(
        ranking.snapshot_accuracy(users, times, labels, scores + shift)
    )


def test_exposed_ndcg_and_map_by_hand():
    users = [1, 1, 1, 1, 2, 2, 3]
    labels = [0, 1, 1, 1, 0, 0, 1]
    scores = [4, 3, 2, 1, 2, 1, 1]
    # User 1 ranks no, yes, yes, yes; user 2 likes nothing and counts 0; user 3 has one row and is dropped.
    ideal = 1 + 1 / math.log2(3)
    assert ranking.user_ndcg_exposed(users, labels, scores, 2)[0] == pytest.approx(1 / math.log2(3) / ideal)
    assert ranking.ndcg_exposed(users, labels, scores, 2) == pytest.approx(1 / math.log2(3) / ideal / 2)
    # Precision 1/2 at rank 2 and 2/3 at rank 3, over all three positives.
    assert ranking.map_exposed(users, labels, scores, 3) == pytest.approx((1 / 2 + 2 / 3) / 3 / 2)
    assert np.isnan(ranking.user_map_exposed(users, labels, scores, 3)[2])


def test_a_constant_score_gets_what_a_random_one_gets():
    # Labels come first in file order: ties broken by position would look perfect.
    users = np.repeat(np.arange(2000), 4)
    labels = np.tile([1, 1, 0, 0], 2000)
    random = ranking.ndcg_exposed(users, labels, np.random.default_rng(3).random(8000), 2)
    assert ranking.ndcg_exposed(users, labels, np.zeros(8000), 2) == pytest.approx(random, abs=0.02)


def test_full_catalogue_ndcg_and_map_by_hand():
    ranked = [np.array([7, 3, 9, 1]), np.array([2, 5]), np.array([4])]
    relevant = [{3, 1, 8}, {5}, set()]
    first = (1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / math.log2(4))
    second = 1 / math.log2(3)
    assert ranking.ndcg_full(ranked, relevant, 3) == pytest.approx((first + second) / 2)
    # User 0 finds 1 of min(3, 3) at rank 2; user 1 finds its one at rank 2; user 2 does not count.
    assert ranking.map_full(ranked, relevant, 3) == pytest.approx((1 / 2 / 3 + 1 / 2) / 2)
    assert ranking.ndcg_full([np.array([3, 1, 8])], [{3, 1, 8}], 2) == pytest.approx(1.0)


def test_the_null_of_an_informative_score_is_below_the_score():
    rng = np.random.default_rng(1)
    users, labels = rng.integers(0, 40, 800), rng.integers(0, 2, 800)
    scores = labels + rng.normal(size=800)
    null = ranking.uauc_null(users, labels, scores, seed=2, repeats=30)
    assert ranking.uauc(users, labels, scores) > null.max()
    assert null.mean() == pytest.approx(0.5, abs=0.02)


def test_the_null_keeps_each_users_number_of_positives():
    users, labels = np.array([1, 2, 1, 2, 1, 2]), np.array([1, 0, 0, 0, 1, 1])
    seen = []

    def scores(permuted: np.ndarray) -> np.ndarray:
        seen.append([int(permuted[users == user].sum()) for user in (1, 2)])
        return np.arange(6.0)

    ranking.uauc_null(users, labels, scores, seed=0, repeats=5)
    assert seen == [[2, 1]] * 5


def test_rolling_rate_uses_only_earlier_moments_of_the_same_user():
    users = np.array([1, 1, 1, 1, 2])
    times = np.array([30, 10, 20, 20, 20])
    labels = np.array([0, 1, 1, 0, 1])
    # Prior .6 twice. Time 10: .6; time 20: (1 + 1.2) / 3 for both rows; time 30: (2 + 1.2) / 5.
    assert ranking.rolling_rate(users, times, labels).tolist() == pytest.approx(
        [0.64, 0.6, 2.2 / 3, 2.2 / 3, 0.6]
    )


def test_minus_the_rolling_rate_shows_the_artefact_of_uauc_and_snapshot_accuracy_does_not():
    rng = np.random.default_rng(4)
    users, times = np.repeat(np.arange(300), 12), np.tile(np.arange(12) // 2, 300)
    labels = (rng.random(3600) < np.repeat(rng.beta(2, 2, 300), 12)).astype(int)

    def scores(permuted):
        return -ranking.rolling_rate(users, times, permuted)

    null = ranking.uauc_null(users, labels, scores, seed=5, repeats=5)
    assert null.min() > 0.55
    assert ranking.snapshot_accuracy(users, times, labels, scores(labels)) == 0.5


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], "both labels"),
        ([1, 2], [0.1, 0.2], "binarise"),
        ([1, 0], [0.1, math.nan], "not finite"),
        ([1, 0], [0.1], "one length"),
    ],
)
def test_unusable_rows_are_an_error_in_one_line(labels, scores, message):
    with pytest.raises(DataError, match=message):
        ranking.auc(labels, scores)
