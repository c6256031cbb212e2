"""The mix as the stage writes it: exact shares, rows of the right split, nothing from after a row."""

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.contexts import ContextSource
from pipelines.mix import CORPUS, accepted_traces
from ray_app.prompts.student import ITEM, PAIR, USER
from ray_app.records import EXAMPLES, Context, Trace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixed(small_run):
    folder = small_run.run.stage("mix")
    return folder, {name: pl.read_parquet(folder.path(f"{name}.parquet")) for name in ("examples", "valid")}


def test_exactly_a_fifth_of_the_examples_is_reasoning_and_no_trace_is_wasted(small_run, mixed):
    folder, tables = mixed
    counts = small_run.run.done("mix")["counts"]
    kinds = dict(tables["examples"]["kind"].value_counts().iter_rows())
    assert kinds == {"rec": counts["rec"], "reason": counts["reason"]}
    assert kinds["rec"] == 4 * kinds["reason"]
    assert counts["reason"] == accepted_traces(small_run.run).height == counts["traces"]
    for name in ("examples", "valid"):
        assert pq.read_schema(folder.path(f"{name}.parquet")).equals(EXAMPLES)
    assert pq.read_schema(folder.path("corpus.parquet")).equals(CORPUS)


def test_rows_come_from_their_split_once_each(small_run, mixed):
    _, tables = mixed
    split = pl.read_parquet(small_run.run.stage("prepare").path("interactions.parquet"))["split"]
    rec = tables["examples"].filter(pl.col("kind") == "rec")["row_id"]
    assert rec.is_unique().all()
    assert set(split.gather(tables["examples"]["row_id"])) == {"train"}
    assert tables["valid"]["row_id"].is_unique().all()
    assert set(split.gather(tables["valid"]["row_id"])) == {"valid"}
    assert tables["valid"].height == small_run.config.train.valid_rows


def test_an_example_holds_the_context_of_its_row(small_run, mixed):
    _, tables = mixed
    source = ContextSource(small_run.config, small_run.run)
    for row in tables["examples"].gather_every(37).iter_rows(named=True):
        assert Context.model_validate_json(row["context"]) == source.build([row["row_id"]])[0]
        assert row["label"] == source.labels[row["row_id"]]
        assert row["user"] == source.users[row["row_id"]]
        if row["kind"] == "reason":
            trace = Trace.model_validate_json(row["trace"])
            assert (trace.row_id, trace.verdict, trace.accepted) == (row["row_id"], bool(row["label"]), True)
        else:
            assert row["trace"] is None


def test_the_corpus_is_every_training_row_without_sections(mixed):
    folder, _ = mixed
    corpus = pl.read_parquet(folder.path("corpus.parquet"))
    assert corpus.height == 2400
    for prompt in corpus["prompt"].gather_every(200):
        assert all(prompt.count(soft) == 1 for soft in (USER, ITEM, PAIR))
        assert not any(section in prompt for section in ("History:", "Similar users:", "Candidates:"))
        assert prompt.endswith("\nAnswer:")
