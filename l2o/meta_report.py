"""The report of a meta-training run: how it learned, and what the kept optimizer can do.

What the run wrote down is drawn as it is. The kept optimizer is measured again for the report, on
the held-out tasks but on seeds that did not choose it, beside what it was at the start and Adam;
and its coordinate check is made. Works on a run that is still going on, from its last save.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from l2o import checkpoint, meta_run
from l2o.base import LearnedOptimizer
from l2o.distribution import lessons
from l2o.held_out import SEED
from l2o.meta_config import Config
from l2o.tuned import TunedAdam
from tasks.coordinates import Coordinates, coordinate_check
from tasks.evaluation import marks
from tasks.figures import loss_axis, sparse_ticks
from tasks.mlp import MLP
from tasks.mup import Mup, mup_at, scaled
from tasks.page import COLOURS, GREY, Figure, Page, Part, Program, Section, Table, Tiles, drawing
from tasks.scoring import Interval, compare, interval
from tasks.types import Task, UpdateRule
from tasks.unroll import unroll
from tasks.wording import distance, duration, per_cent
from tasks.wording import interval as said

SEEDS = 5
"""Fresh seeds that the kept optimizer is measured on."""
WIDTHS = (32, 64, 128, 256)
"""Of the coordinate check."""


class Saved(NamedTuple):
    """A run as of its last save. ``losses``: of each outer step; ``history``: held-out objectives;
    ``adam``: those of Adam, task by task."""

    losses: np.ndarray
    history: list[dict[str, Any]]
    adam: list[float]
    seconds: float


class Runs(NamedTuple):
    """A rule's runs on one held-out task: validation losses ``[seeds, steps]`` at ``steps`` and
    objectives ``[seeds]``, the mean bounded training loss."""

    steps: tuple[int, ...]
    curves: np.ndarray
    objectives: np.ndarray


def saved(run_dir: Path) -> Saved | None:
    """None before the first save."""
    path = run_dir / meta_run.STATE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        header = {key: json.loads(value) for key, value in file.metadata().items()}
        losses = file.get_tensor("losses").numpy()
    record = header["record"]
    return Saved(losses, record["history"], record["adam"], header["seconds"])


def page(run_dir: Path, remade_by: str) -> Page:
    """The report of a run, finished or not."""
    facts = meta_run.facts(run_dir)
    config, found = Config.from_dict(facts["config"]), saved(run_dir)
    sections, lead = [], "Nothing has been saved yet."
    if found is not None:
        torch.set_num_threads(1)
        measured = measure(run_dir, config)
        gap = against_adam(measured, config)
        lead = _lead(config, found, measured, gap)
        sections = [
            Section("In numbers", [_tiles(config, found, gap)]),
            Section("Meta-training", [_meta_loss(found), _held_out(config, found)]),
            Section("On held-out tasks", _held_out_tasks(config, measured)),
            Section("Coordinate check", _coordinates(run_dir)),
        ]
    sections.append(Section("What was asked for", _facts(facts)))
    return Page(f"Meta-training {run_dir.name}", lead, sections, remade_by)


def _lead(config: Config, found: Saved, measured: dict[str, dict[str, Runs]], gap: Interval) -> str:
    left = config.outer.steps - len(found.losses)
    final = final_against_adam(measured, config)
    ending = f"{distance(final.mean)} Adam's ({said(final)} %)"
    return (
        f"The kept optimizer's objective on {len(measured)} held-out tasks is "
        f"{distance(gap.mean)} that of {_adam(config)} (95 % interval {said(gap)} %, n = {gap.n} "
        f"seeds that did not choose it). Its final validation loss, which meta-training does not "
        f"look at, is {ending if math.isfinite(final.mean) else 'not finite'}."
        + (f" {left} outer steps are still to come." if left else "")
    )


def _adam(config: Config) -> str:
    return f"Adam at {config.evaluation.adam_lr:g}"


def _tiles(config: Config, found: Saved, gap: Interval) -> Tiles:
    best = min(found.history, key=lambda past: past["score"])
    tiles = [
        (f"{len(found.losses):,}", f"of {config.outer.steps:,} outer steps"),
        (f"{best['step']:,}", "outer step that was kept"),
        (duration(found.seconds), "of meta-training"),
        (per_cent(gap.mean), f"objective against {_adam(config)}, fresh seeds"),
        ("muP" if config.mup else "standard", "parametrisation"),
    ]
    return Tiles(tiles)


# -------------------------------------------------------------------------------- as written down


def _meta_loss(found: Saved) -> Figure:
    losses = found.losses
    window = max(1, len(losses) // 20)
    steps = np.arange(1, len(losses) + 1)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    with drawing() as (figure, axes):
        axes.plot(steps, losses, color=COLOURS[0], alpha=0.25, linewidth=0.7)
        axes.plot(steps[window - 1 :], smooth, color=COLOURS[0])
        axes.set_xlabel("outer step")
        axes.set_ylabel("meta-loss")
    caption = (
        f"Meta-loss: the mean bounded training loss over all training tasks and particles, 1 if "
        f"nothing is learned; n = 1 run. Thick: mean of {window} outer steps."
    )
    return Figure("meta-loss", figure, caption)


def _held_out(config: Config, found: Saved) -> Figure:
    names, steps = list(found.history[0]["objectives"]), [past["step"] for past in found.history]
    best = min(found.history, key=lambda past: past["score"])
    with drawing() as (figure, axes):
        for k, (name, adam) in enumerate(zip(names, found.adam, strict=True)):
            colour = COLOURS[k % len(COLOURS)]
            axes.plot(
                steps,
                [past["objectives"][name] for past in found.history],
                color=colour,
                label=name,
            )
            axes.axhline(adam, color=colour, linestyle="--", linewidth=0.8)
        axes.axvline(best["step"], color=GREY, linewidth=0.8)
        axes.set_xlabel("outer step")
        axes.set_ylabel("held-out objective")
        axes.set_yscale("log")
        sparse_ticks(axes, wide=False)
        axes.legend(loc="upper right")
    seeds = config.evaluation.seeds
    caption = (
        f"The held-out objective, mean of n = {seeds} seeds ({SEED} to {SEED + seeds - 1}) that "
        f"chose the outer step to keep (grey). Dashed: {_adam(config)}."
    )
    return Figure("held-out", figure, caption)


# ------------------------------------------------------------------------------- measured again


def measure(run_dir: Path, config: Config) -> dict[str, dict[str, Runs]]:
    """task -> rule -> its runs on fresh seeds: kept, untrained and Adam."""
    adam = TunedAdam(lr=config.evaluation.adam_lr)
    kept, start = (checkpoint.load(run_dir / name) for name in (meta_run.BEST, meta_run.START))
    rules: dict[str, tuple[LearnedOptimizer, torch.Tensor, bool]] = {
        "kept": (kept.optimizer, kept.theta, config.mup),
        "untrained": (start.optimizer, start.theta, config.mup),
        _adam(config): (adam, adam.initial(), False),
    }
    found: dict[str, dict[str, Runs]] = {}
    at = marks(config.evaluation.steps)
    for rule, (optimizer, theta, in_mup) in rules.items():
        tasks = config.held_out.tasks()
        for task, lesson in zip(tasks, lessons(tasks, in_mup), strict=True):
            trajectory = unroll(
                lesson.task,
                lesson.rule(optimizer, theta),
                instances=SEEDS,
                steps=config.evaluation.steps,
                lr=1.0,
                seed=SEED + config.evaluation.seeds + torch.arange(SEEDS),
                eval_at=at,
            )
            curves = trajectory.validation.T.numpy()
            objectives = lesson.objective(trajectory.training).numpy()
            found.setdefault(task.name, {})[rule] = Runs(at, curves, objectives)
    return found


def against_adam(measured: dict[str, dict[str, Runs]], config: Config) -> Interval:
    """The kept optimizer's objective: mean log ratio over tasks, interval over seeds."""
    kept, adam = (
        np.stack([runs[rule].objectives for runs in measured.values()])
        for rule in ("kept", _adam(config))
    )
    return compare(kept, adam)


