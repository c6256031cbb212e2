"""Judges of reasoning: does it agree with the decision, does it say what matters, is it true?

They read steps by rule (`statements.py`) against the evidence in the context. Fluency is not judged
here: a text can be fluent, agree with its verdict and still be false.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ray_app.evaluation.statements import Statement, is_conclusion, mark_quotes, read, signs
from ray_app.records import Context, Step

_NUMBERED = re.compile(r"^\s*(\d+)[.)]\s")


def coherence(steps: Sequence[Step], verdict: bool | None, decision: bool) -> dict[str, float]:
    """Three parts, each 1 or 0, so that a mean over explanations is a share.

    verdict_agreement: the answer parsed from the reasoning (None if there is none) is the decision.
    internal_consistency: no evidence or title is said to be both liked and disliked.
    order: there are steps, none is empty, numbers (if any) count up from 1, and only the last concludes.
    """
    claimed: dict[str, set[int]] = {}
    for text in mark_quotes(list(steps)):
        for factor, found in signs(text).items():
            claimed.setdefault(factor, set()).update(found)
    return {
        "verdict_agreement": float(verdict is not None and verdict == decision),
        "internal_consistency": float(all(len(found) == 1 for found in claimed.values())),
        "order": float(_ordered(steps)),
    }


def coverage(context: Context, steps: Sequence[Step], vocabulary: frozenset[str]) -> tuple[float, float]:
    """(recall, precision) of what an explanation addresses.

    Recall: share of the factors in the evidence that some true statement addresses. Factors are the
    features of liked and of disliked history (named with such an item cited), the target's features
    (named as the target's, or as shared with it) and the neighbours' items (cited). 1 without factors.
    Precision: share of statements, the conclusion apart, that make a checkable claim and no false one;
    0 without statements.
    """
    statements = [read(step, context, vocabulary) for step in steps]
    factors = _factors(context)
    addressed = {factor for statement in statements for factor in _addressed(statement, context)}
    recall = len(factors & addressed) / len(factors) if factors else 1.0
    reasons = [statement for statement in statements if not (statement.conclusion and not statement.cited)]
    precision = sum(statement.supported for statement in reasons) / len(reasons) if reasons else 0.0
    return recall, precision


@dataclass(frozen=True)
class Groundedness:
    """How many statements the evidence does not contradict."""

    statements: int
    grounded: int
    problems: tuple[tuple[int, str], ...]
    """(step number from 0, what is false)."""
    kinds: dict[str, tuple[int, int]]
    """Kind of the first evidence cited -> (grounded, statements); those that cite nothing are left out."""

    @property
    def share(self) -> float:
        """Grounded statements over statements; 0 without statements."""
        return self.grounded / self.statements if self.statements else 0.0


def groundedness(context: Context, steps: Sequence[Step], vocabulary: frozenset[str]) -> Groundedness:
    """Check every claim: cited ids exist; quoted titles, numbers and feature words are in the cited
    evidence (or the target's, where the target is meant); liked and disliked agree with the evidence.

    A conclusion that claims nothing else is no statement here, so it cannot raise the share.
    """
    read_steps = [read(step, context, vocabulary) for step in steps]
    counted = [
        (number, statement)
        for number, statement in enumerate(read_steps)
        if not (statement.conclusion and not statement.cited and not statement.problems)
    ]
    problems = tuple((number, problem) for number, statement in counted for problem in statement.problems)
    grounded = sum(not statement.problems for _, statement in counted)
    kinds: dict[str, tuple[int, int]] = {}
    for _, statement in counted:
        if statement.cited:
            true, made = kinds.get(statement.cited[0].kind, (0, 0))
            kinds[statement.cited[0].kind] = (true + (not statement.problems), made + 1)
    return Groundedness(len(counted), grounded, problems, kinds)


def _factors(context: Context) -> set[tuple[str, str]]:
    factors = {("target", name) for name in context.target.features}
    for entry in context.evidence:
        if entry.kind == "history":
            taste = "liked" if entry.sign > 0 else "disliked"
            factors |= {(taste, name) for name in entry.features}
        elif entry.kind == "neighbour":
            factors.add(("neighbour", entry.id))
    return factors


def _addressed(statement: Statement, context: Context) -> set[tuple[str, str]]:
    if statement.problems:
        return set()
    found = set()
    for entry in statement.cited:
        if entry.kind == "history":
            taste = "liked" if entry.sign > 0 else "disliked"
            found |= {(taste, name) for name in statement.features & set(entry.features)}
        elif entry.kind == "neighbour":
            found.add(("neighbour", entry.id))
    if statement.about_target or not statement.cited:
        found |= {("target", name) for name in statement.features & set(context.target.features)}
    return found


def _ordered(steps: Sequence[Step]) -> bool:
    if not steps or any(not step.text.strip() for step in steps):
        return False
    numbers = [int(match.group(1)) for step in steps if (match := _NUMBERED.match(step.text))]
    if numbers and numbers != list(range(1, len(steps) + 1)):
        return False
    return not any(is_conclusion(step.text) for step in steps[:-1])
