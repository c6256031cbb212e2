"""Speed of training, side by side in one run: our loop, the transformers Trainer, ZeRO-2 and plain DDP.

    python -m bench.train [--config configs/local.yaml] [--run FOLDER] [--rows N] [--steps N] [--json FILE]

Takes the token sequences that stage train of a run left. *Ours* does what `pipelines.train_loop` does: a
DeepSpeed engine, batches bucketed by length, logits only where a loss needs them, no attention mask. The
*Trainer* gets the same rows, model, targets and optimizer, 32 rows a batch in random order, padded to the
longest. Tokens are real ones, padding left out. *ZeRO-2* and *DDP* are two workers on this machine with the
same batches; what is compared is the median time of a step.

Each contender runs alone, in processes of its own with one thread each; ours with the allocator's settings
that stage train gives its workers (`pipelines.train.MALLOC`), the Trainer as it comes. CPU seconds are the
measure of speed, since the wall clock depends on what else runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from pipelines.cluster import free_port
from pipelines.train import MALLOC

WARM_UP = 5
"""Steps that do not count."""
TRAINER_ROWS = 32
SIZES = ((96, 2), (256, 4))
"""(hidden, layers) at which ZeRO-2 and DDP are compared."""


def main() -> None:
    from pipelines.common import open_run, parser

    arguments = parser(__doc__ or "")
    arguments.add_argument("--rows", type=int, default=4000)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--json")
    options = arguments.parse_args()
    config, run = open_run(options)
    own = config.student.bootstrap
    of = {"config": config.model_dump(), "run": run.folder.uri, "rows": options.rows, "steps": options.steps}
    size = (own.hidden, own.layers)
    alone = {name: contend(name, 1, size, of) for name in ("ours", "Trainer")}
    pairs = {size: {name: contend(name, 2, size, of) for name in ("ZeRO-2", "DDP")} for size in SIZES}
    console = Console()
    table = Table("one worker", "tokens / CPU s", "tokens / s", "padding", "peak MB", title="Training")
    for name, found in alone.items():
        cells = (f"{found['per_cpu_s']:,.0f}", f"{found['per_s']:,.0f}", f"{found['padding']:.0%}")
        table.add_row(name, *cells, f"{found['peak_mb']:,.0f}")
    console.print(table)
    console.print(f"ours / Trainer: {alone['ours']['per_cpu_s'] / alone['Trainer']['per_cpu_s']:.2f} x")
    table = Table("two workers", "ZeRO-2 ms", "DDP ms", "ratio", title="Median step")
    for (hidden, layers), found in pairs.items():
        steps = [found[name]["step_ms"] for name in ("ZeRO-2", "DDP")]
        table.add_row(f"{hidden} x {layers}", *(f"{ms:,.0f}" for ms in steps), f"{steps[0] / steps[1]:.2f}")
    console.print(table)
    if options.json:
        both = {"alone": alone, "pairs": {f"{h}x{n}": found for (h, n), found in pairs.items()}}
        Path(options.json).write_text(json.dumps(both, indent=1))


def contend(name: str, workers: int, size: tuple[int, int], of: dict[str, Any]) -> dict[str, Any]:
    """What the first of the contender's workers measured."""
    port = free_port()
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    started = [
        context.Process(target=work, args=(name, rank, workers, port, size, of, answers))
        for rank in range(workers)
    ]
    with patch.dict(os.environ, {} if name == "Trainer" else MALLOC):  # read when a process starts
        for process in started:
            process.start()
    found = answers.get(timeout=1800)
    for process in started:
        process.join()
    return found


