"""The configuration: typed, closed (an unknown key is an error), one class per part.

`load("configs/local.yaml", ["reason.fraction=0.1"])` reads a YAML file, applies overrides and checks
every key and value. Each field says what it does; the defaults are those of a 2-core machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ray_app.errors import ConfigError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SplitConfig(Section):
    """Shares of a global time split; ignored where the interactions have a `split` column."""

    train: float = Field(default=0.8, gt=0, lt=1)
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"shares add up to {total:g}, not 1: change train, valid or test")
        return self


class DataConfig(Section):
    """Where interactions, items and users come from."""

    source: Literal["ml-100k", "files"] = "ml-100k"
    """`ml-100k` is fetched once from the package registry; `files` reads the three paths below."""
    path: str | None = None
    """Folder with GroupLens' own ml-100k files (u.data, u.item, u.user), to use instead of a download."""
    interactions: str | None = None
    items: str | None = None
    users: str | None = None
    store_feedback: str | None = None
    """SQLAlchemy URL of a service's store whose collected interactions join those of the source; `own` is
    the store of the service that this run publishes to."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames for `files`: our column name -> the file's column name."""
    positive_rating: float = 4.0
    """label = rating >= this."""
    rating_range: tuple[float, float] = (0.0, 5.0)
    """Lowest and highest rating there can be; a row outside is rejected."""
    max_reject_rate: float = Field(default=0.01, ge=0, le=1)
    """More rejected rows than this share stops the run."""
    cache: str = "~/.cache/rationale"
    """Folder for what is downloaded once."""
    split: SplitConfig = SplitConfig()
    allow_empty_test: bool = False
    """Accept a `split` column without test rows; evaluation then uses the valid rows instead."""

    @model_validator(mode="after")
    def _reachable(self) -> DataConfig:
        low, high = self.rating_range
        if not low < self.positive_rating <= high:
            raise ValueError(
                f"positive_rating {self.positive_rating:g} is not inside rating_range "
                f"{low:g} to {high:g}: change one of them"
            )
        return self


class SwingConfig(Section):
    """Item and user neighbours. Parameter names and semantics are Flink ML's; beta, alpha2 and normalize
    were chosen on a validation part of MovieLens-100K (docs/swing.md). Flink's own: preset `flink`."""

    alpha1: float = Field(default=15.0, ge=0)
    """Added to a user's number of items n in its weight (alpha1 + n)^-beta; no effect while beta is 0."""
    alpha2: float = Field(default=100.0, ge=0)
    """Added to the number of items two users share, by which their pair's weight is divided."""
    beta: float = Field(default=0.0, ge=0)
    """How much less a user with many items counts: weight (alpha1 + n)^-beta; at 0 all count alike."""
    min_behavior: int = Field(default=2, ge=1)
    """Users with fewer distinct items are left out."""
    max_behavior: int = Field(default=1000, ge=1)
    """Users with more distinct items are left out."""
    max_users_per_item: int = Field(default=1000, ge=2)
    """An item with more users is computed from a sample of so many; similar users, from so many postings."""
    k: int = Field(default=100, ge=1)
    """Neighbours kept of an item."""
    min_common_users: int = Field(default=2, ge=1)
    """Neighbours of an item with fewer common users are left out."""
    normalize: Literal["none", "max", "product", "sqrt"] = "sqrt"
    """Raw Swing grows like popularity squared; `sqrt` is sqrt(score / (n_i * n_j)), much like a cosine."""
    item_strength: bool = False
    """Weigh a pair of users by how strong their interactions with the two items are."""
    item_half_life_days: float | None = Field(default=None, gt=0)
    """Halve the strength of an interaction with items for every so many days of its age."""
    snapshots: int = Field(default=6, ge=1)
    """Points in the training period at which neighbours are computed anew, from earlier rows only."""
    user_k: int = Field(default=30, ge=1)
    """Neighbours kept of a user."""
    user_min_similarity: float = Field(default=0.05, ge=0)
    """Neighbours of a user that are less similar are left out."""
    user_min_common: int = Field(default=2, ge=1)
    """Neighbours of a user with fewer items in common are left out."""
    user_shrinkage: float = Field(default=8.0, ge=0)
    """similarity = cosine * n / (n + shrinkage), n = number of common items."""
    user_diversity: float = Field(default=0.8, gt=0, le=1)
    """Lambda of maximal marginal relevance: 1 is pure similarity."""
    half_life_days: float = Field(default=180.0, gt=0)
    """Days in which an interaction's weight for the similarity of users halves."""

    @model_validator(mode="after")
    def _bounds(self) -> SwingConfig:
        if self.min_behavior > self.max_behavior:
            raise ValueError(
                f"min_behavior {self.min_behavior} > max_behavior {self.max_behavior}: swap them"
            )
        return self


