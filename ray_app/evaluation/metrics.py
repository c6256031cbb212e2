"""What a report holds: the layout of `metrics.json`. A section that is None was not measured.

Numbers may be None (undefined or not measured); NaN and infinities become None on the way in.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_app.errors import DataError
from ray_app.records import Evidence, Step


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RunSection(Section):
    name: str
    created: str = ""
    """ISO date and time."""
    versions: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, str] = Field(default_factory=dict)
    """What a reader must know to compare: teacher, student, engine, seed."""


class SplitCounts(Section):
    rows: int
    users: int | None = None
    positive_share: float | None = None


class DataSection(Section):
    source: str
    users: int
    items: int
    interactions: int
    rejected: int = 0
    splits: dict[str, SplitCounts] = Field(default_factory=dict)


class Number(Section):
    """A measured value with its 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Difference(Section):
    """Champion minus another scorer (`intervals.paired_test`)."""

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None = None
    users: int


class ArtefactSection(Section):
    """UAUC of minus the user's rolling like-rate, and its null."""

    uauc: float | None
    null: Number


class TableSection(Section):
    """Output of `tables.exposed_table` or `tables.catalogue_table`."""

    scorers: dict[str, dict[str, Number]]
    """Scorer -> metric -> number; rows and columns are shown in this order."""
    counts: dict[str, int] = Field(default_factory=dict)
    artefact: ArtefactSection | None = None
    paired: dict[str, dict[str, Difference]] | None = None


class ReliabilityPoint(Section):
    p: float
    observed: float
    rows: int


class CalibrationSection(Section):
    """Output of `calibration.calibration`, of the champion on test rows."""

    rows: int
    ece: float | None
    brier: float | None
    brier_constant: float | None
    reliability: list[ReliabilityPoint]


class CurvePoint(Section):
    step: int
    tokens: int
    loss: float | None = None
    valid_auc: float | None = None


class Curve(Section):
    """The course of one training phase: `bootstrap`, `global`, an expert's name."""

    name: str
    points: list[CurvePoint]


class Expert(Section):
    name: str
    users: int
    rows: int | None = None
    """Validation rows of its users."""
    valid_users: int | None = None
    """Users with such rows."""
    auc_expert: float | None = None
    auc_global: float | None = None
    """AUC of the global adapter on the same rows."""
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    """Log loss saved per row by the expert, mean over users, and its interval (`student.publishing`)."""
    doubt: float | None = None
    """Share of the bootstrap resamples without a gain."""
    better: float | None = None
    """Share of the users with a gain."""
    published: bool | None = None


class Spread(Section):
    """A metric over seeds."""

    mean: float | None
    spread: float | None
    """Sample standard deviation; None for one seed."""
    values: list[float | None]


class AblationSection(Section):
    """Output of `pipelines.ablate`."""

    split: str
    rows: int
    seeds: list[int]
    variants: dict[str, dict[str, Spread]]
    """Row of the table -> metric -> its spread."""


class Tally(Section):
    attempts: int
    accepted: int


class TeacherSection(Section):
    engine: str
    rows: int
    """Training rows reasoned about."""
    traces: int
    accepted: int
    by_round: dict[str, Tally] = Field(default_factory=dict)
    by_template: dict[str, Tally] = Field(default_factory=dict)
    rejects: dict[str, int] = Field(default_factory=dict)
    """Reason -> traces."""


class Meteor(Section):
    meteor: float
    shuffled: float
    lift: float


class Bleurt(Section):
    computed: bool
    value: float | None = None
    reason: str = ""


class Coherence(Section):
    verdict_agreement: float
    internal_consistency: float
    order: float


class Coverage(Section):
    recall: float
    precision: float


class KindTruth(Section):
    """Statements about one kind of evidence: how many the forced texts hold, and the share that is true."""

    statements: int
    forced: float | None
    raw: float | None


