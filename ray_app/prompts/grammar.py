"""What the student may write: cards only as the evidence has them, sentences that cite their card.

The choice of evidence and of the words is the model's; a card's facts are copied by force, so a sentence
cannot begin from a rating or a shared feature that is not there, and the only numbers it can hold are those
of its card's entry.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_app.prompts.cards import conclusion_card, evidence_card, own_features, shared_features, stars
from ray_app.records import Context, Evidence

_LETTER = r"[^()\[\]<>\n.…0-9]"
_WORDS = f'({_LETTER} | ". " [A-Z])+'
"""Text without marks and numbers, in which a dot only stands between sentences."""


def reasoning_grammar(context: Context, answer: bool | None) -> str:
    """A grammar (EBNF as XGrammar reads it) for steps on evidence, each entry at most once, and a conclusion;
    with None, either conclusion.

    Follows the layout of `prompts.student.reasoning_target`. To rule out repetition by a grammar of modest
    size, entries come in the order of their ids, the user's own before those of others or after; without
    evidence only the conclusion is left. Every step is one rule, so that what an engine compiles grows with
    the number of entries and not with its square, as a regular expression would.
    """
    own = [entry for entry in context.evidence if entry.kind == "history"]
    others = [entry for entry in context.evidence if entry.kind != "history"]
    conclusions = (True, False) if answer is None else (answer,)
    cards = " | ".join(_literal(f" {conclusion_card(one)}") for one in conclusions)
    rules = [f'end ::= ({cards}) {_WORDS} "."', *(_step(entry, answer) for entry in context.evidence)]
    beginnings = []
    for name, first, second in (("own", own, others), ("others", others, own)):
        if first:
            rules += _in_turn(name, first, second)
            beginnings.append(f"{name}1")
    return "\n".join([f"root ::= {' | '.join(beginnings) or 'end'}", *rules])


def in_order(entries: Iterable[Evidence], others_first: bool) -> list[Evidence]:
    """The entries in one of the two orders that the grammar accepts."""
    return sorted(entries, key=lambda entry: ((entry.kind == "history") == others_first, int(entry.id[1:])))


def _step(entry: Evidence, answer: bool | None) -> str:
    numbers = " | ".join(_literal(f" {number}") for number in _numbers(entry))
    said = f'({_LETTER} | ". " [A-Z]{f" | {numbers}" if numbers else ""})'
    card = _literal(f" {evidence_card(entry, answer)}")
    return f'{entry.id} ::= {card} {said}+ "[{entry.id}]" {said}* "."'


def _in_turn(name: str, first: list[Evidence], second: list[Evidence]) -> list[str]:
    """Rules for one or more of the first in order, then any of the second in order, then the end.

    `<name>N` is some of the first from its Nth on; `<name>_N` is any of all from the Nth on.
    """
    entries = [*first, *second]
    rules = [
        f"{name}_{at} ::= {entry.id} {name}_{at + 1} | {name}_{at + 1}" for at, entry in enumerate(entries, 1)
    ]
    rules.append(f"{name}_{len(entries) + 1} ::= end")
    for at, entry in enumerate(first, 1):
        later = f" | {name}{at + 1}" if at < len(first) else ""
        rules.append(f"{name}{at} ::= {entry.id} {name}_{at + 1}{later}")
    return rules


def _numbers(entry: Evidence) -> list[str]:
    """What may be said in digits: rating or share, support, the scale, and features that hold a digit."""
    found = {str(entry.support), *(name for name in own_features(entry) + shared_features(entry))}
    if entry.rating is not None and entry.kind == "crowd":
        tenths, percent = round(10 * entry.rating), round(100 * entry.rating)
        found |= {"10", str(tenths), f"{percent}%", str(round(entry.rating * entry.support))}
    elif entry.rating is not None:
        found |= {"5", "10", str(stars(entry)), f"{entry.rating:g}", f"{entry.rating:.1f}"}
    return sorted(name for name in found if any(sign.isdigit() for sign in name))


def _literal(text: str) -> str:
    """Text as a quoted string of the grammar."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