def final_against_adam(measured: dict[str, dict[str, Runs]], config: Config) -> Interval:
    """The same of the final validation loss, which meta-training does not look at."""
    kept, adam = (
        np.stack([runs[rule].curves[:, -1] for runs in measured.values()])
        for rule in ("kept", _adam(config))
    )
    return compare(np.nan_to_num(kept, nan=math.inf, posinf=math.inf), adam)


def _held_out_tasks(config: Config, measured: dict[str, dict[str, Runs]]) -> list[Part]:
    rows = []
    for task, by_rule in measured.items():
        for k, (rule, runs) in enumerate(by_rule.items()):
            final = np.where(np.isfinite(runs.curves[:, -1]), runs.curves[:, -1], math.inf)
            cells = (_cell(interval(runs.objectives)), _cell(interval(final)))
            rows.append((task if k == 0 else "", rule, *cells))
    first = SEED + config.evaluation.seeds
    head = ("task", "rule", "objective", "final validation loss")
    return [
        Table(head, rows),
        f"Mean of n = {SEEDS} fresh seeds ({first} to {first + SEEDS - 1}, not those that chose "
        f"the optimizer) and its 95 % bootstrap interval, {config.evaluation.steps} steps. The "
        f"objective is the mean training loss over a run, bounded; 1: nothing was learned. "
        f"{_adam(config)} is a landmark, not a tuned baseline: for that, l2o evaluate.",
        *(_curves(task, by_rule) for task, by_rule in measured.items()),
    ]


