"""Stage evaluate: the student as it will be served, measured on rows it has not seen, beside its rivals.

Writes metrics.json and samples.json; `pipelines.report` turns them into the page.

*Exposed*: whole users of the test split, each row scored from what was known just before it.
*Full catalogue*: at the moment the test split begins, rank all items a user has not rated; `student` ranks
the candidates as the service does, `student alone` by P(yes) only. The rivals are in `pipelines.rivals`.
*Reasons*: written for test rows as the service writes them, judged by programs against their evidence.
*Reflection*: test rows in doubt, decided again and put together by the weights of stage reflect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from pipelines.assemble import assemble
from pipelines.common import stage_main
from pipelines.contexts import ContextSource
from pipelines.mix import yes_no_rows
from pipelines.reasons import Judged, judge
from pipelines.reflect import REPORT, VALID, Doubted, doubted, summary
from pipelines.rivals import exposed_rivals, item_models, load_vectors
from pipelines.served import Served
from ray_app.agents.orchestrator import ranking
from ray_app.agents.swing import SwingAgent
from ray_app.agents.synthesis import NEUTRAL, judged
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.bundle import Bundle, synthesis_weights
from ray_app.collab.evidence import SIGNALS, History, Peers, find_peers
from ray_app.config import Config
from ray_app.evaluation.baselines import ItemModel, top
from ray_app.evaluation.calibration import calibration
from ray_app.evaluation.metrics import finite
from ray_app.evaluation.tables import catalogue_table, exposed_table
from ray_app.records import Context

STUDENT = "student"
PROBABILITIES = ("item rate", "logistic regression", "trees")
"""Rivals whose scores are probabilities, and so have a calibration error."""
SAMPLES = 20


def spec(config: Config, run: Run) -> StageSpec:
    return StageSpec(
        name="evaluate",
        body=lambda folder: evaluate_stage(config, run, folder),
        keys={
            "evaluate": config.evaluate.model_dump(),
            "gate": config.serve.gate.model_dump(),
            "confidence": config.serve.confidence,
            "rounds": config.serve.reflection_rounds,
            "reasoning_tokens": config.serve.reasoning_tokens,
            "seed": config.seed,
        },
        reads=["prepare", "swing", "encode", "reason", "mix", "train", "reflect"],
    )


def evaluate_stage(config: Config, run: Run, folder: Folder) -> dict[str, Any]:
    split = run.done("prepare")["counts"]["evaluated_on"]
    source = ContextSource(config, run)
    local = folder.local()
    assemble(config, run, local / "bundle", split, "evaluated", synthesis_weights(run.stage("reflect")))
    bundle = Bundle.open(local / "bundle")
    vectors = load_vectors(run)
    models, penalty = item_models(source, split)
    rows = source.whole_users(split, config.evaluate.rows, config.seed)
    table = yes_no_rows(config, run, rows)
    contexts = [Context.model_validate_json(text) for text in table["context"].to_pylist()]
    served = Served(config, bundle)
    own = {name: np.asarray(value[rows]) for name, value in vectors.items()}
    print(f"evaluate: the student scores {len(rows):,} {split} rows", flush=True)
    logits, p_yes, choices = served.score(contexts, own)
    labels = source.labels[rows]
    scores = exposed_rivals(source, vectors, models, rows, config.seed) | {STUDENT: logits}
    metrics: dict[str, Any] = {
        "champion": STUDENT,
        "exposed": exposed_table(
            source.users[rows],
            source.timestamps[rows],
            labels,
            scores,
            config.evaluate.k,
            config.evaluate.bootstrap,
            config.seed,
            STUDENT,
            {STUDENT: p_yes} | {name: scores[name] for name in PROBABILITIES},
        ),
        "calibration": calibration(labels, p_yes),
    }
    print("evaluate: full catalogue", flush=True)
    metrics["catalogue"] = full_catalogue(config, source, served, models, split)
    print("evaluate: reasons", flush=True)
    reasons = judge(config, served, rows, contexts, own, labels, p_yes, choices, SAMPLES)
    metrics["text"] = reasons.metrics
    metrics["reflection"] = run.stage("reflect").read_json(REPORT)
    if split != VALID:
        found = doubted(config, served, contexts, own, logits, p_yes, choices)
        metrics["reflection"] = reflected(config, bundle, found, labels, source.users[rows])
    served.engine.close()
    write(folder, metrics, reasons, rows, scores, labels, p_yes)
    exposed, catalogue = metrics["exposed"]["scorers"], metrics["catalogue"]["scorers"]
    best = f"ndcg@{max(config.evaluate.k)}"
    return {
        "rows": len(rows),
        "split": split,
        "auc": rounded(exposed[STUDENT]["auc"]["value"]),
        "auc_item_rate": rounded(exposed["item rate"]["auc"]["value"]),
        "auc_trees": rounded(exposed["trees"]["auc"]["value"]),
        "ece": rounded(metrics["calibration"]["ece"]),
        "ndcg_catalogue": rounded(catalogue[STUDENT][best]["value"]),
        "ndcg_catalogue_ease": rounded(catalogue["EASE"][best]["value"]),
        "ease_penalty": penalty,
        "groundedness": rounded(reasons.metrics["groundedness"]),
        **summary(metrics["reflection"]),
    }


def reflected(
    config: Config, bundle: Bundle, found: Doubted, labels: np.ndarray, users: np.ndarray
) -> dict[str, Any]:
    """What reflection is worth on these rows; `labels` and `users` are those of all scored ones."""
    report = judged(
        found.features,
        labels[found.places].astype(np.float64),
        users[found.places],
        bundle.synthesis,
        config.evaluate.bootstrap,
        config.seed,
    )
    return report | {"triggers": found.triggers, "neutral": bundle.synthesis == NEUTRAL}


def rounded(value: float) -> float | None:
    """Four decimals; None where the metric is undefined, such as the AUC of rows with one label."""
    return round(value, 4) if np.isfinite(value) else None


def write(
    folder: Folder,
    metrics: dict[str, Any],
    reasons: Judged,
    rows: np.ndarray,
    scores: dict[str, np.ndarray],
    labels: np.ndarray,
    p_yes: np.ndarray,
) -> None:
    folder.write_json("metrics.json", finite(metrics))
    folder.write_json("samples.json", finite(reasons.samples))
    columns = {f"score_{name.replace(' ', '_')}": np.asarray(value) for name, value in scores.items()}
    frame = pl.DataFrame({"row_id": rows, "label": labels, "p_yes": p_yes, **columns})
    with folder.replacing("scores.parquet") as local:
        frame.write_parquet(local)


def full_catalogue(
    config: Config, source: ContextSource, served: Served, models: dict[str, ItemModel], split: str
) -> dict[str, Any]:
    """Users with a history before the split and a liked item in it, seeded, up to `catalogue_users`."""
    bundle, settings = served.bundle, config.evaluate
    now = int(source.timestamps[source.splits == split].min())
    held = np.flatnonzero((source.splits == split) & (source.labels > 0))
    relevant: dict[int, set[int]] = {}
    for row in held:
        relevant.setdefault(int(source.users[row]), set()).add(int(source.targets[row]))
    known = np.flatnonzero(np.diff(bundle.histories.indptr) > 0)
    users = np.random.default_rng(config.seed).permutation(
        [user for user in sorted(relevant) if user in set(known.tolist())]
    )[: settings.catalogue_users]
    everything = np.arange(len(source.items), dtype=np.int32)
    statistics = bundle.statistics(everything)
    ranked: dict[str, list[np.ndarray]] = {}
    sets: list[set[int]] = []
    longest, agent = max(settings.k), SwingAgent(bundle)
    for user in users.tolist():
        history = bundle.history(source.user_ids[user], [])
        goal = relevant[user] - set(history.items.tolist())
        if not goal:
            continue
        sets.append(goal)
        peers = find_peers(bundle.gatherer.index, history, now, user, SIGNALS)
        candidates, interest = agent.candidates(history, peers, settings.catalogue_candidates)
        p_yes = decide(source, served, user, history, candidates, now, peers)
        unseen = np.setdiff1d(everything, history.items)
        draw = np.random.default_rng([config.seed, user]).permutation(unseen)
        lists = {
            "random": draw,
            "popularity": unseen[np.argsort(-statistics[unseen, 0], kind="stable")],
            "item rate": unseen[np.argsort(-statistics[unseen, 1], kind="stable")],
            "trend": top(agent.trend, history.items, longest),
            **{
                name: top(model.scores(history.items[history.labels > 0]), history.items, longest)
                for name, model in models.items()
            },
            "Swing": candidates,
            "student alone": candidates[np.argsort(-p_yes, kind="stable")],
            STUDENT: candidates[ranking(interest, p_yes)],
        }
        for name, items in lists.items():
            ranked.setdefault(name, []).append(np.asarray(items[:longest]))
    table = catalogue_table(ranked, sets, settings.k, settings.bootstrap, config.seed, STUDENT)
    table["counts"]["users"] = len(sets)
    return table


def decide(
    source: ContextSource,
    served: Served,
    user: int,
    history: History,
    candidates: np.ndarray,
    now: int,
    peers: Peers,
) -> np.ndarray:
    """P(yes) of candidates, asked as the service asks."""
    bundle = served.bundle
    contexts = bundle.gatherer.contexts(
        source.user_ids[user],
        history,
        now,
        candidates,
        bundle.statistics(candidates),
        bundle.like_rate(history),
        peers,
        candidates,
    )
    return served.score(contexts, bundle.vectors(history, candidates, now))[1]


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
