"""Cards: the copy of a fact that opens each step of a trace, and the marks it is made of.

    ( history [e1] <r5> <+> <=> Action Sci-Fi <~> War )      a step that leans on e1
    ( neighbour [e7] <a3> <n2> <-> <=> Action <!> )          one whose evidence speaks against the answer
    ( Yes )                                                  the conclusion

A card turns a two-hop look-up ("which rating had e1, and what does it share?") into a copy, which is
what lets a small model write true sentences. The evidence in the student's prompt is written as cards
too, so the copy is a literal one; cards are hidden when reasons are shown. The id comes right before the
facts, so that one look at what followed it before finds them: behind the kind, which several entries share,
the copy takes two. Marks are single tokens of the bootstrapped tokenizer and plain text to a pretrained one.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import get_args

from ray_app.records import Context, Evidence, Step

LIKED, DISLIKED, SHARES, OWN, AGAINST = "<+>", "<->", "<=>", "<~>", "<!>"
CITATION = re.compile(r"\[(e\d+)\]")
KINDS: tuple[str, ...] = get_args(Evidence.model_fields["kind"].annotation)
CARD = re.compile(rf"\( (?P<body>(?:(?:(?:{'|'.join(KINDS)}) )?\[e\d+\] [^()]*|Yes|No)) ?\)")
"""The kind may be missing in what a student writes freely; any other word there makes it a remark."""
MAX_EVIDENCE = 16
FEATURE_CHARS = 40
MAX_SHARED, MAX_OWN = 4, 3
"""Features on a card: shared with the target, and the entry's others. A step names no more."""
MARKS = [
    LIKED,
    DISLIKED,
    SHARES,
    OWN,
    AGAINST,
    *(f"<r{n}>" for n in range(1, 6)),
    *(f"<a{n}>" for n in range(1, 6)),
    *(f"<p{n}>" for n in range(11)),
    *(f"<n{n}>" for n in range(6)),
]
"""Rating, average, tenths of positive ratings, order of magnitude of a count."""


def count_mark(count: int) -> str:
    """`<n0>` none, `<n1>` 1-3, `<n2>` 4-15, `<n3>` 16-63, `<n4>` 64-255, `<n5>` more."""
    return f"<n{_magnitude(count)}>"


def _magnitude(count: int) -> int:
    return min(5, math.ceil(math.log(count + 1, 4))) if count > 0 else 0


AMOUNTS = ("no", "a few", "some", "many", "very many", "very many")
"""The words for the counts of `count_mark`."""


def amount(count: int) -> str:
    """A count as a person would put it; the bands are those of its mark."""
    return AMOUNTS[_magnitude(count)]


def share_mark(share: float) -> str:
    """`<p0>` to `<p10>`: a share in tenths."""
    return f"<p{round(10 * min(max(share, 0.0), 1.0))}>"


def facts(entry: Evidence) -> str:
    """An entry's own facts as marks: rating or average, and the sign."""
    sign = LIKED if entry.sign > 0 else DISLIKED
    if entry.kind == "crowd":
        return f"{share_mark(entry.rating or 0.0)} {count_mark(entry.support)} {sign}"
    if entry.rating is None:
        return sign
    if entry.kind == "history":
        return f"<r{_stars(entry.rating, entry.sign)}> {sign}"
    return f"<a{_stars(entry.rating, entry.sign)}> {count_mark(entry.support)} {sign}"


def stars(entry: Evidence) -> int | None:
    """The number on a rating mark, where it is the rating: None without one or on a longer scale."""
    return None if entry.rating is None or not 0.5 <= entry.rating <= 5 else _stars(entry.rating, entry.sign)


def _stars(rating: float, sign: int) -> int:
    """Rounded; a half goes the way of the sign, so that 3.5 where 4 is liked is not "disliked, a 4 of 5"."""
    whole = math.floor(rating + 0.5) if sign > 0 else math.ceil(rating - 0.5)
    return min(5, max(1, whole))


def relation(entry: Evidence) -> str:
    """What links the entry to the target and what it has beside: `<=> Action Drama <~> War`, or nothing."""
    shared, own = shared_features(entry), own_features(entry)
    link = f" {SHARES} {' '.join(shared)}" if shared else ""
    return f"{link} {OWN} {' '.join(own)}" if own else link


def shared_features(entry: Evidence) -> list[str]:
    """Features shared with the target, as words of a card."""
    return [feature_token(name) for name in entry.shared[:MAX_SHARED]]


def own_features(entry: Evidence) -> list[str]:
    """Features not shared with the target, as words of a card; all of them where the entry is about it."""
    return [feature_token(name) for name in entry.features if name not in entry.shared][:MAX_OWN]


def evidence_card(entry: Evidence, answer: bool | None = None) -> str:
    """An entry's card; in a text that gives reasons for `answer`, marked where it speaks against it."""
    against = f" {AGAINST}" if answer is not None and (entry.sign > 0) != answer else ""
    return f"( {entry.kind} [{entry.id}] {facts(entry)}{relation(entry)}{against} )"


def conclusion_card(answer: bool) -> str:
    return "( Yes )" if answer else "( No )"


def conclusion_text(answer: bool) -> str:
    """The plainest conclusion."""
    return f"So overall the user {'would' if answer else 'would not'} like it."


def step_card(step: Step, context: Context, answer: bool | None) -> str:
    """The card of a step: of the first evidence it cites; empty for a step that cites nothing."""
    entry = context.cited(step.citations[0]) if step.citations else None
    return evidence_card(entry, answer) if entry else ""


@lru_cache(4096)
def feature_token(feature: str) -> str:
    """A feature as one word, so that a card can list several: `Science Fiction` -> `Science_Fiction`.

    It is data too: it keeps none of our marks, no quotes and no dots, and is capped.
    """
    return re.sub(r'[\s()\[\]<>|".…]+', "_", feature.strip())[:FEATURE_CHARS]


def hide(text: str) -> str:
    """Text without its cards, as a person reads it."""
    return re.sub(r"\s+", " ", CARD.sub("", text)).strip()