def _cell(x: Interval) -> str:
    if not math.isfinite(x.mean):
        return "diverged"
    return f"{x.mean:.4g} ({x.low:.4g} to {x.high:.4g})"


def _curves(task: str, by_rule: dict[str, Runs]) -> Figure:
    everything = np.concatenate([runs.curves for runs in by_rule.values()])
    with drawing() as (figure, axes):
        for colour, (rule, runs) in zip(
            (COLOURS[1], GREY, COLOURS[0]), by_rule.items(), strict=True
        ):
            curves = np.where(np.isfinite(runs.curves), runs.curves, np.nan)
            axes.plot(runs.steps, np.median(curves, axis=0), color=colour, label=rule)
            axes.fill_between(
                runs.steps, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0
            )
        first = everything[:, 0]
        loss_axis(axes, everything, float(first[np.isfinite(first)].max()))
        axes.set_xlabel("step")
        axes.set_title(task, loc="left")
        axes.legend(loc="best")
    caption = f"Validation loss: median and range of {SEEDS} fresh seeds."
    return Figure(f"curve-{task}", figure, caption)


# ------------------------------------------------------------------------------ coordinate check


def _coordinates(run_dir: Path) -> list[Part]:
    optimizer, theta, _ = checkpoint.load(run_dir / meta_run.BEST)
    found: list[Part] = [
        "How much activations change in a few steps of the kept optimizer, at growing width: flat "
        "lines mean that what works at one width works at the others."
    ]
    for title, check in coordinates(optimizer, theta).items():
        worst = max(check.ratios().items(), key=lambda item: item[1])
        with drawing() as (figure, axes):
            for k, layer in enumerate(check.layers):
                colour = COLOURS[k % len(COLOURS)]
                axes.loglog(check.widths, check.change[:, -1, k], "o-", color=colour, label=layer)
            axes.set_xticks(check.widths, [str(width) for width in check.widths])
            axes.minorticks_off()
            sparse_ticks(axes, wide=float(np.ptp(np.log10(check.change[:, -1]))) > 1.5)
            axes.set_xlabel("width")
            axes.set_ylabel("change of activations (RMS)")
            axes.set_title(title, loc="left")
            axes.legend(loc="best", ncols=2)
        caption = (
            f"{title} after {check.steps[-1]} steps on digits, mean of n = 2 seeds (0 and 1). The "
            f"largest ratio between two widths is {worst[1]:.3g}, of {worst[0]}."
        )
        found.append(Figure(f"coordinates-{title.split()[0]}", figure, caption))
    return found


def coordinates(optimizer: LearnedOptimizer, theta: torch.Tensor) -> dict[str, Coordinates]:
    """The check of an MLP in muP and in the standard parametrisation."""

    def make(width: int) -> Task:
        return MLP(width, depth=3, batch_size=64)

    def plain(task: Task) -> UpdateRule:
        return optimizer.on(task).rule(theta)

    def in_mup(task: Task) -> UpdateRule:
        assert isinstance(task, Mup)
        return scaled(plain(task), task.multipliers(0.0))

    settings = (WIDTHS, 8, (0, 1))
    return {
        "muP": coordinate_check(lambda width: mup_at(make, width), in_mup, *settings),
        "standard parametrisation": coordinate_check(make, plain, *settings),
    }


def _facts(facts: dict[str, Any]) -> list[Part]:
    environment = [(k, str(v)) for k, v in facts["environment"].items() if v is not None]
    return [
        Program(" ".join(facts["command"])),
        Program(
            json.dumps(facts["config"], indent=2), f"all settings (seed {facts['config']['seed']})"
        ),
        Table(("environment", ""), environment),
    ]
