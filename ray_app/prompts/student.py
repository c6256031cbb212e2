"""The input schema as the student reads it, in two layouts of one context.

*Decide* (Yes/No rows, scoring): user, history, similar users' items and candidate pool first - the part
that all targets of a user share, so that an engine's prefix cache serves it once - then the target.
*Explain* (reasoning rows): target first, then the evidence chosen for it with its marks, then the
answer, then the steps with their cards.

`<|user|>`, `<|item|>` and `<|pair|>` are soft tokens: places that the projector's output replaces.
Every mark has a blank before it, at line starts too: with it, a mark is one token of the bootstrapped
tokenizer wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ray_app.config import PromptConfig
from ray_app.prompts.cards import (
    conclusion_card,
    count_mark,
    facts,
    feature_token,
    relation,
    share_mark,
    step_card,
)
from ray_app.records import Context, Evidence, Item, Trace

USER, ITEM, PAIR = "<|user|>", "<|item|>", "<|pair|>"
SOFT_TOKENS = (USER, ITEM, PAIR)
SECTIONS = ("history", "similar", "pool")
"""Sections of the decide layout that may be left out."""
ANSWER = "\nAnswer:"
"""What comes right before the verdict, ` Yes` or ` No`."""
REASONING = "\nReasoning:"

_SOFT = re.compile(" ?(" + "|".join(map(re.escape, SOFT_TOKENS)) + ")")
_MARKUP = re.compile(r'[<>\[\]()|"]')


def decide_prompt(context: Context, config: PromptConfig, without: Collection[str] = ()) -> str:
    """The prompt whose next token is the verdict. `without` names sections to leave out."""
    history = [entry for entry in context.profile if entry.kind == "history"]
    similar = [entry for entry in context.profile if entry.kind == "neighbour"]
    shown = set(config.sections) - set(without)
    lines = [_user_line(context)]
    if history and "history" in shown:
        lines += ["History:", *(_profile_line(entry, config) for entry in history)]
    if similar and "similar" in shown:
        lines += ["Similar users:", *(_profile_line(entry, config) for entry in similar)]
    if context.candidates and "pool" in shown:
        lines += ["Candidates:", *(" " + _item(item, config) for item in context.candidates)]
    lines.append(f"Target: {_item(context.target, config)} {ITEM} {PAIR}{_crowd(context)}")
    return _with_soft_tokens("\n".join(lines), config) + ANSWER


def explain_prompt(context: Context, answer: bool, config: PromptConfig) -> str:
    """The prompt whose continuation is the reasoning for an answer that is already decided."""
    target = _item(context.target, config) if config.explain_titles else _features(context.target, config)
    lines = [f"Target: {target} {ITEM} {PAIR}", _user_line(context), "Evidence:"]
    lines += [_evidence_line(entry, config) for entry in context.evidence]
    return _with_soft_tokens("\n".join(lines), config) + ANSWER + (" Yes" if answer else " No") + REASONING


def reasoning_target(trace: Trace, context: Context) -> str:
    """What the student learns to write: every step behind its card, the conclusion's card last."""
    steps = (f"{step_card(step, context)} {step.text}".strip() for step in trace.steps)
    return " " + " ".join([*steps, conclusion_card(trace.verdict)])


def quote(text: str, limit: int) -> str:
    """Item text as data: no markup of ours can appear in it, and it is capped."""
    clean = re.sub(r"\s+", " ", _MARKUP.sub(" ", text)).strip()
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip() + "…"


def _with_soft_tokens(text: str, config: PromptConfig) -> str:
    """The text as it is, or without the places of the vectors. Item text holds no `<`: see `quote`."""
    return text if config.soft_tokens else _SOFT.sub("", text)


def _user_line(context: Context) -> str:
    return f"User: {USER} {share_mark(context.like_rate)} {count_mark(context.history_count)}"


def _features(item: Item | Evidence, config: PromptConfig) -> str:
    names = [feature_token(name) for name in item.features[: config.features]]
    return f"( {' '.join(names)} )" if names else "( )"


def _item(item: Item | Evidence, config: PromptConfig) -> str:
    return f'"{quote(item.title, config.title_chars)}" {_features(item, config)}'


def _profile_line(entry: Evidence, config: PromptConfig) -> str:
    return f" [{entry.id}] {facts(entry)} {_item(entry, config)}"


def _evidence_line(entry: Evidence, config: PromptConfig) -> str:
    head = f" [{entry.id}] {entry.kind} {facts(entry)}"
    if entry.kind in ("crowd", "peers"):
        return head
    body = _item(entry, config) if config.explain_titles else _features(entry, config)
    return f"{head} {body}{relation(entry)}"


def _crowd(context: Context) -> str:
    crowd = next((entry for entry in context.evidence if entry.kind == "crowd"), None)
    return f" {facts(crowd)}" if crowd else ""
