"""Several searches in one report: how often the same search finds something, and how good it is.

One run says what a search can find; runs of one configuration on several seeds say how often it
does. A row is a run; what is said of all of them is a count, a median and a range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from search.record.archive import Archive, open_existing
from search.record.schema import Record
from search.run.course import text
from search.run.history import History, found, history
from search.run.judged import gap, ruling
from search.run.loop import fates
from search.run.summary import kind
from tasks.display.page import Page, Part, Program, Section, Table, Tiles
from tasks.display.plots import COLOURS, Figure, drawing, label
from tasks.evaluation.intervals import Interval
from tasks.evaluation.wording import change, duration, per_cent


class Search(NamedTuple):
    """What is told of one run. ``discovery`` is None where it is not judged."""

    name: str
    seed: int
    past: History
    tried: int
    best: Record | None
    discovery: bool | None
    gaps: Mapping[str, Interval | None]
    settings: Mapping[str, Any]


def read(name: str, run_dir: Path) -> Search:
    """Raises RunError for a run that is damaged."""
    with open_existing(run_dir, readonly=True) as archive:
        return _read(name, archive)


def _read(name: str, archive: Archive) -> Search:
    facts, finals = archive.run(), archive.finals()
    winner, word = facts.get("winner"), ruling(archive)
    best = [archive.record(winner)] if winner is not None else archive.best(1)
    return Search(
        name=name,
        seed=facts["config"]["seed"],
        past=history(archive),
        tried=sum(fates(archive).values()),
        best=best[0] if best else None,
        discovery=None if word is None else word.discovery,
        gaps={stage: gap(finals, stage, winner) for stage in ("proxy", "held_out")},
        settings={name: part for name, part in facts["config"].items() if name != "seed"},
    )


def page(sources: Mapping[str, Path], remade_by: str) -> Page:
    """The report of several searches, finished or not."""
    runs = [read(name, path) for name, path in sources.items()]
    judged = [run for run in runs if run.discovery is not None]
    count = sum(bool(run.discovery) for run in judged)
    lead = f"{len(runs)} searches, {count} of {len(judged)} judged ones with a discovery"
    return Page(
        title=f"{len(runs)} searches",
        lead=f"{lead}{_share(count, len(judged))}.",
        sections=[
            Section("In numbers", [_tiles(runs, count, len(judged)), *_differences(runs)]),
            Section("Run by run", [_table(runs)]),
            Section("How they went", [_curves(runs)]),
        ],
        remade_by=remade_by,
    )


def _share(count: int, n: int) -> str:
    """The exact 95 % interval of a share."""
    if not n:
        return ""
    ends = stats.binomtest(count, n).proportion_ci()
    return f" (95 % interval {100 * ends.low:.0f} to {100 * ends.high:.0f} %)"


def _tiles(runs: Sequence[Search], count: int, judged: int) -> Tiles:
    tiles = [(str(len(runs)), "runs"), (f"{count} of {judged}", "discoveries, of those judged")]
    for stage, what in (("proxy", "own tasks"), ("held_out", "held-out tasks")):
        means = [g.mean for run in runs if (g := run.gaps[stage]) and math.isfinite(g.mean)]
        if means:
            ends = f"{per_cent(min(means))} to {per_cent(max(means))}"
            said = f"loss against AdamW, {what}, median of n = {len(means)} ({ends})"
            tiles.append((per_cent(median(means)), said))
    seconds = [w.seconds for run in runs if run.best and (w := found(run.past, run.best))]
    if seconds:
        ends = f"{duration(min(seconds))} to {duration(max(seconds))}"
        tiles.append((duration(median(seconds)), f"until the best was found, median ({ends})"))
    return Tiles(tiles)


def _differences(runs: Sequence[Search]) -> list[Part]:
    """A warning where the runs are not seeds of one search."""
    first = runs[0].settings
    names = sorted({n for run in runs for n in first if run.settings.get(n) != first[n]})
    return [f"These are not seeds of one search: they differ in {', '.join(names)}."] * bool(names)


def _table(runs: Sequence[Search]) -> Table:
    head = (
        "run", "seed", "tried", "best", "found after", "own tasks", "held-out tasks", "discovery",
        "kind, by experiment", "",
    )  # fmt: skip
    return Table(head, [_row(run) for run in runs])


def _row(run: Search) -> list[str | Program]:
    start = [run.name, str(run.seed), f"{run.tried:,}"]
    if run.best is None:
        return [*start, *[""] * 7]
    when = found(run.past, run.best)
    gaps = [change(g) if g else "–" for g in run.gaps.values()]
    word = {None: "not judged", True: "yes", False: "no"}[run.discovery]
    after = f"{when.tried:,}, {duration(when.seconds)}" if when else "–"
    shown = Program(text(run.best), "program")
    return [*start, str(run.best.id), after, *gaps, word, kind(run.best), shown]


def _curves(runs: Sequence[Search]) -> Figure:
    with drawing() as (figure, axes):
        for k, run in enumerate(runs):
            best = 100 * np.expm1(run.past.best_so_far)
            style = {"color": COLOURS[k % len(COLOURS)], "label": label(run.name)}
            axes.step(run.past.tried, best, where="post", **style)
        axes.set_xlabel("candidates tried")
        axes.set_ylabel("loss against tuned AdamW, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper right")
    caption = (
        "The best so far of each run, on the seeds that it searched on, so optimistic; the table "
        "has fresh ones."
    )
    return Figure("best", figure, caption)
