"""Bootstrap over users, paired tests, and the tables made of them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ray_app.errors import DataError
from ray_app.evaluation import intervals, ranking
from ray_app.evaluation.tables import catalogue_table, exposed_table


def test_the_interval_of_a_mean_is_that_of_the_normal_theory():
    per_user = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = intervals.user_bootstrap(per_user, 400, 2000, seed=1)
    error = 1.96 * per_user.std() / np.sqrt(400)
    assert low == pytest.approx(per_user.mean() - error, abs=0.03)
    assert high == pytest.approx(per_user.mean() + error, abs=0.03)


def test_users_that_do_not_count_do_not_move_the_interval():
    values = np.array([0.2, np.nan, 0.2, np.nan, 0.2])
    assert intervals.user_bootstrap(values, 5, 200, seed=0) == pytest.approx((0.2, 0.2))


def test_one_user_says_nothing_of_how_users_differ():
    assert np.isnan(intervals.user_bootstrap(np.array([0.2]), 1, 200, seed=0)).all()
    assert np.isnan(intervals.user_bootstrap(np.array([0.2, np.nan]), 2, 200, seed=0)).all()
    labels, scores = np.array([0, 1, 0, 1]), {"ours": np.arange(4.0)}
    entry = exposed_table(np.zeros(4), np.arange(4), labels, scores, [2], 50, 0)["scorers"]["ours"]
    assert entry["auc"]["value"] == 0.75
    assert np.isnan([entry[name]["low"] for name in ("auc", "uauc", "snapshot_accuracy", "ndcg@2")]).all()


def test_weighted_auc_is_the_auc_of_the_repeated_rows():
    rng = np.random.default_rng(2)
    users, labels = rng.integers(0, 6, 80), rng.integers(0, 2, 80)
    scores = rng.integers(0, 9, 80).astype(float)
    draws = rng.multinomial(6, np.full(6, 1 / 6), size=3).astype(float)
    values = intervals.auc_statistic(users, labels, scores)(draws)
    for draw, value in zip(draws, values, strict=True):
        repeated = np.repeat(np.arange(80), draw[users].astype(int))
        assert value == pytest.approx(ranking.auc(labels[repeated], scores[repeated]))


def test_every_resample_draws_as_many_users_as_there_are():
    totals = intervals.bootstrap_values(lambda draws: draws.sum(axis=1), 37, 150, seed=3)
    assert totals.tolist() == [37.0] * 150


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(200):
        low, high = intervals.user_bootstrap(rng.normal(0.0, 1.0, 60), 60, 200, seed=trial)
        hits += low <= 0.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_small_steady_gain_is_found_by_pairing():
    rng = np.random.default_rng(5)
    b = rng.uniform(0, 1, 300)
    result = intervals.paired_test(b + 0.01 + rng.normal(0, 0.02, 300), b, 1000, seed=0)
    assert result["low"] > 0
    assert result["p_value"] < 0.001
    # Unpaired, the two intervals overlap widely.
    low, high = intervals.user_bootstrap(b, 300, 1000, seed=0)
    assert high - low > 0.05


def test_equal_scorers_do_not_beat_each_other():
    a = np.array([0.1, np.nan, 0.7])
    result = intervals.paired_test(a, a, 100, seed=0)
    assert result == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "users": 2}


def world(rows: int, users: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(6)
    user, when = rng.integers(0, users, rows), rng.integers(0, 30, rows)
    label = rng.integers(0, 2, rows)
    return user, when, label, label + rng.normal(0, 2.0, rows), rng.random(rows)


def test_the_exposed_table_agrees_with_the_single_metrics():
    users, times, labels, good, random = world(600, 25)
    table = exposed_table(users, times, labels, {"good": good, "random": random}, [5], 200, 7, "good")
    entry = table["scorers"]["good"]
    assert entry["auc"]["value"] == pytest.approx(ranking.auc(labels, good))
    assert entry["uauc"]["value"] == pytest.approx(ranking.uauc(users, labels, good))
    assert entry["snapshot_accuracy"]["value"] == pytest.approx(
        ranking.snapshot_accuracy(users, times, labels, good)
    )
    assert entry["ndcg@5"]["value"] == pytest.approx(ranking.ndcg_exposed(users, labels, good, 5))
    assert entry["map@5"]["value"] == pytest.approx(ranking.map_exposed(users, labels, good, 5))
    assert all(number["low"] <= number["value"] <= number["high"] for number in entry.values())
    assert set(table["paired"]) == {"random"}
    assert table["paired"]["random"]["auc"]["low"] > 0
    assert table["counts"]["rows"] == 600
    assert table["counts"]["users"] == 25


def test_the_catalogue_table_counts_users_with_something_to_find():
    ranked = {"a": [np.array([1, 2]), np.array([3])], "b": [np.array([2, 1]), np.array([4])]}
    table = catalogue_table(ranked, [{1}, set()], [1], 50, 0, "a")
    assert table["counts"] == {"users": 2, "ranked_users": 1}
    assert table["scorers"]["a"]["ndcg@1"]["value"] == 1.0
    assert table["paired"]["b"]["map@1"]["difference"] == 1.0


def test_a_champion_that_was_not_scored_is_an_error():
    users, times, labels, good, _ = world(50, 5)
    with pytest.raises(DataError, match="champion 'student'"):
        exposed_table(users, times, labels, {"good": good}, [5], 10, 0, "student")


def test_ten_thousand_rows_and_a_thousand_resamples_take_seconds():
    users, times, labels, good, random = world(10_000, 350)
    begin = time.process_time()
    exposed_table(users, times, labels, {"good": good, "random": random}, [5, 10, 20], 1000, 0, "good")
    assert time.process_time() - begin < 10
