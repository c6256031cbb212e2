"""The collaborative vectors: by hand on a tiny history, and the same online as offline."""

import numpy as np
import pytest

from pipelines.encode import global_rates
from ray_app.bundle import Bundle
from ray_app.collab import kriging, opinions
from ray_app.collab.features import (
    COUNTED,
    DAY,
    ITEM_SCALARS,
    MAX_FEATURES,
    PAIR_SCALARS,
    USER_SCALARS,
    VISIT,
    Catalogue,
    Histories,
    dimensions,
    encode,
)
from ray_app.collab.opinions import Crowd
from ray_app.collab.rolling import roll
from ray_app.swing.table import NeighbourTable
from tests.bundles import ITEMS_COUNT, USERS_COUNT, make_bundle

CATALOGUE = Catalogue.build([["A"], ["A", "B"], ["B"], []], [1990, 2000, None, 1990])
SWING = NeighbourTable(
    np.array([0, 2, 2, 2, 2]),
    np.array([1, 2], np.int32),
    np.array([0.8, 0.4], np.float32),
    np.array([5, 3], np.int32),
)
"""Item 0 has neighbours 1 (score .8) and 2 (.4)."""
LATENT = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)


def histories() -> Histories:
    """User 0 rated items 1, 2, 3 on days 1, 3, 4; user 1 nothing."""
    items, labels = np.array([1, 2, 3], np.int32), np.array([1, 0, 1])
    residuals, times = np.array([0.4, -0.5, 0.3]), (np.array([1, 3, 4]) * DAY).astype(np.int64)
    return Histories.build(np.zeros(3, np.int32), items, labels, residuals, times, 2)


def encoded(
    user: int, now: float, swing: NeighbourTable | None = SWING, known: Histories | None = None
) -> dict[str, np.ndarray]:
    """Vectors of one user with item 0 at a day."""
    known, users = known or histories(), np.array([user])
    start, end = known.before(users, np.array([int(now * DAY)]))
    statistics, rate = np.array([[7.0, 0.6, 0.05]]), np.array([0.55])
    target, moment = np.array([0], np.int32), np.array([int(now * DAY)])
    rest = statistics, rate, CATALOGUE, LATENT, swing, Crowd.of(known, 4), 8.0, 256
    found = encode(known, users, start, end, target, moment, *rest)
    return {name: values[0] for name, values in found.items()}


def test_the_catalogue_orders_features_by_frequency_and_caps_them():
    assert CATALOGUE.vocabulary == ["A", "B"]
    assert CATALOGUE.matrix.toarray().tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]
    assert CATALOGUE.year.tolist() == [1990, 2000, 0, 1990]
    many = Catalogue.build([[f"f{n}"] for n in range(50)] + [["often"]] * 2, [None] * 52)
    assert (len(many.vocabulary), many.vocabulary[0]) == (MAX_FEATURES, "often")


def test_a_users_vector_by_hand():
    user = encoded(0, now=5)["user"]
    expected = [
        (2 + 8 * 0.55) / 11,
        0.2 / 8,
        0.2 / 5,
        0.2 / 6,
        0.2 / 8,
        (2 + 2 * 0.55) / 5,
        np.log1p(3),
        np.log1p(1),
        np.log1p(4),
        0,
        0.2 / 33,
        0.4 / 6,
        (0.4 - 0.5) / 7,
        -0.5 / 8,
        (0.4 - 0.5) / 8,
    ]
    assert user == pytest.approx(expected, rel=1e-5)


def test_a_visit_ends_with_a_month_without_ratings():
    late = encoded(0, now=4 + 30)["user"][list(VISIT)]
    assert late == pytest.approx([0, 0.2 / 33], rel=1e-5)
    later = encoded(0, now=4 + 30.1)["user"][list(VISIT)]
    assert later == pytest.approx([0.2 / 8, 0], rel=1e-5)

    items, residuals = np.array([1, 2, 3], np.int32), np.array([0.4, -0.5, 0.3])
    times = (np.array([1, 32, 33]) * DAY).astype(np.int64)
    known = Histories.build(np.zeros(3, np.int32), items, np.array([1, 0, 1]), residuals, times, 1)
    second = encoded(0, now=34, known=known)["user"][list(VISIT)]
    assert second == pytest.approx([0.4 / 6, (-0.5 + 0.3) / 33], rel=1e-5)


def test_an_items_vector_by_hand():
    item = encoded(0, now=5)["item"]
    assert item == pytest.approx([0.6, 0.05, np.log1p(7), 0.5, 1, 1, 1, 0, 1, 0], rel=1e-5)


