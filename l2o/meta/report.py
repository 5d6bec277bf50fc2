"""The report of a meta-training run: how it learned, and what the kept optimizer can do.

What the run wrote down is drawn as it is. The kept optimizer is measured again for the report, on
the held-out tasks but on seeds that did not choose it, beside what it was at the start and Adam;
and its coordinate check is made. Held-out tasks that are code which a run names are run if one asks
for it alone: runs come from anywhere. Works on a run that is still going on, from its last save.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from shlex import join, quote
from typing import Any, NamedTuple

import numpy as np
import torch

from l2o import checkpoint
from l2o.architectures.tuned_adam import TunedAdam
from l2o.base import LearnedOptimizer
from l2o.meta import run
from l2o.meta.config import Config
from l2o.meta.curves import adam_at, gap, held_out, meta_loss, recorded, recorded_lead
from l2o.meta.distribution import lessons
from l2o.meta.held_out import SEED
from l2o.meta.run import Saved
from tasks.display.page import Page, Part, Program, Section, Table, Tiles, table
from tasks.display.plots import COLOURS, GREY, Figure, drawing, label, sparse_ticks
from tasks.evaluation.bench import marks
from tasks.evaluation.figures import band, loss_axis
from tasks.evaluation.intervals import Interval, compare, mean, over_tasks, within
from tasks.evaluation.statistics import log_ratios
from tasks.evaluation.wording import distance, duration, per_cent
from tasks.evaluation.wording import interval as said
from tasks.families.mlp import MLP
from tasks.inner.unroll import unroll
from tasks.mup.coordinates import Coordinates, coordinate_check
from tasks.mup.scaling import Mup, mup_at, update_multiplier
from tasks.types import Task, UpdateRule

SEEDS = 5
"""Fresh seeds that the kept optimizer is measured on."""
NOT_MEASURED = "Not made: the run names the code of its architecture; if you know it, add --trust."
SEEN = ("losses", "by_lesson")
"""The tensors of a save that are drawn."""
WIDTHS = (32, 64, 128, 256)
"""Of the coordinate check."""


class Runs(NamedTuple):
    """A rule's runs on one held-out task: validation losses ``[seeds, steps]`` at ``steps`` and
    objectives ``[seeds]``, the mean bounded training loss."""

    steps: tuple[int, ...]
    curves: np.ndarray
    objectives: np.ndarray

    def numbers(self, name: str) -> np.ndarray:
        """``[seeds]``: the objective or the final validation loss, infinite if it diverged."""
        values = self.objectives if name == "objective" else self.curves[:, -1]
        return np.where(np.isfinite(values), values, math.inf)


def page(run_dir: Path, remade_by: str, trusted: bool = False) -> Page:
    """The report of a run, finished or not. ``trusted``: the code that it names may be run."""
    facts = run.facts(run_dir)
    config, found = Config.from_dict(facts["config"]), run.saved(run_dir, SEEN)
    sections, lead = [], "Nothing has been saved yet."
    if found is not None:
        torch.set_num_threads(1)
        own = checkpoint.imports(run_dir / run.START)
        names = [] if trusted else [*config.held_out.imports(), *own]
        measured = {} if names else measure(run_dir, config)
        gaps = against_adam(measured, config) if measured else {}
        lead = _lead(config, found, gaps) if gaps else recorded_lead(config, found)
        judged = _held_out_tasks(config, measured, gaps) if gaps else recorded(config, found, names)
        figures = [draw(config, found) for draw in (meta_loss, gap, held_out)]
        sections = [
            Section("In numbers", [_tiles(config, found, gaps)]),
            Section("Meta-training", figures),
            Section("On held-out tasks", judged),
            Section("Coordinate check", [NOT_MEASURED] if own and names else _coordinates(run_dir)),
        ]
    sections.append(Section("What was asked for", _facts(run_dir, facts)))
    return Page(f"Meta-training {run_dir.name}", lead, sections, remade_by)


def _lead(config: Config, found: Saved, gaps: dict[str, Gap]) -> str:
    left = _left(config, found)
    objective, final = gaps["objective"], gaps["final validation loss"].seeds
    ending = f"is {distance(final.mean)} Adam's ({said(final, ' %')})"
    ending = ending if math.isfinite(final.mean) else "is not finite"
    return (
        f"The kept optimizer's objective on {objective.tasks} held-out tasks is "
        f"{distance(objective.seeds.mean)} that of {adam_at(config)} (95 % interval "
        f"{said(objective.seeds, ' %')}, {objective.seeds.n} seeds that did not choose it). Its "
        f"final validation loss, which meta-training does not look at, {ending}."
        + (f" {left} outer steps are still to come." if left else "")
    )


def _left(config: Config, found: Saved) -> int:
    return config.outer.steps - len(found.tensors["losses"])


def _tiles(config: Config, found: Saved, gaps: dict[str, Gap]) -> Tiles:
    best = min(found.history, key=lambda past: past["score"])
    done = len(found.tensors["losses"])
    tiles = [
        (f"{done:,}", f"of {config.outer.steps:,} outer steps, seed {config.seed}"),
        (f"{best['step']:,}", "outer step that was kept"),
        (duration(found.seconds), "of meta-training"),
        ("muP" if config.mup else "standard", "parametrisation"),
    ]
    tiles += [
        (
            per_cent(x.seeds.mean),
            f"{what} against {adam_at(config)} ({said(x.seeds) or 'no interval'}; n = {x.tasks} "
            f"tasks × {x.seeds.n} fresh seeds)",
        )
        for what, x in gaps.items()
    ]
    return Tiles(tiles)


# ------------------------------------------------------------------------------- measured again


def measure(run_dir: Path, config: Config) -> dict[str, dict[str, Runs]]:
    """task -> rule -> its runs on fresh seeds: kept, untrained and Adam."""
    adam = TunedAdam(lr=config.evaluation.adam_lr)
    kept, start = (checkpoint.load(run_dir / name, trusted=None) for name in (run.BEST, run.START))
    rules: dict[str, tuple[LearnedOptimizer, torch.Tensor, bool]] = {
        "kept": (kept.optimizer, kept.theta, config.mup),
        "untrained": (start.optimizer, start.theta, config.mup),
        adam_at(config): (adam, adam.initial(), False),
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
                seed=SEED + config.evaluation.seeds + torch.arange(SEEDS, device="cpu"),
                eval_at=at,
            )
            losses = trajectory.validation.T.numpy()
            objectives = lesson.objective(trajectory.training).numpy()
            found.setdefault(task.name, {})[rule] = Runs(at, losses, objectives)
    return found


class Gap(NamedTuple):
    """The kept optimizer against Adam, as log ratios: a mean over ``tasks`` and seeds, with its
    interval over ``seeds``, and over tasks and seeds (``both``)."""

    tasks: int
    seeds: Interval
    both: Interval


def against_adam(measured: dict[str, dict[str, Runs]], config: Config) -> dict[str, Gap]:
    """Of the objective, and of the final loss, which meta-training does not look at."""
    found = {}
    for name in ("objective", "final validation loss"):
        kept, adam = (
            np.stack([runs[rule].numbers(name) for runs in measured.values()])
            for rule in ("kept", adam_at(config))
        )
        both = over_tasks(log_ratios(kept, adam), average=mean)
        found[name] = Gap(len(measured), compare(kept, adam), both)
    return found


def _held_out_tasks(
    config: Config, measured: dict[str, dict[str, Runs]], gaps: dict[str, Gap]
) -> list[Part]:
    names = list(gaps)
    rows = [
        (task if k == 0 else "", rule, *(_cell(within(runs.numbers(name), 0)) for name in names))
        for task, by_rule in measured.items()
        for k, (rule, runs) in enumerate(by_rule.items())
    ]
    changes = [
        (name, per_cent(gap.seeds.mean), said(gap.seeds), said(gap.both))
        for name, gap in gaps.items()
    ]
    first = SEED + config.evaluation.seeds
    fresh = f"{first} to {first + SEEDS - 1}"
    return [
        Table((f"against {adam_at(config)}", "", "interval, seeds", "interval, both"), changes),
        f"Mean over {len(measured)} tasks and n = {SEEDS} fresh seeds ({fresh}, not those that "
        f"chose the optimizer), {config.evaluation.steps} steps, with its 95 % intervals "
        "over seeds, and over tasks and seeds. The objective is the mean training loss over a "
        "run, bounded; 2/3: as good as predicting nothing, 1: diverged. "
        f"{adam_at(config)} is a landmark, not a tuned baseline: for that, l2o evaluate.",
        Table(("task", "rule", *names), rows),
        f"Means of the {SEEDS} seeds and their 95 % intervals.",
        *(_curves(k, *found, fresh) for k, found in enumerate(measured.items())),
    ]


def _cell(x: Interval) -> str:
    if not math.isfinite(x.mean):
        return "diverged"
    return f"{x.mean:.4g} ({x.low:.4g} to {x.high:.4g})"


def _curves(number: int, task: str, by_rule: dict[str, Runs], fresh: str) -> Figure:
    everything = np.concatenate([runs.curves for runs in by_rule.values()])
    with drawing() as (figure, axes):
        for colour, (rule, runs) in zip(
            (COLOURS[1], GREY, COLOURS[0]), by_rule.items(), strict=True
        ):
            curves = np.where(np.isfinite(runs.curves), runs.curves, math.inf)
            band(axes, runs.steps, curves, colour, rule)
        first = everything[:, 0]
        loss_axis(axes, everything, float(first[np.isfinite(first)].max()))
        axes.set_xlabel("step")
        axes.set_title(label(task), loc="left")
        axes.legend(loc="best")
    caption = f"Validation loss: median and range of n = {SEEDS} fresh seeds ({fresh})."
    return Figure(f"curve-{number}", figure, caption)  # a task's name may hold a slash


# ------------------------------------------------------------------------------ coordinate check


def _coordinates(run_dir: Path) -> list[Part]:
    optimizer, theta, _ = checkpoint.load(run_dir / run.BEST, trusted=None)
    try:
        there = optimizer.on(MLP(WIDTHS[0]))
    except ValueError as error:
        return [f"Not made, since this optimizer is not for networks ({error})."]
    refused: list[Part] = []
    try:
        there.rule(theta, update_multiplier)
    except ValueError as error:
        refused = [f"Not made in muP, which this optimizer is not for ({error})."]
    found: list[Part] = [
        "How much activations change in a few steps of the kept optimizer, at growing width: flat "
        "lines mean that what works at one width works at the others.",
        *refused,
    ]
    for title, check in coordinates(optimizer, theta, with_mup=not refused).items():
        worst = max(check.ratios().items(), key=lambda item: item[1])
        with drawing() as (figure, axes):
            for k, layer in enumerate(check.layers):
                colour = COLOURS[k % len(COLOURS)]
                axes.loglog(
                    check.widths, check.change[:, -1, k], "o-", color=colour, label=label(layer)
                )
                axes.fill_between(check.widths, *check.range(k), color=colour, alpha=0.15, lw=0)
            axes.set_xticks(check.widths, [str(width) for width in check.widths])
            axes.minorticks_off()
            sparse_ticks(axes.yaxis)
            axes.set_xlabel("width")
            axes.set_ylabel("change of activations (RMS)")
            axes.set_title(title, loc="left")
            axes.legend(loc="best", ncols=2)
        caption = (
            f"{title} after {check.steps[-1]} steps on digits, mean and range of n = 2 seeds (0 "
            f"and 1). The largest ratio between two widths is {worst[1]:.3g}, of {worst[0]}."
        )
        found.append(Figure(f"coordinates-{title.split()[0]}", figure, caption))
    return found


def coordinates(
    optimizer: LearnedOptimizer, theta: torch.Tensor, with_mup: bool = True
) -> dict[str, Coordinates]:
    """The check of an MLP in muP, if asked for, and in the standard parametrisation."""

    def make(width: int) -> Task:
        return MLP(width, depth=3, batch_size=64)

    def plain(task: Task) -> UpdateRule:
        return optimizer.on(task).rule(theta)

    def in_mup(task: Task) -> UpdateRule:
        assert isinstance(task, Mup)
        return optimizer.on(task).rule(theta, task.multipliers())

    settings = (WIDTHS, 8, (0, 1))
    checks: dict[str, Coordinates] = {}
    if with_mup:
        checks["muP"] = coordinate_check(lambda width: mup_at(make, width), in_mup, *settings)
    checks["standard parametrisation"] = coordinate_check(make, plain, *settings)
    return checks


def _facts(run_dir: Path, facts: dict[str, Any]) -> list[Part]:
    start = checkpoint.read_card(run_dir / run.START)
    optimizer = {"architecture": start.get("architecture")} | start.get("arguments", {})
    return [
        Program(join(facts["command"])),
        Program(
            json.dumps({"optimizer": optimizer} | facts["config"], indent=2),
            f"all settings (seed {facts['config']['seed']})",
        ),
        table([facts["environment"]]),
        "To run it again and compare every number:",
        Program(f"l2o reproduce {quote(str(run_dir))}"),
    ]
