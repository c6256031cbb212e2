"""The input schema as a teacher reads it: full sentences, titles and descriptions, six templates.

A template (`templates/<name>.jinja`) sets the order of the sections and the way to reason; the rules of
the answer's form and the sections themselves are shared. Templates are text, not HTML, so nothing is
escaped; instead every value that comes from data passes `quote` or `feature_token` here, before the
template sees it, and no template reads a record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ray_app.config import PromptConfig
from ray_app.prompts.cards import feature_token
from ray_app.prompts.student import quote
from ray_app.records import Context, Evidence, Item

TEMPLATES = ("plain", "balance", "history", "community", "features", "doubt")
QUESTIONS = (
    "What assumptions might be incorrect?",
    "How would a different user segment view this?",
    "What contextual factors are we missing?",
    "Why might the opposite recommendation be valid?",
)
"""The reflection prompts of the design."""
DESCRIPTION_CHARS = 240
PREVIOUS_CHARS = 1600


def teacher_prompt(context: Context, template: str, config: PromptConfig) -> str:
    """The blind prompt: everything known before the target was rated, and never what came of it."""
    return _environment().get_template(f"{template}.jinja").render(_view(context, config)).strip()


def reflection_prompt(context: Context, template: str, previous: str, config: PromptConfig) -> str:
    """The same prompt, followed by the earlier answer and the questions that doubt it."""
    view = _view(context, config) | {
        "template": f"{template}.jinja",
        "previous": _lines(previous),
        "questions": QUESTIONS,
    }
    return _environment().get_template("reflect.jinja").render(view).strip()


def hint_prompt(context: Context, template: str, outcome: bool, previous: str, config: PromptConfig) -> str:
    """The blind prompt, followed by the outcome: the only prompt that holds the label."""
    view = _view(context, config) | {
        "template": f"{template}.jinja",
        "previous": _lines(previous),
        "outcome": outcome,
    }
    return _environment().get_template("hint.jinja").render(view).strip()


def rederive_prompt(context: Context, reasons: Sequence[str], config: PromptConfig) -> str:
    """Asks for the answer that given reasons lead to; it holds neither the label nor a conclusion."""
    view = _view(context, config) | {"reasons": _lines("\n".join(reasons))}
    return _environment().get_template("rederive.jinja").render(view).strip()


def answer_form(context: Context, answers: Sequence[bool] = (True, False)) -> str:
    """Regular expression of an answer in the form that the rules ask for; the conclusion is the answer's.

    What a step says of the entry it cites is free, and may be wrong.
    """
    ids = "|".join(entry.id for entry in context.evidence) or "e1"
    step = rf"[A-Z][^\[\]\n\"]{{4,80}}\[({ids})\][^\[\]\n\"]{{0,120}}\n"
    steps = rf"1\. {step}2\. {step}(3\. {step})?"
    whole = (
        rf"Answer: {'Yes' if yes else 'No'}\nReasoning:\n{steps}"
        rf"4\. So the user would {'' if yes else 'not '}enjoy (it|the target)\."
        for yes in answers
    )
    return f"({'|'.join(whole)})"


VERDICT_FORM = r"Answer: (Yes|No)"


def _lines(text: str) -> list[str]:
    """An engine's own text as lines to quote; no control token of a chat format gets through."""
    lines = [line.strip() for line in text[:PREVIOUS_CHARS].splitlines() if line.strip()]
    return [re.sub(r"<\|.*?\|>", " ", line) for line in lines]


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _view(context: Context, config: PromptConfig) -> dict[str, Any]:
    """What templates see: lines of text, safe to print."""
    return {
        "target": _item(context.target, config),
        "description": quote(context.target.description, DESCRIPTION_CHARS),
        "history_count": context.history_count,
        "like_percent": round(100 * context.like_rate),
        "history": [_profile(entry, config) for entry in context.profile if entry.kind == "history"],
        "similar": [_profile(entry, config) for entry in context.profile if entry.kind == "neighbour"],
        "candidates": [_item(item, config) for item in context.candidates],
        "evidence": [_evidence(entry, config) for entry in context.evidence],
    }


def _title(item: Item | Evidence, config: PromptConfig) -> str:
    features = ", ".join(map(feature_token, item.features[: config.features]))
    return f'"{quote(item.title, config.title_chars)}"' + (f" ({features})" if features else "")


def _item(item: Item, config: PromptConfig) -> str:
    year = f", {item.year}" if item.year else ""
    keywords = ", ".join(quote(word, config.title_chars) for word in item.keywords[: config.features])
    return _title(item, config) + year + (f', keywords "{keywords}"' if keywords else "")


def _verb(entry: Evidence) -> str:
    return "liked" if entry.sign > 0 else "disliked"


def _profile(entry: Evidence, config: PromptConfig) -> str:
    return f"{_title(entry, config)}: {_verb(entry)}{_rating(entry)}"


def _rating(entry: Evidence) -> str:
    if entry.rating is None:
        return ""
    if entry.kind == "history":
        return f", rated {entry.rating:g} of 5"
    return f", average {entry.rating:.1f} of 5 from {entry.support} ratings"


def _evidence(entry: Evidence, config: PromptConfig) -> str:
    """One citable fact as a sentence."""
    if entry.kind == "crowd":
        share = "" if entry.rating is None else f" {100 * entry.rating:.0f} % positive of"
        ratings = f"{share} {entry.support} ratings"
        return f"[{entry.id}] All earlier raters of the target: {_verb(entry)} it,{ratings}"
    if entry.kind == "peers":
        return f"[{entry.id}] Similar users on the target itself: {_verb(entry)} it{_rating(entry)}"
    who = "The user" if entry.kind == "history" else "Similar users"
    shared = ", ".join(map(feature_token, entry.shared))
    relation = f"; shares {shared} with the target" if shared else "; shares no feature with the target"
    return f"[{entry.id}] {who} {_verb(entry)} {_title(entry, config)}{_rating(entry)}{relation}"
