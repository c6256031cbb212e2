"""Swing of MovieLens-100K, every rating an interaction, against values computed independently in float64."""

import numpy as np
import polars as pl
import pytest

from ray_app.config import DataConfig, SwingConfig
from ray_app.data import sources
from ray_app.swing.items import ItemGraph, item_centric_rows, user_centric_rows

pytestmark = pytest.mark.slow

FLINK = {"alpha1": 15.0, "beta": 0.3, "alpha2": 0.0}
PLAIN = {"alpha1": 0.0, "beta": 0.0, "alpha2": 1.0}
ROOT = {"alpha1": 0.0, "beta": 0.5, "alpha2": 1.0}
GOLDEN = [
    (
        FLINK,
        {181: 453.400996442, 127: 242.877590869, 100: 241.114359663, 1: 225.199791459, 258: 207.477006536},
    ),
    (
        PLAIN,
        {
            181: 5980.262711012,
            100: 3428.364856151,
            127: 3244.427841978,
            1: 3176.145861747,
            258: 2779.90721731,
        },
    ),
    (ROOT, {181: 89.210113642, 127: 47.377678372, 100: 45.349828105, 1: 43.126170333, 258: 41.179632593}),
]


@pytest.fixture(scope="module")
def movielens():
    frame = sources.read(DataConfig()).interactions
    return tuple(frame[name].cast(pl.Int32).to_numpy() for name in ("user_id", "item_id"))


@pytest.mark.parametrize(("weights", "golden"), GOLDEN, ids=["flink", "plain", "root"])
def test_nearest_of_item_50(movielens, weights, golden):
    exact = SwingConfig(min_behavior=1, max_behavior=1000, max_users_per_item=1000, normalize="none", k=5)
    config = exact.model_copy(update=weights)
    users, items = movielens
    graph = ItemGraph.build(users, items, 944, 1683, config)
    assert graph.user_centric(config.max_users_per_item)
    everything = np.arange(graph.n_items, dtype=np.int32)
    for rows in (user_centric_rows(graph, config), item_centric_rows(graph, everything, config, seed=7)):
        at = int(np.flatnonzero(rows.mains == 50)[0])
        start = int(rows.lengths[:at].sum())
        found = dict(
            zip(
                rows.indices[start : start + 5].tolist(), rows.scores[start : start + 5].tolist(), strict=True
            )
        )
        assert list(found) == list(golden)
        assert found == pytest.approx(golden, rel=1e-7)
        assert rows.lengths[rows.mains == 1682].tolist() == [0]
