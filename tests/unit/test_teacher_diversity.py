"""Near-duplicates, self-similarity and curation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.records import Step, Trace
from ray_app.teacher.curation import Curator, near_duplicates
from ray_app.teacher.diversity import NEAR, Seen, SelfSimilarity, signature, similarity

WORDS = [f"w{n}" for n in range(400)]


def words(seed: int, count: int = 60) -> list[str]:
    return list(np.random.default_rng(seed).choice(WORDS, count))


def jaccard(one: list[str], other: list[str]) -> float:
    a, b = (set(zip(w, w[1:], w[2:], strict=False)) for w in (one, other))
    return len(a & b) / len(a | b)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), changed=st.integers(0, 60))
def test_equal_minima_estimate_the_jaccard_similarity(seed, changed):
    one = words(seed)
    other = words(seed + 1)[:changed] + one[changed:]
    found = similarity(signature(" ".join(one)), signature(" ".join(other)))
    assert found == pytest.approx(jaccard(one, other), abs=0.21)  # 4.6 standard deviations


def test_citations_and_case_do_not_tell_texts_apart():
    assert similarity(signature("The user liked [e1] a lot"), signature("the user liked [e12] a lot")) == 1.0
    assert similarity(signature("one two three four"), signature("five six seven eight")) == 0.0


def test_a_near_duplicate_is_found_among_many():
    texts = [" ".join(words(seed)) for seed in range(300)]
    assert near_duplicates(texts) == 0.0
    repeated = words(7)
    repeated[30] = "other"  # 3 of 58 trigrams differ: J = 55 / 61 = .90
    assert near_duplicates([*texts, " ".join(repeated)]) == 1 / 301
    seen = Seen()
    for text in texts:
        seen.add(signature(text))
    assert seen.nearest(signature(" ".join(repeated))) > NEAR


def test_self_similarity_is_the_mean_over_pairs():
    same, other = signature("a b c d"), signature("e f g h")
    found = SelfSimilarity()
    assert found.value() == 0.0
    for mark in (same, same, other):
        found.add(mark)
    assert found.value() == pytest.approx(1 / 3)


def trace(row: int, path: int, text: str, tokens: int = 50, **more) -> Trace:
    facts = {
        "verdict": True, "label": True, "mode": "blind", "rounds": 0, "template": "plain",
        "engine": "evidence", "model": "evidence", "accepted": True,
    }  # fmt: skip
    step = Step(text=text, citations=[])
    return Trace(row_id=row, path=path, steps=[step], tokens=tokens, **(facts | more))


def test_the_shortest_paths_in_the_budget_stay_and_repetition_goes():
    rows = [
        [trace(1, n, " ".join(words(n)), tokens) for n, tokens in enumerate([90, 40, 60, 500])],
        [trace(2, 0, " ".join(words(1))), trace(2, 1, " ".join(words(50)))],
        [trace(3, 0, "wrong", accepted=False, reason="wrong_verdict")],
    ]
    curated = [Curator(keep=2, token_budget=320).curate(row) for row in rows[:1]]
    assert [one.reason for one in curated[0]] == ["longer", "", "", "over_budget"]
    curator = Curator(keep=2, token_budget=320)
    first = [curator.curate(row) for row in rows]
    assert [one.reason for one in first[1]] == ["near_duplicate", ""]
    assert first[2] == rows[2]
    assert all(one.accepted == (one.reason == "") for row in first for one in row)
    report = curator.report()
    assert report["near_duplicates_verified"] == pytest.approx(1 / 6, abs=1e-4)
    assert report["self_similarity"] < report["self_similarity_verified"]
    again = Curator(keep=2, token_budget=320)
    assert [again.curate(row) for row in first] == first
    assert again.report() == report
