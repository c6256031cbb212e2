"""The train stage before anything is trained: its settings, its fingerprint, its tokenizer."""

import json
import signal
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ActorUnavailableError
from ray.train import ControllerError

from pipelines import train
from pipelines.mix import CORPUS
from ray_app.artifacts import Run
from ray_app.config import Config, validate
from ray_app.errors import ConfigError
from ray_app.prompts.cards import feature_token
from ray_app.records import EXAMPLES, ITEMS
from ray_app.student.phases import load_tokenizer


def settings(path: Path, **train: object) -> Config:
    return validate({"train": {"deepspeed": str(path), **train}}, "test")


def test_missing_deepspeed_settings_are_one_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.deepspeed .*gone\.json does not exist: give one of configs"
    ):
        train.spec(settings(tmp_path / "gone.json"), Run(tmp_path))


def test_the_fingerprint_covers_what_the_deepspeed_file_says_and_not_where_it_is(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text('{"a": 1}')
    two.write_text('{"a": 1}')
    same = [train.spec(settings(path), Run(tmp_path)) for path in (one, two)]
    assert same[0].inputs == same[1].inputs
    assert same[0].keys == same[1].keys
    two.write_text('{"a": 2}')
    assert train.spec(settings(two), Run(tmp_path)).inputs != same[0].inputs


def test_how_a_run_is_carried_out_is_no_part_of_its_fingerprint(tmp_path):
    file = tmp_path / "d.json"
    file.write_text("{}")
    base = train.spec(settings(file), Run(tmp_path)).keys
    for name, value in {"workers": 4, "threads": 1, "max_failures": 9, "checkpoint_every_s": 5}.items():
        assert train.spec(settings(file, **{name: value}), Run(tmp_path)).keys == base
    assert train.spec(settings(file, batch_tokens=64), Run(tmp_path)).keys != base


def test_a_catalogue_of_a_thousand_features_still_gets_a_tokenizer(tmp_path):
    run = Run(tmp_path)
    names = [[f"tag {n}", "Very Common"] for n in range(1000)]
    items = pl.DataFrame(
        {
            "item": range(1000),
            "item_id": [f"i{n}" for n in range(1000)],
            "title": ["t"] * 1000,
            "features": names,
            "keywords": [[]] * 1000,
            "year": [None] * 1000,
            "description": [""] * 1000,
        }
    )
    texts = ["User: <p5> and more"] * 40
    prompts = {"row_id": list(range(40)), "user": [0] * 40, "label": [1] * 40, "prompt": texts}
    for stage, name, table, schema in (
        ("prepare", "items", items.to_arrow(), ITEMS),
        ("mix", "corpus", pl.DataFrame(prompts).to_arrow(), CORPUS),
        ("mix", "examples", EXAMPLES.empty_table(), EXAMPLES),
    ):
        with run.stage(stage).replacing(f"{name}.parquet") as local:
            pq.write_table(table.cast(schema), local)
    config = validate({"student": {"bootstrap": {"vocab": 400}}}, "test")
    local = run.stage("train").local()
    local.mkdir()
    train.bootstrap_tokenizer(config, run, local)
    tokenizer = load_tokenizer(config, local)
    assert len(tokenizer.encode(" " + feature_token("Very Common"), add_special_tokens=False)) == 1
    assert len(tokenizer) <= 400


def test_a_list_of_checkpoints_that_a_kill_cut_off_is_dropped_with_them(tmp_path):
    folder = tmp_path / "checkpoints"
    train.drop_if_torn(folder)
    for content, kept in ((json.dumps({"latest_checkpoint_result": None}), True), ('{"latest_check', False)):
        (folder / "checkpoint_1").mkdir(parents=True, exist_ok=True)
        (folder / train.SNAPSHOT).write_text(content)
        train.drop_if_torn(folder)
        assert folder.exists() == kept


def test_ctrl_c_is_the_programs_own_again_after_training():
    own = signal.getsignal(signal.SIGINT)
    with train.own_interrupt():
        signal.signal(signal.SIGINT, lambda *_: None)
    assert signal.getsignal(signal.SIGINT) is own


@pytest.mark.parametrize(
    ("lost", "limit", "calls", "ends"), [(0, 2, 1, True), (2, 2, 3, True), (3, 2, 3, False)]
)
def test_workers_lost_while_they_start_cost_a_try_each(lost: int, limit: int, calls: int, ends: bool):
    """`fit` fails `lost` times as Ray Train does then, and is called again `limit` times at most."""
    made = []

    def fit() -> None:
        made.append(1)
        if len(made) <= lost:
            raise ControllerError(ActorUnavailableError("the node is gone", None))

    with nullcontext() if ends else pytest.raises(ControllerError):
        train.persist(fit, limit)
    assert len(made) == calls


def test_any_other_error_of_training_is_not_tried_again():
    made = []

    def fit() -> None:
        made.append(1)
        raise ControllerError(ValueError("a bug"))

    with pytest.raises(ControllerError, match="a bug"):
        train.persist(fit, 2)
    assert made == [1]
