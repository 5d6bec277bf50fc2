"""What a meta-training run wrote down of itself: the meta-loss, the held-out objectives."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from l2o.meta.config import Config
from l2o.meta.held_out import SEED
from l2o.meta.run import Saved
from tasks.display.page import Part, Table
from tasks.display.plots import COLOURS, GREY, Figure, drawing, label, sparse_ticks
from tasks.evaluation.intervals import Interval, mean, over_tasks
from tasks.evaluation.wording import distance


def adam_at(config: Config) -> str:
    """What the Adam that is compared with is called."""
    return f"Adam at {config.evaluation.adam_lr:g}"


def meta_loss(config: Config, found: Saved) -> Figure:
    losses = found.tensors["losses"].numpy()
    by_task = found.tensors["by_lesson"].numpy()
    window = max(1, len(losses) // 20)
    steps = np.arange(1, len(losses) + 1)
    smooth = _smooth(losses[:, None], window)[:, 0]
    each = _smooth(by_task, window)
    with drawing() as (figure, axes):
        axes.plot(steps, losses, color=COLOURS[0], alpha=0.25, linewidth=0.7)
        axes.plot(steps[window - 1 :], smooth, color=COLOURS[0], label="mean of the tasks")
        axes.fill_between(
            steps[window - 1 :],
            each.min(axis=1),
            each.max(axis=1),
            color=COLOURS[0],
            alpha=0.12,
            linewidth=0,
            label="from the easiest task to the hardest",
        )
        axes.set_xlabel("outer step")
        axes.set_ylabel("meta-loss")
        axes.legend(loc="best")
    tasks, particles = by_task.shape[1], config.estimation.particles
    caption = (
        "Meta-loss: the mean bounded training loss (2/3: as good as predicting nothing, 1: "
        f"diverged) over n = {tasks} tasks × {particles} particles of 1 run (seed {config.seed}). "
        f"Thick line and band: means of {window} outer steps; thin: every one."
    )
    return Figure("meta-loss", figure, caption)


def _smooth(columns: np.ndarray, window: int) -> np.ndarray:
    """``[steps, K]``: moving means of each column."""
    return np.lib.stride_tricks.sliding_window_view(columns, window, axis=0).mean(axis=-1)


def gap(config: Config, found: Saved) -> Figure:
    """What all but chooses the outer step to keep, with what is known of its uncertainty.

    The score that does is of means over seeds (``HeldOut.score``); here every seed has its ratio.
    """
    steps = [past["step"] for past in found.history]
    best = min(found.history, key=lambda past: past["score"])
    gaps = [_log_ratios(past, found.adam) for past in found.history]
    intervals = against_adam(found)
    low, middle, high = (
        np.exp([getattr(x, name) for x in intervals]) for name in ("low", "mean", "high")
    )
    with drawing() as (figure, axes):
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--", label=adam_at(config))
        axes.axvline(best["step"], color=GREY, linewidth=0.8)
        axes.plot(steps, middle, "o-", color=COLOURS[1], ms=3, label="learned optimizer")
        known = np.isfinite(high)
        axes.fill_between(steps, low, high, where=known, color=COLOURS[1], alpha=0.15, linewidth=0)
        axes.set_xlabel("outer step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("held-out objective / Adam's")
        axes.set_yscale("log")
        sparse_ticks(axes.yaxis)
        axes.legend(loc="best")
    caption = (
        f"The held-out objective over {adam_at(config)}'s: geometric mean of "
        f"n = {len(gaps[-1])} tasks{_seeds(config)}, band: 95 % bootstrap interval over "
        "both. Its like, a ratio of means over seeds, chose the outer step to keep (grey line), "
        "where this is therefore optimistic."
    )
    if not known.all():
        caption += " No band: that takes two tasks, and two seeds known of each."
    return Figure("held-out-gap", figure, caption)


def against_adam(found: Saved) -> list[Interval]:
    """The held-out objective over Adam's, as log ratios, for each evaluation."""
    return [over_tasks(_log_ratios(past, found.adam), average=mean) for past in found.history]


def _log_ratios(past: dict[str, Any], adam: list[list[float]]) -> np.ndarray:
    """``[tasks, seeds]``."""
    own, other = (np.array([*rows]) for rows in (past["objectives"].values(), adam))
    return np.log(own / other)


def _seeds(config: Config) -> str:
    count = config.evaluation.seeds
    return f" × {count} seeds ({SEED} to {SEED + count - 1})" if count > 1 else f" × seed {SEED}"


def held_out(config: Config, found: Saved) -> Figure:
    names, steps = list(found.history[0]["objectives"]), [past["step"] for past in found.history]
    with drawing() as (figure, axes):
        for k, (name, adam) in enumerate(zip(names, found.adam, strict=True)):
            colour = COLOURS[k % len(COLOURS)]
            each = [past["objectives"][name] for past in found.history]
            centre = [fmean(seeds) for seeds in each]
            axes.plot(steps, centre, "o-", color=colour, ms=3, label=label(name))
            low, high = (list(map(end, each)) for end in (min, max))
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.axhline(fmean(adam), color=colour, linestyle="--", linewidth=0.8)
        axes.set_xlabel("outer step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("held-out objective")
        axes.set_yscale("log")
        sparse_ticks(axes.yaxis)
        axes.legend(loc="upper right")
    caption = (
        f"The same, task by task, not divided by Adam's (dashed): n = {len(names)} tasks"
        f"{_seeds(config)}, mean and range over seeds."
    )
    return Figure("held-out", figure, caption)


def recorded_lead(config: Config, found: Saved) -> str:
    """A sentence, where the kept optimizer is not measured for the report."""
    best = min(past["score"] for past in found.history)
    return (
        f"The kept optimizer's objective on the held-out tasks was {distance(best)} that of "
        f"{adam_at(config)} on the seeds that chose it, which flatters it."
    )


def recorded(config: Config, found: Saved, names: Sequence[str]) -> list[Part]:
    """The objectives that were written down. ``names``: of the code that is not run."""
    best = min(found.history, key=lambda past: past["score"])
    kept, start = best["objectives"], found.history[0]["objectives"]
    rows = [
        (task, *(f"{fmean(seeds):.4g}" for seeds in (kept[task], start[task], adam)))
        for task, adam in zip(kept, found.adam, strict=True)
    ]
    return [
        Table(("task", "kept", "untrained", adam_at(config)), rows),
        f"Objectives as the run recorded them: means of n = {config.evaluation.seeds} seeds, which "
        "chose the optimizer. It was not measured again, on fresh ones, which takes code that the "
        f"run names, {', '.join(names)}; if you know it, add --trust.",
    ]
