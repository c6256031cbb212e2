"""What crosses a border between the parts, as typed records with their Arrow schemas.

Ids of users and items are strings here and at every border a person can see; inside the pipeline
they are int32 codes (the row numbers of `users.parquet` and `items.parquet`).
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

_set = object.__setattr__


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def __reduce__(self) -> tuple[Any, ...]:
        # Agents hand each other hundreds of records for an answer: values alone take half the time.
        return _restored, (type(self), self.__dict__)


def _restored(kind: type[Record], values: dict[str, Any]) -> Record:
    record = kind.__new__(kind)
    _set(record, "__dict__", values)
    _set(record, "__pydantic_fields_set__", set(values))
    _set(record, "__pydantic_extra__", None)
    _set(record, "__pydantic_private__", None)
    return record


class Interaction(Record):
    """One event of a user with an item."""

    user_id: str
    item_id: str
    timestamp: int
    """Epoch seconds."""
    rating: float | None = None
    label: int
    """1: liked."""


class Item(Record):
    item_id: str
    title: str
    features: list[str] = Field(default_factory=list)
    keywords: list[str] = Field(default_factory=list)
    year: int | None = None
    description: str = ""


class User(Record):
    user_id: str
    profile: dict[str, str] = Field(default_factory=dict)


class Neighbour(Record):
    """A similar user or item."""

    id: str
    score: float
    common: int
    """Users (for items) or items (for users) in common."""


class Evidence(Record):
    """One fact an answer may lean on. Its id (`e1`, `e2`, ...) is how reasons cite it."""

    id: str
    kind: Literal["history", "neighbour", "peers", "crowd"]
    """history: an item the user rated; neighbour: an item that similar users rated; peers: similar
    users' ratings of the target itself; crowd: everyone's earlier ratings of the target."""
    item_id: str
    title: str
    features: list[str]
    shared: list[str]
    """Features it shares with the target."""
    rating: float | None
    """history: the user's rating (null where only labels are known); neighbour, peers: similar users'
    average rating (null where only labels are known); crowd: share of positive ratings, 0 to 1, smoothed by
    what is usual (`collab.prior`), so of few ratings it is not the bare share."""
    support: int
    """How many ratings stand behind it."""
    sign: Literal[-1, 1]
    """+1 speaks for Yes, -1 for No."""
    weight: float
    """Relative strength, >= 0: collaborative similarity to the target, or evidence of the average."""


class Context(Record):
    """Everything a prompt is made from: one user, one target, as known just before `timestamp`.

    `profile` (ids h1, h2, ...) is the same for every target of the user, so it makes the shared prefix
    of the prompts that decide; `evidence` (ids e1, e2, ...) is chosen for the target, and only it is
    cited by reasons.
    """

    user_id: str
    timestamp: int
    history_count: int
    like_rate: float
    """Smoothed share of the user's earlier ratings that are positive."""
    target: Item
    profile: list[Evidence]
    evidence: list[Evidence]
    candidates: list[Item] = Field(default_factory=list)

    def cited(self, evidence_id: str) -> Evidence | None:
        return next((entry for entry in self.evidence if entry.id == evidence_id), None)


class Step(Record):
    """One step of a trace: free text that cites evidence by id, such as `[e3]`."""

    text: str
    citations: list[str]


class Trace(Record):
    """A teacher's reasoning about one row, with its provenance."""

    row_id: int
    path: int
    steps: list[Step]
    verdict: bool
    """What the reasoning concludes."""
    label: bool
    """What happened."""
    mode: Literal["blind", "reflected", "hinted"]
    rounds: int
    """Reflection rounds before it was accepted or given up."""
    template: str
    engine: str
    model: str
    tokens: int
    scores: dict[str, float] = Field(default_factory=dict)
    accepted: bool
    reason: str = ""
    """Why it was rejected."""


class Example(Record):
    """One training example: a prompt, its target text and its place in the loss."""

    row_id: int
    kind: Literal["rec", "reason"]
    user: int
    """User code; the soft vectors are looked up by row_id."""
    context: Context
    trace: Trace | None
    label: int


class Verdict(Record):
    """The student's decision about one (user, item)."""

    p_yes: float
    """Calibrated."""
    logit: float
    """Raw logit(Yes) - logit(No)."""
    expert: str
    """Adapter that decided: an expert's name, `blend` or `global`."""
    missed: str = ""
    """Experts that the gate would have asked as well, but whose adapters are missing or damaged."""
    gate: dict[str, float] = Field(default_factory=dict)
    reasoning: list[Step] = Field(default_factory=list)

    @property
    def confidence(self) -> float:
        return max(self.p_yes, 1 - self.p_yes)


class Reflection(Record):
    """How a decision was doubted."""

    triggers: list[str]
    """low_confidence, conflict, high_stakes, inconsistent."""
    questions: dict[str, str]
    """Each reflection question with what was found."""
    before: float
    """p_yes before."""
    after: float
    """p_yes after."""
    rounds: int


class Counterfactual(Record):
    """What the decision would have been had the user never rated the items that its reasons cite; scored
    again by the student, everything else as it was."""

    evidence: list[str]
    """Ids of the cited history."""
    before: float
    """p_yes of the first decision, which a reflection may have moved since."""
    after: float
    text: str


