"""What the student may write: cards only as the evidence has them, sentences that cite their card.

The choice of evidence, of its order and of the words is the model's; a card's facts are copied by force,
so a sentence cannot begin from a rating or a shared feature that is not there.
"""

from __future__ import annotations

import re

from ray_app.prompts.cards import conclusion_card, evidence_card
from ray_app.records import Context

SENTENCE = r"[^()\[\]<>\n]+"


def reasoning_regex(context: Context, answer: bool, max_steps: int = 4) -> str:
    """A regular expression for one to max_steps steps and a conclusion that states `answer`.

    Follows the layout of `prompts.student.reasoning_target`: a blank, then steps apart by blanks.
    """
    steps = "|".join(
        f"{_literal(evidence_card(entry))}{SENTENCE}\\[{entry.id}\\]{SENTENCE}" for entry in context.evidence
    )
    conclusion = _literal(conclusion_card(answer))
    if not steps:
        return f" {conclusion}"
    return f"( ({steps})){{1,{max_steps}}} {conclusion}"


def _literal(text: str) -> str:
    """`re.escape` for what every regular expression dialect calls special, and no more."""
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", text)
