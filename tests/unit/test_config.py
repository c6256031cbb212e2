"""The configuration: every shipped file loads, and every mistake is one line with the key and the value."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app.config import Config, load
from ray_app.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    config = load(path)
    assert (ROOT / config.train.deepspeed).is_file()
    assert config == Config.model_validate(config.model_dump(mode="json"))


def test_the_default_config_is_shipped():
    assert "local.yaml" in [path.name for path in SHIPPED]


def test_overrides_are_yaml_and_reach_any_depth(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("name: x\nreason: {fraction: 0.5}\n")
    config = load(file, ["reason.engine.kind=vllm", "evaluate.k=[1, 2]", "seed=3", "student.base=null"])
    assert config.reason.engine.kind == "vllm"
    assert config.reason.fraction == 0.5
    assert (config.evaluate.k, config.seed, config.student.base) == ([1, 2], 3, None)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("nope=1", "unknown key nope: remove it or correct its name"),
        ("train.wrokers=2", "unknown key train.wrokers"),
        ("train.workers=two", "train.workers: .*integer.* \\(got 'two'\\)"),
        ("train.workers=1.5", "train.workers: .*integer.* \\(got 1.5\\)"),
        ("train.workers=0", "train.workers: .*greater than or equal to 1.* \\(got 0\\)"),
        ("train=3", "train: .*\\(got 3\\)"),
        ("train.learning_rate=.nan", "train.learning_rate: .*finite.*\\(got nan\\)"),
        ("train.weight_decay=.inf", "train.weight_decay: .*finite.*\\(got inf\\)"),
        ("reason.fraction=.nan", "reason.fraction: .*\\(got nan\\)"),
        ("data.positive_rating=.nan", "data.positive_rating: .*\\(got nan\\)"),
        ("reason.engine.kind=gpt", "reason.engine.kind: .*'evidence', 'vllm' or 'openai'.*\\(got 'gpt'\\)"),
        ("name=../up", "name: .*\\(got '../up'\\)"),
        ("mix.reason_share=0.0001", "mix.reason_share: .*0.001.*\\(got 0.0001\\)"),
        ("data.split.test=0.5", "data.split: .*1.4, not 1"),
        ("train.min_experts=9", "train: .*min_experts 9 > max_experts 5: swap them"),
        ("seed", "--set 'seed' is not of the form key.path=value"),
        ("=1", "--set '=1' is not of the form"),
        ("seed.deep=1", "--set 'seed.deep=1': seed is a value, not a section"),
        ("seed=[1", "--set 'seed=\\[1' is not valid YAML"),
    ],
)
def test_a_bad_value_is_one_line_naming_key_and_value(tmp_path, override, wanted):
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=wanted) as caught:
        load(file, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"a: [1\n", "is not valid YAML"),
        (b"- 1\n", "holds a list, not a mapping"),
        (b"seed: \xff\xfe\n", "is not valid YAML"),
        (b"train: {workers: x, threads: y}\n", "train.workers: .* \\(and 1 more\\)"),
        (b"1: 2\n", "c.yaml: 1"),
    ],
)
def test_a_bad_file_is_one_line_naming_it(tmp_path, content, wanted):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=wanted) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_to_look(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist: give --config one of configs"):
        load(tmp_path / "gone.yaml")


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    assert load(tmp_path / "c.yaml") == Config()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--set", "nope=1"], "error: configs/local.yaml: unknown key nope: remove it or correct its name"),
        (
            ["--config", "gone.yaml"],
            "error: config file gone.yaml does not exist: give --config one of configs/*.yaml",
        ),
        (["--from", "nowhere"], "error: --from 'nowhere' is not a stage: give one of prepare,"),
    ],
)
def test_the_command_line_ends_in_one_line_and_code_2(arguments, line):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
