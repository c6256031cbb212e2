"""Statistics that expand with time: by hand, with ties, and the same when continued."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.collab.rolling import ItemState, roll, user_rate

INDPTR, FEATURES, PRIOR = np.array([0, 1, 3, 3]), np.array([0, 0, 1], np.int32), 2.0
"""Item 0 has feature 0, item 1 features 0 and 1, item 2 none."""


def rolled(rows: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, ItemState]:
    """Rows of (user, item, timestamp, label), 3 users and 3 items."""
    user, item, time, label = (np.array([row[at] for row in rows], np.int64) for at in range(4))
    return roll(
        user.astype(np.int32),
        item.astype(np.int32),
        time,
        label.astype(np.int8),
        3,
        3,
        INDPTR,
        FEATURES,
        2,
        PRIOR,
    )


BY_HAND = [(0, 0, 1, 1), (1, 0, 1, 0), (0, 1, 2, 1), (1, 1, 3, 0), (2, 0, 3, 1), (0, 0, 4, 0)]


def test_six_rows_by_hand():
    found, state = rolled(BY_HAND)
    # Global rates before rows of t=1, 2, 3, 4: 1/2, 2/4, 3/5, 4/7.
    f0, f1 = (2 + 20 * 0.6) / 23, (1 + 20 * 0.6) / 21
    last_f0 = (3 + 20 * 4 / 7) / 25
    rates = [0.5, 0.5, 0.5, (1 + 2 * (f0 + f1) / 2) / 3, (1 + 2 * f0) / 4, (2 + 2 * last_f0) / 5]
    assert found[:, 0].tolist() == [0, 0, 0, 1, 2, 3]
    assert found[:, 1] == pytest.approx(rates)
    assert found[:, 2] == pytest.approx([0, 0, 0, (1 / 3) / 3, 0, 0.4 / 5])
    assert found[:, 3] == pytest.approx([0.5, 0.5, 2 / 3, 1.2 / 3, 0.6, (2 + 8 / 7) / 4])
    assert found[:, 4] == pytest.approx(np.array([1, 0, 1, 0, 1, 0]) - rates)
    assert state.count.tolist() == [4, 2, 0]
    assert state.positives.tolist() == [2, 1, 0]
    assert state.feature_count.tolist() == [6, 2]
    assert state.feature_positives.tolist() == [3, 1]
    assert state.totals.tolist() == [6, 3]
    assert state.global_rate == 4 / 8
    assert user_rate(2, 2, 4 / 7, PRIOR) == pytest.approx(found[5, 3])


def test_an_item_without_features_falls_back_to_the_global_rate():
    found, _ = rolled([(0, 0, 1, 1), (1, 2, 2, 1)])
    assert found[1, 1] == pytest.approx(2 / 3)


def test_rows_of_one_timestamp_see_the_same_state():
    ties = [(0, 0, 1, 1), (0, 0, 1, 1), (1, 0, 1, 0), (0, 0, 2, 1)]
    found, _ = rolled(ties)
    assert found[:3, 0].tolist() == [0, 0, 0]
    assert found[0, :4].tolist() == found[1, :4].tolist() == found[2, :4].tolist()
    assert found[3, 0] == 3


def test_rows_out_of_order_are_refused():
    with pytest.raises(ValueError, match="sorted by timestamp"):
        rolled([(0, 0, 2, 1), (0, 0, 1, 1)])


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    drawn = draw(
        st.lists(st.tuples(*[st.integers(0, 2)] * 2, st.integers(0, 8), st.integers(0, 1)), min_size=1)
    )
    return sorted(drawn, key=lambda row: row[2])


@given(rows(), st.integers(0, 8))
def test_later_rows_never_change_earlier_ones(data, moment):
    known = [row for row in data if row[2] < moment]
    if known:
        assert np.array_equal(rolled(data)[0][: len(known)], rolled(known)[0])


@given(rows(), st.integers(0, 2))
def test_the_state_after_the_rows_is_what_the_next_row_is_told(data, item):
    _, state = rolled(data)
    told, _ = rolled([*data, (0, item, 9, 1)])
    now = state.statistics(np.array([item], np.int32), INDPTR, FEATURES, PRIOR)
    assert now[0].tolist() == told[-1, :3].tolist()


@given(rows())
def test_rates_stay_inside_0_and_1_and_residuals_are_what_they_say(data):
    found, _ = rolled(data)
    assert (found[:, [1, 3]] > 0).all()
    assert (found[:, [1, 3]] < 1).all()
    assert found[:, 4] == pytest.approx(np.array([row[3] for row in data]) - found[:, 1])


def test_a_state_survives_its_file(tmp_path):
    _, state = rolled(BY_HAND)
    file = io.BytesIO()
    state.save(file)
    (tmp_path / "state.npz").write_bytes(file.getvalue())
    loaded = ItemState.load(tmp_path / "state.npz")
    for name in ItemState.__dataclass_fields__:
        assert np.array_equal(getattr(loaded, name), getattr(state, name))
