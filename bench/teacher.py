"""Tokens per second of the teacher's stage against the same engine called directly, in one run.

    python -m bench.teacher [--config configs/local.yaml] [--run FOLDER] [--rows 256] [--model FOLDER]

Takes a run whose stages up to `encode` are finished. *Direct* is `vllm.LLM.generate` on the very prompts
and sampling parameters of stage reason, in batches of the same size. *Pipeline* is the stage's own worker
with everything it does beside: contexts, prompts, reading, checking, the cache, journal and shards. Both
write the same tokens with the same model on the same cores; the start of the engine, and of Ray, is left
out of both. They run in turn, `--rounds` times, on fresh seeds, so that nothing comes from a cache; the
ratio is that of the medians.

Without --model, a random Llama of 18 M parameters: its texts are noise, its work is that of a model.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from pipelines.common import open_run, parser, start_ray
from pipelines.reason import choose, open_contexts
from pipelines.reason_shards import ShardWorker
from ray_app.artifacts import Folder, Run
from ray_app.config import Config, overridden
from ray_app.errors import cli


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rows", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--model")
    arguments.add_argument("--json")
    options = arguments.parse_args()
    base, run = open_run(options)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or random_llama(base, run, Path(scratch) / "model")
        config = overridden(base, settings(model, scratch))
        start_ray(config)
        rows = choose(config, run)[0][: options.rows]
        # Both engines live all the time: an idle one takes memory from the other, and no time.
        pipeline = Pipeline.remote(config, run, scratch)
        direct = Direct.remote(config, run)
        found: dict[str, list[dict[str, float]]] = {"direct": [], "pipeline": []}
        for seed in range(options.rounds + 1):
            for name, actor in (("direct", direct), ("pipeline", pipeline)):
                # The first round starts engines, and is not counted.
                result: dict[str, float] = ray.get(actor.measure.remote(rows if seed else rows[:16], seed))
                if seed:
                    found[name].append(result)
                print(f"{name:<9} {result['tokens']:7.0f} tokens {result['seconds']:7.2f} s", flush=True)
    rates = {
        name: statistics.median(one["tokens"] / one["seconds"] for one in results)
        for name, results in found.items()
    }
    cpu = {
        name: statistics.median(one["tokens"] / one["cpu"] for one in results)
        for name, results in found.items()
    }
    summary = {
        "rows": len(rows),
        "tokens_per_s": rates,
        "tokens_per_cpu_s": cpu,
        "ratio": rates["pipeline"] / rates["direct"],
        "cpu_ratio": cpu["pipeline"] / cpu["direct"],
    }
    print(json.dumps(summary, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(summary | {"rounds": found}, indent=2))


def settings(model: str, scratch: str) -> list[str]:
    engine = {"kind": "vllm", "model": model, "dtype": "float32", "kv_cache_mb": 256, "eager": True}
    values = {
        "reason.engine": engine | {"max_model_len": 2048},
        "reason.rounds": 0,
        "reason.hints": False,
        "reason.max_tokens": 96,
        "reason.batch_size": 64,
        "data.cache": f"{scratch}/cache",
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@ray.remote(num_cpus=1)
class Pipeline:
    """The stage's own worker; a shard is written per round."""

    def __init__(self, config: Config, run: Run, scratch: str):
        self._config, self._run, self._scratch = config, run, scratch
        self._worker: Any = None

    def measure(self, rows: list[tuple[int, bool]], seed: int) -> dict[str, float]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Folder(f"{self._scratch}/round-{seed}")
        config = overridden(self._config, [f"seed={seed}"])
        if self._worker is None:
            self._worker = ShardWorker(config, self._run, open_contexts, folder, Silent())
        self._worker._config, self._worker._folder = config, folder
        table = pa.table(
            {
                "shard": [0],
                "attempt": [1],
                "row_ids": [[row for row, _ in rows]],
                "labels": [[label for _, label in rows]],
            }
        )
        begin, cpu = time.monotonic(), time.process_time()
        (outcome,) = self._worker(table).to_pylist()
        spent = {"seconds": time.monotonic() - begin, "cpu": time.process_time() - cpu}
        assert not outcome["error"], outcome
        traces = pq.read_table(folder.path("shards/00000.parquet"), columns=["tokens"])
        return spent | {"tokens": float(sum(traces["tokens"].to_pylist()))}


@ray.remote(num_cpus=1)
class Direct:
    """`LLM.generate` and nothing else: prompts are made and tokenised before the clock starts."""

    def __init__(self, config: Config, run: Run):
        self._config, self._run = config, run
        self._engine: Any = None

    def measure(self, rows: list[tuple[int, bool]], seed: int) -> dict[str, float]:
        from vllm import SamplingParams, TokensPrompt

        from ray_app.engines.interface import make_engine
        from ray_app.teacher.refinement import Refiner, Row

        reason = self._config.reason
        if self._engine is None:
            self._engine = make_engine(reason.engine)
            self._contexts = open_contexts(self._config, self._run.folder.uri)
        engine, size = self._engine, reason.batch_size
        refiner = Refiner(engine, reason, self._config.prompt, seed)
        batches = []
        for at in range(0, len(rows), size):
            part = sorted(rows)[at : at + size]
            built = self._contexts.build([row for row, _ in part])
            asked = [
                request
                for (row, label), context in zip(part, built, strict=True)
                for request in refiner._requests(Row(row, context, label), 0, None)
            ]
            for start in range(0, len(asked), size):
                batch = asked[start : start + size]
                prompts = [TokensPrompt(prompt_token_ids=engine._encode(one.prompt)) for one in batch]
                parameters = [
                    SamplingParams(n=r.n, temperature=r.temperature, max_tokens=r.max_tokens, seed=r.seed)
                    for r in batch
                ]
                batches.append((prompts, parameters))
        tokens = 0
        begin, cpu = time.monotonic(), time.process_time()
        for prompts, parameters in batches:
            outputs = engine._llm.generate(prompts, parameters, use_tqdm=False)
            tokens += sum(len(text.token_ids) for output in outputs for text in output.outputs)
        return {
            "seconds": time.monotonic() - begin,
            "cpu": time.process_time() - cpu,
            "tokens": float(tokens),
        }


class Silent:
    """Stands where the driver's tally is: counts are sent to nobody."""

    class _Call:
        def remote(self, *_: object) -> None:
            pass

    begins = add = ends = lost = _Call()


def random_llama(config: Config, run: Run, folder: Path) -> str:
    """A random Llama (384 wide, 8 layers) with a word tokenizer of this run's prompts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.trainers import WordLevelTrainer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from ray_app.prompts.teacher import TEMPLATES, teacher_prompt

    rows = [row for row, _ in choose(config, run)[0][:600]]
    contexts = open_contexts(config, run.folder.uri).build(rows)
    prompts = [
        teacher_prompt(context, TEMPLATES[at % len(TEMPLATES)], config.prompt)
        for at, context in enumerate(contexts)
    ]
    core = Tokenizer(WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.train_from_iterator(
        prompts, WordLevelTrainer(vocab_size=4000, special_tokens=["<unk>", "<s>", "</s>"])
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    cli(main)
