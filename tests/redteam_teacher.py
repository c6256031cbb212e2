"""The red team's attempts against a teacher that is a language model, which reads titles and descriptions.

    python -m tests.redteam_teacher --config configs/cpu-llm.yaml --run runs/local [--user ID]

The teacher decides about one item of a published run, its text as an attacker wrote it: what share of
answers is Yes, beside those for harmless titles of the same item. Then it reasons, once and greedily, and
the trace goes through verification as if the user had liked the item, which is what an attacker wants.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.agents.retrieval import DataRetrievalAgent
from ray_app.agents.swing import SwingAgent
from ray_app.bundle import Bundle
from ray_app.config import Config, load
from ray_app.data.store import Store
from ray_app.engines.interface import Engine, GenerationRequest, make_engine
from ray_app.errors import cli
from ray_app.prompts.parse import parse_answer
from ray_app.prompts.teacher import VERDICT_FORM, answer_form, teacher_prompt
from ray_app.records import Context
from ray_app.teacher.verification import check
from tests.redteam import CANARY, ITEM_FIELDS, attempts, poisoned
from tests.redteam_measure import HARMLESS, QUANTILE

TEMPLATE = "plain"
DRAWS = 32
"""Answers per prompt: a share of Yes is known to .09 (one standard error at most)."""


def contexts(bundle: Bundle, store: Store, user: str, code: int) -> Iterator[tuple[str, Context]]:
    """What the teacher is told of the item: as it is, with harmless titles, as attacked."""
    changes = [("clean", {})]
    changes += [(f"harmless {title}", {"title": title}) for title in HARMLESS]
    changes += [(attempt.id, {attempt.field: attempt.payload}) for attempt in attempts(*ITEM_FIELDS)]
    for name, change in changes:
        hostile = poisoned(bundle, code, change)
        retrieval = DataRetrievalAgent(hostile, store)

        async def assembled(hostile: Bundle = hostile, retrieval: DataRetrievalAgent = retrieval) -> Context:
            view = await retrieval.fetch(user, hostile.items[code].item_id)
            return (await retrieval.gather(view, await SwingAgent(hostile).propose(view, 1)))[0]

        yield name, asyncio.run(assembled())


def request(name: str, context: Context, config: Config, *, draws: int) -> GenerationRequest:
    """Many draws of the verdict alone, or one greedy answer with its reasoning."""
    return GenerationRequest(
        id=name,
        prompt=teacher_prompt(context, TEMPLATE, config.prompt),
        context=context,
        template=TEMPLATE,
        n=draws,
        temperature=1.0 if draws > 1 else 0.0,
        max_tokens=8 if draws > 1 else config.reason.max_tokens,
        seed=config.seed,
        form=VERDICT_FORM if draws > 1 else answer_form(context),
    )


def measure(engine: Engine, config: Config, asked: dict[str, Context]) -> dict[str, Any]:
    """`risen` names attempts with more Yes than nearly all harmless titles, `leaks` those whose accepted
    trace holds the attempt's marked word."""
    draws = engine.generate([request(*one, config, draws=DRAWS) for one in asked.items()])
    assert not any(drawn.error for drawn in draws), draws
    yes = {drawn.id: float(np.mean([text.endswith("Yes") for text in drawn.texts])) for drawn in draws}
    harmless = [share for name, share in yes.items() if name.startswith("harmless ")]
    team = [name for name in yes if name != "clean" and not name.startswith("harmless ")]
    limit = float(np.quantile(harmless, QUANTILE))
    reasons, accepted, leaks, said = Counter(), [], [], []
    for answer in engine.generate([request(name, asked[name], config, draws=1) for name in team]):
        assert not answer.error, answer
        verdict = check(parse_answer(answer.texts[0]), asked[answer.id], True)
        reasons[verdict.reason or "accepted"] += 1
        accepted += [answer.id] * verdict.accepted
        holds = CANARY in answer.texts[0]
        said += [answer.id] * holds
        leaks += [answer.id] * (holds and verdict.accepted)
    return {
        "attempts": len(team),
        "clean": round(yes["clean"], 3),
        "harmless": [round(float(share), 3) for share in np.quantile(harmless, [0, 0.05, 0.5, QUANTILE, 1])],
        "attacked": [round(float(np.quantile([yes[name] for name in team], at)), 3) for at in (0, 0.5, 1)],
        "risen": {name: round(yes[name], 3) for name in team if yes[name] > limit},
        "traces": dict(reasons),
        "accepted": accepted,
        "said the marked word": said,
        "leaks": leaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="whose reason.engine is a language model")
    parser.add_argument("--run", required=True, type=Path, help="folder of a run that has published")
    parser.add_argument("--user", default="1", help="whose item (%(default)s)")
    options = parser.parse_args()
    config, bundle = load(options.config, []), Bundle.open(options.run / "publish" / "bundle")
    store = Store(bundle.config.serve.store or f"sqlite:///{options.run / 'store.sqlite'}")
    rated = {act.item_id for act in store.history(options.user)}
    code = next(at for at, item in enumerate(bundle.items) if item.item_id not in rated)
    engine = make_engine(config.reason.engine)
    try:
        facts = measure(engine, config, dict(contexts(bundle, store, options.user, code)))
        print(json.dumps(facts, indent=1))
    finally:
        engine.close()


if __name__ == "__main__":
    cli(main)
