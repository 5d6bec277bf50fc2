"""The one way that update rules are judged: every rule on every task of a suite, tuned alike.

Each rule gets the same number of trials from its space of learning rate x weight decay
(``spaces.py``), on the tuning seed; the best one is measured on fresh seeds, whose initial weights
and minibatches are the same for all rules, so that differences are paired.

Each rule follows the schedule that it is meant for: the one that it was asked for with, else that
of the plan, else its own, else a cosine.

A rule on a task is a job, in this process or in others: its runs are the same in any. Everything
lands in a ``Results`` file as it is measured; ``evaluate`` on a file that has some of
the runs makes the rest, and ``statistics.py`` says what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from tasks.cards import card
from tasks.evaluation.bench import (
    TRIED,
    Bench,
    Entrant,
    Filed,
    chosen,
    made,
    parametrised,
    said_of,
)
from tasks.evaluation.plan import TUNING_SEED, Plan
from tasks.evaluation.results import Results, ResultsError, Run, Study
from tasks.evaluation.spaces import WRITTEN, Space
from tasks.evaluation.statistics import Measured
from tasks.evaluation.tuning import FRESH_SEEDS, Setting
from tasks.executors.base import Executor, Failure
from tasks.executors.inline import Inline
from tasks.inner.schedules import SCHEDULES
from tasks.inner.unroll import unroll
from tasks.suites import Entry
from tasks.types import Unusable


def check(plan: Plan, entrants: Sequence[Entrant], device: str = "cpu") -> None:
    """Raises ValueError for an unknown suite, or a rule that cannot be used on one of its tasks.

    What is ``foreign`` takes a few steps on every task: its code may refuse anything.
    """
    for (_, task, _), entrant in product(plan.entries, entrants):
        own, schedule = parametrised(task, entrant), SCHEDULES[plan.schedule_of(entrant)]
        if entrant.foreign:
            with said_of(entrant, task):
                rule = made(own, entrant, TRIED, device)
                unroll(own, rule, instances=TRIED, steps=3, lr=1e-3, schedule=schedule)


class Job(NamedTuple):
    """A rule on a task, by their places in the plan, what its runs are filed under, and those that
    are there already."""

    task: int
    rule: int
    study: Study
    known: dict[tuple[int, float, float], Run]


class Done(NamedTuple):
    """What came of a job: what to file, and why the rule is left out or the plan refused."""

    tuned: int
    measured: int
    filed: Filed
    unusable: str = ""
    refused: str = ""


def measurer(plan: Plan, entrants: Sequence[Entrant], device: str = "cpu") -> Callable[[Job], Done]:
    """What does a ``Job`` of an evaluation, wherever it is."""

    def run(job: Job) -> Done:
        (_, task, _), entrant = plan.entries[job.task], entrants[job.rule]
        filed = Filed(job.known)
        bench = Bench(parametrised(task, entrant), entrant, job.study, filed, device)
        try:
            with said_of(entrant, task):
                return Done(*bench.both(plan.trials, plan.fresh), filed)
        except Unusable as error:
            return Done(0, 0, filed, unusable=str(error))
        except ValueError as error:
            return Done(0, 0, filed, refused=str(error))

    return run


def evaluate(
    plan: Plan,
    entrants: Sequence[Entrant],
    results: Results,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    made_in: Mapping[str, str | None] | None = None,
    jobs: Executor | None = None,
) -> None:
    """Make the runs of ``plan`` that ``results`` does not have yet. Tells ``say`` what it does.

    ``made_in``: the environment, noted in ``results`` beside what is run in it. ``jobs``: who does
    a ``Job``, as ``measurer`` does; without it this process.

    A rule that fails on the way is left out from there on: fact ``failed`` says why. Raises
    ValueError for an unknown suite, or a rule that cannot be used on one of its tasks.
    """
    check(plan, entrants, device)  # what is refused is refused before anything is run
    for entrant in entrants:
        results.set_rule(entrant.name, entrant.identity, entrant.source)
    note(plan, entrants, results)  # which names these rules
    jobs = jobs or Inline(lambda _: measurer(plan, entrants, device), None)
    asked: dict[int, Job] = {}
    for at, (name, task, steps) in enumerate(plan.entries):
        results.set_task(name, plan.identities[at], card(Entry(task, steps)))
        for k, entrant in enumerate(entrants):
            study = plan.study(at, entrant)
            job = Job(at, k, study, results.runs(study))
            asked[jobs.submit(job)] = job
    failed: dict[str, str] = {}
    for ticket, done in jobs.completed():
        job = asked.pop(ticket)
        name, entrant = plan.entries[job.task][0], entrants[job.rule]
        if isinstance(done, Failure):
            raise RuntimeError(f"{entrant.name}: {name}: {done}")
        _file(results, job.study, done.filed, made_in)
        if done.refused:
            raise ValueError(done.refused)
        if done.unusable and entrant.name not in failed:
            failed[entrant.name] = done.unusable
            results.set_fact("failed", failed)
            say(f"left out: {done.unusable}")
            for other, waiting in list(asked.items()):
                if waiting.rule == job.rule and jobs.withdraw(other):
                    del asked[other]
        if done.tuned or done.measured:
            say(f"{name}: {entrant.name}: {done.tuned} trials, {done.measured} fresh runs")


def _file(
    results: Results, study: Study, filed: Filed, made_in: Mapping[str, str | None] | None
) -> None:
    for name, value in filed.facts.items():  # before the runs, which nobody makes again
        results.set_fact(name, value)
    if filed.added:
        if made_in:
            results.made_in(made_in)
        results.add(study, filed.added)


# ------------------------------------------------------------------------- what was measured


def note(plan: Plan, entrants: Sequence[Entrant], results: Results) -> None:
    """Write down what is asked for, so that ``measured`` can find it without the suite."""
    about = {
        "rules": [entrant.name for entrant in entrants],
        "schedules": {entrant.name: plan.schedule_of(entrant) for entrant in entrants},
        "spaces": {entrant.name: asdict(entrant.space) for entrant in entrants},
        "tasks": [(name, steps) for name, _, steps in plan.entries],
    }
    results.set_fact("plan", asdict(plan) | about)
    results.set_fact("failed", {})


def measured(results: Results) -> Measured:
    """The runs of the plan that was noted last, as arrays; rules that failed are left out.

    While it is not finished, these are the tasks that all rules have finished; ResultsError if
    there is none.
    """
    facts = results.facts()
    plan, failed = facts.get("plan"), facts.get("failed", {})
    if plan is None:
        raise ResultsError(f"{results.file}: no evaluation was started in it")
    seeds, rules = FRESH_SEEDS[: plan["seeds"]], [r for r in plan["rules"] if r not in failed]
    if not rules:
        raise ResultsError(f"{results.file}: every rule failed: {'; '.join(failed.values())}")
    schedules = {rule: _schedule(plan, rule) for rule in rules}
    settings = {rule: _space(plan, rule).settings(plan["trials"]) for rule in rules}
    known, tasks = results.rules(), results.tasks()
    table: dict[str, list[list[list[Run]]]] = {}  # task -> for each rule, its trials and fresh runs
    for task, steps in plan["tasks"]:
        identity = tasks[task][0] if task in tasks else ""
        found = []
        for rule in rules:
            runs = results.runs(Study(known[rule][0], identity, steps, schedules[rule]))
            found += _finished(runs, settings[rule], seeds)
        if found and len(found) == len(rules):
            table[task] = found
    if not table:
        raise ResultsError(f"{results.file}: no task is finished yet")
    return _arrays(schedules, seeds, settings, table)


def reference(results: Results, measured: Measured) -> str:
    """What rules are compared with: what was asked for, or the first where that failed."""
    asked = results.facts().get("reference", measured.rules[0])
    return asked if asked in measured.rules else measured.rules[0]


def _schedule(plan: Mapping[str, Any], rule: str) -> str:
    """Files of before rules had their own have one for all."""
    return plan.get("schedules", {}).get(rule) or plan["schedule"]


def _space(plan: Mapping[str, Any], rule: str) -> Space:
    about = plan.get("spaces", {}).get(rule)
    return (
        WRITTEN
        if about is None
        else Space(tuple(about["rates"]), tuple(about["decays"]), about["no_decay"])
    )


def _finished(
    runs: dict[tuple[int, float, float], Run], settings: Sequence[Setting], seeds: Sequence[int]
) -> list[list[list[Run]]]:
    """The trials and the fresh runs of a rule on a task, or nothing if one is missing."""
    trials = [runs[TUNING_SEED, *s] for s in settings if (TUNING_SEED, *s) in runs]
    if len(trials) < len(settings):
        return []
    best = chosen(settings, runs)
    fresh = [runs[seed, *best] for seed in seeds if (seed, *best) in runs]
    return [[trials, fresh]] if len(fresh) == len(seeds) else []


def _arrays(
    schedules: Mapping[str, str],
    seeds: Sequence[int],
    settings: Mapping[str, Sequence[Setting]],
    table: dict[str, list[list[list[Run]]]],
) -> Measured:
    def array(value: Callable[[Run], float | None], part: int) -> np.ndarray:
        rows = [[[value(run) for run in rule[part]] for rule in task] for task in table.values()]
        return np.nan_to_num(np.array(rows, float), nan=math.inf, posinf=math.inf).swapaxes(0, 1)

    curves = [
        [[[loss for _, loss in run.curve] for run in r[1]] for r in t] for t in table.values()
    ]
    trials = array(lambda run: run.loss, part=0)
    return Measured(
        rules=tuple(schedules),
        schedules=tuple(schedules.values()),
        tasks=tuple(table),
        seeds=tuple(seeds),
        marks=tuple(tuple(step for step, _ in task[0][1][0].curve) for task in table.values()),
        final=array(lambda run: run.loss, part=1),
        test=array(lambda run: run.test, part=1),
        curves=tuple(np.nan_to_num(np.array(c, float), nan=math.inf) for c in curves),
        settings=tuple(map(tuple, settings.values())),
        trials=trials,
        chosen=trials.argmin(axis=2),
        seconds=array(lambda run: run.seconds, part=0).mean(axis=2),
    )
