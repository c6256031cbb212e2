"""Text to token ids, with the places of the soft tokens; and the tokenizer of a bootstrapped base."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray_app.prompts.cards import MARKS, MAX_EVIDENCE
from ray_app.prompts.student import SOFT_TOKENS

_SOFT = re.compile(r" ?(" + "|".join(re.escape(token) for token in SOFT_TOKENS) + ")")
YES, NO = " Yes", " No"


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt; `soft[name]` is the position that the vector of that name takes."""

    ids: list[int]
    soft: dict[str, int]


def encode(tokenizer: Any, text: str, known: dict[str, list[int]] | None = None) -> Encoded:
    """Tokenize text that may hold soft tokens; each takes one position (its id there is a filler).

    known: pieces between soft tokens that were tokenized already; new ones are added.
    """
    known = {} if known is None else known
    filler = tokenizer.bos_token_id
    ids: list[int] = [tokenizer.bos_token_id]
    soft: dict[str, int] = {}
    for at, piece in enumerate(_SOFT.split(text)):
        if at % 2:
            soft[piece.strip("<|>")] = len(ids)
            ids.append(filler)
        elif piece:
            if piece not in known:
                known[piece] = tokenizer.encode(piece, add_special_tokens=False)
            ids.extend(known[piece])
    return Encoded(ids, soft)


def answer_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids of ` Yes` and ` No`, each of which must be one token."""
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in (YES, NO))
    if len(yes) != 1 or len(no) != 1:
        raise ValueError(f"' Yes' and ' No' must be single tokens, got ids {yes} and {no}")
    return yes[0], no[0]


def train_tokenizer(texts: Iterable[str], features: list[str], vocab: int) -> Any:
    """A byte-level BPE tokenizer for a bootstrapped base; marks, ids and features are single tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    ids = [f"[{kind}{n}]" for kind in "eh" for n in range(1, MAX_EVIDENCE + 1)]
    marks = [*(f" {mark}" for mark in [*MARKS, *ids, "(", ")", *features]), YES, NO]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(marks),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in dict.fromkeys(marks)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
