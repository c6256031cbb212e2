"""Item Swing against published vectors, a float64 brute force, and itself under other partitions."""

from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.config import SwingConfig
from ray_app.errors import DataError
from ray_app.swing import kernel
from ray_app.swing.items import ItemGraph, balance, item_neighbours, item_rows
from ray_app.swing.table import NeighbourTable
from ray_app.swing.weights import preset, user_weights

RAW = preset("flink", SwingConfig(normalize="none", min_behavior=1, min_common_users=1))


def neighbours(baskets, config, n_items=None, seed=7):
    """{item: {other: score}} of {user: items}; users and items are used as codes."""
    table = table_of(baskets, config, n_items, seed)
    rows = [table.of(i) for i in range(len(table.indptr) - 1)]
    return {
        i: dict(zip(row[0].tolist(), row[1].tolist(), strict=True))
        for i, row in enumerate(rows)
        if len(row[0])
    }


def table_of(baskets, config, n_items=None, seed=7):
    users, items = pairs_of(baskets)
    return item_neighbours(users, items, max(baskets) + 1, n_items or items.max() + 1, config, seed=seed)


def pairs_of(baskets):
    pairs = np.array([(user, item) for user, basket in baskets.items() for item in basket], np.int32)
    return pairs[:, 0], pairs[:, 1]


def brute_force(baskets, config, seed):
    """The formula as it stands, one pair of users after another."""
    taken = {
        u: set(b) for u, b in baskets.items() if config.min_behavior <= len(set(b)) <= config.max_behavior
    }
    owners = defaultdict(list)
    for user in sorted(taken):
        for item in taken[user]:
            owners[item].append(user)
    result = {}
    for main, everyone in owners.items():
        users = kernel.sample(np.array(everyone, np.int32), main, config.max_users_per_item, seed).tolist()
        scores, common = defaultdict(float), defaultdict(int)
        for u, v in combinations(users, 2):
            both = taken[u] & taken[v]
            weight = ((config.alpha1 + len(taken[u])) * (config.alpha1 + len(taken[v]))) ** -config.beta
            for item in both - {main}:
                scores[item] += weight / (config.alpha2 + len(both))
        for item in scores:
            common[item] = sum(item in taken[u] for u in users)
        n, m = len(everyone), len(users)
        scale = n * (n - 1) / (m * (m - 1)) if m > 1 else 1.0
        highest = max(scores.values(), default=1.0)
        as_set = {
            "none": lambda s, j, highest=highest: s,
            "max": lambda s, j, highest=highest: s / highest,
            "product": lambda s, j, scale=scale, n=n: s * scale / (n * len(owners[j])),
            "sqrt": lambda s, j, scale=scale, n=n: (s * scale / (n * len(owners[j]))) ** 0.5,
        }[config.normalize]
        kept = {j: as_set(s, j) for j, s in scores.items() if common[j] >= config.min_common_users}
        if kept:
            result[main] = kept
    return result


def test_flink_ml_own_test_case():
    baskets = {0: [10, 11, 12], 1: [13, 12], 2: [10, 11, 12], 3: [13, 12], 4: [12, 10, 11, 12, 13]}
    found = neighbours(baskets, RAW.model_copy(update={"min_behavior": 2, "max_behavior": 3}))
    small, large = pytest.approx(0.058845768947156235), pytest.approx(0.09134833828228624)
    assert found == {
        10: {11: small, 12: small},
        11: {10: small, 12: small},
        12: {13: large, 10: small, 11: small},
        13: {12: large},
    }


def test_alink_documented_case():
    baskets = {0: [11, 12], 1: [11, 12], 2: [12, 13], 3: [13, 14], 4: [14, 15], 5: [15, 16]}
    found = neighbours(baskets, preset("alink", RAW))
    assert found == {11: {12: pytest.approx(7**0.7 / 3)}, 12: {11: pytest.approx(1.3015095)}}


def test_funrec_weights_case():
    t, r, p, h, q = range(5)
    found = neighbours({0: [t, r, p, h], 1: [t, r, p, h], 2: [p, q, h]}, preset("funrec", RAW))
    assert found[p][h] == pytest.approx(0.24245, abs=1e-5)
    of_third_user = {item: sum(found.get(own, {}).get(item, 0) for own in (p, q, h)) for item in (t, r)}
    assert of_third_user == {t: pytest.approx(0.1), r: pytest.approx(0.1)}


def test_weight_falls_with_activity_and_is_zero_without_any():
    np.testing.assert_allclose(user_weights(np.array([0, 1, 17]), RAW), [0, 16**-0.3, 32**-0.3])


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [("max", 1.0), ("product", 0.25 / 4), ("sqrt", 0.25)],
    ids=lambda value: str(value),
)
def test_normalisation_by_hand(normalize, expected):
    # w = 1 and alpha2 = 2: the one pair of users shares 2 items, so S = 1 / 4; both items have 2 users
    config = RAW.model_copy(update={"normalize": normalize, "beta": 0.0, "alpha2": 2.0})
    assert neighbours({0: [0, 1], 1: [0, 1]}, config)[0][1] == pytest.approx(expected)


