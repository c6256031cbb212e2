"""Where the answer may slip in: words of a prompt that tell the label, and texts that were told it.

Two guards. `PromptAudit` looks at prompts of many rows for words that only stand beside one label: a field
that was filled after the event, a rating that should not be there. `strip` and `gives_away` look at one
text for phrases of somebody who knows what happened.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from ray_app.errors import DataError

AUDITED = 512
"""Prompts looked at; a leak of every row shows in the first hundred."""
MIN_ROWS, MIN_SHARE = 40, 0.1
"""A word counts only if so many, and such a share, of the prompts have it."""
ERROR = 0.2
"""A word is a leak if going by it is wrong at most so often (99.99 %) as always saying that label."""
_Z = 3.72
_NUMBER = re.compile(r"\s*(?:\d+[.)]|[-*])\s+")
_WORD = re.compile(r"[\w.%-]*\w")

_TOLD = re.compile(
    r"\b(?:given|provided|stated|known|actual|true|correct|final|expected|ground[- ]truth)"
    r" (?:answer|label|verdict|outcome|decision)\b"
    r"|\b(?:the hint|the label|ground truth|what (?:really |actually )?happened|(?:in|with) hindsight)\b"
    r"|\b(?:was|were|been|are|am) told\b|\b(?:we|I) (?:already )?know (?:that )?the (?:user|answer|outcome)\b"
    r"|\b(?:actually|in fact|indeed|really|in the end|eventually|later|turned out to|went on to)"
    r" (?:dis)?(?:like|enjoy|love|hate)e?d? (?:the target|this item|it)\b"
    r"|\bthe user (?:(?:has|had|did|did not|didn['’]t) )?(?:dis)?(?:lik|enjoy|lov|hat|rat)ed? the target\b",
    re.IGNORECASE,
)


def gives_away(text: str) -> bool:
    """Whether the text speaks as one who knows what happened."""
    return _TOLD.search(text) is not None


def strip(text: str) -> str:
    """A teacher's answer without the clauses that give the outcome away; lines left empty are dropped."""
    lines = []
    for line in text.splitlines():
        if not gives_away(line):
            lines.append(line)
            continue
        number = _NUMBER.match(line)
        start = number.end() if number else 0
        clauses = re.split(r"(?<=[.;,])\s+", line[start:])
        kept = " ".join(clause for clause in clauses if not gives_away(clause)).strip(" ,;")
        if kept:
            end = "" if kept.endswith((".", "!", "?")) else "."
            lines.append(f"{line[:start]}{kept[0].upper()}{kept[1:]}{end}")
    return "\n".join(lines)


class PromptAudit:
    """Words, and pairs of words in a row, of blind prompts against their labels."""

    def __init__(self) -> None:
        self._labels: Counter[bool] = Counter()
        self._seen: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}

    @property
    def full(self) -> bool:
        return self._labels.total() >= AUDITED

    def add(self, prompts: Iterable[tuple[str, bool]]) -> None:
        """Take (prompt, label) of rows not seen before. Raises DataError if a word tells the label."""
        for prompt, label in prompts:
            if self.full:
                break
            words = _WORD.findall(prompt)
            self._labels[label] += 1
            pairs = (" ".join(pair) for pair in pairwise(words))
            self._seen[label].update({*words, *pairs})
        for word, label, pure, rows in self.telltales():
            raise DataError(
                f'the prompts give the answer away: {rows} rows have "{word}", of which {pure:.0%} are '
                f"{'liked' if label else 'disliked'}: drop the column or entry that it comes from"
            )

    def telltales(self) -> list[tuple[str, bool, float, int]]:
        """(word, label, share of that label, rows) of the words that tell the label, purest first."""
        total = self._labels.total()
        least = max(MIN_ROWS, MIN_SHARE * total)
        found = []
        for label in (True, False):
            wrong = 1 - self._labels[label] / max(1, total)
            for word, count in self._seen[label].items():
                rows = count + self._seen[not label][word]
                if rows >= least and 1 - _lower_bound(count / rows, rows) < ERROR * wrong:
                    found.append((word, label, count / rows, rows))
        return sorted(found, key=lambda leak: (-leak[2] * leak[3], leak[0]))


def told_apart(one: list[tuple[int, str]], other: list[tuple[int, str]], seed: int = 0) -> float:
    """AUC of a classifier that tells (row_id, text) of two kinds apart by words and pairs of words.

    0.5: not at all. Logistic regression on TF-IDF, five-fold cross-validated; texts of one row are in one
    fold, or what they are about would tell them. Each kind needs texts of ten rows or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    rows, texts = zip(*one, *other, strict=True)
    kinds = [0] * len(one) + [1] * len(other)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=10, class_weight="balanced")
    )
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    found = np.asarray(cross_val_predict(model, texts, kinds, groups=rows, cv=folds, method="predict_proba"))
    return float(roc_auc_score(kinds, found[:, 1]))


def _lower_bound(share: float, count: int) -> float:
    """Wilson's lower bound of a share."""
    z2 = _Z * _Z
    centre = share + z2 / (2 * count)
    spread = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return (centre - spread) / (1 + z2 / count)
