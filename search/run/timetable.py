"""What a run takes besides its search, and a limit on the whole.

A budget in minutes is of the search alone. Before it the baselines are tuned; after it come three
stages of judging, whose length depends on the tasks. Their seconds are forecast from floating-point
operations, at the pace of a short run on this machine, then of the tuning itself. Forecasts are
rough: they count gradients, and no evaluation.

With a limit on the whole (``Budget.total_minutes``) the search ends early enough for the judging,
but gets at least half of what tuning leaves. What then still does not fit is dropped, and said:
first meta-validation, then finalists, the worst first, then tasks that no worker has begun.
"""

from __future__ import annotations

import heapq
import math
import time
from typing import NamedTuple

import torch

from search.interpreter.population import Population
from search.record.archive import Archive
from search.record.schema import CLOCK
from search.run.config import BASELINES, Config
from search.run.history import POINTS
from search.zoo import lookup
from tasks.cards import flops
from tasks.inner.unroll import unroll
from tasks.suites import resolve
from tasks.types import HOST

DROPPED = "dropped"
"""A fact of a run: what was dropped, a list of tasks or a number of finalists by stage."""
PROBE = 8
"""Steps of the short run."""


class Forecast(NamedTuple):
    """Seconds of each part."""

    tuning: float
    meta_validation: float
    proxy: float
    held_out: float

    @property
    def judging(self) -> float:
        return self.meta_validation + self.proxy + self.held_out


class Timetable:
    """The seconds of one run, those before interruptions included."""

    def __init__(self, archive: Archive, config: Config, workers: int) -> None:
        known = archive.run().get(CLOCK, {})
        self.archive, self.config, self.workers = archive, config, max(1, workers)
        searched, _ = archive.timings()
        self.before = max(known.get("seconds", 0.0), known.get("tuning", 0.0) + searched)
        self.begun = time.monotonic()
        self.tuning = known.get("tuning", 0.0)
        self.pace = known.get("pace") or _pace(config)
        self._operations: dict[str, list[float]] = {}  # counted once; suites take long to make

    def seconds(self) -> float:
        """So far."""
        return self.before + time.monotonic() - self.begun

    def left(self) -> float:
        """Seconds to the limit on the whole."""
        total = self.config.budget.total_minutes
        return math.inf if total is None else 60 * total - self.seconds()

    def tuned(self) -> None:
        """The tuning is over: its pace is what is known best."""
        self.tuning = self.seconds()
        self.pace = max(self.tuning, 1e-3) / max(1.0, sum(self.tuning_by_task()))

    def note(self) -> None:
        """Write down what has passed; in a transaction."""
        facts = {"seconds": self.seconds(), "tuning": self.tuning, "pace": self.pace}
        self.archive.set_run(CLOCK, facts)

    def forecast(self, finalists: int | None = None) -> Forecast:
        verdict = self.config.verdict
        few = verdict.finalists if finalists is None else finalists
        suite, larger = self.config.funnel.suite, verdict.meta_validation
        return Forecast(
            self.pace * sum(self.tuning_by_task()),
            self.stage(larger, POINTS + 1) if larger else 0.0,
            self.stage(suite, few + len(BASELINES)),
            self.stage(verdict.held_out, 1 + len(BASELINES)),
        )

    def stage(self, suite: str, rules: int) -> float:
        """Seconds until the last task of a suite is done, each on the first worker that is free."""
        runs = rules * (self.config.verdict.trials + self.config.verdict.seeds)
        free = [0.0] * self.workers
        for work in self._work(suite):
            heapq.heapreplace(free, free[0] + self.pace * work * runs)
        return max(free)

    def tuning_by_task(self) -> list[float]:
        """Operations, in the order in which they are done."""
        rules = len(BASELINES) + len(self.config.start)
        runs = rules * self.config.verdict.trials
        tasks = [runs * work for work in self._work(self.config.funnel.suite)]
        return tasks * self.config.funnel.seeds

    def _work(self, suite: str) -> list[float]:
        """Operations of one run of each task."""
        if suite not in self._operations:
            length = self.config.funnel.length
            self._operations[suite] = [
                flops(entry.task) * max(1, round(entry.steps * length)) for entry in resolve(suite)
            ]
        return self._operations[suite]

    def fitting(self, finalists: int) -> int:
        """How many finalists can be judged in what is left, at least one."""
        for few in range(finalists, 1, -1):
            needed = self.forecast(few)
            if needed.proxy + needed.held_out <= self.left():
                return few
        return 1


def _pace(config: Config) -> float:
    """Seconds an operation, of a few steps of the first task."""
    funnel = config.funnel
    task, _ = funnel.tasks()[0]
    programs = [lookup(name).program for name in BASELINES]
    owner = torch.arange(len(programs), device="cpu").repeat_interleave(config.verdict.trials)

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        rule = Population.of(programs, owner.to(funnel.device))
        lr = torch.full((len(owner),), 1e-3, **HOST)
        unroll(task, rule, instances=len(owner), steps=steps, lr=lr, device=funnel.device)
        return time.perf_counter() - start

    seconds(1)  # the first run compiles
    short, longer = seconds(1), seconds(1 + PROBE)
    return max(longer - short, 1e-4) / (PROBE * len(owner) * max(1, flops(task)))
