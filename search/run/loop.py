"""The search stage of a run: batches out, results in, everything committed in order.

The archive is the only state. A batch's results, the batch asked next and the population commit
together; ``restore`` makes of them what was in memory, so a search that is killed anywhere goes
on from its last commit and ends with the very rows it would have had.

When time is up, batches that no worker has begun are withdrawn, the newest first, so that what is
left is the search that had asked for fewer: a search of that many candidates has the same rows.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from search.behaviour.signature import signatures
from search.evolution.candidates import Batch, Candidate
from search.evolution.strategy import Evolution
from search.fitness.funnel import Calibration, Fate, Outcome
from search.language.program import parse, to_text
from search.language.validity import live
from search.record.archive import Archive
from search.record.schema import Evaluation, Record
from search.run.config import BASELINES, Config
from search.run.history import front, trimmed
from search.run.view import Curves, Progress, View
from tasks.cards import flops
from tasks.executors.base import Executor, Failure
from tasks.runs.files import RunError
from tasks.runs.interrupt import Interrupted

Enough = Callable[[list[Candidate]], bool]
BATCH_LIMIT, SLOWEST = 600.0, 5e8
"""Seconds after which a batch is given up, at least; more where its products and convolutions take
longer at so many operations a second. A trial of the verdict may take as long as its rules, seeds
and steps ask for."""
MOST_FAILURES = 2
"""Batches in a row that may fail. A program may be too much for a worker; what fails again and
again is the machine, and a search that goes on would only fill its archive."""


class Search:
    """``stop`` says whether somebody pressed Ctrl-C; ``enough``, given the candidates that were
    just evaluated, whether the search has found what it was started for."""

    def __init__(
        self,
        archive: Archive,
        config: Config,
        calibration: Calibration,
        jobs: Executor,
        view: View,
        workers: int,
        stop: Callable[[], bool],
        enough: Enough | None = None,
        spare: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.spare = spare  # seconds to the limit of the whole run, without those of the judging
        self.archive, self.config, self.calibration = archive, config, calibration
        self.jobs, self.view, self.workers, self.stop = jobs, view, workers, stop
        self.evolution, self.waiting = restore(archive, config, calibration)
        self.tickets: dict[int, int] = {}  # ticket -> batch
        self.results: dict[int, Any] = {}  # batch -> outcomes, which may come out of order
        self.before, _ = archive.timings()
        self.started = self.last = time.monotonic()
        told = self.evolution.told
        self.curves = Curves(archive.run_dir / "tensorboard", purge_step=told + 1 if told else None)
        self.busy = 0.0
        self.fates = Counter(fates(archive))  # kept up to date, for counting takes long
        self.failures = 0  # batches in a row
        self.enough, self.found = enough, False
        funnel = config.funnel
        runs = config.evolution.batch * len(funnel.factors) * funnel.seeds
        work = runs * sum(steps * flops(task) for task, steps in funnel.tasks())
        self.limit = max(BATCH_LIMIT, work / SLOWEST)

    def to_the_end(self) -> None:
        try:
            self._to_the_end()
        finally:
            self.curves.close()  # or the last points are not written

    def _to_the_end(self) -> None:
        for batch in self.waiting.values():
            self._submit(batch)
        if self.waiting:
            self.view.say(f"resuming: {len(self.waiting)} batches in flight are run again")
        new = []
        with self.archive.transaction():
            while self._more() and self.evolution.asked - self.evolution.told < self._ahead():
                new.append(self._ask())
        for batch in new:
            self._submit(batch)
        while self.waiting and self._arrived(self.evolution.told):
            self._integrate(self.results.pop(self.evolution.told))
            if self.stop():
                raise Interrupted
        self._close()

    def _ahead(self) -> int:
        return self.config.evolution.ahead

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def _more(self) -> bool:
        budget = self.config.budget
        used = self.evolution.tried >= budget.candidates
        late = self.evolution.asked > 0 and self._left() <= 0  # founders are always measured
        return not used and not self.found and not late

    def _left(self) -> float:
        """Seconds."""
        return min(60 * self.config.budget.minutes - self._seconds(), self.spare())

    def _ask(self) -> Batch:
        """Make the next batch and write it down, pending."""
        batch, archive = self.evolution.ask(), self.archive
        hurdles = [_or_none(hurdle) for hurdle in batch.hurdles]
        archive.add_batch(batch.number, {"hurdles": hurdles, "rejected": batch.rejected})
        for c in batch.candidates:
            program = None
            if c.program is not None:
                length = c.program.length
                program = archive.add_program(to_text(c.program), c.canonical, c.signature, length)
            fate = c.fate or "pending"
            self.fates[fate] += 1
            archive.add_candidate(
                c.id, batch.number, c.parent, program, c.mutation, fate, c.lr, c.original
            )
        self.fates["invalid"] += batch.rejected
        self.waiting[batch.number] = batch
        return batch

    def _submit(self, batch: Batch) -> None:
        self.tickets[self.jobs.submit(batch.job, self.limit)] = batch.number

    def _arrived(self, number: int) -> bool:
        """Wait for the outcomes of batch ``number``, however many others arrive first; False if it
        was withdrawn."""
        while number not in self.results:
            if self._left() <= 0:
                self._withdraw()
            if number not in self.waiting:
                return False
            patience = self._left() if 0 < self._left() < 1 else 1.0
            for ticket, result in self.jobs.completed(patience):
                self.results[self.tickets.pop(ticket)] = result
                if number in self.results:
                    break
        return True

    def _withdraw(self) -> None:
        """Take back what no worker has begun. The first batch, of the founders, stays."""
        tickets = {number: ticket for ticket, number in self.tickets.items()}
        gone = []
        for number in sorted(self.waiting, reverse=True):
            if not number or number not in tickets or not self.jobs.withdraw(tickets[number]):
                break
            gone.append(number)
        if not gone:
            return
        with self.archive.transaction():
            for number in gone:
                self.archive.withdraw(number)
        for number in gone:
            self.evolution.withdraw(self.waiting.pop(number))
            del self.tickets[tickets[number]]
        self.fates = Counter(fates(self.archive))

    def _integrate(self, result: Any) -> None:
        """One step of the search, in one transaction."""
        batch = self.waiting.pop(self.evolution.told)
        self.failures = self.failures + 1 if isinstance(result, Failure) else 0
        if isinstance(result, Failure):
            if self.failures > MOST_FAILURES:
                raise RunError(
                    f"{self.archive.run_dir}: {self.failures} batches in a row failed, the last "
                    f"because: {result.reason}; once that is mended, go on with l2o resume"
                )
            self.view.say(f"batch {batch.number} failed: {result.reason}")
            result = [Outcome("failed", None, None, (), ()) for _ in batch.fresh]
        fresh = batch.fresh
        self.evolution.tell(batch, result)
        if self.enough is not None:
            evaluated = [candidate for candidate in fresh if candidate.fate == "evaluated"]
            self.found = self.found or self.enough(evaluated)
        new = []
        with self.archive.transaction():
            self._write(batch, fresh, result)
            if self._more() and not self.stop():
                new.append(self._ask())
            strategy = self.evolution.strategy
            groups = [[candidate.id for candidate in group] for group in strategy.groups]
            self.archive.set_snapshot(batch.number, groups, strategy.state)
            now = time.monotonic()
            busy = sum(self.jobs.busy)
            self.archive.add_timing(batch.number, now - self.last, busy - self.busy)
            self.last, self.busy = now, busy
        for one in new:
            self._submit(one)
        self._show()

    def _write(self, batch: Batch, fresh: list[Candidate], outcomes: list[Outcome]) -> None:
        evaluated = {c.id for c in fresh}
        for c in batch.candidates:
            if c.id in evaluated or c.fate == "duplicate":
                self.archive.decide(c.id, str(c.fate), c.lr, c.score, c.ladder)
        self.fates.update(str(c.fate) for c in fresh)
        self.fates["pending"] -= len(fresh)
        self.archive.add_evaluations(
            Evaluation(
                c.id, m.task, m.seed, m.steps, m.lr, "diverged" if m.loss is None else "ok", m.loss
            )
            for c, outcome in zip(fresh, outcomes, strict=True)
            for m in outcome.measurements
        )

    def _show(self) -> None:
        seconds = self._seconds()
        budget = self.config.budget
        budgeted = seconds + max(1e-9, self._left())
        done = max(self.evolution.tried / budget.candidates, min(1.0, seconds / budgeted))
        best = self.evolution.best[0] if len(self.evolution.best) else None
        elapsed = time.monotonic() - self.started
        progress = Progress(
            stage="search",
            batch=self.evolution.told,
            best_score=best.score if best else None,
            best_text=to_text(live(best.program)) if best else "",
            baselines=dict(zip(BASELINES, self.calibration.scores, strict=False)),
            fates={fate: count for fate, count in self.fates.items() if count},
            candidates_a_second=self.evolution.tried / max(seconds, 1e-9),
            workers=self.workers,
            busy=min(1.0, sum(self.jobs.busy) / (elapsed * len(self.jobs.busy))),
            done=min(1.0, done),
            seconds=seconds,
            seconds_left=max(0.0, seconds / max(done, 1e-9) - seconds),
        )
        self.view.show(progress)
        self.curves.show(progress)

    def _close(self) -> None:
        """The search is over: note who goes into the final."""
        best = self.archive.best(self.config.verdict.finalists)
        evaluated = trimmed(self.archive.records("WHERE c.fate = 'evaluated'"))
        points, shortest = (
            [(r.length or 0, r.score or 0.0) for r in records]
            for records in (evaluated, front(evaluated))
        )
        self.curves.front(points, shortest, self.evolution.told)
        with self.archive.transaction(milestone=True):
            self.archive.set_run("finalists", [record.id for record in best])


def _or_none(number: float) -> float | None:
    """JSON has no infinity: a hurdle that nobody can fail is none."""
    return number if number < math.inf else None


def fates(archive: Archive) -> dict[str, int]:
    """How many candidates met each fate, invalid children that got no number included."""
    counts = archive.counts()
    counts["invalid"] += archive.rejected()
    return {fate: count for fate, count in counts.items() if count}


def restore(
    archive: Archive, config: Config, calibration: Calibration
) -> tuple[Evolution, dict[int, Batch]]:
    """The state of a search as its archive has it, and the batches still to be evaluated."""
    programs = [parse(text) for text in config.start]
    rungs = len(config.funnel.rungs) * len(calibration.references)
    lrs = calibration.lrs[len(BASELINES) :]
    evolution = Evolution(config.evolution, programs, lrs, config.seed, rungs)
    snapshot = archive.snapshot()
    told = 0 if snapshot is None else snapshot.batch + 1
    groups = [] if snapshot is None else snapshot.population
    living = {id for ids in groups for id in ids}
    population: dict[int, Candidate] = {}
    waiting: dict[int, Batch] = {}
    for record in archive.records():
        if record.id == 0 and record.text:
            _same_signatures(archive, record)
        ahead = record.batch >= told
        candidate = _candidate(record, with_program=ahead or record.id in living)
        evolution.recall(candidate)
        if record.id in living:
            population[record.id] = candidate
        if ahead:
            waiting.setdefault(record.batch, _batch(archive, record.batch))
            waiting[record.batch].candidates.append(candidate)
    evolution.go_on(
        told,
        archive.rejected(),
        [[population[id] for id in ids] for ids in groups],
        None if snapshot is None else snapshot.counters,
        [_candidate(record) for record in archive.best(1000)],
    )
    return evolution, waiting


def _same_signatures(archive: Archive, founder: Record) -> None:
    """RunError where another version began: what it knows would not be recognised."""
    if signatures([parse(founder.text or "")]) != [founder.signature]:
        raise RunError(
            f"{archive.run_dir}: begun by a version that tells programs apart in another way; it "
            "can be looked at, but a search that goes on needs that version: start a new one"
        )


def _candidate(record: Record, with_program: bool = True) -> Candidate:
    return Candidate(
        id=record.id,
        batch=record.batch,
        parent=record.parent,
        mutation=record.mutation,
        program=parse(record.text) if record.text and with_program else None,
        lr=record.lr or math.nan,
        canonical=record.canonical or "",
        signature=record.signature or "",
        original=record.original,
        fate=None if record.fate == "pending" else cast(Fate, record.fate),
        score=record.score,
        ladder=record.ladder,
    )


def _batch(archive: Archive, number: int) -> Batch:
    job = archive.job(number)
    hurdles = tuple(math.inf if h is None else h for h in job["hurdles"])
    return Batch(number, [], hurdles, job["rejected"])
