"""User similarity: hand values, a float64 brute force, diversity, signals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.config import SwingConfig
from ray_app.errors import DataError
from ray_app.swing.users import DAY, POOL, Memo, UserIndex, strengths, user_neighbours

PLAIN = SwingConfig(
    user_shrinkage=0, user_min_similarity=0, user_min_common=1, user_diversity=1, half_life_days=1, user_k=9
)
NOW = int(100 * DAY)


def index_of(events, config=PLAIN, n_users=None, n_items=None):
    """Index of (user, item, age in days, strength, rating, label) rows."""
    user, item, age, strength, rating, label = (np.array(column) for column in zip(*events, strict=True))
    return UserIndex.build(
        user.astype(np.int32),
        item.astype(np.int32),
        strength.astype(np.float32),
        (NOW - age * DAY).astype(np.int64),
        NOW,
        n_users or int(user.max()) + 1,
        n_items or int(item.max()) + 1,
        config,
        ratings=rating.astype(np.float32),
        labels=label,
        seed=7,
    )


def event(user, item, age=0.0, strength=1.0, rating=math.nan, label=1):
    return user, item, age, strength, rating, label


def similar(index, items, ages=None, weights=None, **options):
    ages = np.zeros(len(items)) if ages is None else np.array(ages)
    weights = np.ones(len(items)) if weights is None else np.array(weights)
    return index.similar(
        np.array(items, np.int32),
        weights.astype(np.float32),
        (NOW - ages * DAY).astype(np.int64),
        NOW,
        **options,
    )


def test_similarity_by_hand():
    # 2 active users. Item 0: both, idf ln 2; items 1 and 2: one each, idf ln 3.
    index = index_of([event(0, 0), event(0, 1), event(1, 0), event(1, 2)])
    users, similarities, common = similar(index, [0, 1], exclude_user=0)
    assert users.tolist() == [1]
    assert similarities[0] == pytest.approx(math.log(2) ** 2 / (math.log(2) ** 2 + math.log(3) ** 2))
    assert common.tolist() == [1]


def test_shrinkage_by_hand():
    index = index_of(
        [event(0, 0), event(0, 1), event(1, 0), event(1, 1)], PLAIN.model_copy(update={"user_shrinkage": 6})
    )
    assert similar(index, [0, 1], exclude_user=0)[1][0] == pytest.approx(2 / (2 + 6))


def test_age_and_strength_weigh_alike():
    # a like one half-life old weighs what half a like weighs now
    index = index_of([event(0, 0), event(0, 1), event(1, 1), event(1, 2)])
    old = similar(index, [0, 1, 2], ages=[0, 1, 0])[1]
    weak = similar(index, [0, 1, 2], weights=[1, 0.5, 1])[1]
    np.testing.assert_allclose(old, weak, rtol=1e-6)
    assert not np.allclose(old, similar(index, [0, 1, 2])[1])


def test_very_old_histories_do_not_vanish():
    index = index_of([event(0, 0, age=50_000), event(0, 1, age=50_000), event(1, 0), event(1, 1)])
    assert similar(index, [0, 1], exclude_user=1)[1][0] == pytest.approx(1)


def test_the_latest_of_several_events_counts():
    twice = index_of([event(0, 0, age=9, rating=1.0), event(0, 0, rating=5.0), event(0, 1), event(1, 0)])
    assert twice.user_items.tolist() == [0, 1, 0]
    assert twice.user_ratings[0] == 5.0


def test_minimum_common_and_threshold_cut():
    events = [event(0, 0), event(0, 1), event(1, 0), event(1, 1), event(2, 0), event(2, 2)]
    assert similar(index_of(events), [0, 1])[0].tolist() == [0, 1, 2]
    assert similar(index_of(events, PLAIN.model_copy(update={"user_min_common": 2})), [0, 1])[0].tolist() == [
        0,
        1,
    ]
    strict = index_of(events, PLAIN.model_copy(update={"user_min_similarity": 0.9}))
    assert similar(strict, [0, 1])[0].tolist() == [0, 1]


def test_diversity_prefers_another_kind_of_neighbour():
    # user 1 is a copy of user 0; user 2 is a little less like the history, but shares nothing with them
    twins = [event(u, i) for u in (0, 1) for i in range(5)]
    events = [*twins, event(2, 5), event(2, 6), event(3, 7)]
    history = list(range(7))
    pure = similar(index_of(events), history, k=2)[0]
    diverse = similar(index_of(events, PLAIN.model_copy(update={"user_diversity": 0.5})), history, k=2)[0]
    assert pure.tolist() == [0, 1]
    assert diverse.tolist() == [0, 2]


def test_empty_history_has_no_neighbours():
    assert [len(part) for part in similar(index_of([event(0, 0)]), [])] == [0, 0, 0]


def test_users_without_rows_are_allowed():
    index = index_of([event(1, 0), event(3, 0)], n_users=6, n_items=4)
    table = user_neighbours(index)
    assert np.diff(table.indptr).tolist() == [0, 1, 0, 1, 0, 0]


events_strategy = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 5),
        st.sampled_from([0.3, 1.0]),
        st.just(math.nan),
        st.just(1),
    ),
    min_size=1,
    max_size=70,
    unique_by=lambda row: row[:2],
)


def brute_force(events, user, config):
    owners = {item: {e[0] for e in events if e[1] == item} for item in range(10)}
    active = len({e[0] for e in events})
    x = np.zeros((10, 10))
    for u, i, age, strength, *_ in events:
        x[u, i] = strength * 2 ** (-age / config.half_life_days) * math.log1p(active / len(owners[i]))
    norm = np.linalg.norm(x, axis=1)
    found = {}
    for other in range(10):
        n = np.count_nonzero((x[user] > 0) & (x[other] > 0))
        if other != user and n >= config.user_min_common:
            found[other] = x[user] @ x[other] / (norm[user] * norm[other]) * n / (n + config.user_shrinkage)
    return found


@given(events_strategy, st.integers(1, 3), st.floats(0, 10))
@settings(max_examples=100, deadline=None)
def test_equals_brute_force(events, least, shrinkage):
    config = PLAIN.model_copy(update={"user_min_common": least, "user_shrinkage": shrinkage})
    table = user_neighbours(index_of(events, config, 10, 10))
    for user in range(10):
        users, similarities, _ = table.of(user)
        found = dict(zip(users.tolist(), similarities.tolist(), strict=True))
        assert found == pytest.approx(brute_force(events, user, config), rel=1e-5)


@given(events_strategy, st.sampled_from([0.6, 0.8, 1.0]), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_on_the_fly_equals_bulk(events, diversity, k):
    config = PLAIN.model_copy(update={"user_diversity": diversity, "user_k": k, "user_shrinkage": 3.0})
    index = index_of(events, config, 10, 10)
    table = user_neighbours(index)
    for user in range(10):
        own = [e for e in events if e[0] == user]
        alone = similar(
            index, [e[1] for e in own], [e[2] for e in own], [e[3] for e in own], exclude_user=user
        )
        for part, row in zip(alone, table.of(user), strict=True):
            np.testing.assert_array_equal(part, row)


def test_capped_postings_keep_similarities_exact():
    generator = np.random.default_rng(3)
    events = [event(u, i) for u in range(60) for i in generator.choice(30, 12, replace=False)]
    exact = index_of(events, PLAIN.model_copy(update={"user_k": 60}))
    capped = index_of(events, PLAIN.model_copy(update={"user_k": 60, "max_users_per_item": 10}))
    assert np.diff(capped.item_ptr).max() == 10
    history = exact.user_items[exact.user_ptr[0] : exact.user_ptr[1]]
    full = dict(zip(*(part.tolist() for part in similar(exact, history)[:2]), strict=True))
    users, similarities, _ = similar(capped, history)
    assert len(users) > 20
    assert similarities.tolist() == pytest.approx([full[user] for user in users.tolist()])


def test_signals_by_hand():
    index = index_of(
        [
            event(0, 0, rating=5), event(0, 1, rating=4), event(0, 2, rating=1, label=0),
            event(1, 0, rating=4), event(1, 1, rating=2, label=0), event(1, 3, rating=5),
            event(2, 4), event(2, 5, label=0), event(1, 4),
        ]
    )  # fmt: skip
    found = index.signals(np.array([0, 1, 2]), np.array([0.5, 0.4, 0.3], np.float32), 10, np.array([3]))
    assert found.items.tolist() == [0, 4, 1]  # 2 and 5 are disliked, 3 is excluded
    assert found.score.tolist() == pytest.approx([0.9, 0.7, 0.1])
    assert found.support.tolist() == [2, 2, 2]
    assert found.average.tolist() == pytest.approx([4.5, 1.0, 3.0])  # item 4 has no ratings: share of likes
    assert index.signals(np.array([0, 1]), np.array([0.5, 0.4]), 1, np.array([])).items.tolist() == [0]


def test_no_neighbours_give_no_signals():
    found = index_of([event(0, 0)]).signals(np.empty(0, np.int32), np.empty(0, np.float32), 5, np.array([]))
    assert len(found.items) == len(found.average) == 0


def test_loads_what_was_saved(tmp_path):
    index = index_of([event(0, 0, rating=3), event(0, 1), event(1, 0), event(1, 1)])
    index.save(tmp_path, "users")
    loaded = UserIndex.load(tmp_path, "users")
    assert loaded.config == index.config
    for part, again in zip(similar(index, [0, 1]), similar(loaded, [0, 1]), strict=True):
        np.testing.assert_array_equal(part, again)


def test_a_dislike_weighs_less_than_a_like():
    assert strengths(np.array([1, 0], np.int8)).tolist() == pytest.approx([1.0, 0.3])


def test_an_event_after_now_is_refused():
    with pytest.raises(DataError, match="lies after now"):
        similar(index_of([event(0, 0)]), [0], ages=[-1])


def test_a_strength_of_zero_is_refused():
    with pytest.raises(DataError, match="strength 0 is not positive"):
        index_of([event(0, 0, strength=0.0)])


def test_an_unknown_item_is_refused():
    with pytest.raises(DataError, match=r"item code 4 is not in 0\.\.0"):
        similar(index_of([event(0, 0)]), [4])


def test_what_a_memo_holds_changes_no_neighbours_only_their_cost():
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 120, 6000), rng.integers(0, 60, 6000)
    config = SwingConfig(user_k=5, user_min_common=1, user_min_similarity=0.0)
    n = len(users)
    index = UserIndex.build(
        users, items, np.ones(n, np.float32), np.arange(n), n, 120, 60, config,
        ratings=np.full(n, np.nan), labels=np.ones(n, np.int8), seed=0,
    )  # fmt: skip
    memo = Memo.empty()
    for user in range(40):
        row = index.user_items[index.user_ptr[user] : index.user_ptr[user + 1]]
        for left_out in range(3):
            history = np.delete(row, left_out), np.ones(len(row) - 1, np.float32), np.arange(len(row) - 1)
            alone, kept = (index.similar(*history, n, user, memo=one) for one in (None, memo))
            for one, other in zip(alone, kept, strict=True):
                assert one.tobytes() == other.tobytes()
    assert np.count_nonzero(memo.pairs >= 0) > 100


def test_diversity_chooses_as_comparing_with_all_chosen_would():
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 80, 3000), rng.integers(0, 50, 3000)
    config = SwingConfig(user_k=6, user_min_common=1, user_min_similarity=0.0, user_diversity=0.5)
    n = len(users)
    index = UserIndex.build(
        users, items, np.ones(n, np.float32), np.full(n, 5), 5, 80, 50, config,
        ratings=np.full(n, np.nan), labels=np.ones(n, np.int8), seed=0,
    )  # fmt: skip
    dense = np.zeros((80, 50))
    for user in range(80):
        part = slice(index.user_ptr[user], index.user_ptr[user + 1])
        dense[user, index.user_items[part]] = index.user_x[part]
    common = (dense > 0).astype(float) @ (dense > 0).T
    near = dense @ dense.T * common / (common + config.user_shrinkage)
    for user in range(20):
        row = index.user_items[index.user_ptr[user] : index.user_ptr[user + 1]]
        found, _, _ = index.similar(row, np.ones(len(row), np.float32), np.full(len(row), 5), 5, user)
        pool = [v for v in np.argsort(-near[user], kind="stable") if v != user][: POOL * config.user_k]
        chosen: list[int] = []
        for _ in range(config.user_k):
            rest = [v for v in pool if v not in chosen]
            closest = [max((near[c, v] for c in chosen), default=0.0) for v in rest]
            margins = [0.5 * near[user, v] - 0.5 * one for v, one in zip(rest, closest, strict=True)]
            chosen.append(int(rest[int(np.argmax(margins))]))
        assert set(found.tolist()) == set(chosen)
