"""From the student's words to a person's: citations become titles, "the user" becomes "you".

The user liked [e1], which shares Sci-Fi with the target.
You liked “Alien”, which shares Sci-Fi with this item.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ray_app.prompts.cards import CITATION, feature_token, hide
from ray_app.records import Context, Evidence

OPINION = {"peers": "the verdict of similar users", "crowd": "the general verdict"}
"""How evidence about the target itself is named where a noun is needed."""
_NOUN_BEFORE = re.compile(r"(?:\bis|\bas|\bfrom|\bby|\bto|\bof|^)\s*$", re.IGNORECASE)
_SEE = re.compile(r",?\s*\bsee\s*$", re.IGNORECASE)
_QUOTES = re.compile(r"[“”\"]")
_LABEL = re.compile(r"[\w&'’+/.-]+(?: [\w&'’+/.-]+){0,2}")
LABEL_CHARS = 30
_LEADING = re.compile(r"(?<![^\s,])in\s*$", re.IGNORECASE)
_YOU = [
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"\bthe user's own\b", "your own"),
        (r"\bthe user's\b", "your"),
        (r"\bthe user in person\b", "you yourself"),
        (r"\bthe user\b", "you"),
        (r"\bthis user\b", "you"),
        (r"\byou has\b", "you have"),
        (r"\byou (lik|enjoy|dislik)(e?)s\b", r"you \1\2"),
        (r"\bthe target\b", "this item"),
    )
]


def shown(text: str, context: Context) -> str:
    """One sentence as a person reads it. Quotes in titles are dropped, so a title stays in its quotes."""
    plain = hide(text)
    parts, last = [], 0
    for match in CITATION.finditer(plain):
        before, entry = plain[last : match.start()], context.cited(match.group(1))
        parts += _cited(before, entry) if entry else [before]
        last = match.end()
    features = {feature_token(name): feature(name) for name in context.target.features}
    rest = [*parts, plain[last:]]
    # Titles are at odd places: data, which no replacement may touch.
    rest = [part if part.startswith("“") else _second_person(part, features) for part in rest]
    sentence = re.sub(r"\s+([.,;:])", r"\1", re.sub(r"\s+", " ", "".join(rest))).strip()
    return re.sub(r"(^|[.!?]\s+)([a-z])", lambda m: m[1] + m[2].upper(), sentence)


def fact(entry: Evidence) -> str:
    """One line of the evidence list: what is known, in numbers."""
    if entry.kind == "history":
        stars = "" if entry.rating is None else f" ({entry.rating:g})"
        head = f"{title(entry)}: you {'liked' if entry.sign > 0 else 'did not like'} it{stars}"
    elif entry.kind == "neighbour":
        head = f"{title(entry)}: similar users' average {_average(entry)} from {_ratings(entry.support)}"
    elif entry.kind == "peers":
        head = f"similar users on this item: average {_average(entry)} from {_ratings(entry.support)}"
    else:
        head = f"everyone on this item: {entry.rating or 0:.0%} of {_ratings(entry.support)} were positive"
    return f"{head}, shares {', '.join(map(feature, entry.shared))}" if entry.shared else head


def feature(name: str) -> str:
    """A feature as it stands in a sentence: in quotes unless it is as short and plain as a label is."""
    return name if _LABEL.fullmatch(name) and len(name) <= LABEL_CHARS else f"“{_QUOTES.sub('', name)}”"


def title(entry: Evidence) -> str:
    """The title in quotes."""
    return f"“{_QUOTES.sub('', entry.title).strip()}”"


def _cited(before: str, entry: Evidence) -> list[str]:
    """The words before a citation, and what stands for it."""
    if entry.kind in ("history", "neighbour"):
        return [before, title(entry)]
    if _SEE.search(before):
        return [_SEE.sub("", before)]
    if _LEADING.search(before):
        return [_LEADING.sub("", before)]
    return [before, OPINION[entry.kind]] if _NOUN_BEFORE.search(before) else [before]


def _second_person(text: str, features: dict[str, str]) -> str:
    for pattern, words in _YOU:
        text = pattern.sub(words, text)
    return _finder(frozenset(features)).sub(lambda m: features[m[0]], text)


@lru_cache(maxsize=1024)
def _finder(tokens: frozenset[str]) -> re.Pattern[str]:
    """Matches the tokens as whole words, the longest first; nothing if there are none."""
    options = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{options})(?!\w)")


def _average(entry: Evidence) -> str:
    return f"{entry.rating:.1f}" if entry.rating is not None else "opinion"


def _ratings(count: int) -> str:
    return f"{count} rating{'' if count == 1 else 's'}"
