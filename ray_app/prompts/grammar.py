"""What the student may write: cards only as the evidence has them, sentences that cite their card.

The choice of evidence and of the words is the model's; a card's facts are copied by force, so a sentence
cannot begin from a rating or a shared feature that is not there, and the only numbers it can hold are those
of its card's entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ray_app.prompts.cards import conclusion_card, evidence_card, own_features, shared_features, stars
from ray_app.records import Context, Evidence

_LETTER = r"[^()\[\]<>\n.…0-9]"
_WORDS = rf"({_LETTER}|\. [A-Z])"
"""Text without marks and numbers, in which a dot only stands between sentences."""


def reasoning_regex(context: Context, answer: bool) -> str:
    """A regular expression for steps on evidence, each entry at most once, and a conclusion.

    Follows the layout of `prompts.student.reasoning_target`. To rule out repetition by a pattern of
    modest size, entries come in the order of their ids, the user's own before those of others or after;
    without evidence only the conclusion is left.
    """
    own = [_step(entry, answer) for entry in context.evidence if entry.kind == "history"]
    others = [_step(entry, answer) for entry in context.evidence if entry.kind != "history"]
    orders = [*_some(own, others), *_some(others, own)]
    steps = f"({'|'.join(orders)})" if orders else ""
    return f"{steps} {_literal(conclusion_card(answer))}{_WORDS}+\\."


def in_order(entries: Iterable[Evidence], others_first: bool) -> list[Evidence]:
    """The entries in one of the two orders that the grammar accepts."""
    return sorted(entries, key=lambda entry: ((entry.kind == "history") == others_first, int(entry.id[1:])))


def _step(entry: Evidence, answer: bool) -> str:
    own = f"({_LETTER}|\\. [A-Z]| ({'|'.join(map(_literal, _numbers(entry)))}))"
    return f" {_literal(evidence_card(entry, answer))}{own}+\\[{entry.id}\\]{own}*\\."


def _numbers(entry: Evidence) -> list[str]:
    """What may be said in digits: rating or share, support, the scale, and features that hold a digit."""
    found = {str(entry.support), *(name for name in own_features(entry) + shared_features(entry))}
    if entry.rating is not None and entry.kind == "crowd":
        tenths, percent = round(10 * entry.rating), round(100 * entry.rating)
        found |= {"10", str(tenths), f"{percent}%", str(round(entry.rating * entry.support))}
    elif entry.rating is not None:
        found |= {"5", "10", str(stars(entry)), f"{entry.rating:g}", f"{entry.rating:.1f}"}
    return sorted(name for name in found if any(sign.isdigit() for sign in name))


def _some(first: list[str], second: list[str]) -> list[str]:
    """Alternatives: one or more of the first in order, then any of the second in order."""
    return [step + _any(first[at:]) + _any(second) for at, step in enumerate(first, 1)]


def _any(steps: list[str]) -> str:
    return "".join(f"({step})?" for step in steps)


def _literal(text: str) -> str:
    """`re.escape` for what every regular expression dialect calls special, and no more."""
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", text)
