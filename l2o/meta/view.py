"""A meta-training run, shown to whoever is watching: a terminal, a log file, TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tasks.display.events import Events
from tasks.display.live import LiveView
from tasks.display.plain import Console


class Progress(NamedTuple):
    """After an outer step. Losses are in units of the bounded objective, at most 1."""

    step: int
    steps: int
    loss: float
    recent: Sequence[float]  # of the last outer steps; one alone is noisy
    norm: float
    lr: float
    skipped: int
    seconds: float
    by_task: Mapping[str, float]

    def __str__(self) -> str:
        mean = sum(self.recent) / len(self.recent)
        return (
            f"outer step {self.step} of {self.steps}  meta-loss {mean:.4f}  "
            + (f"gradient {self.norm:.2g}  " if math.isfinite(self.norm) else "")
            + f"lr {self.lr:.2g}"
            + (f"  skipped {self.skipped}" if self.skipped else "")
        )


class View(LiveView):
    """A silent view says nothing: all processes of a run but the first have one."""

    def __init__(self, console: Console | None = None, silent: bool = False) -> None:
        console = console or Console(quiet=silent)
        self.bar = Bar(
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None)
        super().__init__(console, self.bar)

    def show(self, progress: Progress) -> None:
        self.draw(lambda: self._move(progress), lambda: f"{progress}  {progress.seconds:.0f} s")

    def _move(self, progress: Progress) -> None:
        self.bar.update(
            self.task, total=progress.steps, completed=progress.step, description=str(progress)
        )

    def evaluated(self, step: int, score: float, adam_lr: float) -> None:
        """A held-out evaluation, in a line that stays."""
        self.say(
            f"outer step {step}: held-out objective {self.gap(score)} against Adam at {adam_lr:g}"
        )

    @staticmethod
    def gap(score: float) -> str:
        """A log ratio as a change of the objective."""
        return f"{100 * math.expm1(score):+.1f} %"


class Curves:
    """The same numbers in TensorBoard, over the outer step."""

    def __init__(self, folder: Path, done: int) -> None:
        # What an earlier process showed after its last save comes again; before one, all of it.
        self.writer = Events(folder, done + 1 if done else 0)

    def show(self, p: Progress) -> None:
        scalars = {
            "meta/loss": p.loss,
            "meta/gradient norm": p.norm,
            "meta/learning rate": p.lr,
            "meta/skipped gradients": p.skipped,
            "rate/outer steps a second": p.step / max(p.seconds, 1e-9),
        } | {f"meta-loss/{task}": loss for task, loss in p.by_task.items()}
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, p.step)

    def evaluation(self, step: int, score: float, objectives: Mapping[str, float]) -> None:
        self.writer.add_scalar("held-out/score", score, step)
        for task, value in objectives.items():
            self.writer.add_scalar(f"held-out/{task}", value, step)

    def close(self) -> None:
        self.writer.close()
