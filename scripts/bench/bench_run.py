"""``bench.py run``: where the time of a whole search goes, in the driver and in its workers.

A search as ``rediscover_lion.py`` runs them, archive and all, for so many minutes of its search
stage in a temporary directory. Functions of the library are timed from outside (``stopwatch``), in
the driver and, since the workers build their evaluator with ``worker`` below, in every job that is
run; jobs hand their times back beside their results, so nothing is sampled or replayed.

A worker *waits* from the end of a job to the beginning of its next one, on a clock that all
processes share: *for a batch* while none was there to be run, *for the driver* when one was there
and had not been handed over. Shares are of wall clock; beside them is the processor time, which on
a machine with more to do than processors is less. Children a second are of processor time, made by
the population that the search ended with, outside of the run.
"""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from stopwatch import Seconds, Stopwatch, now

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from rediscover_lion import GOALS

from search.evolution import regularized, strategy
from search.evolution.strategy import Evolution
from search.fitness.funnel import Evaluator, Job, calibrate
from search.fitness.settings import Funnel
from search.interpreter.population import Population
from search.language.program import parse, to_text
from search.record.archive import Archive
from search.run import loop, stages
from search.run.config import BASELINES, Budget, Config
from search.run.loop import Search, fates
from search.run.view import View
from search.zoo import lookup
from tasks.display.plain import Console
from tasks.executors.base import Executor, Failure
from tasks.executors.named import executor
from tasks.inner import unroll

IN_A_JOB = (
    (unroll, "derivatives", "gradient"),
    (Population, "update", "update kernel"),
    (unroll, "evaluate", "validation"),
)
WRITES = (
    *("add_program", "add_batch", "add_candidate", "decide", "add_evaluations", "set_snapshot"),
    *("add_timing", "counts", "rejected"),
)
IN_THE_DRIVER = (
    (strategy, "mutate", "mutation"),
    (strategy, "canonical", "canonical form"),
    (strategy, "to_text", "canonical form"),
    (strategy, "signatures", "signature"),
    *((Archive, name, "database") for name in WRITES),
    (regularized, "tournament", "selection and population"),
    (Evolution, "tell", "selection and population"),
    (loop, "Curves", "progress and curves"),
    (Search, "_show", "progress and curves"),
    (Search, "_close", "progress and curves"),
    (Search, "_arrived", "waiting for results"),
)
BLOCKS = ((Archive, "transaction", "database"),)
MADE = 100
"""Batches whose children are counted."""


class Record(NamedTuple):
    """One job: the worker's process, when it ran, and its parts."""

    worker: int
    begin: Seconds
    end: Seconds
    spent: dict[str, Seconds]


def worker(context: tuple[Funnel, list[list[float]]]) -> Callable[[Job], Any]:
    """What a worker does with a job: evaluate it under the watch."""
    evaluator = Evaluator(*context)

    def measured(job: Job) -> tuple[Any, Record]:
        watch, begin = Stopwatch("the rest of a job"), now()
        with watch.on(*IN_A_JOB):
            outcomes = evaluator(job)
        return outcomes, Record(os.getpid(), begin, now(), watch.spent)

    return measured


