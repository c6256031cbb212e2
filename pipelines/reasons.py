"""The student's reasons on held-out rows, and what programs say of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.served import Served
from ray_app.config import Config, EngineConfig
from ray_app.engines.interface import GenerationRequest, make_engine
from ray_app.engines.student import Writing
from ray_app.evaluation import reasons, text
from ray_app.evaluation.bleurt import bleurt
from ray_app.prompts.cards import hide
from ray_app.prompts.grammar import reasoning_grammar
from ray_app.prompts.parse import Written, parse_answer, parse_reasoning
from ray_app.prompts.student import explain_prompt
from ray_app.records import Context, Step
from ray_app.student.experts import Choice
from ray_app.teacher.verification import conclusion

MIN_HISTORY = 3
TEMPLATE = "plain"


@dataclass(frozen=True)
class Judged:
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


def judge(
    config: Config,
    served: Served,
    rows: np.ndarray,
    contexts: list[Context],
    vectors: dict[str, np.ndarray],
    labels: np.ndarray,
    p_yes: np.ndarray,
    choices: list[Choice],
    samples: int,
) -> Judged:
    """Write and judge the reasons of seeded rows that have some history to lean on."""
    able = [at for at, context in enumerate(contexts) if context.history_count >= MIN_HISTORY]
    rng = np.random.default_rng(config.seed)
    places = sorted(rng.permutation(able)[: config.evaluate.explanations].tolist())
    decisions = [bool(p_yes[at] >= 0.5) for at in places]
    forced, free = (
        write(config, served, contexts, vectors, choices, places, decisions, grammar=grammar)
        for grammar in (True, False)
    )
    vocabulary = frozenset(served.bundle.catalogue.vocabulary)
    judged = [contexts[at] for at in places]
    parsed = [parse_reasoning(output) for output in forced]
    steps = [[step for _, step in one.steps] for one in parsed]
    told, raw = (
        facts(judged, texts, decisions, vocabulary) for texts in (parsed, map(parse_reasoning, free))
    )
    kinds, raw_kinds = told.pop("kinds"), raw["kinds"]
    metrics = {
        "explanations": len(places),
        **told,
        "groundedness_raw": raw["groundedness"],
        "groundedness_kinds": {
            kind: {"statements": kinds[kind][1], "forced": share(kinds, kind), "raw": share(raw_kinds, kind)}
            for kind in sorted(kinds)
        },
        **texts(config, judged, [hide(output) for output in forced], vocabulary),
    }
    shown = []
    for place in range(min(samples, len(places))):
        at = places[place]
        found = reasons.groundedness(contexts[at], steps[place], vocabulary)
        shown.append(
            {
                "user_id": contexts[at].user_id,
                "title": contexts[at].target.title,
                "decision": decisions[place],
                "p_yes": float(p_yes[at]),
                "label": bool(labels[at]),
                "steps": steps[place],
                "evidence": contexts[at].evidence,
                "problems": [f"step {number + 1}: {problem}" for number, problem in found.problems],
            }
        )
    return Judged(metrics, shown)


def write(
    config: Config,
    served: Served,
    contexts: list[Context],
    vectors: dict[str, np.ndarray],
    choices: list[Choice],
    places: list[int],
    decisions: list[bool],
    *,
    grammar: bool,
) -> list[str]:
    requests = [
        Writing(
            prompt=explain_prompt(contexts[at], decision, config.prompt),
            vectors={name: value[at] for name, value in vectors.items()},
            adapter=choices[at].lead,
            grammar=reasoning_grammar(contexts[at], decision) if grammar else "",
            max_tokens=config.serve.reasoning_tokens,
        )
        for at, decision in zip(places, decisions, strict=True)
    ]
    return served.engine.run(served.engine.write(requests))


def share(kinds: dict[str, tuple[int, int]], kind: str) -> float | None:
    true, made = kinds.get(kind, (0, 0))
    return true / made if made else None


def facts(
    contexts: list[Context], written: Iterable[Written], decisions: list[bool], vocabulary: frozenset[str]
) -> dict[str, Any]:
    """Coherence, coverage and groundedness, as means over explanations (groundedness over statements);
    `kinds`: kind of evidence -> (true, made) statements."""
    coherent, covered, grounded, statements = [], [], 0, 0
    kinds: dict[str, tuple[int, int]] = {}
    for context, one, decision in zip(contexts, written, decisions, strict=True):
        steps: list[Step] = [step for _, step in one.steps]
        # The card of the answer may be forced; what the sentences say of it is not.
        stated = conclusion(steps)
        verdict = one.conclusion if stated is None else stated
        coherent.append(reasons.coherence(steps, verdict, decision))
        covered.append(reasons.coverage(context, steps, vocabulary))
        found = reasons.groundedness(context, steps, vocabulary)
        grounded += found.grounded
        statements += found.statements
        for kind, (true, made) in found.kinds.items():
            before = kinds.get(kind, (0, 0))
            kinds[kind] = before[0] + true, before[1] + made
    recall, precision = np.mean(covered, axis=0)
    return {
        "coherence": {
            name: float(np.mean([one[name] for one in coherent]))
            for name in ("verdict_agreement", "internal_consistency", "order")
        },
        "coverage": {"recall": float(recall), "precision": float(precision)},
        "groundedness": grounded / max(statements, 1),
        "kinds": kinds,
    }


def texts(
    config: Config, contexts: list[Context], hypotheses: list[str], vocabulary: frozenset[str]
) -> dict[str, Any]:
    """Text metrics; references are what the evidence writer says of the same rows, blind."""
    engine = make_engine(EngineConfig(kind="evidence"))
    requests = [
        GenerationRequest(
            id=str(at),
            prompt="",
            context=context,
            template=TEMPLATE,
            n=1,
            temperature=0.0,
            max_tokens=config.reason.max_tokens,
            seed=at,
            round=0,
            hint=None,
        )
        for at, context in enumerate(contexts)
    ]
    answers = engine.generate(requests)
    pairs = [
        (" ".join(step.text for step in parse_answer(answer.texts[0]).steps), hypothesis)
        for answer, hypothesis in zip(answers, hypotheses, strict=True)
        if answer.texts
    ]
    references, own = [one for one, _ in pairs], [other for _, other in pairs]
    cache = Path(config.data.cache).expanduser()
    checkpoint = Path(config.evaluate.bleurt) if config.evaluate.bleurt else None
    named = [text.mentioned(one, vocabulary) for one in hypotheses]
    return {
        "meteor": text.meteor_lift(references, own, cache, config.seed),
        "bleurt": bleurt(references, own, checkpoint),
        "usr": text.usr(hypotheses),
        "fcr": text.fcr(named, vocabulary),
        "div": text.div(named),
        "distinct_1": text.distinct_n(hypotheses, 1),
        "distinct_2": text.distinct_n(hypotheses, 2),
    }
