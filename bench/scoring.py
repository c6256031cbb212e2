"""Speed of scoring one user's candidates, side by side in one run.

    python -m bench.scoring [--config configs/local.yaml] [--run FOLDER] [--candidates 100] [--json FILE]

Takes the bundle of a finished run. *Together* is what the service does: all candidates in one call, whose
prompts begin alike, so that the engine computes their beginning once and fills its batches. *In turn* sends
the same prompts to the same engine one after the other. *Independent* sends them one after the other to an
engine that keeps no prefixes. All must agree; times are medians of 5 rounds after one that does not count.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines.common import open_run, parser
from ray_app.bundle import Bundle
from ray_app.collab.evidence import SIGNALS, find_peers
from ray_app.engines.student import Scoring
from ray_app.engines.vllm_student import VllmStudent
from ray_app.prompts.student import decide_prompt
from ray_app.student.experts import GLOBAL

ROUNDS = 5


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--candidates", type=int, default=100)
    arguments.add_argument("--json")
    options = arguments.parse_args()
    _, run = open_run(options)
    bundle = Bundle.open(run.stage("publish").local() / "bundle")
    asked = requests(bundle, options.candidates)
    settings = bundle.config.evaluate.engine
    engine = VllmStudent(bundle, settings)
    found = {
        "together": rounds(lambda: engine.run(engine.score(asked))),
        "in turn": rounds(lambda: in_turn(engine, asked)),
    }
    engine.close()
    apart = VllmStudent(bundle, settings.model_copy(update={"prefix_caching": False}))
    found["independent"] = rounds(lambda: in_turn(apart, asked))
    apart.close()
    expected = found["together"][0]
    for name, (logits, _) in found.items():
        np.testing.assert_allclose(logits, expected, atol=1e-3, err_msg=name)
    times = {name: {"ms": 1000 * seconds} for name, (_, seconds) in found.items()}
    table = Table("", "ms", "x together", title=f"Scoring {len(asked)} candidates of one user")
    for name, entry in times.items():
        entry["ratio"] = entry["ms"] / times["together"]["ms"]
        table.add_row(name, f"{entry['ms']:,.0f}", f"{entry['ratio']:.1f}")
    Console().print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(times, indent=1))


def requests(bundle: Bundle, count: int) -> list[Scoring]:
    """The most rated items that a user with a long history (third quartile) has not rated."""
    lengths = np.diff(bundle.histories.indptr)
    user_id = list(bundle.user_codes)[int(np.argsort(lengths)[len(lengths) * 3 // 4])]
    code, history = bundle.user_codes[user_id], bundle.history(user_id, [])
    now = int(history.timestamps[-1]) + 1
    unseen = np.setdiff1d(np.arange(len(bundle.items), dtype=np.int32), history.items)
    targets = unseen[np.argsort(-bundle.statistics(unseen)[:, 0], kind="stable")][:count]
    vectors = bundle.vectors(history, targets, now)
    peers, rate = find_peers(bundle.gatherer.index, history, now, code, SIGNALS), bundle.like_rate(history)
    contexts = bundle.gatherer.contexts(
        user_id, history, now, targets, bundle.statistics(targets), rate, peers, targets
    )
    return [
        Scoring(
            decide_prompt(context, bundle.config.prompt),
            {name: value[at] for name, value in vectors.items()},
            GLOBAL,
        )
        for at, context in enumerate(contexts)
    ]


def in_turn(engine: VllmStudent, asked: list[Scoring]) -> np.ndarray:
    return np.concatenate([engine.run(engine.score([one])) for one in asked])


def rounds(work: Callable[[], Any]) -> tuple[np.ndarray, float]:
    """(logits, median seconds)"""
    logits, times = work(), []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return logits, statistics.median(times)


if __name__ == "__main__":
    main()
