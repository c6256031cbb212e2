"""Item text is data: normalised, capped, tidied; and the keywords that describe an item."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

TITLE_CHARS = 200
DESCRIPTION_CHARS = 2000
FEATURE_CHARS = 60
ID_CHARS = 200
TITLE_WORDS = 3

_INVISIBLE = (
    "\u00ad\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff"
)
"""Characters that show nothing, reorder text or carry hidden text: zero-width and direction marks, fillers,
line separators, byte-order mark, tags and their variation selectors. Joiners are not here: some scripts
need them."""

UNUSABLE_ID = rf"[\x00-\x1f\x7f-\x9f{_INVISIBLE}]|^.{{{ID_CHARS + 1},}}$"
"""Pattern of an id that no store or URL should carry: control and invisible characters, or too long."""

FEATURES = 64
"""Features and keywords kept of one item, each."""
MARKS_IN_A_ROW = 4
"""Combining marks kept on one letter; scripts in use need up to three."""

NO_FEATURE = {"", "unknown", "(no genres listed)"}
"""How data sets spell that an item has no features."""

_BLANK = re.compile(f"[\\s\x00-\x1f\x7f-\x9f{_INVISIBLE}]+")
# A fraction's compatibility form changes what is read: 8½ would become 81⁄2.
_FRACTION = re.compile("([¼-¾⅐-⅟↉]+)")
_YEAR = re.compile(r"\s*\((\d{4})(?:\s?[-–]\s?\d{0,4})?\)(?:\s*\(T?V\))?\s*$")
_ARTICLES = "The|A|An|La|Le|Les|L'|El|Los|Las|Il|Lo|Gli|Un|Une|Una|Der|Die|Das|Ein|Eine|Det|Den"
_LATE_ARTICLE = re.compile(rf"^(?P<rest>[^()]+), (?P<article>{_ARTICLES})(?P<blank>\s*)$")
_WORD = re.compile(r"[^\W\d_][\w'-]{3,}")
_COMMON_WORDS = (
    "about after again against also been before being between both came come could does down each even "
    "ever every from goes have here herself himself into itself just know like made make many more most "
    "much must never only other over part same should some such take than that their them then there "
    "these they this those through under until upon very volume what when where which while whose will "
    "with without would your"
)
_COMMON = frozenset(_COMMON_WORDS.split())


def normalise(text: str | None, cap: int) -> str:
    """NFKC but for fractions, runs of blanks, control and invisible characters one space, at most `cap`
    characters.

    NFKC gives one spelling to what looks alike in other widths and styles, so that markup is known for
    markup in all of them (UAX 15).
    """
    parts = _FRACTION.split(text or "")
    parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
    return _thin(_BLANK.sub(" ", "".join(parts))).strip()[:cap].rstrip()


def _thin(text: str) -> str:
    """The text without the combining marks beyond MARKS_IN_A_ROW, which would cover other lines."""
    if text.isascii():
        return text
    kept, run = [], 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= MARKS_IN_A_ROW:
            kept.append(character)
    return "".join(kept)


def tidy_title(title: str) -> tuple[str, int | None]:
    """Title in reading order, and the year that it carried in brackets at its end.

    "Shawshank Redemption, The (1994)" gives ("The Shawshank Redemption", 1994).
    """
    found = _YEAR.search(title)
    year = int(found.group(1)) if found else None
    bare = title[: found.start()] if found and found.start() else title
    return "".join(_article_first(part) for part in re.split(r"([()])", bare)), year


def _article_first(part: str) -> str:
    late = _LATE_ARTICLE.match(part)
    if late is None:
        return part
    article = late["article"]
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{late['rest']}{late['blank']}"


def tidy_features(values: list[str]) -> list[str]:
    """The first FEATURES features without blanks, repeats and the words for "none"."""
    features = (normalise(value, FEATURE_CHARS) for value in values)
    sound = dict.fromkeys(feature for feature in features if feature.lower() not in NO_FEATURE)
    return list(sound)[:FEATURES]


def extract_keywords(texts: list[str], features: list[list[str]], years: list[int | None]) -> list[list[str]]:
    """Descriptors of each item: its features, its decade ("1990s"), and up to three salient words.

    `texts` are titles with descriptions. Salience is tf-idf over the catalogue; a word of one item
    only is a name that relates it to nothing, so a word counts if at least two items have it.
    """
    words = [Counter(_words(text)) for text in texts]
    frequency = Counter(word for item in words for word in item)
    keywords = []
    for item, own, year in zip(words, features, years, strict=True):
        decade = [f"{year // 10 * 10}s"] if year is not None else []
        salience = {
            word: count * math.log(len(texts) / frequency[word])
            for word, count in item.items()
            if frequency[word] >= 2
        }
        best = sorted(salience, key=lambda word: (-salience[word], word))[:TITLE_WORDS]
        keywords.append(list(dict.fromkeys([*own, *decade, *best])))
    return keywords


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _COMMON]