class CollabConfig(Section):
    """Collaborative vectors."""

    dimensions: int = Field(default=16, ge=2)
    """Latent dimensions of the item co-occurrence factorisation."""
    prior: float = Field(default=8.0, gt=0)
    """Pseudo-counts of a rate's prior: rate = (positives + prior * expected) / (n + prior)."""
    window: int = Field(default=256, ge=8)
    """Latest ratings of a user that the regression on residuals and the opinions of like users see."""


class PromptConfig(Section):
    """How much evidence a prompt carries."""

    history: int = Field(default=8, ge=1)
    neighbours: int = Field(default=4, ge=0)
    candidates: int = Field(default=4, ge=0)
    """Other candidates named in the pool section."""
    title_chars: int = Field(default=48, ge=8)
    features: int = Field(default=4, ge=0)
    """Features (genres) shown per item, at most."""
    titles: bool = False
    """Show titles in the student's prompts, and the features of the target that it decides on. A pretrained
    model reads them; a tiny one made from the run's own rows learns items by heart from them: without, its
    AUC is .014 and its UAUC .024 higher (docs/results.md), and its reasons are truer."""
    sections: list[Literal["history", "similar", "pool"]] = ["history", "similar", "pool"]
    """Optional sections that the student's decide prompt has at all; fewer for an ablation."""
    marks: bool = True
    """Say in the student's decide prompt how many ratings the user and the target have and what share of them
    are likes; off for an ablation."""
    soft_tokens: bool = True
    """Put the collaborative vectors into the student's prompts; off for an ablation."""
    reason_first: bool = False
    """The student learns half of its reasoning rows with the answer at their end, and reflection has it
    reason before it answers where a decision is in doubt: one more second look, as slow as writing."""


class EngineConfig(Section):
    """A text engine."""

    kind: Literal["evidence", "vllm", "openai"] = "evidence"
    model: str = "evidence"
    """Model name or folder; `evidence` needs none."""
    dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel: int = Field(default=1, ge=1)
    replicas: int = Field(default=1, ge=1)
    max_model_len: int = Field(default=2048, ge=16)
    memory_fraction: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory for weights and KV cache."""
    kv_cache_mb: int | None = None
    """Explicit KV cache size; needed on CPU."""
    prefix_caching: bool = True
    """Keep the beginnings of prompts, so that what prompts share is computed once."""
    eager: bool = False
    """Skip CUDA graphs and compilation: for CPU and debugging."""
    speculative_tokens: int = Field(default=0, ge=0, le=64)
    """Tokens of the student's reasons that are guessed and checked in one step (`engines.phrasebook`); 0 for
    none. A text is the same with and without."""
    base_url: str | None = None
    """`openai`: the endpoint."""
    api_key_env: str | None = None
    """`openai`: name of the environment variable that holds the key."""
    timeout_s: float = Field(default=120.0, gt=0)


class ReasonConfig(Section):
    """The teacher: which rows, how many paths, how they are checked."""

    engine: EngineConfig = EngineConfig()
    fraction: float = Field(default=0.08, gt=0, le=1)
    """Share of training rows that are reasoned about."""
    clusters: int = Field(default=4, ge=2)
    """Clusters of users that the selection takes in turn."""
    paths: int = Field(default=2, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=320, ge=16)
    rounds: int = Field(default=2, ge=0)
    """Reflection rounds for a row whose paths all fail verification."""
    hints: bool = False
    """Last resort: tell a row's outcome, and keep only what the engine then concludes from the reasons with
    the answer masked (rationalisation)."""
    form: bool = False
    """Force the answer's form while decoding (`vllm`, and servers of it): for models too small to keep it."""
    keep: int = Field(default=2, ge=1)
    """Verified paths of a row that are kept, the shortest."""
    token_budget: int = Field(default=320, ge=16)
    """A verified path with more tokens is rejected."""
    batch_size: int = Field(default=256, ge=1)
    shard_rows: int = Field(default=1024, ge=1)
    """Rows per shard; a shard is the unit of resume."""
    attempts: int = Field(default=2, ge=1)
    """A row's chances to be served, the later ones alone; then it is quarantined."""
    stall_s: float = Field(default=900.0, gt=0)
    """An engine that starts for, or sits over one batch for, so many seconds is ended and replaced."""


