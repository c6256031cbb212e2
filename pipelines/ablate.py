"""The ablation table: what each part of the student is worth, over several seeds.

    python -m pipelines.ablate --config configs/ml1m.yaml [--seeds 3] [--rows soft-tokens text ...]

Each row is the student trained anew with one part switched off (`VARIANTS`), in a run of its own under
`<run>/ablation/`; data, neighbours, vectors and traces are the run's own, linked and not made again. What
is finished is not repeated; a part that the configuration has off already makes no row. All rows are scored
on the run's validation rows (`train.valid_rows` of them), through the gate, with no engine in between.
Writes ablation/ablation.json, which the report shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pipelines.common import open_run, parser, report_line, start_ray
from pipelines.contexts import ContextSource
from pipelines.report import write_report
from pipelines.rivals import fitted, load_vectors
from pipelines.run import make_spec
from pipelines.train_data import widths
from ray_app.artifacts import MANIFEST, Folder, Run, StageSpec, execute, fingerprint, is_current
from ray_app.config import Config, overridden
from ray_app.errors import ArtifactError, ConfigError, cli
from ray_app.evaluation import ranking
from ray_app.evaluation.calibration import ece
from ray_app.evaluation.metrics import finite
from ray_app.evaluation.report import metric_name, number
from ray_app.student.calibration import cross_fitted
from ray_app.student.experts import GLOBAL, Clusters, gate_logits
from ray_app.student.model import SOFT_NAMES, Projector
from ray_app.student.phases import begin

SHARED = ["prepare", "swing", "encode", "reason"]
"""Stages that every row of the table has in common, seeds included."""
VARIANTS: dict[str, list[str]] = {
    "full": [],
    "soft-tokens": ["prompt.soft_tokens=false", "student.direct=0"],
    "text": ["prompt.sections=[]", "prompt.titles=false", "prompt.marks=false"],
    "reasoning": ["train.loss_reason={answer: 0, text: 0}", "student.bootstrap.language_epochs=0.001"],
    "pairwise": ["train.pair_weight=0"],
}
"""Name -> overrides. Without reasoning, its rows stay in the batches and weigh nothing, so that every row
of the table sees the same Yes/No rows in the same number of steps; a base made here has no phase of language
then, in which nothing but the decay of its weights would be left."""
EXPERTS, DIRECT, LM = "experts", "direct", "lm"
"""Rows that are read off the full student and need no training of their own: every user gets the global
adapter, the LM decides alone (its losses do not see the direct part), the direct part decides alone."""
READ_OFF = [EXPERTS, DIRECT, LM]
ROWS = [*VARIANTS, *READ_OFF]
NULLS = 10


def ablate(config: Config, run: Run, seeds: list[int], rows: list[str]) -> dict[str, Any]:
    """Train what is missing, measure all, write and return ablation.json."""
    if not run.folder.is_local:
        raise ConfigError(
            f"run {run.folder.uri} is not a local folder: ablate links files, give --run FOLDER"
        )
    for name in SHARED:
        settle(run, make_spec(name, config, run), config, [])
    rows = [row for row in rows if row == "full" or not off_already(row, config)]
    if not rows:
        raise ConfigError("the configuration has all of --rows off already: no row is left to measure")
    trained = [name for name in VARIANTS if name in rows or (name == "full" and set(rows) & set(READ_OFF))]
    measured: dict[str, list[dict[str, float]]] = {}
    source, vectors = ContextSource(config, run), load_vectors(run)
    scored = 0
    for seed in seeds:
        donors = [run]
        for name in trained:
            changed = overridden(config, [f"seed={seed}", *VARIANTS[name]])
            trial = Run(run.folder.path(f"ablation/{name}-{seed}"))
            print(f"ablate: {label(name)}, seed {seed}", flush=True)
            train(changed, run, trial, donors)
            donors.append(trial)
            facts = Scored(changed, trial, source, vectors)
            for row in [name, *READ_OFF] if name == "full" else [name]:
                if row in rows:
                    measured.setdefault(label(row), []).append(facts.measure(row))
            if name == trained[0]:
                scored = len(facts.rows)
                for rival, p in fitted(source, vectors, facts.rows, seed).items():
                    measured.setdefault(rival, []).append(metrics(source, facts.rows, p, p))
    variants = {name: spread(values) for name, values in measured.items()}
    table = finite({"split": "valid", "rows": scored, "seeds": seeds, "variants": variants})
    run.stage("ablation").write_json("ablation.json", table)
    return table


def off_already(row: str, config: Config) -> bool:
    """Whether the configuration has the part off that a row switches off; it is told then."""
    changes = ["student.direct=0"] if row in (DIRECT, LM) else VARIANTS.get(row, [])
    off = bool(changes) and overridden(config, changes) == config
    if off:
        print(f"ablate: no row {label(row)}: the configuration has {' '.join(changes)}", flush=True)
    return off


def label(name: str) -> str:
    return "student" if name == "full" else f"without {name.replace('-', ' ')}"


def train(config: Config, run: Run, trial: Run, donors: list[Run]) -> None:
    """Bring a trial to the end of stage train."""
    for name in SHARED:
        mark = run.done(name)["fingerprint"]
        if not finished_as(trial, name, mark):
            link(run.stage(name), trial.stage(name))
    for name in ("mix", "train"):
        settle(trial, make_spec(name, config, trial), config, donors)


def settle(run: Run, spec: StageSpec, config: Config, donors: list[Run]) -> None:
    """Finish a stage: it is up to date, or a donor has the same, or it is run."""
    if not is_current(run, spec):
        mark = fingerprint(run, spec)
        donor = next((one for one in donors if finished_as(one, spec.name, mark)), None)
        if donor:
            link(donor.stage(spec.name), run.stage(spec.name))
        else:
            start_ray(config)
    print(report_line(execute(run, spec)), flush=True)


def finished_as(run: Run, stage: str, mark: str) -> bool:
    try:
        return run.done(stage)["fingerprint"] == mark
    except ArtifactError:
        return False


def link(source: Folder, target: Folder) -> None:
    """Hard links, manifest last: stages replace files and never write into them."""
    target.clear()
    shutil.copytree(source.root, target.root, copy_function=os.link, ignore=lambda *_: {MANIFEST})
    os.link(f"{source.root}/{MANIFEST}", f"{target.root}/{MANIFEST}")


class Scored:
    """A trained student's logits on the validation rows."""

    def __init__(self, config: Config, trial: Run, source: ContextSource, vectors: dict[str, np.ndarray]):
        folder = trial.stage("train").local()
        self.config, self.source = config, source
        self.rows = pl.read_parquet(trial.stage("mix").path("valid.parquet"), columns=["row_id"])[
            "row_id"
        ].to_numpy()
        self.users = np.asarray(vectors["user"][self.rows])
        self.clusters = Clusters.load(folder / "student" / "clusters.npz")
        self.logits = {
            name: np.load(folder / name / "valid_logits.npy") for name in (GLOBAL, *self.clusters.names)
        }
        experts = json.loads((folder / "experts.json").read_bytes())
        self.published = {row["expert"] for row in experts if row["published"]}
        self.direct = direct_score(config, folder, vectors, self.rows) if config.student.direct else None

    def measure(self, row: str) -> dict[str, float]:
        published = set() if row == EXPERTS else self.published
        logits = {name: self.part(row, own) for name, own in self.logits.items()}
        names, logits = gate_logits(self.users, self.clusters, published, self.config.serve.gate, logits)
        labels, users = self.source.labels[self.rows], self.source.users[self.rows]
        p = cross_fitted(names, logits, labels, users, self.config.seed)
        return metrics(self.source, self.rows, logits, p)

    def part(self, row: str, logits: np.ndarray) -> np.ndarray:
        """The part of the score that a row leaves."""
        if row == LM:
            return np.asarray(self.direct)
        if row == DIRECT:
            share = self.config.student.direct
            return (logits - share * np.asarray(self.direct)) / (1 - share)
        return logits


