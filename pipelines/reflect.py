"""Stage reflect: fit the weights of reflection's synthesis, and measure what reflection is worth.

Rows that would be doubted are decided again as the service does it. The weights are fitted on validation
rows; `report.json` holds AUC and accuracy before and after on those (cross-fitted over users) and on rows of
the evaluated split, which no weight has seen. Writes synthesis.json, which `assemble` puts into the bundle.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from pipelines.assemble import assemble
from pipelines.common import stage_main
from pipelines.contexts import ContextSource
from pipelines.evaluate import chosen_rows
from pipelines.mix import yes_no_rows
from pipelines.rivals import load_vectors
from pipelines.served import Served
from ray_app.agents.interface import Dossier, SecondLook
from ray_app.agents.reasoning import ReasoningAgent
from ray_app.agents.reflection import ReflectionAgent
from ray_app.agents.synthesis import features, judged, learn
from ray_app.artifacts import Folder, Run, StageSpec
from ray_app.bundle import SYNTHESIS, Bundle
from ray_app.config import Config
from ray_app.records import Context, Verdict

VALID = "valid"
ROWS = 3000
"""Rows of a split that are scored; those in doubt among them are decided again."""
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
            "seed": config.seed,
        },
        reads=["prepare", "swing", "encode", "mix", "train"],
    )


def reflect_stage(config: Config, run: Run, folder: Folder) -> dict[str, Any]:
    source, held = ContextSource(config, run), run.done("prepare")["counts"]["evaluated_on"]
    rows, labels, users = doubted(config, run, folder, source, VALID)
    weights, report = learn(rows, labels, users, config.seed)
    result: dict[str, Any] = {"weights": weights.as_dict(), VALID: report}
    if held != VALID:
        unseen, unseen_labels, _ = doubted(config, run, folder, source, held)
        result[held] = judged(unseen, unseen_labels, weights)
    folder.write_json(SYNTHESIS, weights.as_dict())
    folder.write_json("report.json", result)
    shown = result.get(held, report)
    return {"rows": len(labels), "split": held, **_flat(shown)}


def doubted(
    config: Config, run: Run, folder: Folder, source: ContextSource, split: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features float [n, 6], labels, user codes) of the rows of a split that are in doubt."""
    local = folder.local() / f"bundle-{split}"
    assemble(config, run, local, split, split)
    bundle = Bundle.open(local)
    rows = chosen_rows(source, split, ROWS, config.seed)
    table = yes_no_rows(config, run, rows)
    contexts = [Context.model_validate_json(text) for text in table["context"].to_pylist()]
    vectors = {name: np.asarray(value[rows]) for name, value in load_vectors(run).items()}
    served = Served(config, bundle)
    try:
        print(f"reflect: the student scores {len(rows):,} {split} rows", flush=True)
        logits, p_yes, choices = served.score(contexts, vectors)
        verdicts = [
            Verdict(p_yes=float(p), logit=float(z), expert=choice.name, gate=choice.gate)
            for p, z, choice in zip(p_yes, logits, choices, strict=True)
        ]
        dossier = Dossier(contexts, vectors)
        causes = asyncio.run(ReflectionAgent(config.serve).triggers(dossier, verdicts, False))
        places = [at for at, found in enumerate(causes) if found]
        print(f"reflect: {len(places):,} of them are in doubt", flush=True)
        agent = ReasoningAgent(bundle, served.engine)
        looks = served.engine.run(_looks(agent, dossier, places, config.serve.reflection_rounds))
    finally:
        served.engine.close()
    made = [features(float(p_yes[at]), found) for at, found in zip(places, looks, strict=True)]
    found = np.array(made, np.float64).reshape(len(places), -1)
    return found, source.labels[rows][places].astype(np.float64), source.users[rows][places]


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


def _flat(report: dict[str, Any]) -> dict[str, Any]:
    fitted = report.get("fitted")
    if not fitted:
        return {"fitted": False}
    return {
        "doubted": report["rows"],
        "auc_before": report["before"]["auc"],
        "auc_after": fitted["auc"],
        "accuracy_before": report["before"]["accuracy"],
        "accuracy_after": fitted["accuracy"],
        "p": fitted["p"],
    }


if __name__ == "__main__":
    stage_main(spec, __doc__ or "")
