"""One search run, from its first batch to its verdict.

    calibrate        tune AdamW, Lion and SGD with momentum on the proxy tasks: what to beat
    search           batches of candidates, until the budget is used (``loop``)
    meta_validation  those that led the search, one after the other, on larger tasks
    proxy            the best programs again, tuned and measured on fresh seeds of the proxy tasks
    held_out         the winner and the baselines on tasks that the search never saw

Each stage leaves its results in the archive, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from search.evolution.strategy import check_start
from search.fitness.funnel import Calibration, Evaluator, Job, calibrate
from search.fitness.settings import Funnel
from search.fitness.verdict import Trial, judge, standings
from search.interpreter.population import Population
from search.language.functions import ProgramError
from search.language.program import parse, to_text
from search.language.validity import check
from search.record import archive as archives
from search.record.archive import Archive
from search.record.schema import SALVAGED
from search.run.config import BASELINES, Config
from search.run.history import META_VALIDATION, leaders, meta_validation
from search.run.judged import titles
from search.run.loop import Enough, Search
from search.run.timetable import DROPPED, Timetable
from search.run.view import Curves, View, clock
from search.zoo import lookup
from tasks.cards import fingerprint
from tasks.checks import inside
from tasks.evaluation import tuning as scoring
from tasks.executors.base import Executor, Failure
from tasks.executors.named import PROCESSES, executor
from tasks.runs.environment import environment, prepare
from tasks.runs.files import RunError
from tasks.runs.interrupt import Interrupted, polite
from tasks.suites import SUITES, Entry, names, resolve

SHORT, SHORT_STEPS = scoring.Setting(0.01), 100
"""The run that a held-out task of a user's is tried with, of the first baseline."""
TICK = 1.0
"""Seconds between two looks at the clock and at Ctrl-C while a trial runs."""
DRAWN = "meta_validation_drawn"
"""A fact of the run: what led the search is in TensorBoard, on larger tasks, too."""


def begin(run_dir: Path, config: Config) -> Archive:
    """A new run directory. Raises RunExists if it is there, ValueError for a bad ``config``."""
    with inside("funnel"):
        config.funnel.check()
    for text in config.start:
        try:
            program = parse(text)
            check(program)
        except ProgramError as error:
            raise ValueError(f"start: {error}") from None
        if "h" in program.inputs:
            raise ValueError("start: got a program that reads h, a Hessian; a search has none")
        check_start(config.evolution, program)
    device = config.funnel.device
    prepare(device)
    _unseen(config)
    facts = {"config": asdict(config), "environment": environment(device)}
    return archives.create(run_dir, facts)


def _unseen(config: Config) -> None:
    """Raise ValueError for a suite that cannot be used, or that has a task of the search's own."""
    proxies = {fingerprint(task): task.name for task, _ in config.funnel.tasks()}
    for field in ("held_out", "meta_validation"):
        suite = getattr(config.verdict, field)
        try:
            entries = () if suite is None else resolve(suite)
        except ValueError as error:
            raise ValueError(f"verdict.{field}: {error}") from None
        for entry in entries:
            if name := proxies.get(fingerprint(entry.task)):
                raise ValueError(
                    f"verdict.{field}: got {suite!r}, which holds {name}, a task of "
                    f"{config.funnel.suite}; expected tasks that the search does not see"
                )
            if suite not in SUITES:
                with inside(f"verdict.{field}"):
                    _tried(entry, config)


def _tried(entry: Entry, config: Config) -> None:
    """Raise ValueError where a short run shows that losses cannot be compared: a task of a user's
    may have some below 0, which would be noticed when the search is over."""
    make = partial(Population.of, [lookup(BASELINES[0]).program])
    steps, device = min(entry.steps, SHORT_STEPS), config.funnel.device
    scoring.measure(entry.task, make, [SHORT], steps, [scoring.TUNING_SEED], device=device)