baskets_strategy = st.dictionaries(
    st.integers(0, 14), st.lists(st.integers(0, 11), min_size=1, max_size=14), min_size=1
)
config_strategy = st.builds(
    SwingConfig,
    alpha1=st.floats(0, 20),
    alpha2=st.floats(0, 5),
    beta=st.floats(0, 1),
    min_behavior=st.integers(1, 3),
    max_behavior=st.integers(3, 12),
    max_users_per_item=st.integers(2, 15),
    min_common_users=st.integers(1, 3),
    normalize=st.sampled_from(["none", "max", "product", "sqrt"]),
)


@given(baskets_strategy, config_strategy, st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_equals_brute_force(baskets, config, seed):
    found = neighbours(baskets, config, seed=seed)
    expected = brute_force(baskets, config, seed)
    assert {i: set(row) for i, row in found.items()} == {i: set(row) for i, row in expected.items()}
    for i, row in expected.items():
        assert found[i] == pytest.approx(row, rel=1e-5)


@given(baskets_strategy, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_same_bytes_however_the_items_are_split_and_the_rows_ordered(baskets, parts, random):
    config = SwingConfig(min_behavior=1, max_users_per_item=4, k=3)
    whole = table_of(baskets, config, n_items=12)
    users, items = pairs_of(baskets)
    order = random.sample(range(len(users)), len(users))
    graph = ItemGraph.build(users[order], items[order], max(baskets) + 1, 12, config)
    tasks = graph.split(parts, config.max_users_per_item)
    random.shuffle(tasks)
    split = NeighbourTable.assemble(12, [item_rows(graph, task, config, seed=7) for task in tasks])
    for name in ("indptr", "indices", "scores", "common"):
        assert getattr(whole, name).tobytes() == getattr(split, name).tobytes()


def test_keeps_the_best_k_and_breaks_ties_by_lower_id():
    baskets = {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 3], 3: [0, 3]}
    indices, scores, common = table_of(baskets, RAW.model_copy(update={"k": 2})).of(0)
    assert indices.tolist() == [3, 1]
    assert scores[0] > scores[1]
    assert common.tolist() == [4, 2]


def test_sample_has_the_size_of_the_cap_and_changes_with_item_and_seed():
    users = np.arange(1000, dtype=np.int32)
    one, again = kernel.sample(users, 3, 100, 7), kernel.sample(users[::-1].copy(), 3, 100, 7)
    assert len(one) == 100
    assert set(one) == set(again)
    assert set(one) != set(kernel.sample(users, 4, 100, 7))
    assert set(one) != set(kernel.sample(users, 3, 100, 8))


def test_sampled_rows_estimate_the_full_score():
    generator = np.random.default_rng(5)
    baskets = {user: generator.choice(12, 6, replace=False).tolist() for user in range(600)}
    config = RAW.model_copy(update={"normalize": "product"})
    full = neighbours(baskets, config)[0]
    sampled = neighbours(baskets, config.model_copy(update={"max_users_per_item": 150}))[0]
    assert np.mean([sampled[j] / full[j] for j in full]) == pytest.approx(1, abs=0.1)


def test_an_item_with_more_users_than_uint16_holds_is_exact():
    n = 66_000
    users = np.repeat(np.arange(n, dtype=np.int32), 2)
    items = np.tile(np.array([0, 1], np.int32), n)
    config = RAW.model_copy(update={"max_users_per_item": n, "beta": 0.0})
    graph = ItemGraph.build(users[-1000:], items[-1000:], n, 2, config)
    assert item_rows(graph, np.array([0], np.int32), config, seed=1).scores[0] == pytest.approx(500 * 499 / 4)


def test_no_interactions_give_empty_rows():
    none = np.empty(0, np.int32)
    table = item_neighbours(none, none, 3, 4, SwingConfig(), seed=1)
    assert table.indptr.tolist() == [0, 0, 0, 0, 0]


def test_code_out_of_range_is_a_data_error():
    with pytest.raises(DataError, match=r"item code 5 is not in 0\.\.4"):
        item_neighbours(np.array([0], np.int32), np.array([5], np.int32), 1, 5, SwingConfig(), seed=1)


def test_balance_gives_every_row_to_one_task_of_nearly_equal_cost():
    costs = np.array([50, 1, 1, 30, 20, 1, 0, 49])
    tasks = balance(costs, 3)
    assert sorted(np.concatenate(tasks).tolist()) == list(range(8))
    assert max(costs[task].sum() for task in tasks) <= 52
