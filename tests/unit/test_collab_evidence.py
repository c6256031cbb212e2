"""Evidence: chosen for the target, true of the history, and as known then."""

from dataclasses import replace

import numpy as np
import pytest

from ray_app.bundle import Bundle
from ray_app.collab.evidence import MIN_PEERS, NO_PEERS, Gatherer, History, find_peers
from ray_app.collab.features import Catalogue
from ray_app.config import PromptConfig
from ray_app.prompts.cards import MAX_EVIDENCE
from ray_app.records import Item
from ray_app.swing.table import NeighbourTable
from tests.bundles import ITEMS_COUNT, make_bundle

ITEMS = [
    Item(item_id="a", title="A", features=["War", "Drama"]),
    Item(item_id="b", title="B", features=["War"]),
    Item(item_id="c", title="C", features=["Comedy"]),
    Item(item_id="d", title="D", features=["Drama", "War"]),
]
CATALOGUE = Catalogue.build([item.features for item in ITEMS], [None] * 4)
SWING = NeighbourTable(
    np.array([0, 1, 1, 1, 1]), np.array([2], np.int32), np.array([0.3], np.float32), np.array([4], np.int32)
)
"""The target, item 0, has one neighbour: item 2."""
GATHERER = Gatherer(ITEMS, CATALOGUE, SWING, None, PromptConfig(history=2, candidates=1), 4.0)
HISTORY = History(
    np.array([1, 2, 3], np.int32),
    np.array([1, 0, 1], np.float32),
    np.array([5, 2, np.nan], np.float32),
    np.array([0.4, -0.5, 0.3], np.float32),
    np.array([10, 20, 30], np.int64),
)


def context(gatherer=GATHERER, count=0.0, rate=0.5, peers=NO_PEERS, pool=(0, 1, 2)):
    return gatherer.context("u", HISTORY, 40, 0, count, rate, 0.7, peers, np.array(pool))


def test_history_is_chosen_by_nearness_features_and_recency():
    found = context().evidence
    # C: neighbour 1 + recency; D: all features shared, newest; B: half shared, oldest - left out.
    assert [(e.id, e.title, e.shared, e.sign, e.rating) for e in found] == [
        ("e1", "C", [], -1, 2.0),
        ("e2", "D", ["Drama", "War"], 1, None),
    ]
    assert found[0].weight == pytest.approx(1 + 0.1 * 2**-0.1)
    assert found[1].weight == pytest.approx(0.5 + 0.1)


def test_all_that_two_items_share_is_known_however_few_features_a_prompt_shows():
    few = replace(GATHERER, prompt=PromptConfig(history=2, candidates=1, features=1))
    assert context(few).evidence[1].shared == ["Drama", "War"]


def test_the_profile_is_the_latest_first_and_the_same_for_all_targets():
    assert [(entry.id, entry.title) for entry in context().profile] == [("h1", "D"), ("h2", "C")]


def test_the_crowd_is_named_only_if_there_is_one():
    crowd = context(count=30, rate=0.2).evidence[-1]
    assert (crowd.kind, crowd.rating, crowd.support, crowd.sign) == ("crowd", 0.2, 30, -1)
    assert crowd.weight == pytest.approx(0.6)
    assert all(entry.kind == "history" for entry in context(count=0).evidence)


def test_candidates_leave_out_the_target_and_keep_to_their_number():
    assert [item.item_id for item in context().candidates] == ["b"]


def test_without_anything_known_there_is_no_evidence():
    empty = History(*(np.empty(0, kind) for kind in (np.int32, "f4", "f4", "f4", np.int64)))
    bare = replace(GATHERER, swing=None)
    made = bare.context("new", empty, 40, 0, 0, 0.5, 0.5, NO_PEERS, np.empty(0, np.int32))
    assert (made.evidence, made.profile, made.history_count) == ([], [], 0)
    assert find_peers(None, HISTORY, 40, -1, 5) is NO_PEERS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.parametrize("user", [0, 5, 17])
def test_every_entry_is_true_of_what_is_known(bundle, user):
    history, now = bundle.history(f"u{user}", []), bundle.cut + 1
    index = bundle.gatherer.index
    peers = find_peers(index, history, now, user, 24)
    assert user not in peers.users
    assert not set(peers.signals.items) & set(history.items)
    rated = {bundle.items[i].item_id: at for at, i in enumerate(history.items)}
    for target in range(ITEMS_COUNT):
        count, rate, _ = bundle.statistics(np.array([target], np.int32))[0]
        made = bundle.gatherer.context(
            f"u{user}", history, now, target, count, rate, 0.5, peers, peers.signals.items
        )
        assert [entry.id for entry in made.evidence] == [f"e{n}" for n in range(1, len(made.evidence) + 1)]
        assert len(made.evidence) <= MAX_EVIDENCE
        assert made.target.item_id not in [item.item_id for item in made.candidates]
        for entry in made.evidence:
            assert entry.weight >= 0
            assert set(entry.shared) == set(entry.features) & set(made.target.features) or entry.kind in (
                "peers",
                "crowd",
            )
            if entry.kind == "history":
                at = rated[entry.item_id]
                assert (entry.rating, entry.sign > 0) == (history.ratings[at], history.labels[at] > 0)
            elif entry.kind == "neighbour":
                assert entry.item_id not in rated
                assert entry.shared
            elif entry.kind == "peers":
                who = [u for u in peers.users if target in bundle.histories.items[rows_of(bundle, u)]]
                assert entry.support == len(who) >= MIN_PEERS
            else:
                assert (entry.support, entry.rating) == (count, pytest.approx(rate))


def rows_of(bundle: Bundle, user: int) -> slice:
    return slice(*bundle.histories.indptr[[user, user + 1]])
