"""The one way that update rules are judged: every rule on every task of a suite, tuned alike.

Each rule gets the same ``trials`` from the same space of learning rate x weight decay, on the
tuning seed; the best one is measured on fresh seeds, whose initial weights and minibatches are the
same for all rules, so that differences are paired. The trials are the points of a Halton sequence:
fewer trials are the first of more, so a budget can be raised later and nothing is run twice.

Everything lands in a ``Results`` file as it is measured; ``evaluate`` on a file that has some of
the runs makes the rest, and ``statistics.py`` says what they mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from statistics import median
from typing import Protocol

import numpy as np
import scipy
import torch

from tasks import metric_tables, replay
from tasks.cards import card, fingerprint
from tasks.results import Results, ResultsError, Run, Study
from tasks.scoring import FRESH_SEEDS, TUNING_SEED, Setting, comparable
from tasks.statistics import Measured
from tasks.suites import LONGEST, Entry, names, resolve
from tasks.types import Task, UpdateRule
from tasks.unroll import SCHEDULES, advance, initial, start, unroll
from tasks.unroll import evaluate as losses_of

LEARNING_RATES = (1e-4, 10.0)
WEIGHT_DECAYS = (1e-3, 1.0)
NO_DECAY = 1 / 3
"""Share of the trials that have no weight decay at all."""
MOST = 100_000
"""Trials, or seeds."""
MARKS = 25
"""Points of a learning curve after the first."""
TIMED = 16
"""Models side by side when a step is timed, the same for all rules; ``TIMED_STEPS`` at a time."""
TIMED_STEPS = 20


class Make(Protocol):
    """The rule for ``instances`` runs of ``task`` on ``device``; ValueError if it has none."""

    def __call__(self, task: Task, instances: int, device: str) -> UpdateRule: ...


def _as_it_is(task: Task) -> Task:
    return task


@dataclass(frozen=True)
class Entrant:
    """A rule to be judged. Equal ``identity`` means equal behaviour: results are filed under it.
    ``source`` is what a reader may want to see, such as its program. ``parametrise`` turns a task
    into the one that the rule is for, such as its muP version; ValueError if there is none."""

    name: str
    identity: str
    source: str
    make: Make
    parametrise: Callable[[Task], Task] = _as_it_is


@dataclass(frozen=True)
class Plan:
    """What an evaluation is a function of, besides its rules.

    Attributes:
        suite: name or import path (module:attribute) of the tasks
        trials: settings of learning rate and weight decay tried for each rule on each task
        seeds: fresh seeds that the best of them is measured on
        length: multiplies the steps of each task
        schedule: of the learning rate: constant, linear, cosine or warmup_cosine
    """

    suite: str = "held_out"
    trials: int = 16
    seeds: int = 5
    length: float = 1.0
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("trials", "seeds"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 to {MOST:,}")
        if not 0 < self.length <= LONGEST:
            raise ValueError(f"length: got {self.length}, expected above 0, at most {LONGEST:,}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: got {self.schedule!r}, expected one of {[*SCHEDULES]}")

    @cached_property
    def entries(self) -> list[tuple[str, Task, int]]:
        """What each task is called, the task, and its steps. ValueError for an unknown suite."""
        suite = resolve(self.suite)
        steps = [max(1, round(entry.steps * self.length)) for entry in suite]
        return list(zip(names(suite), (entry.task for entry in suite), steps, strict=True))

    @property
    def fresh(self) -> range:
        """The seeds that are reported on."""
        return FRESH_SEEDS[: self.seeds]


def check(plan: Plan, entrants: Sequence[Entrant]) -> None:
    """Raises ValueError for an unknown suite, or a rule that cannot be used on one of its tasks."""
    for (_, task, _), entrant in product(plan.entries, entrants):
        _parametrised(task, entrant)


def space(trials: int) -> tuple[Setting, ...]:
    """The first ``trials`` settings of the sequence that every rule is tuned on."""
    (low, high), (least, most) = LEARNING_RATES, WEIGHT_DECAYS
    sequence = scipy.stats.qmc.Halton(2, scramble=False).fast_forward(1)
    settings = []
    for x, y in sequence.random(trials).tolist():
        lr = low * (high / low) ** x
        z = (y - NO_DECAY) / (1 - NO_DECAY)
        settings.append(Setting(lr, 0.0 if z < 0 else least * (most / least) ** z))
    return tuple(settings)


def marks(steps: int) -> tuple[int, ...]:
    """Where a learning curve of ``steps`` steps is measured after step 0."""
    return tuple(sorted({max(1, round(k * steps / MARKS)) for k in range(1, MARKS + 1)}))


def evaluate(
    plan: Plan,
    entrants: Sequence[Entrant],
    results: Results,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    made_in: Mapping[str, str | None] | None = None,
) -> None:
    """Make the runs of ``plan`` that ``results`` does not have yet. Tells ``say`` what it does.

    ``made_in``: the environment, noted in ``results`` before anything is run in it.

    Raises ValueError for an unknown suite, or a rule that cannot be used on one of its tasks.
    """
    check(plan, entrants)  # what is refused is refused before anything is run
    for entrant in entrants:
        results.set_rule(entrant.name, entrant.identity, entrant.source)
    note(plan, entrants, results)  # which names these rules
    for name, task, steps in plan.entries:
        identity = fingerprint(task)
        results.set_task(name, identity, card(Entry(task, steps)))
        for entrant in entrants:
            study = Study(entrant.identity, identity, steps, plan.schedule)
            own = _parametrised(task, entrant)
            bench = _Bench(own, entrant, study, results, device, made_in)
            trials = [(TUNING_SEED, setting) for setting in space(plan.trials)]
            tuned = bench.complete(trials, curve=False)
            best = chosen(plan.trials, results.runs(study))
            measured = bench.complete([(seed, best) for seed in plan.fresh], curve=True)
            if tuned or measured:
                say(f"{name}: {entrant.name}: {tuned} trials, {measured} fresh runs")


def _parametrised(task: Task, entrant: Entrant) -> Task:
    try:
        return entrant.parametrise(task)
    except ValueError as error:
        raise ValueError(f"{entrant.name}: {task.name}: {error}") from error


def chosen(trials: int, runs: dict[tuple[int, float, float], Run]) -> Setting:
    """The trial of the smallest loss; the first one where all diverged."""

    def loss(setting: Setting) -> float:
        found = runs[TUNING_SEED, *setting].loss
        return math.inf if found is None else found

    return min(space(trials), key=loss)


@dataclass(frozen=True)
class _Bench:
    """Where one rule meets one task."""

    task: Task
    entrant: Entrant
    study: Study
    results: Results
    device: str
    made_in: Mapping[str, str | None] | None

    def complete(self, wanted: Sequence[tuple[int, Setting]], curve: bool) -> int:
        """Run what is missing, side by side; how many runs that were."""
        known = self.results.runs(self.study)
        missing = [(seed, s) for seed, s in wanted if (seed, *s) not in known]
        if missing:
            if self.made_in:
                self.results.made_in(self.made_in)
            self.results.add(self.study, self._train(missing, curve))
        return len(missing)

    def _train(self, wanted: Sequence[tuple[int, Setting]], curve: bool) -> list[Run]:
        task, steps, device = self.task, self.study.steps, self.device
        lr = torch.tensor([s.lr for _, s in wanted])
        decay = torch.tensor([s.weight_decay for _, s in wanted])
        seeds = torch.tensor([seed for seed, _ in wanted])
        shared = int(seeds[0]) if len(seeds.unique()) == 1 else seeds
        at = marks(steps) if curve else (steps,)
        trajectory = unroll(
            task,
            self._rule(len(wanted)),
            instances=len(wanted),
            steps=steps,
            lr=lr,
            weight_decay=decay,
            schedule=SCHEDULES[self.study.schedule],
            seed=shared,
            eval_at=at,
            device=device,
        )
        validation = trajectory.validation.tolist()
        before = losses_of(task, initial(task, len(wanted), shared).to(device)).tolist()
        curves = list(zip(before, *validation, strict=True))
        test = losses_of(task, trajectory.inner.params, "test").tolist()
        comparable(torch.tensor([before, *validation, test]), task.name)
        if curve:  # before the runs are filed, which nobody makes again
            metric_tables.note(self.results, self.study, task, trajectory.inner.params, wanted)
        return [
            _run(seed, setting, (0, *at), losses, last, self.seconds)
            for (seed, setting), losses, last in zip(wanted, curves, test, strict=True)
        ]

    def _rule(self, instances: int) -> UpdateRule:
        try:
            return self.entrant.make(self.task, instances, self.device)
        except ValueError as error:
            raise ValueError(f"{self.entrant.name}: {self.task.name}: {error}") from error

    @cached_property
    def seconds(self) -> float:
        """Of a step of one model among ``TIMED``, after what is compiled or recorded once."""
        rule, settings = self._rule(TIMED), space(TIMED)
        lr, decay = torch.tensor(settings).T
        whole = self.study.steps
        steps = min(TIMED_STEPS, whole) if self.device == "cpu" else whole  # it captures a graph
        inner = start(self.task, rule, TIMED, TUNING_SEED, self.device)

        def take(steps: int) -> float:
            nonlocal inner
            started = time.perf_counter()
            inner, losses = advance(
                self.task, rule, inner, steps, horizon=whole, lr=lr, weight_decay=decay
            )
            losses.sum().item()  # waits for the device
            return time.perf_counter() - started

        with torch.no_grad():
            with replay.at_once():
                take(2)  # the first may be one that takes a Hessian, which is not recorded
            return median(take(steps) for _ in range(3)) / (steps * TIMED)


def _run(
    seed: int,
    setting: Setting,
    at: Sequence[int],
    losses: Sequence[float],
    test: float,
    seconds: float,
) -> Run:
    ok = math.isfinite(losses[-1])
    curve = tuple((step, _number(loss)) for step, loss in zip(at, losses, strict=True))
    status, loss = ("ok", losses[-1]) if ok else ("diverged", None)
    return Run(seed, *setting, status, loss, _number(test) if ok else None, curve, seconds)


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None


# ------------------------------------------------------------------------- what was measured


def note(plan: Plan, entrants: Sequence[Entrant], results: Results) -> None:
    """Write down what is asked for, so that ``measured`` can find it without the suite."""
    tasks = [(name, steps) for name, _, steps in plan.entries]
    results.set_fact("plan", asdict(plan) | {"rules": [e.name for e in entrants], "tasks": tasks})


def measured(results: Results) -> Measured:
    """The runs of the plan that was noted last, as arrays.

    While it is not finished, these are the tasks that all rules have finished; ResultsError if
    there is none.
    """
    plan = results.facts().get("plan")
    if plan is None:
        raise ResultsError(f"{results.file}: no evaluation was started in it")
    settings, seeds = space(plan["trials"]), FRESH_SEEDS[: plan["seeds"]]
    rules, tasks = results.rules(), results.tasks()
    table: dict[str, list[list[list[Run]]]] = {}  # task -> for each rule, its trials and fresh runs
    for task, steps in plan["tasks"]:
        found = []
        for rule in plan["rules"]:
            identity = tasks[task][0] if task in tasks else ""
            runs = results.runs(Study(rules[rule][0], identity, steps, plan["schedule"]))
            trials = [runs[TUNING_SEED, *s] for s in settings if (TUNING_SEED, *s) in runs]
            best = chosen(plan["trials"], runs) if len(trials) == len(settings) else settings[0]
            fresh = [runs[seed, *best] for seed in seeds if (seed, *best) in runs]
            if len(trials) == len(settings) and len(fresh) == len(seeds):
                found.append([trials, fresh])
        if len(found) == len(plan["rules"]):
            table[task] = found
    if not table:
        raise ResultsError(f"{results.file}: no task is finished yet")
    return _arrays(plan["rules"], seeds, settings, table)


def _arrays(
    rules: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[Setting],
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
        rules=tuple(rules),
        tasks=tuple(table),
        seeds=tuple(seeds),
        marks=tuple(tuple(step for step, _ in task[0][1][0].curve) for task in table.values()),
        final=array(lambda run: run.loss, part=1),
        test=array(lambda run: run.test, part=1),
        curves=tuple(np.nan_to_num(np.array(c, float), nan=math.inf) for c in curves),
        settings=tuple(settings),
        trials=trials,
        chosen=trials.argmin(axis=2),
        seconds=array(lambda run: run.seconds, part=0).mean(axis=2),
    )
