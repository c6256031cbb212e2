"""Both Swing kernels against a float64 brute force and against each other, and the rule that chooses."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_app.config import SwingConfig
from ray_app.errors import DataError
from ray_app.swing import kernel
from ray_app.swing.items import (
    ItemGraph,
    item_centric_rows,
    item_neighbours,
    item_rows,
    rows_of_sums,
    share_sums,
    user_centric_rows,
)
from ray_app.swing.weights import DAY, PRESETS, preset

N_USERS, N_ITEMS = 14, 11
CONFIG = preset("flink", SwingConfig(min_behavior=1, normalize="none"))
NORMALIZE = ["none", "max", "product", "sqrt"]

graphs = st.lists(
    st.tuples(
        st.integers(0, N_USERS - 1),
        st.integers(0, N_ITEMS - 1),
        st.sampled_from([0.25, 1.0, 5.0]),
        st.integers(0, 400),
    ),
    min_size=1,
    max_size=130,
)
"""Events (user, item, strength, day); repeats are likely."""
configs = st.builds(
    lambda name, **values: preset(name, SwingConfig(**values)) if name else SwingConfig(**values),
    st.sampled_from([None, *PRESETS]),
    min_behavior=st.integers(1, 3),
    max_behavior=st.integers(3, N_ITEMS),
    max_users_per_item=st.sampled_from([2, 5, 1000]),
    min_common_users=st.integers(1, 4),
    normalize=st.sampled_from(NORMALIZE),
    k=st.sampled_from([1, 4, 100]),
    item_strength=st.booleans(),
    item_half_life_days=st.sampled_from([None, 30.0]),
)


def graph_of(events, config):
    user, item, strength, day = (np.array(column) for column in zip(*events, strict=True))
    return ItemGraph.build(
        user.astype(np.int32),
        item.astype(np.int32),
        N_USERS,
        N_ITEMS,
        config,
        strengths=strength,
        timestamps=(day * DAY).astype(np.int64),
    )


def everything(graph):
    return np.arange(graph.n_items, dtype=np.int32)


def same(rows, others):
    return all(
        np.array_equal(getattr(rows, name), getattr(others, name))
        for name in ("mains", "lengths", "indices", "scores", "common")
    )


def brute_force(events, config, seed):
    """{item: {other: (score, common users)}}, the formula as it stands, without the cut to k."""
    latest = max(day for *_, day in events)
    s = {}
    for u, i, strength, day in events:
        value = strength if config.item_strength else 1.0
        if config.item_half_life_days is not None:
            value *= 2 ** ((day - latest) / config.item_half_life_days)
        s[u, i] = max(s.get((u, i), 0.0), value)
    baskets = {u: {i for v, i in s if v == u} for u, _ in s}
    taken = {u: b for u, b in baskets.items() if config.min_behavior <= len(b) <= config.max_behavior}
    weight = {u: (config.alpha1 + len(b)) ** -config.beta for u, b in taken.items()}
    degree = {i: sum(i in b for b in taken.values()) for i in range(N_ITEMS)}
    result = {}
    for i in range(N_ITEMS):
        owners = np.array(sorted(u for u in taken if i in taken[u]), np.int32)
        users = kernel.sample(owners, i, config.max_users_per_item, seed).tolist()
        n, m = len(owners), len(users)
        row = {}
        for j in range(N_ITEMS):
            both = [u for u in users if j in taken[u]]
            if j == i or len(both) < max(2, config.min_common_users):
                continue
            terms = [
                weight[u] * weight[v] / (config.alpha2 + len(taken[u] & taken[v]))
                * math.sqrt(s[u, i] * s[v, i] * s[u, j] * s[v, j])
                for u, v in combinations(both, 2)
            ]  # fmt: skip
            row[j] = (math.fsum(terms), len(both))
        highest = max((score for score, _ in row.values()), default=1.0)
        scale = n * (n - 1) / (m * (m - 1)) if m > 1 else 1.0
        for j, (score, common) in row.items():
            share = score * scale / (n * degree[j])
            value = {"none": score, "max": score / highest, "product": share, "sqrt": math.sqrt(share)}
            row[j] = (value[config.normalize], common)
        result[i] = row
    return result


def assert_best(rows, expected, k):
    """The rows hold each item's k best of the expected scores, in order, with their common users."""
    at = 0
    for main, length in zip(rows.mains.tolist(), rows.lengths.tolist(), strict=True):
        row, part = expected[main], slice(at, at + length)
        at += length
        assert length == min(k, len(row))
        found = rows.indices[part].tolist()
        assert rows.scores[part].tolist() == pytest.approx([row[j][0] for j in found], rel=1e-6)
        assert rows.common[part].tolist() == [row[j][1] for j in found]
        best = sorted((score for score, _ in row.values()), reverse=True)[:length]
        assert rows.scores[part].tolist() == pytest.approx(best, rel=1e-6)
        keys = list(zip(-rows.scores[part], found, strict=True))
        assert keys == sorted(keys)


