"""Every number of the cost model that is not computed, in one table, with where it is from.

Sources are of three kinds: *measured here* (2 CPU cores, MovieLens-100K, the default config), *default*
(of the package named, at the version of the lock) and *assumed* (published practice; not yet checked on
a GPU of this project).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    value: float
    unit: str
    source: str


TABLE: dict[str, Constant] = {
    # text
    "decide_chars": Constant(72, "characters", "measured here: decide prompt without its optional sections"),
    "history_chars": Constant(34, "characters/entry", "measured here: history lines of decide prompts"),
    "similar_chars": Constant(41, "characters/entry", "measured here: lines of similar users' items"),
    "pool_chars": Constant(21, "characters/entry", "measured here: lines of other candidates"),
    "evidence_share": Constant(0.94, "entries/(history + neighbours)", "measured here: evidence per context"),
    "evidence_chars": Constant(51, "characters/entry", "measured here: evidence lines of explain prompts"),
    "title_chars": Constant(22, "characters/entry", "measured here: quoted titles, shown by titles"),
    "explain_chars": Constant(115, "characters", "measured here: explain prompt without its evidence"),
    "reason_chars": Constant(787, "characters", "measured here: reasoning with its cards"),
    "teacher_chars": Constant(1250, "characters", "measured here: rules and frame of its templates"),
    "teacher_entry_chars": Constant(80, "characters/entry", "measured here: lines of the teacher's prompts"),
    "bootstrap_chars": Constant(4.1, "characters/token", "measured here: decide prompts, our own tokenizer"),
    "bootstrap_text_chars": Constant(4.7, "characters/token", "measured here: cards and reasons, the same"),
    "pretrained_chars": Constant(3.2, "characters/token", "assumed: 4 for prose, fewer for titles and marks"),
    "padding": Constant(1.05, "tokens/token", "measured here: batches bucketed by length"),
    "padding_users": Constant(1.23, "tokens/token", "measured here: the same, a user's rows kept together"),
    # teacher
    "acceptance": Constant(0.459, "traces/trace", "measured here: evidence teacher; assumed for models"),
    "retries": Constant(0.556, "traces/row and round", "measured here: evidence teacher; assumed for models"),
    "answer_share": Constant(0.6, "tokens/max_tokens", "assumed: length of an answer within its limit"),
    # CPU, seconds of one core
    "prepare_row": Constant(6e-6, "CPU s/interaction", "measured here"),
    "swing_step": Constant(1e-8, "CPU s/step", "measured here; a step is one (user pair, common item)"),
    "encode_row": Constant(1.6e-4, "CPU s/interaction", "measured here"),
    "trace_cpu": Constant(3.8e-3, "CPU s/trace", "measured here: evidence teacher with verification"),
    "context": Constant(7e-4, "CPU s/context", "measured here: evidence and prompts of a row, in mix: "
                        "4e-4 to 1.2e-3 in three runs"),
    "tokenize": Constant(3e-4, "CPU s/sequence", "measured here"),
    "publish_fixed": Constant(5, "CPU s", "measured here: report, hashes, store"),
    "publish_row": Constant(1e-5, "CPU s/interaction", "measured here: histories and the store"),
    "cpu_flops": Constant(1.9e10, "operations/s/core", "measured here: training the tiny student, middle "
                          "of 2.9e10 on an idle machine and 1.3e10 on a busy one"),
    "score_cpu": Constant(1.2e-3, "CPU s/prompt", "measured here: vLLM on CPU, tiny student"),
    "write_cpu": Constant(1 / 2500, "CPU s/token", "measured here: vLLM on CPU, tiny student, batched"),
    "evaluate_fixed": Constant(250, "CPU s", "measured here: trees, intervals, texts, engine start"),
    "reflect_fixed": Constant(40, "CPU s", "measured here: boosted trees, synthesis, engine start"),
    "reflect_row": Constant(2e-2, "CPU s/validation row", "measured here: evidence, decisions, trees; "
                            "1.4e-2 to 2.8e-2 in three runs"),
    "session": Constant(12, "s/stage", "measured here: Ray workers start and import"),
    "glances": Constant(5800, "prompts/phase", "default: pipelines/train_loop.py, points of a curve"),
    "direct_row": Constant(2e-3, "CPU s/training row", "measured here: fit of the direct part, 1.5e-3 to "
                           "2.7e-3"),
    "phase": Constant(8, "s/phase", "measured here: model, optimizer, validation, commit"),
    # Swing's work
    "skew": Constant(2.83, "E[n^2]/E[n]^2", "measured here: users per item of MovieLens-100K"),
    "overlap": Constant(0.51, "items/item", "measured here: common items of two users of one item, as a "
                        "share of a mean history; an upper bound for larger catalogues"),
    # GPU
    "mfu_train": Constant(0.30, "of peak", "assumed: LoRA with eager attention kernels reaches 25 to 40 %"),
    "mfu_prefill": Constant(0.45, "of peak", "assumed: vLLM prefill of dense models"),
    "bandwidth": Constant(0.60, "of peak", "assumed: vLLM decoding of dense models"),
    "tensor_parallel": Constant(0.85, "per doubling", "assumed: NVLink; PCIe is worse"),
    "engine_batch": Constant(256, "sequences", "default: vLLM max_num_seqs"),
    "engine_tokens": Constant(8192, "tokens", "default: vLLM max_num_batched_tokens, offline"),
    "engine_start": Constant(180, "s/engine", "assumed: weights from local disk, compilation, CUDA graphs"),
    "engine_bytes": Constant(2.0e9, "bytes/GPU", "assumed: CUDA context, NCCL and CUDA graphs"),
    "train_bytes": Constant(2.0e9, "bytes/GPU", "assumed: CUDA context, NCCL, allocator's fragments"),
    "usable": Constant(0.985, "of nominal", "assumed: what the driver leaves of a GPU's memory"),
    "bucket": Constant(5e8, "elements", "default: DeepSpeed reduce_bucket_size"),
    "live": Constant(1e9, "elements", "default: DeepSpeed stage3_max_live_parameters"),
    # bytes at rest
    "prepare_bytes": Constant(8, "bytes/interaction", "measured here: parquet"),
    "graph_bytes": Constant(26, "bytes/interaction", "measured here: a snapshot's user index"),
    "pair_bytes": Constant(12, "bytes/pair", "measured here: id, score and count of an item neighbour"),
    "vector_bytes": Constant(420, "bytes/interaction", "measured here: 105 float32 of encode"),
    "trace_bytes": Constant(250, "bytes/trace", "measured here: parquet"),
    "example_bytes": Constant(125, "bytes/row", "measured here: parquet of the mix"),
    "history_bytes": Constant(32, "bytes/interaction", "measured here: histories in a bundle"),
    "token_bytes": Constant(0.54, "bytes/token", "measured here: compressed parquet of tokenized rows"),
    # bytes at work
    "process_bytes": Constant(6e8, "bytes", "measured here: a stage's process with its imports"),
    "workers_bytes": Constant(1.3e9, "bytes", "measured here: Ray's workers and services in a session on 2 "
                              "cores, idle ones too"),
    "control_bytes": Constant(9e8, "bytes", "measured here: Ray Train's controller and seven helpers"),
    "trainer_bytes": Constant(1.5e9, "bytes/worker", "measured here: torch, DeepSpeed, tiny student: "
                              "0.7e9 early in a run to 2.3e9 at its peak"),
    "engine_host_bytes": Constant(1.4e9, "bytes", "measured here: vLLM with the tiny student and its cache"),
    "rivals_bytes": Constant(2.5e9, "bytes", "measured here: trees, EASE and intervals; not given back"),
    "frame_bytes": Constant(250, "bytes/interaction", "assumed: polars holds a table about four times over"),
    "sequence_bytes": Constant(1500, "bytes/sequence", "measured here: a tokenized row in a train worker"),
    # service
    "doubted": Constant(0.3, "of items shown", "assumed: share that reflection looks at again"),
    "adapters": Constant(1.5, "adapters/request", "assumed: the gate blends experts for some users"),
    "target_k": Constant(10, "items/request", "assumed: items shown with reasons"),
    "utilisation": Constant(0.6, "of capacity", "assumed: load at which queues stay short"),
}  # fmt: skip


def value(name: str) -> float:
    return TABLE[name].value