class Explanation(Record):
    """Reasons as a person reads them; every sentence lists the evidence ids it leans on."""

    text: str
    detail: Literal["brief", "standard", "detailed"]
    sentences: list[Step]
    coherent: bool
    """The reasons agree with the decision."""
    rewritten: int = 0
    """Sentences that failed the check and were written anew from the evidence."""
    counterfactual: Counterfactual | None = None
    """Null where the decision hardly moves (`serve.counterfactual`), or for brief reasons."""


class RecommendedItem(Record):
    item: Item
    score: float
    """Calibrated P(yes)."""
    confidence: float
    verdict: Verdict
    reflection: Reflection | None
    explanation: Explanation
    evidence: list[Evidence]


class TrailStep(Record):
    """One step of an agent."""

    number: int
    agent: str
    work: str
    """fetch, propose, assemble, decide, gather, write, triggers, reconsider, synthesise, present, without or
    rethink; estimate where the student was gone."""
    began_ms: float
    """Since the request came."""
    ms: float | None
    """How long it took; null while it is at work."""
    facts: dict[str, int | float | str] = Field(default_factory=dict)


class Candidate(Record):
    """One item that was decided about, shown or not."""

    item_id: str
    title: str
    interest: float
    """Swing's candidate score."""
    signals: dict[str, float]
    """What it is made of: neighbours, favourites, trend."""
    logit: float | None
    p_yes: float | None
    """Null where the student never decided."""
    place: int | None
    """In the answer, from 1."""


class Look(Record):
    """A decision made again: P(yes) without parts of the evidence, by other adapters, by boosted trees on the
    same signals, and after reasoning."""

    without: dict[str, float]
    segments: dict[str, float]
    reweighed: float | None
    reasoned: float | None


class Shown(Record):
    """What became of an item that was shown."""

    item_id: str
    before: float
    """p_yes as first decided."""
    after: float
    triggers: list[str]
    looks: list[Look]
    """One a round of reflection."""
    written: list[Step]
    """The student's reasons as first written."""
    written_again: list[Step] | None
    """As written after reflection, where it had them written again."""
    failed: list[Step]
    """The student's sentences that failed the check."""
    rewritten: int
    """Sentences that were told from the evidence instead."""


class Trail(Record):
    """The whole way to an answer."""

    steps: list[TrailStep]
    candidates: list[Candidate]
    """In Swing's order."""
    expert: str
    """The gate's choice; empty where the student never decided."""
    gate: dict[str, float]
    """The gate's weight of each expert."""
    shown: list[Shown]


class Recommendation(Record):
    """The answer to one request."""

    user_id: str
    """Empty where the request named no user."""
    items: list[RecommendedItem]
    """Best first: by Swing's interest times the root of P(yes)."""
    degraded: bool = False
    degraded_reason: str = ""
    versions: dict[str, str]
    timings_ms: dict[str, float]
    """Milliseconds spent in each agent."""
    trail: Trail | None = None
    """With `detail` = `trail`."""


_ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("features", pa.list_(pa.string())),
        ("keywords", pa.list_(pa.string())),
        ("year", pa.int32()),
        ("description", pa.string()),
    ]
)

ITEMS = pa.schema([("item", pa.int32()), *[(f.name, f.type) for f in _ITEM]])
"""`prepare/items.parquet`: row number = item code."""

USERS = pa.schema([("user", pa.int32()), ("user_id", pa.string()), ("profile", pa.string())])
"""`prepare/users.parquet`: row number = user code; profile is a JSON object."""

INTERACTIONS = pa.schema(
    [
        ("row_id", pa.int64()),
        ("user", pa.int32()),
        ("item", pa.int32()),
        ("timestamp", pa.int64()),
        ("rating", pa.float32()),
        ("label", pa.int8()),
        ("split", pa.string()),
    ]
)
"""`prepare/interactions.parquet`: sorted by (timestamp, user, item); row_id = row number."""

REJECTS = pa.schema(
    [("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("row", pa.string())]
)
"""`prepare/rejects/*.parquet`: rows that were not taken, as they were, with the reason."""

TRACES = pa.schema(
    [
        ("row_id", pa.int64()),
        ("path", pa.int32()),
        ("accepted", pa.bool_()),
        ("mode", pa.string()),
        ("rounds", pa.int32()),
        ("template", pa.string()),
        ("tokens", pa.int32()),
        ("reason", pa.string()),
        ("trace", pa.string()),
        ("context", pa.string()),
    ]
)
"""`reason/shards/*.parquet`: one trace a row; `trace` and `context` are JSON records."""

EXAMPLES = pa.schema(
    [
        ("row_id", pa.int64()),
        ("kind", pa.string()),
        ("user", pa.int32()),
        ("label", pa.int8()),
        ("context", pa.string()),
        ("trace", pa.string()),
    ]
)
"""`mix/examples.parquet`: `context` and `trace` are JSON records; trace is null for kind `rec`."""


def item_record(row: dict[str, Any]) -> Item:
    """An Item from a row of `items.parquet`."""
    return Item(**{name: row[name] for name in Item.model_fields})