@given(graphs, configs, st.integers(0, 2**31))
@settings(max_examples=250, deadline=None)
def test_item_centric_equals_brute_force(events, config, seed):
    graph = graph_of(events, config)
    rows = item_centric_rows(graph, everything(graph), config, seed=seed)
    assert_best(rows, brute_force(events, config, seed), config.k)


@given(graphs, configs)
@settings(max_examples=250, deadline=None)
def test_user_centric_equals_brute_force_and_the_other_kernel_bit_by_bit(events, config):
    config = config.model_copy(
        update={"max_users_per_item": 1000, "item_strength": False, "item_half_life_days": None}
    )
    graph = graph_of(events, config)
    rows = user_centric_rows(graph, config)
    assert_best(rows, brute_force(events, config, 7), config.k)
    assert same(rows, item_centric_rows(graph, everything(graph), config, seed=7))


@given(graphs, configs, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rows_do_not_depend_on_the_order_of_events_or_on_what_else_is_asked_for(
    events, config, parts, random
):
    whole = graph_of(events, config)
    rows = item_rows(whole, everything(whole), config, seed=7)
    shuffled = graph_of(random.sample(events, len(events)), config)
    ranks = random.sample(range(N_ITEMS), N_ITEMS)[:parts]
    some = item_rows(shuffled, np.array(ranks, np.int32), config, seed=7)
    stops = np.cumsum(rows.lengths)
    for main, rank, stop in zip(some.mains, ranks, np.cumsum(some.lengths), strict=True):
        assert main == rows.mains[rank]
        n = rows.lengths[rank]
        for name in ("indices", "scores", "common"):
            expected = getattr(rows, name)[stops[rank] - n : stops[rank]]
            assert np.array_equal(getattr(some, name)[stop - n : stop], expected)


def crowd(n_users=700, n_items=150, seed=3):
    """Enough users per item for bit masks, lists, the pool of the top k, and ties."""
    generator = np.random.default_rng(seed)
    chance = 0.6 / (1 + np.arange(n_items) / 6)
    users, items = np.nonzero(generator.random((n_users, n_items)) < chance)
    return users.astype(np.int32), items.astype(np.int32), n_users, n_items


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", list(PRESETS))
def test_kernels_agree_bit_by_bit_where_masks_and_lists_meet(name, normalize):
    config = preset(name, CONFIG.model_copy(update={"normalize": normalize, "k": 10}))
    users, items, n_users, n_items = crowd()
    graph = ItemGraph.build(users, items, n_users, n_items, config)
    alone = item_centric_rows(graph, everything(graph), config, seed=7)
    assert same(alone, user_centric_rows(graph, config))
    both = np.zeros((n_users, n_items))
    both[users, items] = 1
    weight = np.where(both.any(1), np.maximum(config.alpha1 + both.sum(1), 1.0) ** -config.beta, 0)
    gain = np.outer(weight, weight) / np.maximum(config.alpha2 + both @ both.T, 1e-9)
    np.fill_diagonal(gain, 0)
    main, other = int(graph.item_ids[0]), int(graph.item_ids[1])
    pair = both[:, main] * both[:, other]
    raw = pair @ gain @ pair / 2
    if normalize == "none":
        found = alone.indices[: alone.lengths[0]].tolist()
        assert alone.scores[found.index(other)] == pytest.approx(raw, rel=1e-6)


@pytest.mark.parametrize("shares", [1, 2, 7, 64])
@pytest.mark.parametrize("cap", [1000, 300])
def test_shares_of_a_hot_item_add_up_to_its_row(shares, cap):
    config = CONFIG.model_copy(update={"max_users_per_item": cap, "normalize": "sqrt"})
    graph = ItemGraph.build(*crowd(), config)
    sums = np.sum(
        [share_sums(graph, (0, share, shares), config, seed=7)[0] for share in range(shares)], axis=0
    )
    rank = np.zeros(1, np.int32)
    assert same(
        rows_of_sums(graph, rank, sums[None], config, seed=7), item_centric_rows(graph, rank, config, seed=7)
    )


def test_shares_hold_equal_numbers_of_pairs():
    m = 1000
    cuts = [kernel._share.py_func(m, share, 8) for share in range(8)]
    assert cuts[0][0] == 0
    assert cuts[-1][1] == m
    assert all(one[1] == other[0] for one, other in pairwise(cuts))
    pairs = [sum(m - 1 - a for a in range(first, last)) for first, last in cuts]
    assert sum(pairs) == m * (m - 1) // 2
    assert max(pairs) / min(pairs) < 1.02


def test_hot_items_are_cut_until_tasks_are_even(monkeypatch):
    users = np.repeat(np.arange(2000, dtype=np.int32), 2)
    items = np.stack([np.zeros(2000, np.int32), 1 + np.arange(2000, dtype=np.int32) % 50], 1).ravel()
    config = CONFIG.model_copy(update={"max_users_per_item": 1 << 30})
    graph = ItemGraph.build(users, items, 2000, 51, config)
    assert graph.shares(8, 1 << 30) == {}  # 2000 users are soon done
    monkeypatch.setattr("ray_app.swing.items.HOT_USERS", 2000)
    shares, costs = graph.shares(8, 1 << 30), graph.costs(1 << 30)
    assert list(shares) == [0]
    assert costs[0] / shares[0] <= 0.15 * costs.sum() / 8
    whole, cut = graph.split(8, 1 << 30), graph.split_shares(8, 1 << 30)
    assert sorted(np.concatenate(whole).tolist()) == list(range(1, 51))
    assert sorted(share for task in cut for share in task) == [(0, at, shares[0]) for at in range(shares[0])]
    loads = [costs[task].sum() for task in whole] + [len(task) * costs[0] / shares[0] for task in cut]
    assert max(loads) <= 1.3 * costs.sum() / 8


# The rule


def test_user_centric_is_chosen_for_a_dense_graph_without_caps_and_takes_one_task():
    graph = ItemGraph.build(*crowd(), CONFIG)
    assert graph.user_centric(1000)
    assert [task.tolist() for task in graph.split(8, 1000)] == [list(range(150))]


def test_user_centric_is_not_chosen_where_it_cannot_be_exact_or_does_not_pay(monkeypatch):
    graph = ItemGraph.build(*crowd(), CONFIG)
    assert not graph.user_centric(100)  # a cap binds
    assert len(graph.split(8, 100)) == 8
    users, items, n_users, n_items = crowd()
    ones = np.ones(len(users))
    weighted = CONFIG.model_copy(update={"item_strength": True})
    assert not ItemGraph.build(users, items, n_users, n_items, weighted, strengths=ones).user_centric(1000)
    assert not ItemGraph.build(users[:20], items[:20], n_users, 5000, CONFIG).user_centric(1000)  # 2 I^2
    monkeypatch.setattr("ray_app.swing.items.DENSE_BYTES", 8 * 150**2)
    assert not graph.user_centric(1000)  # no memory for it


# Interaction weights


def neighbours(events, config):
    user, item, strength, day = (np.array(column) for column in zip(*events, strict=True))
    when = (day * DAY).astype(np.int64)
    table = item_neighbours(
        user.astype(np.int32),
        item.astype(np.int32),
        2,
        2,
        config,
        strengths=strength,
        timestamps=when,
        seed=1,
    )
    return table.of(0)[1].tolist()


def test_strength_by_hand():
    # w = 1, two users share two items: 1/2, times sqrt(4 * 1) for item 0 and sqrt(9 * 4) for item 1
    config = CONFIG.model_copy(update={"beta": 0.0, "item_strength": True})
    events = [(0, 0, 4.0, 0), (1, 0, 1.0, 0), (0, 1, 9.0, 0), (1, 1, 4.0, 0)]
    assert neighbours(events, config) == pytest.approx([0.5 * 2 * 6])


def test_recency_by_hand():
    # one of the four interactions is two half-lives old: sqrt(1/4)
    config = CONFIG.model_copy(update={"beta": 0.0, "item_half_life_days": 10.0})
    events = [(0, 0, 1.0, 80), (1, 0, 1.0, 100), (0, 1, 1.0, 100), (1, 1, 1.0, 100)]
    assert neighbours(events, config) == pytest.approx([0.5 * 0.5])


def test_strengths_of_one_change_nothing():
    users, items, n_users, n_items = crowd()
    plain = item_neighbours(users, items, n_users, n_items, CONFIG, seed=1)
    config = CONFIG.model_copy(update={"item_strength": True})
    ones = np.ones(len(users))
    weighted = item_neighbours(users, items, n_users, n_items, config, strengths=ones, seed=1)
    assert np.array_equal(plain.indices, weighted.indices)
    assert np.array_equal(plain.scores, weighted.scores)


@pytest.mark.parametrize(
    ("setting", "given", "message"),
    [
        ({"item_strength": True}, {}, "item_strength needs 2 strengths, got none"),
        ({"item_strength": True}, {"strengths": [1.0, 0.0]}, "strength 0 is not positive"),
        ({"item_strength": True}, {"strengths": [1.0, math.nan]}, "strength of row 1 is nan"),
        ({"item_half_life_days": 1.0}, {"timestamps": [0]}, "item_half_life_days needs 2 timestamps, got 1"),
        ({"item_half_life_days": 1.0}, {"timestamps": [math.nan, 0]}, "timestamp of row 0 is nan"),
    ],
)
def test_missing_or_bad_weights_are_data_errors(setting, given, message):
    codes = np.array([0, 1], np.int32)
    arrays = {name: np.array(values) for name, values in given.items()}
    with pytest.raises(DataError, match=message):
        item_neighbours(codes, codes, 2, 2, CONFIG.model_copy(update=setting), seed=1, **arrays)


def test_a_half_life_of_zero_is_refused():
    with pytest.raises(ValidationError, match="item_half_life_days"):
        SwingConfig(item_half_life_days=0)


@pytest.mark.parametrize(
    ("users", "items"), [([], []), ([0, 1, 2], [0, 0, 0])], ids=["no events", "one item"]
)
def test_nothing_to_compare_gives_empty_rows(users, items):
    graph = ItemGraph.build(np.array(users, np.int32), np.array(items, np.int32), 3, 1, CONFIG)
    for rows in (
        item_centric_rows(graph, everything(graph), CONFIG, seed=1),
        user_centric_rows(graph, CONFIG),
    ):
        assert rows.lengths.tolist() == [0]
