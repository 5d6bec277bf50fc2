"""Metrics of runs on fresh seeds: filed beside the runs, and shown with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tasks.results import Results, Study
from tasks.scoring import Interval, Setting, interval
from tasks.statistics import Measured
from tasks.types import Split, Task
from tasks.unroll import evaluate


class Found(NamedTuple):
    """A rule's metric on a task: means over fresh seeds; infinite where a run has none."""

    task: str
    rule: str
    metric: str
    validation: Interval
    test: Interval


def _key(study: Study, seed: int, setting: Setting) -> str:
    return "metric " + " ".join(map(str, (*study, seed, *setting)))


def note(
    results: Results,
    study: Study,
    task: Task,
    flat: Tensor,
    runs: Sequence[tuple[int, Setting]],
) -> None:
    """File what ``runs``, which ended at ``flat [N, n]``, have on validation and test examples."""
    if task.metric is None:
        return
    splits: tuple[Split, ...] = ("validation", "test")
    values = [evaluate(task, flat, split, metric=True).tolist() for split in splits]
    for run, pair in zip(runs, zip(*values, strict=True), strict=True):
        shares = [value if math.isfinite(value) else None for value in pair]
        results.set_fact(_key(study, *run), {"name": str(task.metric), "values": shares})


def found(results: Results, measured: Measured) -> list[Found]:
    """Of all tasks of the last plan that have a metric, task by task."""
    facts, rules, tasks = results.facts(), results.rules(), results.tasks()
    plan = facts["plan"]
    rows = []
    for t, task in enumerate(measured.tasks):
        for r, rule in enumerate(measured.rules):
            steps = dict(map(tuple, plan["tasks"]))[task]
            study = Study(rules[rule][0], tasks[task][0], steps, measured.schedules[r])
            best = Setting(*measured.best(r, t))
            keys = [_key(study, seed, best) for seed in measured.seeds]
            noted = [facts[key] for key in keys if key in facts]
            if len(noted) == len(keys):
                rows.append(Found(task, rule, noted[0]["name"], *_intervals(noted)))
    return rows


def _intervals(noted: Sequence[Any]) -> tuple[Interval, Interval]:
    values = np.array([each["values"] for each in noted], float)  # None becomes NaN
    validation, test = (interval(column) for column in values.T)
    return validation, test


CAPTION = "Means over fresh seeds when runs have ended, with Student's 95 % interval; –: diverged."
HEAD = ("task", "rule", "metric", "validation", "test")


def lines(rows: Sequence[Found]) -> list[tuple[str, ...]]:
    """As tables show them, under ``HEAD``."""
    return [
        (row.task, row.rule, row.metric, _said(row.validation), _said(row.test)) for row in rows
    ]


def _said(x: Interval) -> str:
    if not math.isfinite(x.mean):
        return "–"
    ends = f" [{x.low:.4g}, {x.high:.4g}]" if math.isfinite(x.low) else ""
    return f"{x.mean:.4g}{ends}"