def proceed(
    archive: Archive,
    workers: int,
    view: View,
    enough: Enough | None = None,
    where: str = PROCESSES,
) -> None:
    """Take a run from wherever it is to its end. Raises Interrupted after Ctrl-C.

    It is finished when its ``winner`` is written down: None where nothing was evaluated in full.

    ``enough`` ends the search stage early: it is called with the candidates of each batch that
    were evaluated, and returns whether that will do. ``where``: the executor of the workers.
    """
    if SALVAGED in archive.run():
        raise RunError(
            f"{archive.run_dir}: what was saved of a damaged run; it can be looked at, not gone on "
            "with"
        )
    if "winner" in archive.run():
        return
    config = Config.from_dict(archive.run()["config"])
    table = Timetable(archive, config, workers)
    calibration = _calibration(archive, config, table, view)
    context = (config.funnel, calibration.references)
    with (
        executor("search.run.stages:worker", context, workers, name=where) as jobs,
        polite() as stop,
    ):
        if "finalists" not in archive.run():
            kept = min(table.forecast().judging, table.left() / 2)
            spare = partial(_spare, table, kept)
            Search(
                archive, config, calibration, jobs, view, workers, stop, enough, spare
            ).to_the_end()
            _fit(archive, table, view)
        winner = None
        if archive.run()["finalists"]:
            stages = Stages(archive, config, jobs, view, stop, table)
            if config.verdict.meta_validation is not None:
                _meta_validation(stages)
            winner = _finals(stages)
        with archive.transaction(milestone=True):
            archive.set_run("winner", winner)


def worker(context: tuple[Funnel, list[list[float]]]) -> Callable[[Job | Trial], Any]:
    """What a worker process does with a job."""
    evaluator = Evaluator(*context)

    def run(job: Job | Trial) -> Any:
        return judge(job) if isinstance(job, Trial) else evaluator(job)

    return run


def _spare(table: Timetable, kept: float) -> float:
    """Seconds that the search has left of the whole, when the judging keeps its own."""
    return table.left() - kept


def _fit(archive: Archive, table: Timetable, view: View) -> None:
    """Drop finalists, or meta-validation, for which the limit on the whole leaves no time."""
    if math.isinf(table.left()):
        return
    finalists = archive.run()["finalists"]
    few = table.fitting(len(finalists))
    with archive.transaction():
        archive.set_run("finalists", finalists[:few])
        if few < len(finalists):
            _drop(archive, "finalists", len(finalists) - few)
    if few < len(finalists):
        view.say(f"{len(finalists) - few} of {len(finalists)} finalists are dropped: no time left")


def _drop(archive: Archive, stage: str, what: list[str] | int) -> None:
    archive.set_run(DROPPED, archive.run().get(DROPPED, {}) | {stage: what})


def _calibration(archive: Archive, config: Config, table: Timetable, view: View) -> Calibration:
    known = archive.run().get("calibration")
    if known is None:
        view.say(f"tuning {', '.join(BASELINES)} on the proxy tasks …")
        view.say(_plan(config, table))
        programs = [
            *(lookup(name).program for name in BASELINES),
            *(parse(text) for text in config.start),
        ]
        ends = np.cumsum(table.tuning_by_task())

        def tell(done: int) -> None:
            past = table.seconds()
            view.wait("tuning", past / ends[done - 1] * (ends[-1] - ends[done - 1]))

        found = calibrate(config.funnel, programs, config.verdict.trials, tell)
        called = [*BASELINES, *(f"start: program {k}" for k in range(1, len(config.start) + 1))]
        for name, score in zip(called, found.scores, strict=True):
            if not math.isfinite(score):
                raise ValueError(f"{name} diverges on the proxy tasks at every learning rate")
        known = found._asdict()
        table.tuned()
        view.say(_plan(config, table))
        with archive.transaction():
            archive.set_run("calibration", known)
            table.note()
    return Calibration(**known)


def _plan(config: Config, table: Timetable) -> str:
    """What the parts of a run will take."""
    parts, minutes = table.forecast(), config.budget.minutes
    total = config.budget.total_minutes
    tuning = "" if table.tuning else f"tuning about {clock(parts.tuning)}, "
    whole = "" if total is None else f"; at most {clock(60 * total)} in all"
    return (
        f"{tuning}the search at most {clock(60 * minutes)}, judging about "
        f"{clock(parts.judging)}{whole}"
    )


class Stages(NamedTuple):
    """What judging works with."""

    archive: Archive
    config: Config
    jobs: Executor
    view: View
    stop: Callable[[], bool]
    table: Timetable


