"""What a decision hangs on: the same item scored again as if the user had never rated what its reasons cite.

    Without “Alien” and “Heat” this would drop from .81 to .66.

The retrieval agent gathers what would be known then, by the functions that gathered what is; the student
scores it through the same adapters. Told only where it moves by at least `serve.counterfactual`.
"""

from __future__ import annotations

from ray_app.agents.wording import title
from ray_app.records import Counterfactual, Evidence, Explanation, Reflection


def cited_history(explanation: Explanation, evidence: list[Evidence]) -> list[Evidence]:
    """The user's own ratings that the shown sentences cite, in their order."""
    names = dict.fromkeys(name for step in explanation.sentences for name in step.citations)
    by_id = {entry.id: entry for entry in evidence if entry.kind == "history"}
    return [by_id[name] for name in names if name in by_id]


def counterfactual(
    cited: list[Evidence], before: float, after: float, reflection: Reflection | None, least: float
) -> Counterfactual | None:
    """The record, or None where P(yes) moves by less than `least`. before: P(yes) as first decided."""
    if abs(after - before) < least:
        return None
    verb = "rise" if after > before else "drop"
    # A reflection may have moved the score since: then the number that would move is not the one shown.
    subject = "this" if reflection is None else "the first estimate"
    named = " and ".join(
        [", ".join(title(entry) for entry in cited[:-1]), title(cited[-1])][len(cited) == 1 :]
    )
    text = f"Without {named} {subject} would {verb} from {short(before)} to {short(after)}."
    return Counterfactual(evidence=[entry.id for entry in cited], before=before, after=after, text=text)


def told(explanation: Explanation, found: Counterfactual) -> Explanation:
    """The explanation with the line, before its list of evidence where it has one."""
    first, *rest = explanation.text.split("\n")
    text = "\n".join([f"{first} {found.text}", *rest])
    return explanation.model_copy(update={"counterfactual": found, "text": text})


def short(p: float) -> str:
    """.81; 1 only where two decimals say so."""
    return f"{p:.2f}".removeprefix("0")
