"""Metrics of runs on fresh seeds: filed beside the runs, and shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tasks.evaluation.results import Results, Study
from tasks.evaluation.statistics import Measured
from tasks.evaluation.tuning import Setting
from tasks.inner.unroll import evaluate
from tasks.types import Split, Task


class Spread(NamedTuple):
    """Over ``n`` fresh seeds: mean, least and largest, NaN where a run has none. No interval: of a
    share near 1 and few seeds it would go beyond 1."""

    mean: float
    low: float
    high: float
    n: int


class Found(NamedTuple):
    """A rule's metric on a task."""

    task: str
    rule: str
    metric: str
    validation: Spread
    test: Spread


def _key(study: Study, seed: int, setting: Setting) -> str:
    return "metric " + " ".join(map(str, (*study, seed, *setting)))


def facts(
    study: Study, task: Task, flat: Tensor, runs: Sequence[tuple[int, Setting]]
) -> dict[str, Any]:
    """What ``runs``, which ended at ``flat [N, n]``, have on validation and test examples, under
    the names that it is filed by."""
    if task.metric is None:
        return {}
    splits: tuple[Split, ...] = ("validation", "test")
    values = [evaluate(task, flat, split, metric=True).tolist() for split in splits]
    return {
        _key(study, *run): {
            "name": str(task.metric),
            "values": [value if math.isfinite(value) else None for value in pair],
        }
        for run, pair in zip(runs, zip(*values, strict=True), strict=True)
    }


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
                rows.append(Found(task, rule, noted[0]["name"], *_spreads(noted)))
    return rows


def _spreads(noted: Sequence[Any]) -> tuple[Spread, Spread]:
    values = np.array([each["values"] for each in noted], float)  # None becomes NaN
    validation, test = (
        Spread(float(column.mean()), float(column.min()), float(column.max()), len(column))
        for column in values.T
    )
    return validation, test


CAPTION = "Of runs on fresh seeds when they have ended: mean (least to largest); –: one diverged."
HEAD = ("task", "rule", "metric", "validation", "test")


def lines(rows: Sequence[Found]) -> list[tuple[str, ...]]:
    """As tables show them, under ``HEAD``."""
    return [
        (row.task, row.rule, row.metric, _said(row.validation), _said(row.test)) for row in rows
    ]


def _said(x: Spread) -> str:
    return f"{x.mean:.4g} ({x.low:.4g} to {x.high:.4g})" if math.isfinite(x.mean) else "–"
