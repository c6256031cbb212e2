"""The reflection agent: four causes for doubt, four stages with their questions, one synthesis.

Triggers, each computed:

    low_confidence  max(p, 1 - p) < serve.confidence
    conflict        similar users and the user's own taste in such items point opposite ways, both clearly
    high_stakes     the request says so
    inconsistent    the reasons do not lead to the decision

The synthesis weighs the decision and its second looks in log odds (`agents.synthesis`).

Every number in an answer to a question is computed from the decision, its evidence and the second looks.
"""

from __future__ import annotations

from ray_app.agents.interface import Dossier, Review, SecondLook
from ray_app.agents.synthesis import DEFAULT, Weights, synthesis
from ray_app.collab.evidence import RECENCY
from ray_app.config import ServeConfig
from ray_app.prompts.teacher import QUESTIONS
from ray_app.records import Context, Evidence, Reflection, Step, Verdict
from ray_app.teacher.verification import conclusion

ASSUMPTIONS, SEGMENT_VIEW, MISSING, OPPOSITE = QUESTIONS
STRONG = 0.5
"""A signal of -1 to 1 is clear from here on: three quarters of its weight point one way."""
THIN = 5
"""Fewer ratings than this say little."""
NAMED = 4
"""Evidence ids listed in one answer to a question."""
NEVER = 1e-6


class ReflectionAgent:
    """Pure arithmetic; second looks come from the reasoning agent, by way of the orchestrator."""

    def __init__(self, config: ServeConfig, weights: Weights = DEFAULT):
        self._config, self._weights = config, weights

    async def triggers(self, dossier: Dossier, verdicts: list[Verdict], high_stakes: bool) -> list[list[str]]:
        """Causes for doubt of each decision; empty lists where there is none."""
        return [
            self._causes(context, verdict, high_stakes)
            for context, verdict in zip(dossier.contexts, verdicts, strict=True)
        ]

    async def synthesise(
        self,
        dossier: Dossier,
        verdicts: list[Verdict],
        triggers: list[list[str]],
        looks: list[list[SecondLook]],
    ) -> list[Review]:
        """The refined decisions, each with the account of its doubts; untouched where nothing triggered.

        looks: per item the second looks of all rounds; none where there was no time, and then the doubts
        are told and the decision stays.
        """
        everything = zip(dossier.contexts, verdicts, triggers, looks, strict=True)
        return [
            _review(context, verdict, causes, rounds, self._weights) if causes else Review(verdict, None)
            for context, verdict, causes, rounds in everything
        ]

    def _causes(self, context: Context, verdict: Verdict, high_stakes: bool) -> list[str]:
        found = {
            "low_confidence": verdict.confidence < self._config.confidence,
            "conflict": conflicting(context),
            "high_stakes": high_stakes,
            "inconsistent": inconsistent(context, verdict.reasoning, verdict.p_yes >= 0.5),
        }
        return [name for name, holds in found.items() if holds]


def is_collaborative(entry: Evidence) -> bool:
    """Others' opinions, and history that is near only because the same people rate both."""
    if entry.kind == "history":
        return not entry.shared and entry.weight > RECENCY
    return entry.kind in ("neighbour", "peers")


def is_content(entry: Evidence) -> bool:
    """The user's own ratings of items that share features with the target."""
    return entry.kind == "history" and bool(entry.shared)


def signal(entries: list[Evidence]) -> float:
    """Where evidence points, -1 to 1: the weighted mean of its signs; 0 without evidence."""
    weight = sum(entry.weight for entry in entries)
    return sum(entry.sign * entry.weight for entry in entries) / weight if weight > 0 else 0.0


def conflicting(context: Context) -> bool:
    """Whether collaborative and content signals are both clear and opposite."""
    collaborative = signal([entry for entry in context.evidence if is_collaborative(entry)])
    content = signal([entry for entry in context.evidence if is_content(entry)])
    return collaborative * content < 0 and min(abs(collaborative), abs(content)) >= STRONG


def inconsistent(context: Context, reasoning: list[Step], answer: bool) -> bool:
    """Whether the reasons conclude the opposite, or nothing that they cite speaks for the decision."""
    if not reasoning:
        return False
    concluded = conclusion(reasoning)
    cited = [context.cited(name) for step in reasoning for name in step.citations]
    signs = {entry.sign for entry in cited if entry is not None}
    return (concluded is not None and concluded != answer) or (1 if answer else -1) not in signs


