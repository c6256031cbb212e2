"""What a step of reasoning claims, read by rule: which evidence, which sign, which features and numbers.

Evidence is named by its id (`[e3]`) or, once shown to a person, by its title in quotes. A claim is
false only where the evidence contradicts it; words that are no claim are left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from ray_app.prompts.cards import AMOUNTS, amount, feature_token, hide
from ray_app.records import Context, Evidence, Step

_QUOTE = re.compile(r"[“\"]([^“”\"]+)[”\"]")
_MARK = re.compile(r"\[(e\d+|q\d+|target|\?)\]")
_CONTRAST = re.compile(r"[.;!?]\s|\b(?:but|while|whereas|although|though|yet|however)\b", re.IGNORECASE)
_SIGN = re.compile(
    r"(?P<negation>\b(?:not|never|hardly)\s+(?:\w+ly\s+)?|n['’]t\s+(?:\w+ly\s+)?)?"
    r"(?:\b(?P<positive>(?:lik|enjoy|lov)(?:ed|es|s)|favou?red|appreciated|praised|admired|popular|"
    r"well[- ](?:rated|received)|(?:rated|scored) (?:it |them )?high(?:ly)?|speaks? for|"
    r"(?:(?<=users )|(?<=viewers )|(?<=people )|(?<=they )|(?<=others ))(?:like|enjoy|love))\b"
    r"|\b(?P<negative>dislike[ds]?|avoid(?:ed|s)|hated?|hates|rejected|panned|unpopular|poorly received|"
    r"(?:rated|scored) (?:it |them )?(?:low|poorly|badly)|speaks? against)\b"
    r"|(?<=[^\w])(?P<base>like|enjoy|love)\b)",
    re.IGNORECASE,
)
_FORECAST = re.compile(
    r"\b(?:would|will|should|might|may|could)(?:n['’]t)?(?: not| never)?(?: \w+ly)? (?:be )?"
    r"(?:enjoy|like|love|dislike|hate|avoid)(?:e?d)?\b",
    re.IGNORECASE,
)
_NOTHING_SHARED = re.compile(
    r"\bno features? in common\b|\bshar(?:es?|ed|ing) (?:nothing|no feature)", re.IGNORECASE
)
_SHARING = re.compile(r"\b(?:shar(?:es?|ed|ing)|in common|both|also)\b", re.IGNORECASE)
_ADDING = re.compile(r"\badd(?:s|ed|ing)?\b", re.IGNORECASE)
_TARGET = re.compile(
    r"\[target\]|\b(?:the target|this (?:film|movie|item|title|book|one)|candidate)\b", re.IGNORECASE
)
_CONCLUSION = re.compile(
    r"\banswer(?: is)?\s*:?\s*(?:yes|no)\b|\b(?:overall|therefore|on balance|all in all|to sum up|"
    r"in (?:sum|conclusion|total))\b",
    re.IGNORECASE,
)
_GROUPS = {
    "the user": (
        ("history",),
        re.compile(
            r"\b(?:the|this) user(?: \w+){0,2}? (?:lik|lov|enjoy|dislik|hat|rat|avoid|favou?r)(?:e?[ds])\b"
            r"|\b(?:the|this) user(?: \w+){0,2}? (?:gave|did(?: not|n['’]t)|never)\b"
            r"|\b(?:by|for) (?:the|this) user\b|\b(?:the|this) user['’]s own\b",
            re.IGNORECASE,
        ),
    ),
    "similar users": (
        ("neighbour", "peers"),
        re.compile(
            r"\b(?:similar|like-minded|neighbou?ring) "
            r"(?:users?|people|viewers|readers|tastes?|histor(?:y|ies))\b|\bof the same taste\b|\bpeers\b",
            re.IGNORECASE,
        ),
    ),
    "the audience": (
        ("crowd",),
        re.compile(
            r"\baudience\b|\bat large\b|\beveryone\b|\braters\b|\bgeneral public\b"
            r"|\b(?:people|users) in general\b",
            re.IGNORECASE,
        ),
    ),
}
"""Who is said to have an opinion -> kinds of evidence that hold it."""
_RATED = r"(?:lik|lov|enjoy|dislik|hat)ed"
_ABOUT_TARGET = re.compile(
    rf"\b(?:{_RATED}|did(?: not|n['’]t) (?:like|enjoy|love)) the target\b"
    rf"|\bthe target (?:itself )?(?:was|is) (?:not )?{_RATED}\b",
    re.IGNORECASE,
)
_PART = re.compile(
    r"[.;:!?]\s|, (?=and )|\b(?:but|while|whereas|although|though|yet|however)\b", re.IGNORECASE
)
_AMOUNT = re.compile(
    rf"\b({'|'.join(sorted(set(AMOUNTS[1:]), key=len, reverse=True))})"
    r" (?:ratings|people|users|similar users|votes)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(\s?%)?(?![\w.]*\d)(?!s\b)")
_SCALE = re.compile(r"(?<=\d)\s*(?:/|of|out of|in)\s*(?:5|10|five|ten)\b(?:\s+stars?)?", re.IGNORECASE)
_STARS = re.compile(r"\b(one|two|three|four|five)(?=[ -]stars?\b)", re.IGNORECASE)
_DIGITS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}


@dataclass(frozen=True)
class Statement:
    """One step, read."""

    cited: tuple[Evidence, ...]
    """Evidence that it cites or names and that exists."""
    features: frozenset[str]
    numbers: bool
    about_target: bool
    """It names the target, or a feature as shared with it."""
    conclusion: bool
    problems: tuple[str, ...] = field(default=())
    """What the evidence contradicts, one phrase each."""

    @property
    def supported(self) -> bool:
        """It claims something that can be checked, and all of it is true."""
        return not self.problems and bool(self.cited or self.features or self.numbers)


def mentioned(text: str, vocabulary: frozenset[str]) -> set[str]:
    """Features of the vocabulary that occur in the text as whole words, whatever their case.

    A name of several words also counts as one token, `Science_Fiction`, as cards and steps write it.
    """
    return set(_names(text, vocabulary))


def _names(text: str, vocabulary: frozenset[str]) -> list[str]:
    """`mentioned`, as often as they occur."""
    pattern, names = _finder(vocabulary)
    return [names[match.group(0).casefold()] for match in pattern.finditer(text)]


def read(step: Step, context: Context, vocabulary: frozenset[str]) -> Statement:
    """Read a step against the evidence. `vocabulary` holds every feature name that counts as one."""
    text, unknown = _mark_titles(step, context)
    named = dict.fromkeys([*(mark for mark in _MARK.findall(text) if mark[0] == "e"), *step.citations])
    known = {evidence_id: context.cited(evidence_id) for evidence_id in named}
    cited = tuple(entry for entry in known.values() if entry is not None)
    plain = _MARK.sub(" ", text)
    features = frozenset(mentioned(plain, vocabulary))
    apart = _NOTHING_SHARED.search(plain) is not None
    sharing = bool(cited) and any(map(_shares, _CONTRAST.split(plain)))
    about_target = bool(_TARGET.search(text)) or sharing
    numbers = _numbers(plain)
    problems = [f"no title “{title}” in the evidence" for title in unknown]
    problems += [f"no evidence {name}" for name, entry in known.items() if entry is None]
    problems += _false_signs(text, cited)
    problems += _false_sources(text, cited)
    problems += [f"{entry.id} shares {', '.join(entry.shared)}" for entry in cited if apart and entry.shared]
    problems += _false_features(plain, cited, context, vocabulary)
    problems += [
        f"no number {shown} in the cited evidence"
        for shown, value, digits in numbers
        if not _allowed(value, digits, cited, context)
    ]
    bare = not cited and not features and not numbers and _FORECAST.search(plain) is not None
    conclusion = bare or _CONCLUSION.search(plain) is not None
    return Statement(cited, features, bool(numbers), about_target, conclusion, tuple(problems))


def signs(text: str) -> dict[str, set[int]]:
    """Marker (`e3`) -> the signs that the text claims for it, from words such as liked and avoided.

    What the user would like is a forecast, not a claim. In each part between contrasts, a marker takes
    the sign word before it; where the part opens with a marker ("[e3] was disliked and [e4] was
    enjoyed"), the one after it.
    """
    claimed: dict[str, set[int]] = {}
    for part in _CONTRAST.split(_FORECAST.sub(" ", text)):
        words = [(match.start(), sign) for match in _SIGN.finditer(part) if (sign := _sign(match))]
        marks = [(match.start(), match.group(1)) for match in _MARK.finditer(part)]
        if not words or not marks:
            continue
        marker_first = marks[0][0] < words[0][0]
        for position, mark in marks:
            before = [sign for at, sign in words if at < position]
            after = [sign for at, sign in words if at > position]
            nearest = after[:1] if marker_first and after else before[-1:] or after[:1]
            claimed.setdefault(mark, set()).update(nearest)
    return claimed


def is_conclusion(text: str) -> bool:
    """Whether a step states the outcome rather than a reason."""
    return bool(_CONCLUSION.search(_QUOTE.sub(" ", hide(text))))


def mark_quotes(steps: list[Step]) -> list[str]:
    """Texts whose quoted titles are markers, one number per title: for reading without the evidence."""
    seen: dict[str, str] = {}

    def mark(match: re.Match[str]) -> str:
        return f" [{seen.setdefault(_plain(match.group(1)), f'q{len(seen)}')}] "

    return [_QUOTE.sub(mark, hide(step.text)) for step in steps]


def _sign(match: re.Match[str]) -> int:
    if match["base"]:
        # "films like this" is no sign; "did not like" is.
        return -1 if match["negation"] else 0
    sign = 1 if match["positive"] else -1
    return -sign if match["negation"] else sign


def _mark_titles(step: Step, context: Context) -> tuple[str, list[str]]:
    """The text with quoted titles as markers of the evidence, and the titles that are unknown."""
    unknown: list[str] = []

    def mark(match: re.Match[str]) -> str:
        title = match.group(1)
        found = [entry.id for entry in context.evidence if _same(title, entry.title)]
        if _same(title, context.target.title):
            return " [target] "
        if not found:
            unknown.append(title)
            return " [?] "
        return f" [{next((name for name in found if name in step.citations), found[0])}] "

    return _QUOTE.sub(mark, hide(step.text)), unknown


def _same(shown: str, title: str) -> bool:
    """Equal but for case and outer punctuation; a title cut short for display ends in an ellipsis."""
    short = re.sub(r"(?:…|\.\.\.)$", "", shown.strip())
    if short != shown.strip():
        return _plain(title).startswith(_plain(short))
    return _plain(shown) == _plain(title)


def _plain(title: str) -> str:
    return re.sub(r"\s+", " ", title).strip(" .,;:!?").casefold()


def _false_signs(text: str, cited: tuple[Evidence, ...]) -> list[str]:
    claimed = signs(text)
    return [
        f"{entry.id} is {'liked' if entry.sign > 0 else 'disliked'}, not the opposite"
        for entry in cited
        if -entry.sign in claimed.get(entry.id, ())
    ]


def _false_sources(text: str, cited: tuple[Evidence, ...]) -> list[str]:
    """Opinions given to the wrong people, to the target instead of the cited item, or to too many."""
    entries = {entry.id: entry for entry in cited}
    problems = []
    for part in _PART.split(_FORECAST.sub(" ", text)):
        here = [entries[name] for name in dict.fromkeys(_MARK.findall(part)) if name in entries]
        said = {who: kinds for who, (kinds, words) in _GROUPS.items() if words.search(part)}
        holders = {kind for kinds in said.values() for kind in kinds}
        problems += [
            f"{e.id} is no opinion of {' or '.join(said)}" for e in here if said and e.kind not in holders
        ]
        if _ABOUT_TARGET.search(part):
            problems += [f"{e.id} is not about the target" for e in here[:1] if not any(map(_opinion, here))]
        for words in _AMOUNT.findall(part):
            problems += [
                f"{e.id} has {amount(e.support)} ratings" for e in here if amount(e.support) != words.lower()
            ]
    return problems


def _opinion(entry: Evidence) -> bool:
    return entry.kind in ("peers", "crowd")


def _shares(part: str) -> bool:
    return _SHARING.search(part) is not None and _NOTHING_SHARED.search(part) is None


def _false_features(
    plain: str, cited: tuple[Evidence, ...], context: Context, vocabulary: frozenset[str]
) -> list[str]:
    """Features that what they are said of has not, or that a list repeats.

    "Shares Comedy but adds War" says two things: what is added is not the target's.
    """
    problems = []
    subject = "the cited evidence" if cited else "the target"
    for part in _CONTRAST.split(plain):
        sharing = bool(cited) and _shares(part)
        adding = bool(cited) and not sharing and _ADDING.search(part) is not None
        allowed = {name for entry in cited for name in (entry.shared if sharing else entry.features)}
        if adding:
            allowed -= set(context.target.features)
        elif not cited or (not sharing and _TARGET.search(part)):
            allowed |= set(context.target.features)
        how = "shared by" if sharing else "added by" if adding else "a feature of"
        named = Counter(_names(part, vocabulary))
        problems += [f"{name} is not {how} {subject}" for name in sorted(set(named) - allowed)]
        problems += [f"{name} is named {count} times" for name, count in sorted(named.items()) if count > 1]
    return problems


def _numbers(plain: str) -> list[tuple[str, float, int]]:
    """Numbers as shown, their values and decimals; percentages as shares with two decimals more."""
    text = _SCALE.sub(" ", _STARS.sub(lambda match: _DIGITS[match.group(1).lower()], plain))
    found = []
    for number, percent in _NUMBER.findall(text):
        digits = len(number.partition(".")[2])
        if percent:
            found.append((f"{number}%", float(number) / 100, digits + 2))
        else:
            found.append((number, float(number), digits))
    return found


def _allowed(value: float, digits: int, cited: tuple[Evidence, ...], context: Context) -> bool:
    """Whether the number, as precisely as it is shown, is one of the facts."""
    facts = [float(context.history_count), context.like_rate, float(context.target.year or -1)]
    for entry in cited:
        facts.append(float(entry.support))
        if entry.rating is not None:
            facts.append(entry.rating)
            if entry.kind == "crowd":
                # A share is also said as "7 of 10" and as a count of positive ratings.
                facts += [10 * entry.rating, entry.rating * entry.support]
    return any(abs(value - fact) <= 0.5 * 10**-digits + 1e-9 for fact in facts)


@lru_cache(maxsize=64)
def _finder(vocabulary: frozenset[str]) -> tuple[re.Pattern[str], dict[str, str]]:
    kept = [name for name in sorted(vocabulary) if name.strip()]
    names = {spelling.casefold(): name for name in kept for spelling in (name, feature_token(name))}
    # Longest first, so that "Science Fiction" is not read as "Science"; nothing matches for no names.
    options = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    return re.compile(rf"(?<![\w-])(?:{options or '(?!)'})(?![\w-])", re.IGNORECASE), names
