"""Speculative decoding of the student's reasons: many tokens are guessed, and the model checks them at once.

A text of reasons is cards, copied from the prompt, and sentences of a few shapes about the card before them.
A `Phrasebook` learns the shapes from what the student has written: n-grams in which a word that stands on the
card is a place on the card, so "liked [e5], a 4 of 5 that shares Drama" and "liked [e2], a 4 of 5 that shares
War" are one shape. A guess copies the card from the prompt, then follows the shapes and fills in the card's
own words. What the model would have written otherwise is thrown away (Leviathan et al. 2023, arXiv
2211.17192), so a text does not depend on the guesses; only the number of steps does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ray_app.prompts.cards import OWN, SHARES
from ray_app.prompts.student import REASONING

ORDER = 8
"""Longest context of an n-gram."""
LIMIT = 200_000
"""Contexts that a book holds at most: some 60 MB. A student's language is learnt long before."""
PLACES = 64
"""Words of a part of a card that have a place of their own."""
BEGIN = -1
NONE = -(2**31)
"""No token."""
Shape = tuple[int, ...]


class Phrasebook:
    """Learns texts and guesses how one goes on, as token ids."""

    def __init__(self, opening: int, closing: int, parts: Iterable[int], end: int):
        """Tokens that open and close a card, that divide it into parts, and that end a text."""
        self.end = end
        self._opening, self._closing, self._parts = opening, closing, list(parts)
        self._next: dict[Shape, dict[int, int]] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> Phrasebook:
        """The book of a student with this tokenizer. A mark that is no single token divides nothing."""
        opening, closing, *parts = (_single(tokenizer, f" {mark}") for mark in ("(", ")", SHARES, OWN))
        return cls(opening, closing, (part for part in parts if part != NONE), tokenizer.eos_token_id)

    def learn(self, text: Sequence[int]) -> None:
        """A text as it was written, without its end."""
        reader = self._reader(())
        for token in [*text, self.end]:
            word = reader.shape_of(token)
            for context in reader.contexts():
                if context in self._next or len(self._next) < LIMIT:
                    counts = self._next.setdefault(context, {})
                    counts[word] = counts.get(word, 0) + 1
            reader.read(token)

    def guess(self, prompt: np.ndarray, text: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow; none where nothing like it was seen.

        prompt: int32 [n].
        """
        reader, found = self._reader(text), []
        while len(found) < limit and (not found or found[-1] != self.end):
            token = _copied(prompt, reader.card) if reader.inside else NONE
            if token == NONE:
                token = self._likeliest(reader)
            if token == NONE:
                break
            found.append(token)
            reader.read(token)
        return found

    def _likeliest(self, reader: _Reader) -> int:
        """What most often followed the longest context that was seen, of what this card has."""
        for context in reader.contexts():
            counts = self._next.get(context, {})
            for word in sorted(counts, key=lambda word: -counts[word]):
                if (token := reader.token_of(word)) != NONE:
                    return token
        return NONE

    def _reader(self, text: Iterable[int]) -> _Reader:
        reader = _Reader(self._opening, self._closing, self._parts)
        for token in text:
            reader.read(token)
        return reader


class _Reader:
    """Follows a text: its shape so far, and the words of the card that it is about.

    A place on a card is a negative number: -2 for the first word of its first part, and so on.
    """

    def __init__(self, opening: int, closing: int, parts: list[int]):
        self._opening, self._closing, self._parts = opening, closing, parts
        self._shape = [BEGIN]
        self.card: list[int] = []
        """Tokens of the card from its opening on."""
        self.inside = False
        """Whether the card is not closed yet."""
        self._places: dict[int, int] = {}
        self._words: dict[int, int] = {}

    def read(self, token: int) -> None:
        self._shape.append(self.shape_of(token))
        if token == self._opening:
            self.card, self.inside = [], True
        if self.inside:
            self.card.append(token)
        if token == self._closing and self.inside:
            self.inside = False
            self._place()

    def shape_of(self, token: int) -> int:
        """The token, or its place on the card where the text is about one."""
        return token if self.inside else self._places.get(token, token)

    def token_of(self, word: int) -> int:
        """The reverse; `NONE` for a place that this card has not."""
        return word if word >= 0 else self._words.get(word, NONE)

    def contexts(self) -> Iterable[Shape]:
        """What came last, longest first."""
        for length in range(min(ORDER, len(self._shape)), 0, -1):
            yield tuple(self._shape[-length:])

    def _place(self) -> None:
        self._places, self._words = {}, {}
        part = at = 0
        for token in self.card[1:-1]:
            if token in self._parts:
                part, at = self._parts.index(token) + 1, 0
            elif at < PLACES:
                place = -2 - (PLACES * part + at)
                at += 1
                self._places.setdefault(token, place)
                self._words[place] = token


def _copied(prompt: np.ndarray, begun: list[int]) -> int:
    """The token after what is begun, where the prompt has it last; `NONE` if it has not, or if no more is
    begun than the kind: which entry comes is habit."""
    if len(begun) < 3:
        return NONE
    at = _last(prompt, begun)
    return int(prompt[at + len(begun)]) if 0 <= at < len(prompt) - len(begun) else NONE


def _last(tokens: np.ndarray, part: Sequence[int]) -> int:
    """Where a part stands last in int32 tokens; -1 for nowhere."""
    whole, sought = tokens.tobytes(), np.asarray(part, np.int32).tobytes()
    at = whole.rfind(sought)
    while at % 4 and at >= 0:
        at = whole.rfind(sought, 0, at + len(sought) - 1)
    return at // 4 if at >= 0 else -1


def _single(tokenizer: Any, mark: str) -> int:
    ids = tokenizer.encode(mark, add_special_tokens=False)
    return ids[0] if len(ids) == 1 else NONE


class Proposer:
    """What vLLM asks for guesses (`speculative_config.method` custom_class): one book while it lives."""

    def __init__(self, vllm_config: Any):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)
        self._book = Phrasebook.of(tokenizer)
        # A tokenizer may join the first of these tokens with what stands before it.
        self._start = tokenizer.encode(REASONING, add_special_tokens=False)[-2:]
        self._at_once = vllm_config.speculative_config.num_speculative_tokens
        self._longest = vllm_config.model_config.max_model_len

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: np.ndarray,
        token_ids_cpu: np.ndarray,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Guesses for each request of a step; int32 [requests, longest] tokens, so many of each are there."""
        return [
            self._after(token_ids_cpu[row, : num_tokens_no_spec[row]]) if sampled else []
            for row, sampled in enumerate(sampled_token_ids)
        ]

    def _after(self, tokens: np.ndarray) -> list[int]:
        start = _last(tokens, self._start) + len(self._start)
        text = tokens[start:].tolist()
        if start < len(self._start) or not text:
            return []
        if text[-1] == self._book.end:
            self._book.learn(text[:-1])
            return []
        return self._book.guess(tokens[:start], text, min(self._at_once, self._longest - len(tokens) - 1))

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to load; vLLM's CPU runner asks all the same."""
