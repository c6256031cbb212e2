"""The explanation agent: reasons that hold, as much of them as is asked for, in a person's words.

Each sentence is checked against the evidence it cites by the program that checked the teacher's
(`teacher.verification`). One that fails is written anew from the evidence and counted; before the text
leaves, the same program decides whether the reasons lead to the decision; reasons that do not are told from
the evidence instead.
"""

from __future__ import annotations

import re

from ray_app.agents.interface import Detail, Dossier
from ray_app.agents.wording import fact, shown
from ray_app.engines.evidence import sentence, usable, weigh
from ray_app.engines.phrases import STYLES
from ray_app.prompts.parse import Parsed, to_step
from ray_app.records import Context, Evidence, Explanation, Step, Verdict
from ray_app.teacher.verification import bare, check, conclusion, step_problem

SENTENCES = {"brief": 1, "standard": 3, "detailed": 8}
STYLE = STYLES["plain"]
CONCLUSION = 30
"""Words of a conclusion at most."""
_RAMBLE = re.compile(
    r"\b(\w+)(?:\W+\1\b){2}|\b(?:but|and|that|which|shares|has)\W*$"
    r"|\b(?:among|in) similar (?:users|histories) (?:(?:dis)?liked|enjoyed|did)\b",
    re.IGNORECASE,
)


class ExplanationAgent:
    """Needs no model: what the student wrote well is kept, the rest is told from the evidence."""

    async def present(self, dossier: Dossier, verdicts: list[Verdict], detail: Detail) -> list[Explanation]:
        """One explanation per decision."""
        return [
            explain(context, verdict, detail)
            for context, verdict in zip(dossier.contexts, verdicts, strict=True)
        ]


def explain(context: Context, verdict: Verdict, detail: Detail) -> Explanation:
    """The reasons for a decision. Without any rated evidence it says so, and where P(yes) came from."""
    answer = verdict.p_yes >= 0.5
    if not usable(context):
        text = (
            f"Nobody's ratings speak for or against this item yet: "
            f"the estimate of {verdict.p_yes:.0%} comes from its features alone."
        )
        alone = Step(text=text, citations=[])
        return Explanation(text=text, detail=detail, sentences=[alone], coherent=True)
    reasons, close = _parted(verdict.reasoning, context, answer)
    # What does not lead to the decision loses its conclusion, then makes way for the evidence's own words.
    without = [(reasons, None)] if close else []
    for kept, end in ((reasons, close), *without, ([], None)):
        held, rewritten = _held(context, kept, answer)
        selected = _selected(held, context, answer, SENTENCES[detail])
        if end and detail != "brief" and any(_supports(step, context, answer) for step in selected):
            steps = [*selected, end]
        else:
            steps = _concluded(selected, context, answer)
        if coherent := check(Parsed(answer, steps), context, answer).accepted:
            break
    sentences = [Step(text=shown(step.text, context), citations=step.citations) for step in steps]
    text = " ".join(step.text for step in sentences)
    if detail == "detailed":
        facts = [f"- {fact(entry)}" for entry in context.evidence]
        text = "\n".join([text, "Evidence:", *facts])
    return Explanation(text=text, detail=detail, sentences=sentences, coherent=coherent, rewritten=rewritten)


def _parted(steps: list[Step], context: Context, answer: bool) -> tuple[list[Step], Step | None]:
    """The reasons, and the bare conclusion after them if it is the decision's and one plain sentence."""
    if not bare(steps[-1:], context):
        return steps, None
    fit = conclusion(steps) == answer and len(steps[-1].text.split()) <= CONCLUSION
    return steps[:-1], steps[-1] if fit and not rambles(steps[-1].text) else None


def _held(context: Context, reasoning: list[Step], answer: bool) -> tuple[list[Step], int]:
    """Steps that all hold, each on evidence of its own, and how many were written anew.

    A false step is replaced by a true one about the same evidence, or else about the strongest that no
    step uses. A step that repeats another's evidence goes. Without steps, the strongest for the decision
    and the strongest against it are told.
    """
    strengths = weigh(context)
    # People know their own ratings best, so those come before what others think.
    ranked = sorted(usable(context), key=lambda entry: (entry.kind != "history", -strengths[entry.id]))
    ranked.sort(key=lambda entry: (entry.sign > 0) != answer)
    if not reasoning:
        supporting = [entry for entry in ranked if (entry.sign > 0) == answer]
        against = [entry for entry in ranked if (entry.sign > 0) != answer]
        another = [entry for entry in supporting if entry.kind != supporting[0].kind] or supporting[1:]
        # The contrast stands before the last, so that the last can conclude.
        chosen = [*supporting[:1], *against[:1], *another[:1]]
        return [_written(entry, answer, at == 0) for at, entry in enumerate(chosen)], len(chosen)
    used: set[str] = set()
    steps: list[Step] = []
    rewritten = 0
    for step in reasoning:
        if holds(step, context, answer):
            if not used.intersection(step.citations):
                steps.append(step)
                used.update(step.citations)
            continue
        own = [entry for entry in ranked if entry.id in step.citations and entry.id not in used]
        spare = [entry for entry in ranked if entry.id not in used]
        rewritten += 1
        if entry := next(iter([*own, *spare]), None):
            steps.append(_written(entry, answer, not steps))
            used.add(entry.id)
    return steps, rewritten


def holds(step: Step, context: Context, answer: bool) -> bool:
    """Whether every claim of a step is true and it does not forecast the opposite of the decision."""
    forecast = conclusion([step])
    fit = forecast is None or forecast == answer
    return fit and not rambles(step.text) and not step_problem(step, context)


def rambles(text: str) -> bool:
    """Whether a model has lost its thread: a word three times in a row, an end that wants more, or a verb
    that wants a subject ("Among similar users liked ...")."""
    return _RAMBLE.search(text) is not None


def _written(entry: Evidence, answer: bool, first: bool) -> Step:
    """A true step; the first has nothing before it that it could contrast with."""
    supports = (entry.sign > 0) == answer
    return to_step(sentence(entry, STYLE, "" if first or supports else STYLE.against[0]))


def _selected(steps: list[Step], context: Context, answer: bool, limit: int) -> list[Step]:
    """At most `limit` steps in their order; those that speak for the decision go first if some must go."""
    order = sorted(range(len(steps)), key=lambda at: not _supports(steps[at], context, answer))
    return [steps[at] for at in sorted(order[:limit])]


def _concluded(steps: list[Step], context: Context, answer: bool) -> list[Step]:
    """The steps, the last of which says what follows."""
    if conclusion(steps) is not None:
        return steps
    would = "would" if answer else "would not"
    last = steps[-1].text.rstrip(" .")
    if _supports(steps[-1], context, answer):
        closed = f"{last}, so overall the user {would} like it."
    else:
        closed = f"{last}. All signals together still say that the user {would} like it."
    return [*steps[:-1], Step(text=closed, citations=steps[-1].citations)]


def _supports(step: Step, context: Context, answer: bool) -> bool:
    cited = [context.cited(name) for name in step.citations]
    return any(entry is not None and (entry.sign > 0) == answer for entry in cited)