def test_a_pairs_vector_by_hand():
    near = np.exp(-2.0)
    mass, residual = 1.5, 0.4 - 0.5 * 0.5
    years, year_residual = near + 1, 0.4 * near + 0.3
    expected = [
        residual / (mass + 0.2),
        1 / (mass + 0.2),
        0.5 / (mass + 0.2),
        np.log1p(mass),
        1,
        0.4 / 6,
        np.log1p(1),
        (0.5 * 0.4) / (0.5 + 2),
        year_residual / (years + 3),
        -0.5 / 8,
        (2 + 8 * 0.55) / 11 - 0.55,
        0.05,
    ]
    assert encoded(0, now=5)["pair"][: len(expected)] == pytest.approx(expected, rel=1e-5)
    assert len(expected) == COUNTED
    assert COUNTED + len(opinions.COLUMNS) + len(kriging.COLUMNS) == PAIR_SCALARS


def test_only_ratings_before_the_moment_count():
    assert encoded(0, now=3)["user"][6] == pytest.approx(np.log1p(1))
    assert encoded(0, now=3)["user"][1] == pytest.approx(0.4 / 6)


def test_a_user_without_history_and_a_moment_without_neighbours_have_neutral_vectors():
    new = encoded(1, now=5, swing=None)
    assert new["user"][:2] == pytest.approx([0.55, 0])
    assert new["user"][6:9] == pytest.approx([0, 6, 0])
    assert new["pair"][:10] == pytest.approx(np.zeros(10))
    assert new["pair"][10] == pytest.approx(0, abs=1e-6)
    assert encoded(0, now=5, swing=None)["pair"][:5] == pytest.approx(np.zeros(5))


def test_widths_are_as_announced():
    found = encoded(0, now=5)
    assert {name: len(values) for name, values in found.items()} == dimensions(2, 2)
    assert dimensions(0, 0) == {"user": USER_SCALARS + 2, "item": ITEM_SCALARS, "pair": PAIR_SCALARS}


def test_rows_do_not_disturb_each_other():
    known, rng = histories(), np.random.default_rng(0)
    users, targets = rng.integers(0, 2, 40).astype(np.int32), rng.integers(0, 4, 40).astype(np.int32)
    moments = (rng.uniform(0, 6, 40) * DAY).astype(np.int64)
    statistics, rates = rng.random((40, 3)), rng.random(40)

    def vectors(part):
        start, end = known.before(users[part], moments[part])
        rest = statistics[part], rates[part], CATALOGUE, LATENT, SWING, Crowd.of(known, 4), 8.0, 256
        return encode(known, users[part], start, end, targets[part], moments[part], *rest)

    whole, singly = vectors(slice(0, 40)), [vectors(slice(at, at + 1)) for at in range(40)]
    for name in whole:
        assert np.array_equal(whole[name], np.concatenate([one[name] for one in singly]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def test_a_history_gives_the_same_vectors_online_as_offline(bundle):
    """Offline: the functions of stage encode, over all rows of the bundle and one later row per user."""
    known, later = bundle.histories, bundle.cut + 10 * int(DAY)
    owners = np.repeat(np.arange(USERS_COUNT), np.diff(known.indptr))
    order = np.argsort(known.rows)
    targets = (np.arange(USERS_COUNT) * 7 % ITEMS_COUNT).astype(np.int32)

    def rows(past: np.ndarray, asked: np.ndarray | int, kind: type) -> np.ndarray:
        return np.concatenate([past[order], np.broadcast_to(asked, USERS_COUNT)]).astype(kind)

    users = rows(owners, np.arange(USERS_COUNT), np.int32)
    items = rows(known.items, targets, np.int32)
    times, labels = rows(known.timestamps, later, np.int64), rows(known.labels, 1, np.int8)
    catalogue, prior = bundle.catalogue, bundle.config.collab.prior
    features = catalogue.indptr, catalogue.features, len(catalogue.vocabulary)
    rolling, _ = roll(users, items, times, labels, USERS_COUNT, ITEMS_COUNT, *features, prior)
    everything = Histories.build(users, items, labels, rolling[:, 4], times, USERS_COUNT)
    start, end = everything.before(users, times)
    asked = slice(len(order), None)
    offline = encode(
        everything,
        users[asked],
        start[asked],
        end[asked],
        items[asked],
        times[asked],
        rolling[asked, :3],
        global_rates(times, labels)[asked],
        catalogue,
        np.asarray(bundle.latent),
        bundle.gatherer.swing,
        Crowd.of(everything, ITEMS_COUNT),
        prior,
        bundle.config.collab.window,
    )
    for user in range(USERS_COUNT):
        history = bundle.history(f"u{user}", [])
        online = bundle.vectors(history, targets[user : user + 1], later)
        for name, values in online.items():
            assert np.array_equal(values[0], offline[name][user]), (user, name)
        assert bundle.like_rate(history) == pytest.approx(rolling[len(order) + user, 3])
