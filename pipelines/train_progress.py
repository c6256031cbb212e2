"""Losses and speed of a phase while it trains: the learning curve, lines for a person, and TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.student.phases import Phase
from ray_app.telemetry import Telemetry


class Progress:
    """Every worker keeps the curve; the one that is given a `board` folder shows it.

    curve: points of the phase so far, to which it adds. step: where the phase goes on.
    """

    def __init__(
        self, phase: Phase, step: int, total: int, world: int, curve: list[dict[str, Any]], board: Path | None
    ):
        self.curve = curve
        self._phase, self._total, self._world = phase, total, world
        self._tokens, self._seconds, self._resumed = 0, 0.0, time.monotonic()
        self._recent: list[tuple[float, float]] = []
        self._writer: Any = None
        if board:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(board / phase.name), purge_step=step)

    def step(self, number: int, tokens: int, answer: float, text: float) -> None:
        """After a step of this worker: places of its batch, padding included, and its losses."""
        self._tokens += tokens
        self._recent.append((answer, text))
        self._show(number, loss_answer=answer, loss_text=text)

    def stop(self) -> None:
        """What comes until the next point is no training."""
        self._seconds += time.monotonic() - self._resumed

    def point(self, step: int, auc: float, uauc: float) -> None:
        """A point of the curve: validation, and the mean losses since the one before. Batches without text
        have no text loss, and do not enter its mean."""
        answers, texts = np.array(self._recent).T
        answer, text = answers.mean(), texts[texts > 0].mean() if texts.any() else 0.0
        point = {
            "step": step,
            "of": self._total,
            "seconds": round(self._seconds, 2),
            "tokens_per_second": round(self._world * self._tokens / self._seconds),
            "loss_answer": round(float(answer), 5),
            "loss_text": round(float(text), 5),
            "valid_auc": round(auc, 5),
            "valid_uauc": round(uauc, 5),
        }
        self.curve.append(point)
        self._recent, self._resumed = [], time.monotonic()
        if self._writer:
            speed = point["tokens_per_second"]
            self._show(step, valid_auc=auc, valid_uauc=uauc, tokens_per_second=speed)
            self._writer.flush()
            report_progress(self._phase, point)

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _show(self, step: int, **values: float) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


def report_progress(phase: Phase, point: dict[str, Any]) -> None:
    Telemetry().training(phase.name, point)
    print(
        f"train {phase.name}: step {point['step']}/{point['of']}  {point['seconds']:.0f} s  "
        f"{point['tokens_per_second']:,} tokens/s  loss answer {point['loss_answer']:.3f} "
        f"text {point['loss_text']:.3f}  valid AUC {point['valid_auc']:.4f} "
        f"UAUC {point['valid_uauc']:.4f}",
        flush=True,
    )
