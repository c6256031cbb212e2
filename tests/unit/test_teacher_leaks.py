"""The label must not reach the prompt, nor a hint the trace."""

import numpy as np
import pytest

from ray_app.errors import DataError
from ray_app.teacher.leaks import PromptAudit, gives_away, strip, told_apart

WORDS = [f"word{n}" for n in range(60)]


def prompts(count: int, seed: int = 0, plant=None, share: float = 0.5):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        label = bool(rng.random() < share)
        text = " ".join(rng.choice(WORDS, 80))
        yield (f"{text} {plant(label, rng)}" if plant else text), label


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_prompts_without_the_label_pass(share):
    PromptAudit().add(prompts(512, share=share))


@pytest.mark.parametrize(
    "plant",
    [
        lambda label, rng: "rated 5" if label else "rated 1",
        lambda label, rng: "outcome yes" if label else "",
        lambda label, rng: ("seen twice" if rng.random() < 0.98 else "seen once") if label else "seen once",
    ],
)
def test_a_planted_label_is_caught_whatever_its_form(plant):
    with pytest.raises(
        DataError, match=r"^the prompts give the answer away: \d+ rows have .* drop the column"
    ):
        PromptAudit().add(prompts(512, plant=plant))


def test_a_word_that_only_leans_is_no_leak():
    PromptAudit().add(
        prompts(512, plant=lambda label, rng: "good" if rng.random() < 0.3 + 0.5 * label else "bad")
    )


@pytest.mark.parametrize(
    "text",
    [
        "As the given answer is Yes, [e1] counts most.",
        "The user liked the target, as [e1] shows.",
        "We know that the user enjoyed it.",
        "In hindsight [e2] was the better sign.",
        "Since I was told that it was liked, [e3] fits.",
    ],
)
def test_phrases_of_one_who_knows_are_recognised(text):
    assert gives_away(text)


@pytest.mark.parametrize(
    "text",
    [
        "Similar users liked the target itself [e4].",
        "So the user would enjoy it.",
        "In [e5] the wider audience liked the target, 7 of 10 in favour.",
        "Earlier the user liked [e1], a 5 of 5 that shares Comedy.",
    ],
)
def test_honest_steps_are_not(text):
    assert not gives_away(text)


def test_only_the_clauses_that_give_it_away_are_stripped():
    text = (
        "Answer: Yes\nReasoning:\n"
        "1. Since the correct answer is Yes, the user liked [e1].\n"
        "2. In hindsight it was clear.\n"
        "3. So the user would enjoy it."
    )
    assert strip(text) == "Answer: Yes\nReasoning:\n1. The user liked [e1].\n3. So the user would enjoy it."


def test_a_classifier_tells_apart_what_differs_and_only_that():
    rng = np.random.default_rng(1)
    texts = [(row, " ".join(rng.choice(WORDS, 30))) for row in range(120)]
    assert told_apart(texts[:60], texts[60:]) == pytest.approx(0.5, abs=0.15)
    told = [(row, f"{text} as it was told us") for row, text in texts[60:]]
    assert told_apart(texts[:60], told) > 0.95


def test_what_a_row_is_about_does_not_tell_its_texts_apart():
    rng = np.random.default_rng(2)
    about = [" ".join(rng.choice(WORDS, 4)) + f" subject{row}" for row in range(60)]
    texts = [(row, f"{about[row]} {' '.join(rng.choice(WORDS, 8))}") for row in range(60) for _ in range(2)]
    assert told_apart(texts[:60], texts[60:]) == pytest.approx(0.5, abs=0.2)