class TextSection(Section):
    """Means over the judged explanations."""

    explanations: int
    meteor: Meteor | None = None
    bleurt: Bleurt | None = None
    coherence: Coherence | None = None
    coverage: Coverage | None = None
    groundedness: float | None = None
    """Share of statements that the evidence does not contradict."""
    groundedness_raw: float | None = None
    """The same without constrained decoding."""
    groundedness_kinds: dict[str, KindTruth] = Field(default_factory=dict)
    """By the kind of evidence that a statement cites first."""
    faithfulness: float | None = None
    """Share of explanations whose cited evidence moves P(yes) more than as much uncited evidence."""
    usr: float | None = None
    fcr: float | None = None
    div: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None


class Decisions(Section):
    auc: float | None
    accuracy: float | None
    log_loss: float | None


class Gain(Section):
    """A paired difference and its interval."""

    value: float | None
    low: float | None
    high: float | None


class ReflectionSection(Section):
    """Decisions of doubted rows before and after reflection (`agents.synthesis.compared`)."""

    rows: int
    users: int
    before: Decisions
    after: Decisions
    auc_gain: Gain
    accuracy_gain: Gain = Gain(value=None, low=None, high=None)
    """Undefined in reports that were made before it was measured."""
    turned: int
    """Decisions that changed, of which so many for the better and for the worse."""
    better: int
    worse: int
    p: float
    """Two-sided p of McNemar's exact test on those."""
    triggers: dict[str, int]
    """Cause for doubt -> rows."""
    looks: dict[str, float | None] = Field(default_factory=dict)
    """Second look that was taken -> its AUC alone."""
    neutral: bool
    """The weights keep the first decision: on validation rows nothing better was found."""


class Stage(Section):
    stage: str
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float


class Latency(Section):
    """Output of `system.latency`, milliseconds."""

    samples: int
    p50: float
    p95: float
    p99: float
    max: float


class SystemSection(Section):
    latency: Latency | None = None
    rate_per_s: float | None = None
    """Arrival rate of the load under which the latency was measured."""
    throughput_per_s: float | None = None
    peak_memory_mb: float | None = None
    train_tokens_per_s: float | None = None
    hours_to_convergence: float | None = None


class Metrics(Section):
    """Everything measured in a run."""

    run: RunSection
    champion: str
    """The scorer that the run serves; a key of the tables."""
    data: DataSection | None = None
    exposed: TableSection | None = None
    catalogue: TableSection | None = None
    calibration: CalibrationSection | None = None
    curves: list[Curve] | None = None
    experts: list[Expert] | None = None
    ablation: AblationSection | None = None
    teacher: TeacherSection | None = None
    text: TextSection | None = None
    reflection: ReflectionSection | None = None
    stages: list[Stage] | None = None
    system: SystemSection | None = None


class Plot(Section):
    """A drawing of the report, as a file beside it."""

    name: str
    section: str
    """exposed, catalogue, calibration, curves or stages."""
    caption: str


class Sample(Section):
    """One explained decision."""

    user_id: str
    title: str
    decision: bool
    p_yes: float
    label: bool | None
    """What happened; None if unknown."""
    steps: list[Step]
    evidence: list[Evidence]
    problems: list[str] = Field(default_factory=list)
    """What `reasons.groundedness` found to be false."""


def finite(value: Any) -> Any:
    """The same tree with None for NaN and infinities, and plain numbers for numpy's."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, BaseModel):
        return finite(value.model_dump())
    plain = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def checked(metrics: dict[str, Any], samples: list[dict[str, Any]]) -> tuple[Metrics, list[Sample]]:
    """Typed metrics and samples. Raises DataError, one line, naming the key that does not fit."""
    try:
        return Metrics.model_validate(finite(metrics)), [Sample.model_validate(finite(s)) for s in samples]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(top level)"
        raise DataError(
            f"report: {error.title}: {where}: {first['msg']} (got {first['input']!r:.80})"
        ) from error
