"""Batches and the mix: every row once, within the budget, the same every time."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_app.config import LossWeights
from ray_app.student.batching import Sequence, batches, collate, plan
from ray_app.student.mixing import balance

WEIGHTS = {False: LossWeights(answer=0.9, text=0.1), True: LossWeights(answer=0.2, text=0.8)}
VECTORS = {
    name: np.arange(20 * width, dtype=np.float32).reshape(20, width)
    for name, width in (("user", 3), ("item", 2), ("pair", 4))
}


@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([0.2, 0.25, 0.1, 0.5, 1 / 3, 0.001, 0.999])
)
def test_the_mix_is_exact_and_as_large_as_it_can_be(available_rec, available_reason, share):
    rec, reason = balance(available_rec, available_reason, share)
    exact = Fraction(share).limit_denominator(1000)
    assert rec <= available_rec
    assert reason <= available_reason
    assert reason * (exact.denominator - exact.numerator) == rec * exact.numerator
    one_more = rec + exact.denominator - exact.numerator, reason + exact.numerator
    assert one_more[0] > available_rec or one_more[1] > available_reason


@pytest.mark.parametrize(
    ("available", "expected"), [((80_000, 6000), (24_000, 6000)), ((10, 100), (8, 2)), ((3, 9), (0, 0))]
)
def test_eighty_twenty_by_hand(available, expected):
    assert balance(*available, 0.2) == expected


lengths = st.lists(st.integers(1, 300), min_size=1, max_size=120).map(np.array)


@given(lengths, st.integers(64, 2000), st.integers(0, 5))
def test_a_plan_takes_every_row_once_within_the_budget(sizes, budget, seed):
    users = np.random.default_rng(seed).integers(0, 5, len(sizes))
    planned = plan(sizes, users, budget, np.random.default_rng(seed), max_rows=16)
    assert sorted(np.concatenate(planned).tolist()) == list(range(len(sizes)))
    for rows in planned:
        assert len(rows) <= 16
        assert len(rows) == 1 or sizes[rows].max() * len(rows) <= budget
    again = plan(sizes, users, budget, np.random.default_rng(seed), max_rows=16)
    assert [rows.tolist() for rows in again] == [rows.tolist() for rows in planned]


def test_a_plan_keeps_similar_lengths_together_and_varies_with_the_seed():
    sizes, users = np.random.default_rng(0).integers(20, 300, 1000), np.arange(1000)
    planned = plan(sizes, users, 4096, np.random.default_rng(1))
    padded = sum(len(rows) * sizes[rows].max() for rows in planned)
    assert padded < 1.1 * sizes.sum()
    other = plan(sizes, users, 4096, np.random.default_rng(2))
    assert [rows.tolist() for rows in other] != [rows.tolist() for rows in planned]


def test_a_plan_keeps_a_users_rows_together():
    rng = np.random.default_rng(0)
    sizes, users = rng.integers(40, 50, 1600), rng.permutation(np.repeat(np.arange(100), 16))
    planned = plan(sizes, users, 4096, np.random.default_rng(1))
    shared = sum(len(rows) - len(set(users[rows].tolist())) for rows in planned)
    assert shared > 0.8 * (1600 - 100)


def test_a_users_short_rows_are_not_padded_to_the_long_ones():
    sizes, users = np.tile([15, 250], 800), np.repeat(np.arange(100), 16)
    planned = plan(sizes, users, 4096, np.random.default_rng(1))
    assert sum(len(rows) * sizes[rows].max() for rows in planned) < 1.05 * sizes.sum()


def make(row_id: int, ids: list[int], answer: int, text_start: int, reasoned: bool, **soft: int) -> Sequence:
    return Sequence(
        row_id, row_id // 2, row_id % 2, np.array(ids, np.int32), soft, answer, text_start, reasoned
    )


REC = make(5, [1, 10, 11, 12], 2, 2, False, user=1, item=2)
REASON = make(8, [1, 20, 21, 22, 23, 2], 1, 3, True, user=1, item=3, pair=4)


def test_collate_pads_right_and_points_at_the_right_places():
    batch = collate([REC, REASON], VECTORS, WEIGHTS, pad=99)
    assert batch.ids.tolist() == [[1, 10, 11, 12, 99, 99], [1, 20, 21, 22, 23, 2]]
    assert batch.answer.tolist() == [2, 1]
    assert batch.labels.tolist() == [1, 0]
    assert batch.users.tolist() == [2, 4]
    assert {name: at.tolist() for name, at in batch.soft.items()} == {
        "user": [1, 1],
        "item": [2, 3],
        "pair": [-1, 4],
    }
    assert batch.text_rows.tolist() == [0, 1, 1]
    assert batch.text_positions.tolist() == [2, 3, 4]
    assert batch.text_targets.tolist() == [12, 23, 2]
    assert batch.answer_weight.tolist() == pytest.approx([0.9, 0.2])
    assert batch.text_weight.tolist() == pytest.approx([0.1, 0.8])
    for name, values in VECTORS.items():
        assert torch.equal(batch.vectors[name], torch.from_numpy(values[[5, 8]]))


def test_no_padding_is_ever_a_target():
    batch = collate([REC, REASON], VECTORS, WEIGHTS, pad=99)
    assert 99 not in batch.text_targets.tolist()


def test_a_pass_yields_every_row_once_and_the_same_for_a_seed():
    rows = [make(n, list(range(3 + n % 7)), 1, 1, False) for n in range(20)]

    def passed(seed: int) -> list[list[int]]:
        return [
            batch.vectors["user"][:, 0].tolist() for batch in batches(rows, VECTORS, WEIGHTS, 0, 30, seed)
        ]

    assert sorted(row for batch in passed(1) for row in batch) == VECTORS["user"][:, 0].tolist()
    assert passed(1) == passed(1)
    assert passed(1) != passed(2)
