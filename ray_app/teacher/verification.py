"""Does a trace hold? Its verdict against what happened, and every claim against its evidence.

Claims are read from the words: which evidence a step cites, whether it says liked or disliked, which
features it names, and what its last step concludes. Wordings are English; what is not recognised as a
claim is not checked, so the list of wordings decides how strict this is. A step must also hold for the
evaluation's reader (`evaluation.statements`), which has its own list and checks numbers and sources.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ray_app.evaluation.statements import read
from ray_app.prompts.cards import CITATION, feature_token
from ray_app.prompts.parse import Parsed
from ray_app.records import Context, Evidence, Step
from ray_app.teacher.curation import CURATED
from ray_app.teacher.leaks import gives_away

REASONS = (
    "no_verdict",
    "wrong_verdict",
    "too_short",
    "too_long",
    "uncited_step",
    "unknown_evidence",
    "sign_conflict",
    "unsupported_feature",
    "ungrounded",
    "claims_nothing",
    "inconsistent",
    "gives_away",
    "duplicate",
    "not_rederived",
    *CURATED,
)
"""Why a trace is rejected: up to `gives_away` by `check`, two by the refinement, the rest by curation."""

MIN_WORDS, MAX_WORDS, MAX_STEPS = 6, 160, 8

_NOT = r"(?:(?:not|never|hardly|barely)|(?:did|do|does|is|was|were|are)n['’]t)"
_POSITIVE = (
    r"(?:lik(?:ed|es)|enjoy(?:ed|s)|love[sd]|appreciate[sd]|praised|favou?r(?:ed|ites?|abl[ey])|popular"
    r"|positive(?:ly)?|well[- ](?:rated|received|liked)"
    r"|rated (?:it |this |them )?(?:very )?(?:high(?:ly)?|well)"
    r"|high(?:ly|er)? (?:average )?(?:rating|rated|score)s?)"
)
_DISLIKED = re.compile(
    rf"\b(?:{_NOT} (?:\w+ ){{0,2}}?(?:like|enjoy|love|appreciate|rate highly|{_POSITIVE})"
    r"|dislik\w+|hate[sd]?|loath\w+|unpopular|unfavou?rabl[ey]|negative(?:ly)?|poor(?:ly)?|badly"
    r"|rated (?:it |this |them )?(?:very )?low|low(?:er)? (?:average )?(?:rating|rated|score)s?"
    r"|criti[cs]i[sz]ed)\b",
    re.IGNORECASE,
)
_LIKED = re.compile(rf"\b{_POSITIVE}\b", re.IGNORECASE)
_FORECAST = re.compile(
    r"\b(?:would|will|should|might|may|could|wo|(?:is|are|seems?) (?:very )?(?:un)?likely to)"
    r"(?:n['’]t)?(?: (?:not|never|likely|most|probably|surely|certainly|well|also|still|rather|really|very))*"
    r" (?:be )?(?:enjoy(?:ed)?|liked?|loved?|appreciate|recommend(?:ed)?|appeal|suit|please|skip|avoid"
    r"|dislike|hate|fit|reject)\b"
    r"|\b(?:not )?(?:an? )?(?:very )?(?:good|great|strong|poor|bad|weak) (?:match|fit|choice)\b"
    r"|\b(?:answer is|verdict is|so|hence|therefore|thus)[,:]? (?:a )?(?:clear )?(?:yes|no)(?=\W*$)",
    re.IGNORECASE,
)
_AGAINST = re.compile(
    r"\bnot\b|n['’]t\b|\bnever\b|\bunlikely\b|\bskip|\bavoid|\bdislike|\bhate|\breject|\bpoor\b|\bbad\b"
    r"|\bweak\b|\bno\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r";|,? \b(?:but|while|whereas|although|though|yet|however)\b|, (?=and )", re.IGNORECASE)
_SHARING = re.compile(r"\b(?:shar(?:e|es|ed|ing)|common|both|too|also)\b", re.IGNORECASE)
_ORDINARY = {"user", "users", "target", "item", "items", "people", "liked", "disliked", "similar", "the", ""}
"""Words of every sentence: a feature of that name is not taken for a claim."""


class Check(NamedTuple):
    """The outcome for one trace; `reason` is one of REASONS, empty if accepted."""

    accepted: bool
    reason: str
    scores: dict[str, float]


def check(parsed: Parsed, context: Context, label: bool) -> Check:
    """Accept a trace whose verdict is what happened and whose every step holds.

    The last step may be a bare conclusion: a forecast that cites nothing and claims nothing else. After
    other steps it may also cite what it leans on without saying more of it.

    Scores: `words`, `steps`, `coverage` (share of the evidence cited), `grounded` (share of steps in
    which something is claimed and every recognised claim is true).
    """
    reasons = parsed.steps[:-1] if bare(parsed.steps[-1:], context) else parsed.steps
    problems = [step_problem(step, context) for step in reasons]
    if len(parsed.steps) == len(reasons) > 1 and conclusion(reasons) is not None:
        problems[-1] = problems[-1].replace("claims_nothing", "")
    words = sum(len(step.text.split()) for step in parsed.steps)
    cited = {name for step in parsed.steps for name in step.citations if context.cited(name)}
    scores = {
        "words": float(words),
        "steps": float(len(parsed.steps)),
        "coverage": len(cited) / max(1, len(context.evidence)),
        "grounded": problems.count("") / max(1, len(problems)),
    }
    reason = _verdict_problem(parsed, label) or _length_problem(parsed, words)
    reason = reason or ("" if reasons else "uncited_step")
    reason = reason or next(filter(None, problems), "")
    if not reason and conclusion(parsed.steps) != parsed.verdict:
        reason = "inconsistent"
    if not reason and any(gives_away(step.text) for step in parsed.steps):
        reason = "gives_away"
    return Check(not reason, reason, scores)


def step_problem(step: Step, context: Context) -> str:
    """The first thing wrong with one step, as one of REASONS; empty if it claims something and all holds.

    A step that cites evidence and says nothing of it (no sign, feature or number) would hold of anything.
    """
    if not step.citations:
        return "uncited_step"
    if any(context.cited(name) is None for name in step.citations):
        return "unknown_evidence"
    names = _vocabulary(context)
    if not _signs_hold(step.text, context, names):
        return "sign_conflict"
    if not _features_hold(step.text, context, names):
        return "unsupported_feature"
    statement = read(step, context, names.features)
    if statement.problems:
        return "ungrounded"
    signs = _claimed_signs(_FORECAST.sub(" ", names.pattern.sub(" ", step.text)))
    return "" if signs or statement.features or statement.numbers else "claims_nothing"


def bare(steps: list[Step], context: Context) -> bool:
    """Whether the last step forecasts, and neither cites evidence nor claims a sign or a feature."""
    if conclusion(steps) is None or steps[-1].citations:
        return False
    names = _vocabulary(context).pattern
    rest = _FORECAST.sub(" ", steps[-1].text)
    return not _claimed_signs(rest) and names.search(rest) is None and not re.search(r"\d|\[", rest)


def conclusion(steps: list[Step]) -> bool | None:
    """What the last step forecasts (`would enjoy`, `would not like`); None if it forecasts nothing."""
    found = _FORECAST.findall(steps[-1].text) if steps else []
    return _AGAINST.search(found[-1]) is None if found else None


def _verdict_problem(parsed: Parsed, label: bool) -> str:
    if parsed.verdict is None:
        return "no_verdict"
    return "" if parsed.verdict == label else "wrong_verdict"


def _length_problem(parsed: Parsed, words: int) -> str:
    if not parsed.steps or words < MIN_WORDS:
        return "too_short"
    return "too_long" if words > MAX_WORDS or len(parsed.steps) > MAX_STEPS else ""


def _signs_hold(text: str, context: Context, names: _Vocabulary) -> bool:
    """In the step and in each clause of it that cites, the signs claimed are the signs of the evidence."""
    facts = _FORECAST.sub(" ", names.pattern.sub(" ", text))
    for part in (facts, *_CLAUSE.split(facts)):
        claimed, cited = _claimed_signs(part), {entry.sign for entry in _cited(part, context)}
        if claimed and cited and claimed != cited:
            return False
    return True


def _claimed_signs(text: str) -> set[int]:
    rest, negatives = _DISLIKED.subn(" ", text)
    return ({-1} if negatives else set()) | ({1} if _LIKED.search(rest) else set())


def _features_hold(text: str, context: Context, names: _Vocabulary) -> bool:
    """Each feature named belongs to the evidence cited with it, and is shared where sharing is claimed.

    A clause that cites nothing speaks of the whole step's evidence: any of it may have the feature.
    """
    everything = _cited(text, context)
    for clause in _CLAUSE.split(text):
        cited = _cited(clause, context)
        sharing = _SHARING.search(clause) is not None
        holds = all if cited else any
        for written in set(names.pattern.findall(clause)):
            meant = names.meanings[written]
            if not holds(_has(entry, meant, sharing, context) for entry in cited or everything):
                return False
    return True


def _has(entry: Evidence, meant: set[str], sharing: bool, context: Context) -> bool:
    if entry.kind in ("peers", "crowd"):
        return not meant.isdisjoint(context.target.features)
    return not meant.isdisjoint(entry.shared if sharing else (*entry.shared, *entry.features))


def _cited(text: str, context: Context) -> list[Evidence]:
    found = (context.cited(name) for name in CITATION.findall(text))
    return [entry for entry in found if entry is not None]


class _Vocabulary(NamedTuple):
    """How features may be written, and how to find them in a text."""

    features: frozenset[str]
    meanings: dict[str, set[str]]
    """Spelling -> the features it can mean."""
    pattern: re.Pattern[str]
    """Matches spellings; a longer one hides the shorter ones inside it."""


def _vocabulary(context: Context) -> _Vocabulary:
    bearers = (context.target, *context.evidence, *context.profile, *context.candidates)
    return _spellings(frozenset(name for bearer in bearers for name in bearer.features))


@lru_cache(maxsize=1024)
def _spellings(features: frozenset[str]) -> _Vocabulary:
    meanings: dict[str, set[str]] = {}
    for feature in features:
        for spelling in {feature, feature_token(feature), feature.lower()} - _ORDINARY:
            meanings.setdefault(spelling, set()).add(feature)
    names = "|".join(map(re.escape, sorted(meanings, key=len, reverse=True))) or "(?!)"
    return _Vocabulary(features, meanings, re.compile(rf"(?<![\w\[-])(?:{names})(?![\w-])"))