class Measured(Executor):
    """Jobs of another executor; keeps what ``worker`` adds to their results."""

    def __init__(self, inner: Executor) -> None:
        self.inner, self.busy = inner, inner.busy
        self.submitted: dict[int, float] = {}
        self.records: dict[int, Record] = {}

    def submit(self, job: Any, limit: float = math.inf) -> int:
        before = time.monotonic()
        ticket = self.inner.submit(job, limit)
        self.submitted[ticket] = before
        return ticket

    def withdraw(self, ticket: int) -> bool:
        return self.inner.withdraw(ticket)

    def completed(self, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        for ticket, result in self.inner.completed(timeout):
            if isinstance(result, Failure):
                yield ticket, result
                continue
            outcomes, self.records[ticket] = result
            yield ticket, outcomes

    def close(self) -> None:
        self.inner.close()


@dataclass
class Found:
    """What was measured; seconds of the workers are sums over them."""

    seconds: float  # of the search stage
    workers: int
    fates: dict[str, int]
    driver: dict[str, Seconds]
    jobs: dict[str, Seconds] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    children_a_second: float = 0.0
    load: tuple[float, ...] = ()

    @property
    def busy(self) -> float:
        """Share of the workers' time spent on jobs, from the first job of each on."""
        inside = sum(part.wall for part in self.jobs.values())
        start = self.waits["starting"]
        return inside / (self.workers * self.seconds - start)


def config(minutes: float) -> Config:
    return Config(
        start=(to_text(lookup("adam_no_correction").program),),
        budget=Budget(candidates=10**9, minutes=minutes),
        evolution=GOALS["sign"].settings,
    )


def measure(config: Config, count: int) -> Found:
    """The search stage of ``config`` with ``count`` workers, its calibration not counted."""
    programs = [*(lookup(name).program for name in BASELINES), *map(parse, config.start)]
    calibration = calibrate(config.funnel, programs, config.verdict.trials)
    context = (config.funnel, calibration.references)
    watch = Stopwatch("the rest")
    with (
        tempfile.TemporaryDirectory() as place,
        View(Console(file=io.StringIO())) as view,
        stages.begin(Path(place) / "run", config) as archive,
    ):
        began = time.monotonic()
        with (
            executor(worker, context, count) as inner,
            watch.on(*IN_THE_DRIVER, blocks=BLOCKS),
        ):
            jobs = Measured(inner)
            search = Search(archive, config, calibration, jobs, view, count, lambda: False)
            search.to_the_end()
            ended = time.monotonic()
        found = Found(ended - began, max(1, count), fates(archive), watch.spent)
        found.load = os.getloadavg()
        found.batches = search.evolution.told
        parts_of_jobs(found, jobs, began, ended)
        found.children_a_second = children_a_second(search.evolution)
    return found


def parts_of_jobs(found: Found, jobs: Measured, began: float, ended: float) -> None:
    """Fill in ``jobs`` and ``waits``."""
    found.waits = {"starting": 0.0, "waiting for a batch": 0.0, "waiting for the driver": 0.0}
    last: dict[int, float] = {}
    for ticket, record in sorted(jobs.records.items(), key=lambda item: item[1].begin):
        for name, seconds in record.spent.items():
            found.jobs[name] = found.jobs.get(name, Seconds()).plus(seconds)
        since, until = last.get(record.worker), record.begin.wall
        if since is None:
            found.waits["starting"] += until - began
        else:
            there = min(max(jobs.submitted[ticket], since), until)
            found.waits["waiting for a batch"] += there - since
            found.waits["waiting for the driver"] += until - there
        last[record.worker] = record.end.wall
    found.waits["waiting for a batch"] += sum(ended - end for end in last.values())


def children_a_second(evolution: Evolution) -> float:
    """Children drawn, checked, put into canonical form and compared, a second of processor time."""
    before, began = evolution.tried, time.process_time()
    for _ in range(MADE):
        evolution.ask()
    return (evolution.tried - before) / (time.process_time() - began)


def report(console: Console, minutes: float, count: int) -> None:
    load = os.getloadavg()
    found = measure(config(minutes), count)
    console.print(
        f"a search of {minutes:g} minutes, {found.workers} workers of one thread; load average "
        f"{load[0]:.1f} before, {found.load[0]:.1f} after ({os.cpu_count()} processors)"
    )
    for table in tables(found):
        console.print(table)


def tables(found: Found) -> list[Table]:
    return [rates(found), shares_of_workers(found), shares_of_driver(found)]


def rates(found: Found) -> Table:
    table = Table("what", "value", box=box.SIMPLE_HEAD)
    known = found.fates
    tried = sum(known.values())
    measured = sum(known.get(fate, 0) for fate in ("stopped", "diverged", "evaluated"))
    for what, number in (
        ("candidates decided", tried),
        ("  of them run", measured),
        ("  of them evaluated in full", known.get("evaluated", 0)),
    ):
        table.add_row(what, f"{number:,}: {number / found.seconds:,.1f} a second")
    table.add_row("batches", f"{found.batches:,} in {found.seconds:.0f} s")
    table.add_row("workers busy, once started", f"{found.busy:.1%}")
    start = found.waits["starting"] / found.workers
    table.add_row("start of a worker", f"{start:.1f} s ({start / found.seconds:.1%})")
    made = f"{found.children_a_second:,.0f} a second on one core"
    table.add_row("children made and compared alone", made)
    return table


def shares_of_workers(found: Found) -> Table:
    table = Table("workers' time", "share", "processor", box=box.SIMPLE_HEAD)
    total = found.workers * found.seconds
    for name, part in sorted(found.jobs.items(), key=lambda item: -item[1].wall):
        table.add_row(name, f"{part.wall / total:.1%}", f"{part.processor / total:.1%}")
    for name, seconds in found.waits.items():
        table.add_row(name, f"{seconds / total:.1%}", "")
    return table


def shares_of_driver(found: Found) -> Table:
    table = Table("driver's time", "share", "processor", box=box.SIMPLE_HEAD)
    total = sum(part.wall for part in found.driver.values())
    for name, part in sorted(found.driver.items(), key=lambda item: -item[1].wall):
        table.add_row(name, f"{part.wall / total:.1%}", f"{part.processor / total:.1%}")
    return table