class MixConfig(Section):
    """The training examples."""

    reason_share: float = Field(default=0.2, ge=0.001, le=0.999)
    """Share of examples that carry reasoning; the rest are Yes/No rows."""


class LoraSection(Section):
    r: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = Field(default_factory=lambda: ["q_proj", "v_proj"])


class BootstrapConfig(Section):
    """A small Llama made from the run's own corpus, for machines without a pretrained base."""

    hidden: int = Field(default=96, ge=16)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=3, ge=1)
    vocab: int = Field(default=2000, ge=300)
    answer_passes: int = Field(default=1, ge=1)
    """Passes over all training rows as short Yes/No prompts; the mix is shown once among them, since a small
    model soon knows long prompts by heart."""
    language_epochs: float = Field(default=5.0, gt=0)
    """Passes over the reasoning rows before that: text takes longer to learn than answers."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of AdamW, for embeddings, norms and the projector."""
    matrix_learning_rate: float | None = Field(default=0.01, gt=0)
    """Of Muon, for the matrices of the layers while they learn language; null leaves them to AdamW."""

    @model_validator(mode="after")
    def _head_size(self) -> BootstrapConfig:
        size = self.hidden / self.heads
        if size not in (32, 64, 80, 96, 112, 128, 160, 192, 224, 256):
            raise ValueError(
                f"hidden {self.hidden} / heads {self.heads} makes heads of size {size:g}, which vLLM does "
                f"not serve on CPU: make it 32, 64, 96 or 128"
            )
        return self


