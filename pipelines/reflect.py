"""Stage reflect: fit the weights of reflection's synthesis on validation rows.

As many validation rows as `evaluate` takes of the test split are decided as they will be served, and those
in doubt among them decided again as the reflection agent has it. Writes synthesis.json, which `publish` puts
into the bundle, and report.json: decisions before and after on these rows, cross-fitted over users.
`evaluate` judges the weights on rows that they have not seen.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.assemble import assemble
from pipelines.common import stage_main
from pipelines.contexts import ContextSource
from pipelines.mix import yes_no_rows
from pipelines.rivals import load_vectors
from pipelines.served import Served
from ray_app.agents.interface import Dossier, SecondLook
from ray_app.agents.reasoning import ReasoningAgent
from ray_app.agents.reflection import ReflectionAgent
from ray_app.agents.synthesis import NEUTRAL, features, learn
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.bundle import SYNTHESIS, Bundle
from ray_app.config import Config
from ray_app.evaluation.metrics import finite
from ray_app.records import Context, Verdict
from ray_app.student.experts import Choice

VALID = "valid"
REPORT = "report.json"
LIMIT = 4000
"""Doubted rows of a split that are decided again; a seeded sample of them where there are more."""
TOGETHER = 64
"""Rows that are decided again at the same time."""


def spec(config: Config, run: Run) -> StageSpec:
    serve = config.serve
    return StageSpec(
        name="reflect",
        body=lambda folder: reflect_stage(config, run, folder),
        keys={
            "engine": config.evaluate.engine.model_dump(),
            "gate": serve.gate.model_dump(),
            "confidence": serve.confidence,
            "rounds": serve.reflection_rounds,
            "reasoning_tokens": serve.reasoning_tokens if config.prompt.reason_first else None,
            "rows": config.evaluate.rows,
            "bootstrap": config.evaluate.bootstrap,
            "seed": config.seed,
        },
        reads=["prepare", "swing", "encode", "mix", "train"],
    )


def reflect_stage(config: Config, run: Run, folder: Folder) -> dict[str, Any]:
    source = ContextSource(config, run)
    rows = source.whole_users(VALID, config.evaluate.rows, config.seed)
    table = yes_no_rows(config, run, rows)
    contexts = [Context.model_validate_json(text) for text in table["context"].to_pylist()]
    vectors = {name: np.asarray(value[rows]) for name, value in load_vectors(run).items()}
    local = folder.local() / "bundle"
    assemble(config, run, local, VALID, VALID)
    served = Served(config, Bundle.open(local))
    try:
        print(f"reflect: the student scores {len(rows):,} {VALID} rows", flush=True)
        found = doubted(config, served, contexts, vectors, *served.score(contexts, vectors))
    finally:
        served.engine.close()
    labels, users = (of[rows[found.places]] for of in (source.labels, source.users))
    weights, report = learn(
        found.features, labels.astype(np.float64), users, config.evaluate.bootstrap, config.seed
    )
    folder.write_json(SYNTHESIS, weights.as_dict())
    folder.write_json(REPORT, finite(report | {"triggers": found.triggers, "neutral": weights == NEUTRAL}))
    return {"rows": len(rows), **summary(report), "neutral": weights == NEUTRAL}


@dataclass(frozen=True)
class Doubted:
    """Rows whose decision gives cause for doubt, decided again."""

    places: np.ndarray
    """int [n], where they are among the rows that were scored."""
    features: np.ndarray
    """float64 [n, 8], see `agents.synthesis`."""
    triggers: dict[str, int]
    """How many of them each cause applies to."""


def doubted(
    config: Config,
    served: Served,
    contexts: list[Context],
    vectors: dict[str, np.ndarray],
    logits: np.ndarray,
    p_yes: np.ndarray,
    choices: list[Choice],
) -> Doubted:
    """At most LIMIT of the rows in doubt, with their second looks. No reasons were written about them, so
    none is doubted for what its reasons say."""
    dossier = Dossier(contexts, vectors)
    verdicts = [
        Verdict(p_yes=float(p), logit=float(z), expert=choice.name, gate=choice.gate)
        for p, z, choice in zip(p_yes, logits, choices, strict=True)
    ]
    causes = asyncio.run(ReflectionAgent(config.serve).triggers(dossier, verdicts, False))
    places = np.flatnonzero([bool(found) for found in causes])
    rng = np.random.default_rng(config.seed)
    places = np.sort(rng.choice(places, min(LIMIT, len(places)), replace=False))
    print(f"reflect: {len(places):,} rows in doubt are decided again", flush=True)
    agent = ReasoningAgent(served.bundle, served.engine)
    looks = served.engine.run(_looks(agent, dossier, places.tolist(), config.serve.reflection_rounds))
    made = [features(float(p_yes[at]), found) for at, found in zip(places, looks, strict=True)]
    return Doubted(
        places,
        np.array(made, np.float64).reshape(len(places), len(NEUTRAL.array())),
        dict(Counter(name for at in places for name in causes[at])),
    )


async def _looks(
    agent: ReasoningAgent, dossier: Dossier, places: list[int], rounds: int
) -> list[list[SecondLook]]:
    """All rounds of second looks of each row, each row with the gate's choice for its own user."""
    found: list[list[SecondLook]] = []
    for start in range(0, len(places), TOGETHER):
        part = places[start : start + TOGETHER]
        by_round = [
            await asyncio.gather(*(agent.reconsider(dossier.take([at]), round) for at in part))
            for round in range(1, rounds + 1)
        ]
        found += [[one[at][0] for one in by_round] for at in range(len(part))]
    return found


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The counts of a manifest, from what `agents.synthesis.compared` says."""
    rounded = {
        f"{name}_{when}": None if report[when][name] is None else round(report[when][name], 4)
        for name in ("auc", "accuracy")
        for when in ("before", "after")
    }
    return {"doubted": report["rows"], **rounded, "turned": report["turned"], "better": report["better"]}


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
