"""`python -m pipelines.swing --interactions`: what it writes, and every mistake named before Ray starts."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from pipelines import swing
from ray_app.config import SwingConfig
from ray_app.errors import ConfigError, DataError
from ray_app.swing import item_neighbours, parameters, user_neighbours

GIVEN = {"normalize": "product", "k": 5, "min_common_users": 1, "user_k": 4, "user_min_similarity": 0}


def table(n=3000, n_users=90, n_items=140):
    random = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "customer": random.integers(0, n_users, n),
            "item_id": (n_items * random.random(n) ** 2).astype(int),
            "timestamp": random.integers(0, 10**8, n),
            "stars": random.integers(1, 6, n),
        }
    )


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["swing", *map(str, words)])
    swing.main()


def flags(values):
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tables_are_those_of_the_function(tmp_path, monkeypatch, capsys):
    rows = table()
    config = parameters("alink", **GIVEN)
    users, items = rows["customer"], rows["item_id"]
    near = item_neighbours(users, items, config, seed=1)
    alike = user_neighbours(
        users, items, config, timestamps=rows["timestamp"], strengths=rows["stars"], seed=1
    )
    named = rows.with_columns(pl.format("u{}", "customer"), pl.format("{}-x", "item_id"))
    for name, frame in {"numbers.parquet": rows, "numbers.csv": rows, "names.tsv": named}.items():
        file, out = tmp_path / name, tmp_path / f"{name}.out"
        if name.endswith(".parquet"):
            frame.write_parquet(file)
        else:
            frame.write_csv(file, separator="\t" if name.endswith(".tsv") else ",")
        words = ["--interactions", file, "--out", out, "--preset", "alink", "--seed", 1, *flags(GIVEN)]
        run(monkeypatch, *words, "--columns", "user_id=customer,strength=stars")
        assert sorted(path.name for path in out.iterdir()) == [
            "items.parquet",
            "summary.json",
            "users.parquet",
        ]
        found = pl.read_parquet(out / "items.parquet"), pl.read_parquet(out / "users.parquet")
        if frame is rows:
            assert found[0].equals(near) and found[1].equals(alike)
        else:
            assert found[0].columns == near.columns and found[1].columns == alike.columns
            assert set(found[1]["user_id"]) == {f"u{user}" for user in alike["user_id"]}
            assert found[0]["score"].sort().to_list() == pytest.approx(near["score"].sort().to_list())
        summary = json.loads((out / "summary.json").read_bytes())
        assert summary["item_pairs"] == near.height
        assert (summary["rows"], summary["users"], summary["preset"]) == (3000, 90, "alink")
        assert summary["parameters"] == config.model_dump(exclude={"snapshots"})
        shown = capsys.readouterr().out
        assert "neighbour_id" in shown and "common_items" in shown and "90 users" in shown


def test_every_parameter_is_a_flag(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    shown = capsys.readouterr().out
    for name in set(SwingConfig.model_fields) - {"snapshots"}:
        assert f"--{name.replace('_', '-')}" in shown


FILES = {
    "good.csv": "user_id,item_id,timestamp,strength\na,1,5,1\nb,1,6,1\n",
    "headless.csv": "",
    "header.csv": "user_id,item_id\n",
    "other.csv": "uid,item_id\na,1\n",
    "null.csv": "user_id,item_id\na,1\n,2\n",
    "when.csv": "user_id,item_id,timestamp\na,1,5\nb,1,NaN\n",
    "word.csv": "user_id,item_id,timestamp\na,1,soon\nb,1,later\n",
    "gap.csv": "user_id,item_id,timestamp\na,1,5\nb,1,soon\n",
    "weak.csv": "user_id,item_id,strength\na,1,0\nb,1,1\n",
    "ragged.csv": "user_id,item_id\na,1,2,3\nb,1\n",
    "text.parquet": "user_id,item_id\na,1\n",
    "rows.xlsx": "user_id,item_id\na,1\n",
}


@pytest.mark.parametrize(
    ("file", "words", "kind", "message"),
    [
        ("missing.csv", [], DataError, "missing.csv does not exist: name one file"),
        (".", [], DataError, "is a folder: name one file"),
        ("rows.xlsx", [], DataError, "rows.xlsx is neither .csv, .tsv nor .parquet: convert or rename it"),
        ("text.parquet", [], DataError, r"text.parquet cannot be read \(.*\): check"),
        ("headless.csv", [], DataError, r"headless.csv cannot be read \(empty.*\): check"),
        ("header.csv", [], DataError, "header.csv has no rows: give it at least one"),
        ("ragged.csv", [], DataError, r"ragged.csv cannot be read \(.*\): check"),
        (
            "other.csv",
            [],
            DataError,
            r"no column 'user_id' \(it has uid, item_id\): name yours with --columns",
        ),
        ("good.csv", ["--columns", "user_id=who"], DataError, "no column 'who'"),
        ("good.csv", ["--columns", "user=who"], ConfigError, "--columns: 'user=who' is not OURS=FILE'S"),
        ("null.csv", [], DataError, r"1 user ids are null \(first in row 1\)"),
        ("when.csv", [], DataError, "timestamp of row 1 is nan"),
        ("gap.csv", [], DataError, "timestamp of row 1 is 'soon': write seconds or dates"),
        ("word.csv", [], DataError, "timestamp of row 0 is 'soon': write seconds or dates"),
        ("weak.csv", [], DataError, "strength of row 0 is 0, not above 0"),
        ("good.csv", ["--k", "0"], ConfigError, r"swing.k: .*greater than or equal to 1"),
        ("good.csv", ["--alpha1", "nan"], ConfigError, r"swing.alpha1: .*finite"),
        ("good.csv", ["--beta", "-0.3"], ConfigError, r"swing.beta: .*greater than or equal to 0"),
        ("good.csv", ["--min-behavior", "9", "--max-behavior", "3"], ConfigError, "9 > max_behavior 3"),
        (
            "other.csv",
            ["--columns", "user_id=uid", "--item-strength"],
            DataError,
            "needs 1 strengths, got none",
        ),
        ("good.csv", ["--run", "runs/local"], ConfigError, "--run is for the stage of a run: leave it out"),
        ("good.csv", ["--out", "{folder}/good.csv"], ConfigError, "--out .* cannot be written to"),
        ("good.csv", ["--out", "/proc/none/such"], ConfigError, "--out .* cannot be written to"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, monkeypatch, file, words, kind, message):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    words = [word.format(folder=tmp_path) for word in words]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr("pipelines.swing_file.start_ray", lambda config: pytest.fail("Ray was started"))
    with pytest.raises(kind, match=message) as caught:
        run(monkeypatch, "--interactions", tmp_path / file, *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "5"], "--k goes with --interactions FILE: for the stage of a run use --set"),
        (["--out", "folder"], "--out goes with --interactions FILE"),
        (["--interactions", "rows.csv"], "--interactions without --out: name the folder"),
    ],
)
def test_flags_of_both_uses_do_not_mix(monkeypatch, words, message):
    with pytest.raises(ConfigError, match=message):
        run(monkeypatch, *words)


@pytest.mark.slow
def test_a_mistake_ends_the_command_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "pipelines.swing", "--interactions", "none.csv", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.csv does not exist: name one file\n"
