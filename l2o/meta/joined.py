"""Several meta-trainings in one report: how good the same recipe is, from seed to seed.

Figures come from what the runs recorded of themselves; nothing is measured again. So objectives
are those on the seeds that chose what to keep, which flatters every run alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from l2o import checkpoint
from l2o.meta import run as meta_run
from l2o.meta.config import Config
from l2o.meta.curves import adam_at, against_adam
from tasks.display.page import Page, Part, Section, Table, Tiles
from tasks.display.plots import COLOURS, GREY, Figure, drawing, label
from tasks.evaluation.intervals import Interval
from tasks.evaluation.wording import change, duration, per_cent

SEEN = ("losses",)
"""The tensors of a save that are looked at."""


class Training(NamedTuple):
    """What is told of one run. ``gaps``: objectives over Adam's, one an evaluation at ``steps``;
    ``best``: which of them is kept. None of these before the first save."""

    name: str
    config: Config
    architecture: str
    done: int
    seconds: float
    steps: Sequence[int]
    gaps: Sequence[Interval]
    best: int

    @property
    def kept(self) -> Interval | None:
        return self.gaps[self.best] if self.gaps else None


def read(name: str, run_dir: Path) -> Training:
    """Raises RunError for a run that is damaged."""
    config = Config.from_dict(meta_run.facts(run_dir)["config"])
    architecture = checkpoint.read_card(run_dir / meta_run.START).get("architecture", "")
    found = meta_run.saved(run_dir, SEEN)
    if found is None:
        return Training(name, config, architecture, 0, 0.0, (), (), 0)
    scores = [past["score"] for past in found.history]
    return Training(
        name,
        config,
        architecture,
        len(found.tensors["losses"]),
        found.seconds,
        [past["step"] for past in found.history],
        against_adam(found),
        scores.index(min(scores)),
    )


def page(sources: Mapping[str, Path], remade_by: str) -> Page:
    """The report of several meta-trainings, finished or not."""
    runs = [read(name, path) for name, path in sources.items()]
    gaps = [run.kept.mean for run in runs if run.kept and math.isfinite(run.kept.mean)]
    ends = f", from {per_cent(min(gaps))} to {per_cent(max(gaps))}" if gaps else ""
    middle = f": median {per_cent(median(gaps))} against Adam{ends} (n = {len(gaps)})"
    note = (
        "Objectives against Adam's are as the runs recorded them, on the seeds that chose what to "
        "keep, with 95 % intervals over tasks and seeds; l2o evaluate compares on fresh ones."
    )
    sections = [
        Section("In numbers", [_tiles(runs), *_differences(runs)]),
        Section("Run by run", [_table(runs), note]),
        Section("How they went", [_curves(runs)]),
    ]
    lead = f"{len(runs)} meta-trainings{middle if gaps else ', none of which has saved anything'}."
    return Page(f"{len(runs)} meta-trainings", lead, sections, remade_by)


def _tiles(runs: Sequence[Training]) -> Tiles:
    better = [run for run in runs if run.kept and run.kept.high < 0]
    seconds = [run.seconds for run in runs]
    ends = f"{duration(min(seconds))} to {duration(max(seconds))}"
    return Tiles(
        [
            (str(len(runs)), "runs"),
            (f"{len(better)} of {len(runs)}", "below Adam with all of their interval"),
            (duration(median(seconds)), f"of meta-training, median ({ends})"),
        ]
    )


def _differences(runs: Sequence[Training]) -> list[Part]:
    """A warning where the runs are not seeds of one meta-training."""
    first, *others = (_settings(run) for run in runs)
    names = sorted({name for other in others for name in first if other[name] != first[name]})
    said = f"These are not seeds of one meta-training: they differ in {', '.join(names)}."
    return [said] * bool(names)


def _settings(run: Training) -> dict[str, Any]:
    return run.config.to_dict() | {"seed": None, "optimizer": run.architecture}


def _table(runs: Sequence[Training]) -> Table:
    head = (
        "run", "optimizer", "parametrisation", "seed", "outer steps", "kept", "objective",
        "against", "time",
    )  # fmt: skip
    rows = [
        (
            run.name,
            run.architecture,
            "muP" if run.config.mup else "standard",
            str(run.config.seed),
            f"{run.done:,} of {run.config.outer.steps:,}",
            f"{run.steps[run.best]:,}" if run.kept else "–",
            change(run.kept) if run.kept else "–",
            adam_at(run.config),
            duration(run.seconds),
        )
        for run in runs
    ]
    return Table(head, rows)


def _curves(runs: Sequence[Training]) -> Figure:
    with drawing() as (figure, axes):
        axes.axhline(0, color=GREY, linewidth=0.8, linestyle="--", label="Adam")
        for k, run in enumerate(runs):
            gaps = 100 * np.expm1([gap.mean for gap in run.gaps])
            axes.plot(
                run.steps, gaps, "o-", ms=3, color=COLOURS[k % len(COLOURS)], label=label(run.name)
            )
        axes.set_xlabel("outer step")
        axes.set_ylabel("held-out objective against Adam, %")
        axes.legend(loc="best")
    return Figure("objectives", figure, "The held-out objective of each run, as it recorded it.")
