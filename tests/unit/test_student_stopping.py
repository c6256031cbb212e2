"""Early stopping: when it ends a phase, and which weights are left."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.train_data import whole_users
from ray_app.student.batching import Sequence
from ray_app.student.stopping import EarlyStopping


def watched(scores: list[float], patience: int) -> tuple[EarlyStopping, int, torch.Tensor]:
    """The watch, points seen until it ended, and the weight, which is the number of the last point."""
    watch, weight = EarlyStopping(patience), torch.zeros(1)
    for number, score in enumerate(scores, 1):
        weight.fill_(number)
        if watch.see(number, score, {"w": weight}):
            return watch, number, weight
    return watch, len(scores), weight


@pytest.mark.parametrize(
    ("scores", "ended", "best"),
    [
        ([0.6, 0.7, 0.8, 0.9], 4, 4),
        ([0.6, 0.7, 0.65, 0.66, 0.9], 4, 2),
        ([0.6, 0.5, 0.7, 0.6, 0.6], 5, 3),
        ([0.7, 0.7, 0.7], 3, 1),
        ([0.7, math.nan, 0.6, math.nan], 4, 4),
    ],
)
def test_it_ends_after_patience_points_without_a_better_one_and_restores_the_best(scores, ended, best):
    watch, seen, weight = watched(scores, patience=2)
    assert (seen, watch.step) == (ended, best)
    watch.restore({"w": weight})
    assert weight.item() == best


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1), st.integers(1, 4), st.data())
def test_stopped_and_loaded_anywhere_it_goes_on_as_if_nothing_had_happened(scores, patience, data):
    at = data.draw(st.integers(0, len(scores)))
    whole, ended, _ = watched(scores, patience)
    first, seen, _ = watched(scores[:at], patience)
    second = EarlyStopping(patience)
    second.load_state_dict(first.state_dict())
    for number, score in enumerate(scores[seen:ended], seen + 1):
        second.see(number, score, {"w": torch.full((1,), float(number))})
    assert second.state_dict() == whole.state_dict()


def test_a_phase_that_saw_no_point_keeps_its_weights():
    weight = torch.ones(1)
    EarlyStopping(1).restore({"w": weight})
    assert weight.item() == 1


def test_a_glance_holds_all_rows_of_some_users_and_about_as_many_as_asked():
    rows = [Sequence(n, n % 50, n % 2, torch.zeros(1).numpy(), {}, 0, 0, False) for n in range(500)]
    seen = whole_users(rows, 100, seed=7)
    users = {item.user for item in seen}
    assert len(seen) == 10 * len(users)
    assert 100 <= len(seen) <= 110
    assert seen == whole_users(rows, 100, seed=7)
    assert len(whole_users(rows, 10_000, seed=7)) == 500
