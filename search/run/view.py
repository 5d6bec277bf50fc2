"""A running search, shown to whoever is watching.

``Progress`` is what there is to know; a terminal gets a live panel, anything else gets one line
every few seconds. TensorBoard gets the same numbers as curves (``Curves``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from tasks.display.events import Events
from tasks.display.live import LiveView
from tasks.display.plain import Console


@dataclass(frozen=True)
class Progress:
    """The state of a search after a batch. Scores are mean log loss ratios to tuned AdamW."""

    stage: str
    batch: int
    best_score: float | None
    best_text: str
    baselines: Mapping[str, float]  # name -> score on the proxies
    fates: Mapping[str, int]  # how many candidates met each fate
    candidates_a_second: float
    workers: int
    busy: float  # share of the workers' time spent on jobs
    done: float  # share of the budget that is used
    seconds: float
    seconds_left: float

    @property
    def tried(self) -> int:
        return sum(self.fates.values())

    def share(self, fate: str) -> float:
        return self.fates.get(fate, 0) / max(1, self.tried)

    def gap(self, baseline: str) -> str:
        """How far the best is below a baseline, in per cent of the loss."""
        if self.best_score is None or baseline not in self.baselines:
            return "–"
        return f"{100 * math.expm1(self.best_score - self.baselines[baseline]):+.1f} %"


class View(LiveView):
    """Shows ``Progress``."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        self.live = Live(console=console, auto_refresh=False, transient=True)
        super().__init__(console, self.live)

    def show(self, progress: Progress) -> None:
        self.draw(lambda: self.live.update(panel(progress), refresh=True), lambda: line(progress))

    def wait(self, what: str, seconds: float) -> None:
        """What a stage without a panel still takes."""
        text = f"{what}: about {clock(seconds)} left"
        self.draw(lambda: self.live.update(text, refresh=True), lambda: text)


def line(p: Progress) -> str:
    best = "none yet" if p.best_score is None else f"{p.best_score:+.4f}"
    return (
        f"{p.stage} {100 * p.done:3.0f} %  batch {p.batch}  best score {best}"
        f" ({p.gap('adamw')} against AdamW, {p.gap('lion')} against Lion)  tried {p.tried}"
        f" at {p.candidates_a_second:.0f}/s: {fates(p)}"
        f"  workers {p.workers} ({100 * p.busy:.0f} % busy)  {clock(p.seconds_left)} left"
    )


def fates(p: Progress) -> str:
    """``evaluated 12 %, duplicate 40 %, ...``, the largest first."""
    ordered = sorted(p.fates.items(), key=lambda item: -item[1])
    return ", ".join(f"{fate} {100 * count / max(1, p.tried):.0f} %" for fate, count in ordered)


def panel(p: Progress) -> Panel:
    numbers = Table.grid(padding=(0, 2))
    numbers.add_column(style="dim")
    numbers.add_column()
    numbers.add_row("best against", "  ".join(f"{name} {p.gap(name)}" for name in p.baselines))
    numbers.add_row("candidates", f"{p.tried} tried, {p.candidates_a_second:.0f} a second")
    numbers.add_row("of these", fates(p))
    numbers.add_row("workers", f"{p.workers}, {100 * p.busy:.0f} % busy")
    numbers.add_row("time", f"{clock(p.seconds)} gone, {clock(p.seconds_left)} left")
    width = 40
    full = round(width * min(1.0, p.done))
    numbers.add_row("budget", "█" * full + "░" * (width - full) + f" {100 * p.done:.0f} %")
    rule = Syntax(p.best_text or "# none yet", "python", background_color="default")
    return Panel(Group(numbers, "", rule), title=f"l2o search · {p.stage} · batch {p.batch}")


def clock(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{seconds // 60}:{seconds % 60:02d}"


class Curves:
    """The same numbers in TensorBoard, the batch as the step."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.writer = Events(folder, purge_step)
        self.best = ""

    def show(self, p: Progress) -> None:
        step = p.batch
        if p.best_score is not None:
            self.writer.add_scalar("search/best score", p.best_score, step)
        for fate in p.fates:
            self.writer.add_scalar(f"share/{fate}", p.share(fate), step)
        self.writer.add_scalar("rate/candidates a second", p.candidates_a_second, step)
        self.writer.add_scalar("rate/workers busy", p.busy, step)
        if p.best_text != self.best:
            self.best = p.best_text
            self.writer.add_text("search/best program", f"```python\n{p.best_text}\n```", step)

    def front(self, points: list[tuple[int, float]], front: list[tuple[int, float]], step: int):
        """Score against length: all programs, and those that no shorter one beats."""
        self.writer.add_figure("search/score against length", front_figure(points, front), step)

    def meta_validation(self, score: float, step: int) -> None:
        """The score of what led after batch ``step`` on the meta-validation tasks."""
        if math.isfinite(score):
            self.writer.add_scalar("search/meta-validation score", score, step)

    def close(self) -> None:
        self.writer.close()


def front_figure(points: list[tuple[int, float]], front: list[tuple[int, float]]):
    """A matplotlib figure of (length, score) points and their Pareto front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    if points:
        axes.scatter(*zip(*points, strict=True), s=8, alpha=0.3, label="evaluated programs")
    if front:
        axes.step(*zip(*sorted(front), strict=True), where="post", color="C3", label="front")
    axes.axhline(0, color="grey", linewidth=0.8, linestyle="--", label="tuned AdamW")
    # Most programs are worse than useless; the interesting ones lie near the front.
    scores = sorted(score for _, score in [*points, *front])
    if scores:
        axes.set_ylim(scores[0] - 0.05, max(0.05, scores[len(scores) // 2]) + 0.05)
    axes.set_xlabel("statements")
    axes.set_ylabel("mean log loss ratio to tuned AdamW")
    axes.legend(loc="upper right", fontsize="small")
    return figure