def _review(
    context: Context, verdict: Verdict, causes: list[str], looks: list[SecondLook], weights: Weights
) -> Review:
    after = synthesis(verdict.p_yes, looks, weights)
    reflection = Reflection(
        triggers=causes,
        questions={
            ASSUMPTIONS: _assumptions(context, verdict, looks),
            SEGMENT_VIEW: _segment_view(verdict, looks),
            MISSING: _missing(context, verdict, looks),
            OPPOSITE: _opposite(context, verdict),
        },
        before=verdict.p_yes,
        after=after,
        rounds=len(looks),
    )
    return Review(verdict.model_copy(update={"p_yes": after}), reflection)


def _assumptions(context: Context, verdict: Verdict, looks: list[SecondLook]) -> str:
    """Stage 1, assessment review: what the decision hangs on."""
    without = {name: p for look in looks for name, p in look.without.items()}
    thin = [
        entry
        for name in dict.fromkeys(name for step in verdict.reasoning for name in step.citations)
        if (entry := context.cited(name)) is not None and entry.kind != "history" and entry.support < THIN
    ]
    parts = [f"Without {_named(name)} P(yes) {_moved(verdict.p_yes, p)}." for name, p in without.items()]
    if not without:
        parts = ["It was not decided again without a part of the evidence."]
    if any((p >= 0.5) != (verdict.p_yes >= 0.5) for p in without.values()):
        parts.append("So the decision hangs on that part.")
    reasoned = [look.reasoned for look in looks if look.reasoned is not None]
    parts += [f"Reasoned out before it is answered P(yes) {_moved(verdict.p_yes, p)}." for p in reasoned[:1]]
    if thin:
        parts.append(f"Few ratings stand behind {_listed(thin)}.")
    return " ".join(parts)


def _segment_view(verdict: Verdict, looks: list[SecondLook]) -> str:
    """Stage 3, alternative hypothesis: the same evidence as other users' expert reads it."""
    seen = {name: p for look in looks for name, p in look.segments.items()}
    if not seen:
        return "No other segment's expert was asked."
    return " ".join(
        f"Seen as {name} does{_share(verdict, name)} P(yes) {_moved(verdict.p_yes, p)}."
        for name, p in seen.items()
    )


def _missing(context: Context, verdict: Verdict, looks: list[SecondLook]) -> str:
    """Stage 2, evidence re-examination: other weights, what the reasons pass over, what nobody knows."""
    used = {name for step in verdict.reasoning for name in step.citations}
    unused = _strongest([entry for entry in context.evidence if entry.id not in used])
    reweighed = [look.reweighed for look in looks if look.reweighed is not None]
    parts = [f"Weighed by boosted trees P(yes) {_moved(verdict.p_yes, p)}." for p in reweighed[:1]]
    if unused:
        parts.append(f"The reasons pass over {_listed(unused)}.")
    if context.history_count < THIN:
        parts.append(f"Only {context.history_count} ratings of this user are known.")
    if not any(entry.kind == "peers" for entry in context.evidence):
        parts.append("Hardly any similar user has rated this item.")
    crowd = next((entry for entry in context.evidence if entry.kind == "crowd"), None)
    if crowd is None or crowd.support < THIN:
        parts.append(f"It has {crowd.support if crowd else 0} earlier ratings in all.")
    return " ".join(parts) or "The reasons use all of the evidence."


def _opposite(context: Context, verdict: Verdict) -> str:
    """Stage 3, alternative hypothesis: the case for the other answer."""
    sign = 1 if verdict.p_yes >= 0.5 else -1
    counter = _strongest([entry for entry in context.evidence if entry.sign != sign])
    if not counter:
        return "Nothing in the evidence speaks for the opposite."
    share = sum(entry.weight for entry in counter) / max(sum(e.weight for e in context.evidence), NEVER)
    verb = "speak" if len(counter) > 1 else "speaks"
    return f"{_listed(counter)} {verb} for the opposite, with {share:.0%} of the evidence's weight."


def _strongest(entries: list[Evidence]) -> list[Evidence]:
    return sorted(entries, key=lambda entry: -entry.weight)


def _listed(entries: list[Evidence]) -> str:
    """The first few by id, and how many more there are."""
    more = len(entries) - NAMED
    names = ", ".join(f"[{entry.id}]" for entry in entries[:NAMED])
    return f"{names} and {more} more" if more > 0 else names


def _moved(before: float, after: float) -> str:
    if f"{before:.2f}" == f"{after:.2f}":
        return f"stays {before:.2f}"
    return f"{'rises' if after > before else 'falls'} from {before:.2f} to {after:.2f}"


def _named(sections: str) -> str:
    words = {"history": "the history", "similar": "similar users' items", "pool": "the other candidates"}
    return " and ".join(words[name] for name in sections.split(" and "))


def _share(verdict: Verdict, segment: str) -> str:
    weight = verdict.gate.get(segment)
    return f" (gate weight {weight:.2f})" if weight is not None else ""
