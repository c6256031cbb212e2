"""Planted leaks: what happens at or after a row's time must not reach what the row is told.

One check, `told_apart`, compares what rows of two data sets are told. It must find nothing for the real
pipeline, and it must find every leak that is built in on purpose.
"""

import numpy as np
import polars as pl
import pytest

from pipelines import contexts, encode
from pipelines.contexts import ContextSource
from ray_app.artifacts import Folder, Run
from ray_app.collab.features import Histories
from ray_app.collab.rolling import roll
from tests.runs import CONFIG, N_ITEMS, N_USERS, interactions, make_run, numbered

ROWS = interactions()
IN_TRAIN = int(ROWS["timestamp"][202])
IN_VALID = int(ROWS["timestamp"][422])
"""Two moments with four rows each, of which the row named is the third."""


def told(run: Run, upto: int) -> dict[str, object]:
    """What every row with timestamp <= upto is told: statistics, vectors, context."""
    source = ContextSource(CONFIG, run)
    rows = np.flatnonzero(source.timestamps <= upto)
    # Not the fifth statistic: it is the row's own residual, for later rows of its user.
    facts = {"rolling": np.asarray(source.rolling[rows, :4])}
    folder = run.stage("encode")
    for name in ("user", "item", "pair"):
        facts[name] = np.load(folder.path(f"{name}.npy"))[rows]
    facts["context"] = [context.model_dump_json() for context in source.build(rows[-30:].tolist())]
    return facts


def told_apart(first: Run, second: Run, upto: int) -> set[str]:
    """Names of what differs between two runs for rows up to a moment."""
    one, two = told(first, upto), told(second, upto)
    return {name for name in one if not np.array_equal(np.asarray(one[name]), np.asarray(two[name]))}


def flipped(moment: int) -> pl.DataFrame:
    """Every label and rating at or after a moment turned round."""
    late = pl.col("timestamp") >= moment
    return numbered(
        ROWS.with_columns(
            rating=pl.when(late).then(6 - pl.col("rating")).otherwise("rating"),
            label=pl.when(late).then(1 - pl.col("label")).otherwise("label"),
        )
    )


def removed(moment: int) -> pl.DataFrame:
    """Nothing after a moment."""
    return numbered(ROWS.filter(pl.col("timestamp") <= moment))


def added(moment: int) -> pl.DataFrame:
    """Ratings of every item by users 0 and 1 at a moment, and of every user at a later one."""
    more = [(user, item, moment) for user in (0, 1) for item in range(N_ITEMS)]
    more += [(user, item, moment + 1) for user in range(N_USERS) for item in (0, 1)]
    user, item, timestamp = zip(*more, strict=True)
    extra = pl.DataFrame({"user": user, "item": item, "timestamp": timestamp}).with_columns(
        row_id=pl.lit(0), rating=pl.lit(5.0), label=pl.lit(1), split=pl.lit("valid")
    )
    return numbered(pl.concat([ROWS, extra.select(ROWS.columns).cast(dict(ROWS.schema))]))


def made(folder, frame: pl.DataFrame) -> Run:
    return make_run(Folder(folder), frame)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Run:
    return made(tmp_path_factory.mktemp("base"), ROWS)


CHANGES = [(flipped, IN_TRAIN), (flipped, IN_VALID), (removed, IN_VALID), (added, IN_VALID)]


@pytest.mark.parametrize(("change", "moment"), CHANGES)
def test_what_happens_at_or_after_a_moment_changes_nothing_told_by_then(base, tmp_path, change, moment):
    frame = change(moment)
    assert frame.height != ROWS.height or not frame.equals(ROWS)
    other = made(tmp_path, frame)
    # An added row at the moment itself is not compared: the base has no such row.
    assert told_apart(base, other, moment if change is not added else moment - 1) == set()
    if change is added:
        source, own = ContextSource(CONFIG, base), ContextSource(CONFIG, other)
        ties = np.flatnonzero(source.timestamps == moment)
        assert np.array_equal(source.rolling[ties, :4], own.rolling[ties, :4])
        assert source.build(ties.tolist()) == own.build(ties.tolist())


def leaky_histories(patch: pytest.MonkeyPatch) -> None:
    before = Histories.before
    patch.setattr(Histories, "before", lambda self, users, times: before(self, users, times + 1))


def leaky_statistics(patch: pytest.MonkeyPatch) -> None:
    def last(users, items, *rest):
        prior, features, indptr = rest[-1], rest[-3], rest[-4]
        rows, state = roll(users, items, *rest)
        rows[:, :3] = state.statistics(items, indptr, features, prior)
        return rows, state

    patch.setattr(encode, "roll", last)


def leaky_snapshots(patch: pytest.MonkeyPatch) -> None:
    for module in (encode, contexts):
        patch.setattr(module, "snapshot_for", lambda listed, times: np.full(len(times), len(listed) - 1))


def leaky_global_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(encode, "global_rates", lambda times, labels: np.full(len(times), labels.mean()))


@pytest.mark.parametrize(
    ("leak", "seen_in"),
    [
        (leaky_histories, {"user", "pair", "context"}),
        (leaky_statistics, {"rolling", "item", "pair", "context"}),
        (leaky_snapshots, {"context"}),
        (leaky_global_rate, {"user", "pair"}),
    ],
)
def test_a_leak_on_purpose_is_found(tmp_path, monkeypatch, leak, seen_in):
    leak(monkeypatch)
    one, two = made(tmp_path / "one", ROWS), made(tmp_path / "two", flipped(IN_VALID))
    assert told_apart(one, two, IN_VALID) >= seen_in


def test_rows_added_to_the_future_are_found_by_a_leak_through_the_snapshot(tmp_path, monkeypatch):
    leaky_snapshots(monkeypatch)
    one, two = made(tmp_path / "one", ROWS), made(tmp_path / "two", added(IN_VALID))
    assert "item" in told_apart(one, two, IN_VALID - 1)


def test_latent_vectors_know_no_label(base, tmp_path):
    other = made(tmp_path, flipped(0))
    for name in ("s0", "s1", "valid", "test", "final"):
        file = f"latent/{name}.npy"
        assert base.stage("encode").read(file) == other.stage("encode").read(file)


def test_the_state_kept_for_a_moment_is_what_its_first_rows_were_told(base):
    from ray_app.collab.rolling import ItemState

    source = ContextSource(CONFIG, base)
    cut = next(entry["cut"] for entry in source.snapshots if entry["name"] == "test")
    rows = np.flatnonzero(source.timestamps == cut)
    state = ItemState.load(base.stage("encode").local() / "state-test.npz")
    catalogue = source.catalogue
    now = state.statistics(source.targets[rows], catalogue.indptr, catalogue.features, CONFIG.collab.prior)
    assert np.array_equal(now, source.rolling[rows, :3])
