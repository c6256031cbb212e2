"""Calibration and system numbers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ray_app.errors import DataError
from ray_app.evaluation import calibration, system


def test_ece_and_brier_by_hand():
    labels = [0, 1, 1, 1]
    p = [0.1, 0.3, 0.6, 0.8]
    # Two bins of two rows: predicted .2 observed .5, predicted .7 observed 1.
    assert calibration.ece(labels, p, bins=2) == pytest.approx(0.3)
    assert calibration.brier(labels, p) == pytest.approx((0.01 + 0.49 + 0.16 + 0.04) / 4)


def test_bins_hold_equal_masses():
    p = np.random.default_rng(0).beta(2, 5, 1500)
    points = calibration.reliability(np.zeros(1500, int), p)
    assert [point["rows"] for point in points] == [100] * 15


def test_equal_probabilities_share_a_bin_whatever_the_row_order():
    labels = np.array([1] * 50 + [0] * 50)
    p = np.full(100, 0.5)
    assert calibration.ece(labels, p) == 0.0
    assert calibration.reliability(labels, p) == [{"p": 0.5, "observed": 0.5, "rows": 100}]


def test_a_calibrated_forecast_has_a_small_error_and_a_bold_one_a_large_one():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.2, 0.8, 20_000)
    labels = (rng.random(20_000) < p).astype(int)
    bold = np.where(p > 0.5, 0.99, 0.01)
    assert calibration.ece(labels, p) < 0.02
    assert calibration.ece(labels, bold) > 0.3
    assert calibration.brier(labels, p) < calibration.brier(labels, bold)


def test_a_score_that_is_no_probability_is_refused():
    with pytest.raises(DataError, match="is outside"):
        calibration.ece([0, 1], [0.5, 1.2])


def test_latency_percentiles_by_hand():
    result = system.latency(np.arange(101.0))
    assert result == {"samples": 101, "p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}


def test_throughput_runs_from_the_first_arrival_to_the_last_answer():
    assert system.throughput([10.0, 11.0, 12.0], [500.0, 4000.0, 1000.0]) == pytest.approx(3 / 5)


def test_no_samples_are_an_error():
    with pytest.raises(DataError, match="latencies"):
        system.latency([])
