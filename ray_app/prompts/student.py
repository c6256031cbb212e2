"""The input schema as the student reads it, in two layouts of one context.

*Decide* (Yes/No rows, scoring): user, history, similar users' items and candidate pool first - the part
that all targets of a user share, so that an engine's prefix cache serves it once - then the target.
*Explain* (reasoning rows): target first, then the evidence chosen for it as cards, then the answer and
the style to write in (the teacher's template), then the steps, each behind a copy of its card. Without the
answer, the steps lead to one: that of the card at their end.

`<|user|>`, `<|item|>` and `<|pair|>` are soft tokens: places that the projector's output replaces.
Every mark has a blank before it, at line starts too: with it, a mark is one token of the bootstrapped
tokenizer wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from ray_app.config import PromptConfig
from ray_app.prompts.cards import (
    conclusion_card,
    conclusion_text,
    count_mark,
    evidence_card,
    facts,
    feature_token,
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
STYLE, REASONING = "\nStyle:", "\nReasoning:"

_SOFT = re.compile(" ?(" + "|".join(map(re.escape, SOFT_TOKENS)) + ")")
_MARKUP = re.compile(r'[<>\[\]()|"]')


def decide_prompt(context: Context, config: PromptConfig, without: Collection[str] = ()) -> str:
    """The prompt whose next token is the verdict. `without` names sections to leave out."""
    return _beginning(context, config, without) + _ending(context, config)


def decide_prompts(contexts: Iterable[Context], config: PromptConfig) -> list[str]:
    """`decide_prompt` of contexts of one user and moment, which begin alike wherever their pools are alike:
    that is written once."""
    beginnings: dict[tuple[str, ...], str] = {}
    found = []
    for context in contexts:
        pool = tuple(item.item_id for item in context.candidates)
        if pool not in beginnings:
            beginnings[pool] = _beginning(context, config)
        found.append(beginnings[pool] + _ending(context, config))
    return found


def _beginning(context: Context, config: PromptConfig, without: Collection[str] = ()) -> str:
    history = [entry for entry in context.profile if entry.kind == "history"]
    similar = [entry for entry in context.profile if entry.kind == "neighbour"]
    shown = set(config.sections) - set(without)
    lines = [_user_line(context) if config.marks else f"User: {USER}"]
    if history and "history" in shown:
        lines += ["History:", *(_profile_line(entry, config) for entry in history)]
    if similar and "similar" in shown:
        lines += ["Similar users:", *(_profile_line(entry, config) for entry in similar)]
    if context.candidates and "pool" in shown:
        lines += ["Candidates:", *(" " + _item(item, config) for item in context.candidates)]
    return _with_soft_tokens("\n".join(lines), config)


def _ending(context: Context, config: PromptConfig) -> str:
    described = f"{_item(context.target, config)} " if config.titles else ""
    crowd = _crowd(context) if config.marks else ""
    return _with_soft_tokens(f"\nTarget: {described}{ITEM} {PAIR}{crowd}", config) + ANSWER


def explain_prompt(context: Context, answer: bool | None, config: PromptConfig, style: str = "plain") -> str:
    """The prompt whose continuation is the reasoning for an answer that is already decided, or, with None,
    the reasoning that decides it.

    style: the template of the trace to learn from, or the one to write in.
    """
    lines = [f"Target: {_item(context.target, config)} {ITEM} {PAIR}", _user_line(context), "Evidence:"]
    lines += [_evidence_line(entry, config) for entry in context.evidence]
    told = "" if answer is None else f"{ANSWER}{' Yes' if answer else ' No'}"
    return _with_soft_tokens("\n".join(lines), config) + f"{told}{STYLE} {style}{REASONING}"


def reasoning_target(trace: Trace, context: Context, *, told: bool = True) -> str:
    """What the student learns to write: every step behind its card, the conclusion behind its own.

    told: whether the prompt holds the answer. If not, no card says what speaks against it.
    A last step that cites evidence is a step like any other, and a plain conclusion follows it.
    """
    steps = list(trace.steps)
    close = steps.pop().text if steps and not steps[-1].citations else conclusion_text(trace.verdict)
    answer = trace.verdict if told else None
    reasons = (f"{step_card(step, context, answer)} {step.text}".strip() for step in steps)
    return " " + " ".join([*reasons, conclusion_card(trace.verdict), close])


@lru_cache(4096)
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
    features = _features(item, config)
    return f'"{quote(item.title, config.title_chars)}" {features}' if config.titles else features


def _profile_line(entry: Evidence, config: PromptConfig) -> str:
    return f" [{entry.id}] {facts(entry)} {_item(entry, config)}"


def _evidence_line(entry: Evidence, config: PromptConfig) -> str:
    titled = config.titles and entry.kind not in ("crowd", "peers")
    title = f' "{quote(entry.title, config.title_chars)}"' if titled else ""
    return f" {evidence_card(entry)}{title}"


def _crowd(context: Context) -> str:
    crowd = next((entry for entry in context.evidence if entry.kind == "crowd"), None)
    return f" {facts(crowd)}" if crowd else ""
