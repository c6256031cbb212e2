"""What a phrasebook learns from a student's texts, and what it guesses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher_contexts import FEATURES, usual

from ray_app.config import PromptConfig
from ray_app.engines import phrasebook
from ray_app.engines.phrasebook import Phrasebook, Proposer
from ray_app.prompts.student import decide_prompt, explain_prompt
from ray_app.student.tokens import train_tokenizer

END, OPEN, CLOSE, SHARES, OWN = range(5)
E1, E2, E3, LIKED, WAR, DRAMA, COMEDY, ACTION = range(10, 18)
THE, USER, WITH, AND, DOT, KIND = range(20, 26)
FIRST = [OPEN, KIND, E1, LIKED, SHARES, WAR, OWN, ACTION, CLOSE]
SECOND = [OPEN, KIND, E2, LIKED, SHARES, DRAMA, OWN, COMEDY, CLOSE]
THIRD = [OPEN, KIND, E3, LIKED, SHARES, DRAMA, CLOSE]
PROMPT = np.array([THE, *FIRST, THE, *SECOND, THE, *THIRD, THE], np.int32)


def said(name: int, shared: int, own: int) -> list[int]:
    return [THE, USER, LIKED, name, WITH, shared, AND, own, DOT]


@pytest.fixture
def book() -> Phrasebook:
    return Phrasebook(OPEN, CLOSE, [SHARES, OWN], END)


def test_a_book_that_has_learnt_nothing_copies_cards(book):
    assert book.guess(PROMPT, [OPEN, KIND, E2], 20) == SECOND[3:]
    assert book.guess(PROMPT, [OPEN, KIND, E2], 3) == SECOND[3:6]
    for begun in ([OPEN], [OPEN, KIND], SECOND):
        assert book.guess(PROMPT, begun, 20) == []
    assert book.guess(PROMPT, [OPEN, KIND, THE], 20) == []


def test_a_sentence_about_one_card_is_guessed_for_another_with_its_words(book):
    book.learn([*FIRST, *said(E1, WAR, ACTION)])
    assert book.guess(PROMPT, [OPEN, KIND, E2], 20) == [*SECOND[3:], *said(E2, DRAMA, COMEDY), END]
    assert book.guess(PROMPT, [*SECOND, THE, USER], 4) == [LIKED, E2, WITH, DRAMA]


def test_what_a_card_has_not_is_passed_over(book):
    for _ in range(2):
        book.learn([*FIRST, *said(E1, WAR, ACTION)])
    assert book.guess(PROMPT, THIRD, 20) == [THE, USER, LIKED, E3, WITH, DRAMA, AND]
    book.learn([*THIRD, THE, USER, LIKED, E3, WITH, DRAMA, AND, THE, DOT])
    assert book.guess(PROMPT, THIRD, 20) == [THE, USER, LIKED, E3, WITH, DRAMA, AND, THE, DOT, END]


def test_the_most_frequent_continuation_wins_and_a_longer_context_over_it(book):
    book.learn([USER, LIKED, WAR])
    book.learn([THE, LIKED, DRAMA])
    book.learn([WITH, LIKED, DRAMA])
    assert book.guess(PROMPT, [AND, LIKED], 1) == [DRAMA]
    assert book.guess(PROMPT, [USER, LIKED], 1) == [WAR]


def test_a_full_book_still_counts_what_it_knows(book, monkeypatch):
    book.learn([USER, LIKED])
    monkeypatch.setattr(phrasebook, "LIMIT", 0)
    for _ in range(2):
        book.learn([USER, WAR])
    assert book.guess(PROMPT, [USER], 1) == [WAR]
    assert book.guess(PROMPT, [WAR], 5) == []


TOKENS = st.integers(0, 9)


@given(st.lists(st.lists(TOKENS, max_size=30), max_size=5), st.lists(TOKENS, max_size=30), st.integers(0, 9))
def test_any_text_is_learnt_and_guesses_keep_to_their_number(texts, text, limit):
    book = Phrasebook(OPEN, CLOSE, [SHARES, OWN], END)
    for one in texts:
        book.learn(one)
    found = book.guess(np.array(text, np.int32), text, limit)
    assert len(found) <= limit
    assert all(0 <= token <= 9 for token in found)
    assert END not in found[:-1]


@given(st.lists(TOKENS, min_size=1, max_size=30))
def test_a_text_is_guessed_whole_where_it_alone_was_learnt(text):
    """Its words stand on no card, and no context of a full length is there twice."""
    text = [100 + at if token < 5 else 200 + at for at, token in enumerate(text)]
    book = Phrasebook(OPEN, CLOSE, [SHARES, OWN], END)
    book.learn(text)
    assert book.guess(np.empty(0, np.int32), [], 99) == [*text, END]


CONFIG = PromptConfig()
TEXT = " ( history [e1] <r5> <+> <=> Comedy <~> Drama ) The user liked [e1]. ( Yes ) So be it."


@pytest.fixture(scope="module")
def tokenizer():
    texts = [explain_prompt(usual(), True, CONFIG) + TEXT, decide_prompt(usual(), CONFIG)]
    return train_tokenizer(texts * 20, FEATURES, 600)


class TestProposer:
    @pytest.fixture
    def proposer(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        return Proposer(
            SimpleNamespace(
                model_config=SimpleNamespace(tokenizer=str(tmp_path), max_model_len=400),
                speculative_config=SimpleNamespace(num_speculative_tokens=64),
            )
        )

    def propose(self, proposer, *rows: list[int]) -> list[list[int]]:
        """One step of requests with these tokens so far."""
        table = np.zeros((len(rows), 400), np.int32)
        for at, row in enumerate(rows):
            table[at, : len(row)] = row
        return proposer.propose([[row[-1]] for row in rows], np.array([len(row) for row in rows]), table)

    def test_a_finished_text_is_learnt_and_guessed_for_the_next_request(self, tokenizer, proposer):
        prompt = tokenizer.encode(explain_prompt(usual(), True, CONFIG), add_special_tokens=False)
        text = tokenizer.encode(TEXT, add_special_tokens=False)
        begun = [*prompt, *text[:3]]
        card = text[3 : text.index(tokenizer.encode(" )", add_special_tokens=False)[0]) + 1]
        assert self.propose(proposer, begun) == [card]
        assert self.propose(proposer, [*prompt, *text, tokenizer.eos_token_id]) == [[]]
        assert self.propose(proposer, begun, begun) == 2 * [[*text[3:], tokenizer.eos_token_id]]

    def test_nothing_is_guessed_where_no_reasons_are_written(self, tokenizer, proposer):
        prompt = tokenizer.encode(decide_prompt(usual(), CONFIG), add_special_tokens=False)
        assert self.propose(proposer, [*prompt, 5]) == [[]]
        told = tokenizer.encode(explain_prompt(usual(), True, CONFIG), add_special_tokens=False)
        assert proposer.propose([[]], np.array([len(told)]), np.array([told], np.int32)) == [[]]

    def test_guesses_end_with_the_context(self, tokenizer, proposer):
        prompt = tokenizer.encode(explain_prompt(usual(), True, CONFIG), add_special_tokens=False)
        begun = tokenizer.encode(" ( history [e1]", add_special_tokens=False)
        fill = [7] * (396 - len(prompt) - len(begun))
        assert len(self.propose(proposer, [*fill, *prompt, *begun])[0]) == 3
