"""How explanations read as texts: METEOR with its chance floor, and the corpus measures of explainable
recommendation. None of them says whether a text is true; `reasons.py` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import meteor_score

from ray_app.errors import DataError
from ray_app.evaluation.statements import mentioned as mentioned
from ray_app.evaluation.wordnet import ensure_wordnet


def meteor(references: Sequence[str], hypotheses: Sequence[str], cache: Path) -> float:
    """Mean METEOR (Lavie and Agarwal 2007; nltk's parameters) of hypothesis i against reference i.

    `cache` is where WordNet is or will be put; the first call loads it, some seconds.
    """
    _pairs(references, hypotheses)
    ensure_wordnet(cache)
    return _meteor([_words(text) for text in references], [_words(text) for text in hypotheses])


def meteor_lift(
    references: Sequence[str], hypotheses: Sequence[str], cache: Path, seed: int, repeats: int = 3
) -> dict[str, float]:
    """`meteor`, `shuffled` (each hypothesis against another row's reference) and `lift`, the difference.

    Texts of one kind resemble each other, so METEOR against a wrong reference is far above zero; only
    the lift says that a text is about its own row. Raises DataError for fewer than two pairs.
    """
    _pairs(references, hypotheses)
    if len(references) < 2:
        raise DataError(f"shuffled references need two texts or more, got {len(references)}")
    ensure_wordnet(cache)
    right, written = [_words(text) for text in references], [_words(text) for text in hypotheses]
    own = _meteor(right, written)
    rng = np.random.default_rng(seed)
    others = [_meteor([right[i] for i in derangement(len(right), rng)], written) for _ in range(repeats)]
    return {"meteor": own, "shuffled": float(np.mean(others)), "lift": own - float(np.mean(others))}


def derangement(n: int, rng: np.random.Generator) -> list[int]:
    """A random cyclic permutation of range(n): nothing stays in its place (Sattolo 1986). n >= 2."""
    order = list(range(n))
    for last in range(n - 1, 0, -1):
        other = int(rng.integers(0, last))
        order[last], order[other] = order[other], order[last]
    return order


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of the texts (Li et al. 2016); 0 without any."""
    grams = Counter(
        tuple(words[start : start + n]) for words in map(_words, texts) for start in range(len(words) - n + 1)
    )
    return len(grams) / grams.total() if grams else 0.0


def usr(texts: Sequence[str]) -> float:
    """Unique sentence ratio: different texts over texts (NETE, Li et al., CIKM 2020); 0 without any."""
    return len({" ".join(_words(text)) for text in texts}) / len(texts) if texts else 0.0


def fcr(features: Sequence[Collection[str]], vocabulary: Collection[str]) -> float:
    """Feature coverage ratio: features named in any text over the vocabulary (NETE). [0, 1]

    `features[i]` are those of text i: `mentioned(text, vocabulary)`.
    """
    return len(set().union(*features) & set(vocabulary)) / len(set(vocabulary)) if vocabulary else 0.0


def div(features: Sequence[Collection[str]]) -> float:
    """Feature diversity: features that two texts share, averaged over all pairs (NETE). Lower is better.

    Counted per feature, c (c - 1) / 2 pairs share it, so it takes linear time.
    """
    n = len(features)
    shared = sum(c * (c - 1) for c in Counter(f for names in features for f in set(names)).values())
    return shared / (n * (n - 1)) if n > 1 else 0.0


def _words(text: str) -> list[str]:
    return [word.lower() for word in wordpunct_tokenize(text)]


def _meteor(references: Sequence[list[str]], hypotheses: Sequence[list[str]]) -> float:
    scores = [meteor_score([right], written) for right, written in zip(references, hypotheses, strict=True)]
    return float(np.mean(scores))


def _pairs(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses) or not references:
        raise DataError(
            f"{len(references)} references for {len(hypotheses)} hypotheses: give one each, at least one"
        )