class StudentConfig(Section):
    """The student model: a causal LM, a projector for soft tokens, LoRA adapters."""

    base: str | None = None
    """Folder or hub name of a causal LM; null bootstraps a tiny one."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    lora: LoraSection = LoraSection()
    soft_vectors: Literal["statistics", "all"] = "statistics"
    """What of the collaborative vectors the projector reads: their leading statistics, or the content and
    latent parts too, which some ten thousand rows are too few to learn from."""
    projector_dropout: float = Field(default=0.1, ge=0, lt=1)
    """On the collaborative vectors and inside the projector, in training."""
    direct: float = Field(default=0.0, ge=0, lt=1)
    """Share of the score that comes from small networks beside the LM, which read the same vectors."""
    max_length: int = Field(default=512, ge=32)
    dtype: Literal["float32", "bfloat16"] = "float32"


class LossWeights(Section):
    answer: float = Field(ge=0)
    text: float = Field(ge=0)


class TrainConfig(Section):
    """Ray Train + DeepSpeed."""

    workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(default=1.0, gt=0)
    threads: int = Field(default=2, ge=1)
    """torch threads per worker on CPU."""
    deepspeed: str = "configs/deepspeed/zero2.json"
    batch_tokens: int = Field(default=1024, ge=64)
    """Tokens per optimizer step and worker: batches are bucketed by length. A student made here needs many
    small steps; a large base on a GPU takes 8192."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes of the global adapter over the mix."""
    expert_epochs: float = Field(default=0.3, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    """Of the adapters; experts take half of it."""
    projector_learning_rate: float = Field(default=5e-4, gt=0)
    """Of the projector, beside the global adapter. It reads numbers only, so it bears more than text does."""
    weight_decay: float = Field(default=0.1, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    loss_rec: LossWeights = LossWeights(answer=0.9, text=0.1)
    loss_reason: LossWeights = LossWeights(answer=0.1, text=0.9)
    pair_weight: float = Field(default=0.5, ge=0)
    """Weight of the pairwise loss over rows of one user with different labels (Rendle et al. 2009): more
    of it trades AUC for order within users."""
    section_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability that a Yes/No row's prompt loses each optional section in training."""
    min_experts: int = Field(default=3, ge=1)
    max_experts: int = Field(default=5, ge=1)
    patience: int = Field(default=3, ge=1)
    """Points of a curve (there are about six) without a better UAUC on validation rows after which an
    adapter's phase ends; the adapter of its best point is kept."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    max_failures: int = Field(default=2, ge=0)
    valid_rows: int = Field(default=2000, ge=10)
    """Validation rows scored during training."""

    @model_validator(mode="after")
    def _experts(self) -> TrainConfig:
        if self.min_experts > self.max_experts:
            raise ValueError(f"min_experts {self.min_experts} > max_experts {self.max_experts}: swap them")
        return self


STUDENT_ENGINE = EngineConfig(
    kind="vllm",
    model="bundle",
    dtype="float32",
    kv_cache_mb=96,
    eager=True,
    max_model_len=768,
    speculative_tokens=16,
)
"""A bundle's student on a CPU: what evaluates it is what serves it."""


class EvaluateConfig(Section):
    engine: EngineConfig = STUDENT_ENGINE
    k: list[int] = Field(default_factory=lambda: [5, 10, 20])
    rows: int = Field(default=10000, ge=10)
    """Test rows the student scores; whole users, seeded."""
    catalogue_users: int = Field(default=60, ge=1)
    """Users of the full-catalogue protocol that the student re-ranks."""
    catalogue_candidates: int = Field(default=100, ge=1)
    """Candidates the student re-ranks per user in that protocol."""
    explanations: int = Field(default=200, ge=1)
    """Reasoning texts generated and judged."""
    bootstrap: int = Field(default=1000, ge=10)
    """Bootstrap resamples over users."""
    bleurt: str | None = None
    """Folder with a BLEURT checkpoint."""


class GateConfig(Section):
    """Expert choice from cosine similarity of the user to cluster means."""

    temperature: float = Field(default=0.1, gt=0)
    single: float = Field(default=0.5, gt=0, lt=1)
    """One expert if its weight exceeds single + margin / n_experts."""
    margin: float = Field(default=0.6, ge=0)
    entropy: float = Field(default=0.95, gt=0, le=1)
    """The global adapter if the weights' entropy is at least this share of ln(n_experts)."""


class ServeConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    engine: EngineConfig = STUDENT_ENGINE
    gate: GateConfig = GateConfig()
    store: str | None = None
    """SQLAlchemy URL; null uses SQLite inside the run folder."""
    candidates: int = Field(default=60, ge=1)
    """Candidates scored per request."""
    max_k: int = Field(default=50, ge=1)
    confidence: float = Field(default=0.6, gt=0.5, lt=1)
    """Reflection is triggered below this calibrated confidence."""
    reflection_rounds: int = Field(default=1, ge=0)
    counterfactual: float = Field(default=0.05, ge=0, le=1)
    """A decision is told with what it would be without the ratings that its reasons cite, where P(yes)
    moves by at least this much."""
    deadline_s: float = Field(default=20.0, gt=0)
    max_ongoing: int = Field(default=16, ge=1)
    max_queued: int = Field(default=64, ge=0)
    reasoning_replicas: int = Field(default=1, ge=1)
    reasoning_max_replicas: int = Field(default=1, ge=1)
    reasoning_gpus: float = Field(default=0.0, ge=0)
    reasoning_threads: int = Field(default=1, ge=1)
    """CPU threads of a reasoning replica's arithmetic."""
    reasoning_tokens: int = Field(default=224, ge=16)


class RayConfig(Section):
    """The local cluster that `make run` starts."""

    num_cpus: int = Field(default=6, ge=2)
    """Logical CPUs: more than cores, since most of our processes wait."""
    object_store_mb: int = Field(default=512, ge=100)
    port: int = Field(default=6385, ge=1024, le=65535)
    dashboard_port: int = Field(default=8267, ge=1024, le=65535)


class Config(Section):
    """Everything a run needs."""

    name: str = Field(default="local", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    runs: str = "runs"
    """Folder or fsspec URI that holds run folders."""
    seed: int = 7
    data: DataConfig = DataConfig()
    swing: SwingConfig = SwingConfig()
    collab: CollabConfig = CollabConfig()
    prompt: PromptConfig = PromptConfig()
    reason: ReasonConfig = ReasonConfig()
    mix: MixConfig = MixConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply `key.path=value` overrides (values are parsed as YAML).

    Raises ConfigError, one line, naming the file, the key and the value.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"config file {file} does not exist: give --config one of configs/*.yaml")
    try:
        tree = yaml.safe_load(file.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} holds a {type(tree).__name__}, not a mapping of keys to values")
    for override in overrides or []:
        _apply(tree, override)
    return validate(tree, str(file))


def validate(tree: dict[str, Any], source: str) -> Config:
    """Check a tree of plain values; `source` names it in the error."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{source}: unknown key {key}: remove it or correct its name{more}") from error
        value = "" if first["type"] == "value_error" else f" (got {first['input']!r})"
        raise ConfigError(f"{source}: {key}: {first['msg']}{value}{more}") from error


def overridden(config: Config, overrides: list[str]) -> Config:
    """The config with `key.path=value` overrides. Raises ConfigError as `load` does."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return validate(tree, config.name)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override!r} is not of the form key.path=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section")
    try:
        tree[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r} is not valid YAML after the =: quote the value") from error
