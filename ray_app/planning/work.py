"""How many rows, texts and tokens a configuration makes of so many interactions."""

from __future__ import annotations

from dataclasses import dataclass

from ray_app.config import Config
from ray_app.planning.constants import value
from ray_app.planning.models import Architecture, architecture_of, bootstrapped


@dataclass(frozen=True)
class Size:
    """The data a plan is for."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True)
class Tokens:
    """Mean lengths of the student's and the teacher's texts, in tokens of their own tokenizers."""

    decide: float
    """A Yes/No prompt with all its sections."""
    bare: float
    """The same without them: the corpus of a bootstrapped base."""
    dropped: float
    """The same under section dropout: what training sees."""
    target: float
    """What one more target of the same user adds behind the cached prefix."""
    explain: float
    """The prompt for reasons."""
    reason: float
    teacher_prompt: float
    teacher_answer: float

    @property
    def reasoned(self) -> float:
        """A reasoning row, prompt and text."""
        return self.explain + self.reason


@dataclass(frozen=True)
class Work:
    """What there is to do. Rows are interactions; traces are the teacher's texts, accepted or not."""

    train_rows: int
    reasoned_rows: int
    traces: int
    accepted: int
    reason_examples: int
    rec_examples: int
    contexts: int
    """Rows whose evidence is gathered for the mix and validation."""
    sequences: int
    """Rows that are tokenized."""
    phases: dict[str, float]
    """Padded tokens of each phase of training; the experts together."""
    swing_steps: float
    tokens: Tokens


def student_shape(config: Config) -> Architecture:
    base = config.student.base
    return architecture_of(base) if base else bootstrapped(config.student.bootstrap)


def tokens_of(config: Config) -> Tokens:
    prompt, pretrained = config.prompt, value("pretrained_chars")
    per_token = pretrained if config.student.base else value("bootstrap_chars")
    per_word = pretrained if config.student.base else value("bootstrap_text_chars")
    lengths = {
        "history": prompt.history * value("history_chars"),
        "similar": prompt.neighbours * value("similar_chars"),
        "pool": prompt.candidates * value("pool_chars"),
    }
    sections = sum(lengths[name] for name in prompt.sections)
    bare = value("decide_chars")
    evidence = value("evidence_share") * (prompt.history + prompt.neighbours)
    entry = value("evidence_chars") + (value("title_chars") if prompt.titles else 0)
    lines = prompt.history + prompt.neighbours + prompt.candidates + evidence
    kept = 1 - config.train.section_dropout
    return Tokens(
        decide=(bare + sections) / per_token,
        bare=bare / per_token,
        dropped=(bare + kept * sections) / per_token,
        target=bare / per_token,
        explain=(value("explain_chars") + evidence * entry) / per_word,
        reason=value("reason_chars") / per_word,
        teacher_prompt=(value("teacher_chars") + lines * value("teacher_entry_chars")) / pretrained,
        teacher_answer=value("answer_share") * config.reason.max_tokens,
    )


def work_of(config: Config, size: Size) -> Work:
    reason, own, train = config.reason, config.student.bootstrap, config.train
    tokens = tokens_of(config)
    train_rows = round(size.interactions * config.data.split.train)
    chosen = round(reason.fraction * train_rows)
    traces = round(chosen * (reason.paths + reason.rounds * value("retries")))
    accepted = round(traces * value("acceptance"))
    share = config.mix.reason_share
    reasons = min(accepted, round(train_rows * share / (1 - share)))
    recs = min(train_rows, round(reasons * (1 - share) / share))
    valid = min(train.valid_rows, round(size.interactions * config.data.split.valid))
    corpus = 0 if config.student.base else train_rows
    reasoned, even = reasons * tokens.reasoned, value("padding")
    mix = value("padding_users") * (recs * tokens.dropped + reasoned)
    phases = {"global": train.epochs * mix, "experts": train.expert_epochs * mix}
    if corpus:
        answers = even * own.answer_passes * corpus * tokens.bare + mix
        phases = {"language": even * own.language_epochs * reasoned, "answers": answers} | phases
    return Work(
        train_rows=train_rows,
        reasoned_rows=chosen,
        traces=traces,
        accepted=accepted,
        reason_examples=reasons,
        rec_examples=recs,
        contexts=recs + valid + corpus,
        sequences=recs + reasons + valid + corpus,
        phases=phases,
        swing_steps=sum(swing_steps(config, size, share) for share in snapshot_shares(config)),
        tokens=tokens,
    )


def snapshot_shares(config: Config) -> list[float]:
    """Share of the interactions that each Swing snapshot sees."""
    split, count = config.data.split, config.swing.snapshots
    inner = [split.train * number / (count + 1) for number in range(1, count + 1)]
    return [*inner, split.train, split.train + split.valid, 1.0]


def swing_steps(config: Config, size: Size, share: float) -> float:
    """Steps of exact Swing on a share of the interactions: the sum, over items and pairs of their users,
    of the items the two have in common. Quadratic in an item's users, up to the cap."""
    per_item = share * size.interactions / size.items
    history = min(share * size.interactions / size.users, config.swing.max_behavior)
    cap = config.swing.max_users_per_item
    pairs = min(value("skew") * per_item**2, cap**2)
    return size.items * pairs * value("overlap") * history
