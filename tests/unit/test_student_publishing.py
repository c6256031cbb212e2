"""An expert is published only where its users gain, and no accident of few users publishes one."""

import json

import numpy as np
import pytest

from ray_app.student.publishing import MIN_USERS, worth_publishing


def invented(users: int, skill: float, seed: int = 0, rows: int = 20):
    """Labels from a hidden taste; the global adapter sees half of it, the expert `skill` of it."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows)
    taste = rng.normal(0, 2, len(user))
    labels = (rng.random(len(user)) < 1 / (1 + np.exp(-taste))).astype(int)
    noise = rng.normal(0, 1, (2, len(user)))
    return labels, user, skill * taste + noise[0], 0.5 * taste + noise[1]


def test_an_expert_that_knows_its_users_better_is_published():
    gain = worth_publishing(*invented(40, 2.0), seed=1)
    assert gain.published
    assert gain.users == 40 and gain.rows == 800
    assert 0 < gain.low < gain.gain < gain.high
    assert gain.better > 0.7


@pytest.mark.parametrize("skill", [0.0, 0.2])
def test_a_worse_expert_is_not_published(skill):
    gain = worth_publishing(*invented(40, skill), seed=1)
    assert gain.gain < 0 and not gain.published


def test_an_expert_that_says_what_the_global_adapter_says_is_not_published():
    labels, users, _, logits = invented(40, 0.0)
    gain = worth_publishing(labels, users, logits, logits, seed=1)
    assert gain.gain == 0 and not gain.published


def test_scale_and_offset_alone_are_no_gain():
    """Calibration follows, so an expert that is only bolder or shifted is worth nothing."""
    labels, users, _, logits = invented(40, 0.0)
    for changed in (3 * logits + 1, 0.3 * logits - 2):
        assert worth_publishing(labels, users, changed, logits, seed=1).gain == pytest.approx(0, abs=5e-3)


def test_equal_experts_are_published_about_as_often_as_the_doubt_allows():
    published = [worth_publishing(*invented(30, 0.5, seed), seed=1).published for seed in range(60)]
    assert sum(published) <= 0.25 * len(published)


def test_a_one_user_cluster_is_not_published_however_good_it_looks():
    gain = worth_publishing(*invented(1, 4.0), seed=1)
    assert gain.gain > 0 and gain.low is None and not gain.published
    assert not worth_publishing(*invented(MIN_USERS - 1, 4.0), seed=1).published


def test_a_cluster_without_validation_rows_has_a_defined_result():
    empty = np.array([])
    gain = worth_publishing(empty, empty, empty, empty, seed=1)
    assert (gain.users, gain.rows, gain.gain, gain.published) == (0, 0, None, False)


def test_rows_of_one_label_have_a_finite_gain():
    labels, users, expert, common = invented(40, 2.0)
    gain = worth_publishing(np.ones_like(labels), users, expert, common, seed=1)
    assert np.isfinite([gain.gain, gain.low, gain.high]).all()


def test_a_row_of_experts_json_is_json():
    row = worth_publishing(*invented(10, 2.0), seed=1).row()
    assert json.loads(json.dumps(row, allow_nan=False))["published"] in (True, False)
