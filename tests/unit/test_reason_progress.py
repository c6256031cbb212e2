"""Counts of the teacher's progress: each row once, whatever is lost on the way."""

from pipelines.reason_progress import Counts


def test_a_shard_that_is_begun_anew_counts_once():
    counts = Counts()
    counts.begins(0, 0)
    counts.add(0, 20, 1, 15)
    counts.begins(1, 0)
    counts.add(1, 20, 0, 18)
    counts.lost("shard 0: the engine's process was lost")
    counts.begins(0, 0)
    counts.add(0, 1, 1, 0)
    assert counts.get() == (21, 1, 18, ["shard 0: the engine's process was lost"])
    counts.add(0, 59, 0, 50)
    counts.ends(0)
    counts.ends(1)
    assert counts.get() == (80, 1, 68, [])


def test_rows_that_are_tried_again_are_no_new_rows():
    counts = Counts()
    counts.begins(0, 0)
    counts.add(0, 60, 3, 50)
    counts.ends(0)
    counts.begins(0, 3)
    counts.add(0, 1, 0, 1)
    counts.add(0, 2, 1, 0)
    counts.ends(0)
    assert counts.get() == (60, 1, 51, [])