def direct_score(
    config: Config, folder: Path, vectors: dict[str, np.ndarray], rows: np.ndarray
) -> np.ndarray:
    """What the direct part in a train stage's folder gives rows by itself, (n,)."""
    projector = Projector(widths(config, vectors), 1, share=config.student.direct).eval()
    begin(projector, folder)
    read = {name: torch.from_numpy(np.asarray(vectors[name][rows])) for name in SOFT_NAMES}
    assert projector.direct is not None
    with torch.no_grad():
        return projector.direct(*projector.read(read)).numpy()


def metrics(source: ContextSource, rows: np.ndarray, scores: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """The headline's metrics of one scorer, exposed protocol."""
    users, times, labels = source.users[rows], source.timestamps[rows], source.labels[rows]
    return {
        "auc": ranking.auc(labels, scores),
        "uauc": ranking.uauc(users, labels, scores),
        "uauc_null": float(ranking.uauc_null(users, labels, scores, 0, NULLS).mean()),
        "ndcg@5": ranking.ndcg_exposed(users, labels, scores, 5),
        "map@5": ranking.map_exposed(users, labels, scores, 5),
        "snapshot_accuracy": ranking.snapshot_accuracy(users, times, labels, scores),
        "ece": ece(labels, p),
    }


def spread(values: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Metric -> mean, sample standard deviation over the seeds (None for one seed) and the values."""
    return {
        metric: {
            "mean": float(np.mean([one[metric] for one in values])),
            "spread": float(np.std([one[metric] for one in values], ddof=1)) if len(values) > 1 else None,
            "values": [one[metric] for one in values],
        }
        for metric in values[0]
    }


def markdown(table: dict[str, Any]) -> str:
    """The table as text, mean ± standard deviation."""
    columns = list(next(iter(table["variants"].values())))
    lines = [
        "| | " + " | ".join(metric_name(column) for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, entry in table["variants"].items():
        cells = [
            number(entry[column]["mean"])
            + ("" if entry[column]["spread"] is None else f" ± {number(entry[column]['spread'])}")
            for column in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    options = parser("Train the student without each of its parts, over several seeds.")
    options.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (%(default)s)")
    options.add_argument(
        "--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=f"of: {', '.join(ROWS)} (all)"
    )
    return options


def main() -> None:
    options = arguments().parse_args()
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds} is no number of seeds: give 1 or more")
    config, run = open_run(options)
    table = ablate(config, run, [config.seed + n for n in range(options.seeds)], options.rows)
    seeds = ", ".join(map(str, table["seeds"]))
    print(f"\n{table['rows']:,} {table['split']} rows, seeds {seeds}: mean ± standard deviation\n")
    print(markdown(table), flush=True)
    if run.stage("evaluate").exists(MANIFEST):
        print(f"report    {write_report(config, run)}", flush=True)


if __name__ == "__main__":
    cli(main)
