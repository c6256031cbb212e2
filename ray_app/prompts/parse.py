"""Reading answers strictly: a verdict counts only where it is stated in the agreed form."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ray_app.prompts.cards import CARD, CITATION, hide
from ray_app.records import Step

_ANSWER = re.compile(r"^\s*Answer:\s*(Yes|No)\s*\.?\s*$", re.MULTILINE)
_REASONING = re.compile(r"^\s*Reasoning:\s*", re.MULTILINE)
_STEP = re.compile(r"^\s*(?:\d+[.)]|[-*])\s+")


@dataclass(frozen=True)
class Parsed:
    """A teacher's answer: the stated verdict (None if absent or stated twice with different values)."""

    verdict: bool | None
    steps: list[Step]
    problem: str = ""


def to_step(text: str) -> Step:
    """A Step with its citations in order of appearance, each once."""
    return Step(text=text, citations=list(dict.fromkeys(CITATION.findall(text))))


def parse_answer(text: str) -> Parsed:
    """Parse a line `Answer: Yes|No` and a section `Reasoning:` with one step per line.

    The answer may stand before or after the reasoning. "No" inside another word or sentence is not an
    answer. Without a verdict, with two different ones, or without a step, `problem` says so.
    """
    verdicts = {match.group(1) for match in _ANSWER.finditer(text)}
    body = _ANSWER.sub("", text)
    parts = _REASONING.split(body, maxsplit=1)
    lines = [_STEP.sub("", line).strip() for line in parts[-1].splitlines()] if len(parts) == 2 else []
    steps = [to_step(line) for line in lines if line]
    if len(verdicts) != 1:
        return Parsed(None, steps, "no verdict" if not verdicts else "two verdicts")
    if not steps:
        return Parsed(verdicts == {"Yes"}, steps, "no reasoning")
    return Parsed(verdicts == {"Yes"}, steps)


@dataclass(frozen=True)
class Written:
    """A student's reasoning: (card body, step without its card) pairs and the answer on the last card.

    The sentence behind `( Yes )` or `( No )` is a step too, as it is in a trace.
    """

    steps: list[tuple[str, Step]]
    conclusion: bool | None


def before_conclusion(text: str) -> str | None:
    """The student's text up to where its conclusion is next to be said; None if it came to none."""
    cards = [match for match in CARD.finditer(text) if match.group("body") in ("Yes", "No")]
    return text[: cards[-1].start() + 1] if cards else None


def parse_reasoning(text: str) -> Written:
    """Split the student's reasoning at its cards; text before the first card is a step without card."""
    steps: list[tuple[str, Step]] = []
    conclusion: bool | None = None
    matches = list(CARD.finditer(text))
    lead = text[: matches[0].start()] if matches else text
    if lead.strip():
        steps.append(("", to_step(lead.strip())))
    for match, following in zip(matches, [*matches[1:], None], strict=False):
        card = match.group("body").strip()
        sentence = hide(text[match.end() : following.start() if following else len(text)])
        if card in ("Yes", "No"):
            conclusion = card == "Yes"
        if sentence:
            steps.append((card, to_step(sentence)))
    return Written(steps, conclusion)
