"""The verdict: finalists and baselines, tuned alike and measured on fresh seeds.

A search that scores thousands of programs on one seed will find some that suit that seed, and
some that suit its tasks and nothing else. So the best of a run are tuned again, each with the
same number of learning rates on each task as the baselines get, and measured on seeds that
nobody has seen; the winner of that then meets tasks that nobody has seen. What is then called a
discovery, ``judged`` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from search.interpreter.population import Population
from search.language.program import parse
from search.record.schema import Final
from tasks.evaluation import tuning
from tasks.evaluation.intervals import Interval, compare
from tasks.inner.schedules import SCHEDULES
from tasks.runs.environment import prepare
from tasks.suites import names, resolve


class Trial(NamedTuple):
    """A job: all ``rules`` (name, text) on task number ``entry`` of ``suite``.

    ``seeds`` fresh seeds, after the first ``skip`` of them.
    """

    stage: str
    suite: str
    entry: int
    length: float
    schedule: str
    rules: tuple[tuple[str, str], ...]
    trials: int
    seeds: int
    device: str = "cpu"
    skip: int = 0


def judge(trial: Trial) -> list[Final]:
    """Tune every rule on the tuning seed, then measure it on the fresh ones.

    Raises ValueError for a device that is not there.
    """
    prepare(trial.device)
    suite = resolve(trial.suite)
    entry, title = suite[trial.entry], names(suite)[trial.entry]
    task, steps = entry.task, max(1, round(entry.steps * trial.length))
    programs = [parse(text) for _, text in trial.rules]
    schedule = SCHEDULES[trial.schedule]

    def make(owner: torch.Tensor) -> Population:
        return Population.of(programs, owner)

    settings, where = tuning.grid(trial.trials), {"schedule": schedule, "device": trial.device}
    tuned = tuning.tune(task, make, len(programs), steps, settings, **where)
    chosen = tuning.choose(tuned, settings)
    seeds = tuning.FRESH_SEEDS[trial.skip : trial.skip + trial.seeds]
    losses = tuning.measure(task, make, chosen, steps, seeds, **where)
    rows = []
    for (name, _), setting, row in zip(trial.rules, chosen, losses.tolist(), strict=True):
        for seed, loss in zip(seeds, row, strict=True):
            ok = math.isfinite(loss)
            status = "ok" if ok else "diverged"
            rows.append(
                Final(
                    trial.stage,
                    name,
                    title,
                    seed,
                    steps,
                    setting.lr,
                    status,
                    loss if ok else None,
                )
            )
    return rows


class Standing(NamedTuple):
    """A rule of a stage against one baseline: mean log loss ratio, lower is better."""

    rule: str
    against: dict[str, Interval]


def standings(rows: Sequence[Final], stage: str, baselines: Sequence[str]) -> list[Standing]:
    """All rules of a stage, the best first, each compared with every baseline.

    What diverged somewhere, or has a first baseline that did, is in the order of its own losses.
    """
    measured = losses([row for row in rows if row.stage == stage])
    known = [name for name in baselines if name in measured]
    table = [
        Standing(rule, {name: compare(measured[rule], measured[name]) for name in known})
        for rule in measured
    ]
    if not known:
        return table

    def place(standing: Standing) -> tuple[Any, ...]:
        mean = standing.against[known[0]].mean
        own = _own(measured[standing.rule]) if math.isinf(mean) else ()
        return mean, own, standing.rule

    return sorted(table, key=place)


def _own(losses: np.ndarray) -> tuple[int, float]:
    """How many runs diverged, and the mean log loss of the others."""
    known = losses[np.isfinite(losses)]
    with np.errstate(divide="ignore"):
        return losses.size - known.size, float(np.log(known).mean()) if known.size else math.inf


def losses(rows: Sequence[Final]) -> dict[str, np.ndarray]:
    """Losses ``[tasks, seeds]`` of each rule, infinite where it diverged."""
    tasks = sorted({row.task for row in rows})
    seeds = sorted({row.seed for row in rows})
    tables: dict[str, np.ndarray] = {}
    for row in rows:
        table = tables.setdefault(row.rule, np.full((len(tasks), len(seeds)), math.inf))
        if row.loss is not None:
            table[tasks.index(row.task), seeds.index(row.seed)] = row.loss
    return tables


def as_data(interval: Interval) -> dict[str, Any] | None:
    """As JSON can hold it: None if it diverged; the mean is None if only the reference did; of one
    seed, both ends are None."""
    if not math.isfinite(interval.mean):
        nothing = {"mean": None, "low": None, "high": None, "n": interval.n}
        return nothing if interval.mean < 0 else None
    ends = (interval.low, interval.high) if math.isfinite(interval.low) else (None, None)
    return {"mean": interval.mean, "low": ends[0], "high": ends[1], "n": interval.n}