def work(
    name: str, rank: int, workers: int, port: int, size: tuple[int, int], of: dict[str, Any], answers: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    import torch

    torch.set_num_threads(1)
    found = trainer(size, of) if name == "Trainer" else engine(name, rank, workers, size, of)
    if rank == 0:
        answers.put(found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


class Clock:
    """Counts tokens, CPU seconds and the wall time of each step after the warm-up."""

    def __init__(self) -> None:
        self.number = self.tokens = self.places = 0
        self.times: list[float] = []
        self.cpu = self.last = 0.0

    def step(self, tokens: int, places: int) -> None:
        """After a step over so many real tokens in so many places, padding included."""
        self.number += 1
        now = time.perf_counter()
        if self.number <= WARM_UP:
            self.cpu = time.process_time()
        else:
            self.tokens, self.places = self.tokens + tokens, self.places + places
            self.times.append(now - self.last)
        self.last = now

    def found(self) -> dict[str, float]:
        return {
            "per_cpu_s": self.tokens / (time.process_time() - self.cpu),
            "per_s": self.tokens / sum(self.times),
            "padding": 1 - self.tokens / self.places,
            "step_ms": 1000 * statistics.median(self.times),
        }


def load(of: dict[str, Any], size: tuple[int, int]) -> tuple[Any, list[Any], Any, Any]:
    """(config, sequences, vectors, tokenizer) of the run, with a base of the given size."""
    import numpy as np

    from pipelines.train_data import Data
    from ray_app.artifacts import Run
    from ray_app.config import Config

    shape = {"hidden": size[0], "layers": size[1], "heads": size[0] // 32}
    tree = of["config"]
    tree["student"]["bootstrap"] |= shape
    config = Config.model_validate(tree)
    run = Run(of["run"])
    data = Data(config, run.stage("train").local(), run.stage("encode").local())
    found = [item for item, _ in data.examples]
    chosen = np.random.default_rng(0).permutation(len(found))[: of["rows"]]
    return config, [found[at] for at in chosen], data, data.tokenizer


def engine(name: str, rank: int, workers: int, size: tuple[int, int], of: dict[str, Any]) -> dict[str, Any]:
    """Our loop on DeepSpeed, or the same batches and model on DDP."""
    import deepspeed
    import torch

    from pipelines.train_data import stream
    from ray_app.artifacts import Run
    from ray_app.student.phases import LANGUAGE, Phase, build

    config, rows, data, tokenizer = load(of, size)
    deepspeed.init_distributed(dist_backend="gloo")
    phase = Phase(LANGUAGE, 1.0, 1e-3)
    student = build(phase, config, Run(of["run"]).stage("train").local(), tokenizer, data.widths)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-3)
    model: Any
    if name == "DDP":
        # Yes/No batches use no text loss and a prompt may lack a vector: some parameters get no gradient.
        model = torch.nn.parallel.DistributedDataParallel(student, find_unused_parameters=True)
    else:
        settings = json.loads(Path(config.train.deepspeed).read_text())
        model = deepspeed.initialize(
            model=student, optimizer=optimizer, config=settings, dist_init_required=False
        )[0]
    clock = Clock()
    for _, batch in stream(rows, phase, config, data, rank, workers, of["steps"] + WARM_UP):
        loss = model(batch)["loss"]
        if name == "DDP":
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            model.backward(loss)
            model.step()
        clock.step(int((batch.ids != tokenizer.pad_token_id).sum()), batch.ids.numel())
    torch.distributed.barrier()
    return clock.found()


def trainer(size: tuple[int, int], of: dict[str, Any]) -> dict[str, Any]:
    """The transformers Trainer on the same rows: ids, and labels where our losses have targets."""
    import numpy as np
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    from ray_app.student.model import tiny_llama

    config, rows, _, tokenizer = load(of, size)
    examples = []
    for row in rows:
        labels = np.full(len(row.ids), -100)
        learnt = np.array([row.answer + 1, *range(row.text_start + 1, len(row.ids))])
        labels[learnt] = row.ids[learnt]
        mask = [1] * len(row.ids)
        examples.append({"input_ids": row.ids.tolist(), "labels": labels.tolist(), "attention_mask": mask})
    clock = Clock()

    class Count(DataCollatorForSeq2Seq):
        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            made = super().__call__(features, return_tensors)
            seen.append((int(made["attention_mask"].sum()), made["input_ids"].numel()))
            return made

    class Tick(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.step(*seen[state.global_step - 1])

    seen: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=TRAINER_ROWS,
            max_steps=of["steps"] + WARM_UP,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        model = tiny_llama(config.student.bootstrap, tokenizer, config.student.max_length, config.seed)
        Trainer(
            model=model,
            args=settings,
            train_dataset=examples,  # pyright: ignore[reportArgumentType]
            data_collator=Count(tokenizer),
            callbacks=[Tick()],
        ).train()
        return clock.found()


if __name__ == "__main__":
    main()
