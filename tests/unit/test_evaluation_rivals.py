"""Rivals and tables on rows that say little: users and items never seen, rows of one label."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import rivals
from pipelines.contexts import ContextSource
from ray_app.artifacts import Folder
from ray_app.errors import DataError
from ray_app.evaluation.baselines import PENALTIES
from ray_app.evaluation.metrics import finite
from ray_app.evaluation.tables import exposed_table
from tests.runs import CONFIG, N_ITEMS, interactions, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return make_run(Folder(tmp_path_factory.mktemp("rivals")), interactions())


@pytest.fixture
def source(run) -> ContextSource:
    return ContextSource(CONFIG, run)


def test_every_rival_scores_every_row(run, source):
    rows = np.flatnonzero(source.splits == "test")
    models, penalty = rivals.item_models(source, "test")
    scores = rivals.exposed_rivals(source, rivals.load_vectors(run), models, rows, seed=1)
    assert set(scores) == {
        "random", "popularity", "item rate", "Swing", "cosine", "EASE", "logistic regression", "trees",
    }  # fmt: skip
    assert all(np.isfinite(score).all() and len(score) == len(rows) for score in scores.values())
    assert penalty in PENALTIES


def test_item_models_know_nothing_from_the_split_they_are_measured_on(run, source):
    models, _ = rivals.item_models(source, "test")
    changed = ContextSource(CONFIG, run)
    late = changed.splits == "test"
    changed.labels = np.where(late, 1 - changed.labels, changed.labels)
    again, _ = rivals.item_models(changed, "test")
    for name, model in models.items():
        assert np.array_equal(again[name].weights, model.weights)


def test_a_row_is_scored_from_what_its_user_liked_before_it(source):
    models, _ = rivals.item_models(source, "test")
    rows = np.flatnonzero(source.splits == "test")[:20]
    by_hand = []
    for row in rows:
        own = (source.users == source.users[row]) & (source.timestamps < source.timestamps[row])
        liked = source.targets[own & (source.labels > 0)]
        by_hand.append(models["EASE"].scores(liked)[source.targets[row]])
    assert rivals.item_scores(source, models["EASE"], rows) == pytest.approx(by_hand)


def test_a_user_without_history_and_an_item_never_liked_score_zero(source):
    models, _ = rivals.item_models(source, "test")
    unknown = np.flatnonzero(models["EASE"].place < 0)
    for model in models.values():
        assert not model.scores(np.empty(0, np.int32)).any()
        assert model.scores(np.arange(N_ITEMS)).shape == (N_ITEMS,)
        assert not model.scores(np.arange(N_ITEMS))[unknown].any()


def test_training_rows_of_one_label_are_refused_in_one_line(run, source):
    source.labels = np.where(source.splits == "train", 1, source.labels)
    with pytest.raises(DataError, match=r"all 400 training rows have label 1.*change data\.positive_rating"):
        rivals.fitted(source, rivals.load_vectors(run), np.arange(3), seed=1)


@pytest.mark.parametrize("label", [0, 1])
def test_a_split_of_one_label_has_a_table_with_gaps(label):
    users, labels = np.repeat(np.arange(6), 4), np.full(24, label)
    scores = {"student": np.linspace(0, 1, 24), "other": np.zeros(24)}
    table = finite(exposed_table(users, np.arange(24), labels, scores, [5], 20, 0, "student", scores))
    entry = table["scorers"]["student"]
    for metric in ("auc", "uauc", "snapshot_accuracy", "uauc_null"):
        assert entry[metric]["value"] is None
    assert entry["ndcg@5"]["value"] == label
    assert entry["ece"]["value"] == pytest.approx(abs(label - 0.5))
    assert table["paired"]["other"]["auc"]["difference"] is None
