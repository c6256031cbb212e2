"""Examples as token sequences, and batches of similar length in which a user's rows stand together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ray_app.config import LossWeights
from ray_app.errors import PromptTooLongError
from ray_app.prompts.student import ANSWER
from ray_app.student.model import SOFT_NAMES, Batch
from ray_app.student.tokens import NO, YES, encode

TOGETHER = 16
"""Rows of a user that a batch takes together, which the pairwise loss compares."""
STRETCH, SLACK = 1.5, 8
"""Rows stand together up to so many times the shortest one's length, and so many tokens: beyond it, what
the pairwise loss gains from a pair is paid for in padding."""


@dataclass(frozen=True)
class Sequence:
    """One tokenized example."""

    row_id: int
    user: int
    label: int
    ids: np.ndarray
    """int32 [T]: prompt, verdict and, for a reasoning row, the text."""
    soft: dict[str, int]
    answer: int
    """Position whose next token is the verdict."""
    text_start: int
    """Position from which next tokens enter the text loss."""
    reasoned: bool


def sequence(
    tokenizer: Any, row_id: int, user: int, label: int, prompt: str, continuation: str, *, reasoned: bool
) -> Sequence:
    """Tokenize an example.

    prompt ends right before the verdict for a Yes/No row, and right before the text for a reasoning row;
    there the verdict stands at the end of the prompt or, if it was not told, at the end of the text.
    """
    head = encode(tokenizer, prompt)
    tail = tokenizer.encode(continuation, add_special_tokens=False)
    answer = text_start = len(head.ids) - 1
    if reasoned:
        tail.append(tokenizer.eos_token_id)
        answer = _last(head.ids if ANSWER in prompt else [*head.ids, *tail], tokenizer) - 1
    ids = np.array([*head.ids, *tail], np.int32)
    return Sequence(row_id, user, label, ids, head.soft, answer, text_start, reasoned)


def check_lengths(row_ids: np.ndarray, lengths: np.ndarray, limit: int) -> None:
    """Raises PromptTooLongError if any row has more than `limit` tokens; names the longest."""
    longest, over = int(np.argmax(lengths)), int((lengths > limit).sum())
    if over:
        raise PromptTooLongError(
            f"{over} of {len(lengths)} rows have more tokens than student.max_length {limit}, "
            f"row {row_ids[longest]} has {lengths[longest]}: raise it, or lower prompt.history"
        )


def _last(ids: list[int], tokenizer: Any) -> int:
    verdicts = {tokenizer.encode(word, add_special_tokens=False)[0] for word in (YES, NO)}
    return max(at for at, token in enumerate(ids) if token in verdicts)


def plan(
    lengths: np.ndarray, users: np.ndarray, batch_tokens: int, rng: np.random.Generator, max_rows: int = 256
) -> list[np.ndarray]:
    """Batches of row numbers: similar lengths together, at most batch_tokens padded tokens each.

    Up to `TOGETHER` rows of a user whose lengths are near (`STRETCH`, `SLACK`) stay together as far as that
    limit allows.
    """
    loose = lengths + rng.uniform(0, 8, len(lengths))
    order = np.lexsort((loose, users))
    group = _together(users[order], loose[order])
    tallest = np.zeros(group[-1] + 1 if len(group) else 0)
    np.maximum.at(tallest, group, loose[order])
    order = order[np.lexsort((group, tallest[group]))]
    batches, start = [], 0
    while start < len(order):
        end, widest = start, 1
        while end < len(order) and end - start < max_rows:
            widest = max(widest, int(lengths[order[end]]))
            if end > start and widest * (end - start + 1) > batch_tokens:
                break
            end += 1
        batches.append(order[start:end])
        start = end
    return [batches[at] for at in rng.permutation(len(batches))]


def _together(users: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int [n]: which group each row is in; rows come by user and, within a user, by length."""
    groups, group, user, room, longest = [], -1, -1, 0, 0.0
    for own, length in zip(users.tolist(), lengths.tolist(), strict=True):
        if own != user or not room or length > longest:
            group, user, room, longest = group + 1, own, TOGETHER, STRETCH * length + SLACK
        room -= 1
        groups.append(group)
    return np.array(groups, int)


def sizes(sequences: list[Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, users) int64 [n], as `plan` takes them."""
    return np.array([len(s.ids) for s in sequences], int), np.array([s.user for s in sequences], int)


def collate(
    sequences: list[Sequence],
    vectors: Mapping[str, np.ndarray],
    weights: Mapping[bool, LossWeights],
    pad: int,
) -> Batch:
    """vectors: name -> float32 [n_rows, width], indexed by row_id; weights by `reasoned`."""
    width = max(len(s.ids) for s in sequences)
    ids = np.full((len(sequences), width), pad, np.int64)
    rows, positions, targets = [], [], []
    for at, s in enumerate(sequences):
        ids[at, : len(s.ids)] = s.ids
        span = np.arange(s.text_start, len(s.ids) - 1)
        rows.append(np.full(len(span), at))
        positions.append(span)
        targets.append(s.ids[span + 1])
    row_ids = np.array([s.row_id for s in sequences])
    return Batch(
        ids=torch.from_numpy(ids),
        vectors={name: torch.from_numpy(np.asarray(vectors[name][row_ids])) for name in SOFT_NAMES},
        soft={name: torch.tensor([s.soft.get(name, -1) for s in sequences]) for name in SOFT_NAMES},
        answer=torch.tensor([s.answer for s in sequences]),
        labels=torch.tensor([s.label for s in sequences]),
        users=torch.tensor([s.user for s in sequences]),
        text_rows=torch.from_numpy(np.concatenate(rows)),
        text_positions=torch.from_numpy(np.concatenate(positions)),
        text_targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        answer_weight=torch.tensor([weights[s.reasoned].answer for s in sequences]),
        text_weight=torch.tensor([weights[s.reasoned].text for s in sequences]),
    )


def batches(
    sequences: list[Sequence],
    vectors: Mapping[str, np.ndarray],
    weights: Mapping[bool, LossWeights],
    pad: int,
    batch_tokens: int,
    seed: int,
) -> Iterator[Batch]:
    """One pass over the sequences in seeded random order."""
    for rows in plan(*sizes(sequences), batch_tokens, np.random.default_rng(seed)):
        yield collate([sequences[at] for at in rows], vectors, weights, pad)