def _meta_validation(of: Stages) -> None:
    """Measure what led the search, one after the other, on tasks that it does not see."""
    archive = of.archive
    if DRAWN in archive.run():
        return
    reference, suite = BASELINES[0], str(of.config.verdict.meta_validation)
    rules = {reference: to_text(lookup(reference).program)}
    rules |= {str(record.id): record.text or "" for record in leaders(archive)}
    larger = titles(archive.run())["meta_validation"]
    of.view.say(f"measuring {len(rules) - 1} that led the search on {larger} …")
    after = of.table.forecast(len(archive.run()["finalists"]))
    _stage(of, META_VALIDATION, suite, rules, keep=after.proxy + after.held_out)
    curves = Curves(archive.run_dir / "tensorboard")
    for record, gap in meta_validation(archive):
        curves.meta_validation(gap.mean, record.batch)
    curves.close()
    with archive.transaction():
        archive.set_run(DRAWN, True)


def _finals(of: Stages) -> int:
    """Judge the finalists on the proxy tasks, then the winner on what nobody has seen: its id."""
    archive, view = of.archive, of.view
    texts = {str(id): archive.record(id).text or "" for id in archive.run()["finalists"]}
    rules = {name: to_text(lookup(name).program) for name in BASELINES} | texts
    own = titles(archive.run())["proxy"]
    view.say(f"judging {len(texts)} finalists on fresh seeds of {own} …")
    kept = of.table.forecast().held_out
    _stage(of, "proxy", of.config.funnel.suite, rules, keep=kept, least=1)
    table = standings(archive.finals(), "proxy", BASELINES)
    winner = next(s.rule for s in table if s.rule not in BASELINES)
    view.say(f"judging the winner on {titles(archive.run())['held_out']} …")
    rules = {name: text for name, text in rules.items() if name in (*BASELINES, winner)}
    _stage(of, "held_out", of.config.verdict.held_out, rules)
    return int(winner)


def trials(config: Config, stage: str, suite: str, rules: dict[str, str]) -> dict[str, Trial]:
    """The jobs that judge ``rules`` (name: text) on a suite as a run does, by task."""
    return {
        name: Trial(
            stage=stage,
            suite=suite,
            entry=number,
            length=config.funnel.length,
            schedule=config.funnel.schedule,
            rules=tuple(rules.items()),
            trials=config.verdict.trials,
            seeds=config.verdict.seeds,
            device=config.funnel.device,
        )
        for number, name in enumerate(names(resolve(suite)))
    }


def _stage(
    of: Stages, stage: str, suite: str, rules: dict[str, str], keep: float = 0.0, least: int = 0
) -> None:
    """Run and commit the trials of a stage that the archive does not have yet.

    ``keep``: seconds that later stages need. Where the limit on the whole leaves none, tasks that
    no worker has begun are dropped, but for the first ``least``.
    """
    archive, jobs = of.archive, of.jobs
    gone = archive.run().get(DROPPED, {}).get(stage, [])
    done = {row.task for row in archive.finals() if row.stage == stage} | {*gone}
    out = {
        jobs.submit(trial): name
        for name, trial in trials(of.config, stage, suite, rules).items()
        if name not in done
    }
    whole, begun, finished = of.table.stage(suite, len(rules)), time.monotonic(), 0
    total = len(out)
    while out:
        if of.table.left() <= keep:
            late = [n for t, n in [*out.items()][max(0, least - finished) :] if jobs.withdraw(t)]
            _said_dropped(of, stage, late, out)
        for ticket, rows in jobs.completed(TICK):
            if isinstance(rows, Failure):
                raise RunError(
                    f"{archive.run_dir}: {stage}: a trial failed, because: {rows.reason}; once "
                    "that is mended, go on with l2o resume"
                )
            del out[ticket]
            finished += 1
            with archive.transaction():
                archive.add_finals(rows)
                of.table.note()
            break
        if of.stop():
            raise Interrupted
        past = time.monotonic() - begun
        pace = past / finished if finished else whole / max(1, total)
        of.view.wait("judging", max(0.0, pace * total - past))


def _said_dropped(of: Stages, stage: str, late: list[str], out: dict[int, str]) -> None:
    """Write down and say which tasks are dropped."""
    if not late:
        return
    for ticket in [ticket for ticket, name in out.items() if name in late]:
        del out[ticket]
    with of.archive.transaction():
        _drop(of.archive, stage, sorted(late))
    called = titles(of.archive.run()).get(stage, stage)
    of.view.say(f"no time left: on {called}, {', '.join(late)} dropped")
