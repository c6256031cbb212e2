"""What a journal makes of a worker that is gone without a word."""

import pytest

from pipelines.reason_journal import Journal, read_journals
from ray_app.artifacts import Folder
from ray_app.errors import EngineError


def opened(tmp_path, attempts: int = 2) -> Journal:
    return Journal(Folder(tmp_path), 3, attempts)


def test_a_worker_that_ends_leaves_nothing_to_suspect(tmp_path):
    journal = opened(tmp_path)
    journal.begins([1, 2])
    journal.served()
    journal.ends()
    again = opened(tmp_path)
    assert (again.loss, again.suspects(), again.quarantined()) == ("", [], {})
    assert read_journals(Folder(tmp_path))[0] == 0


def test_rows_in_flight_are_suspects_and_one_that_dies_alone_is_quarantined(tmp_path):
    opened(tmp_path).begins([1, 2, 3])
    second = opened(tmp_path)
    assert second.loss.endswith("began 3 rows")
    assert (second.suspects(), second.quarantined()) == ([1, 2, 3], {})
    second.begins([1])
    second.served()
    second.begins([2])
    third = opened(tmp_path)
    assert third.suspects() == [2, 3]
    third.begins([2])
    last = opened(tmp_path)
    assert last.quarantined() == {2: "the engine's process was lost 2 times over this row alone"}
    assert last.suspects() == [3]
    assert read_journals(Folder(tmp_path))[0] == 3


def test_an_engine_that_never_starts_or_never_serves_ends_the_stage(tmp_path):
    for _ in range(3):
        opened(tmp_path / "start").starts()
    with pytest.raises(EngineError, match=r"start began, and so 3 times .* run the stage again$"):
        opened(tmp_path / "start")
    assert opened(tmp_path / "start").loss == "", "the next run has its chances again"

    for row in (0, 0, 0, 1, 1, 2, 2):
        opened(tmp_path / "serve").begins([row])
    with pytest.raises(EngineError, match=r"and so 7 times with nothing served between"):
        opened(tmp_path / "serve")


def test_a_batch_that_was_served_clears_the_count(tmp_path):
    for row in (0, 0, 1, 1):
        opened(tmp_path).begins([row])
    journal = opened(tmp_path)
    journal.begins([2])
    journal.served()
    journal.ends()
    for row in (3, 3, 4, 4):
        opened(tmp_path).begins([row])
    assert set(opened(tmp_path).quarantined()) == {0, 1, 3, 4}
