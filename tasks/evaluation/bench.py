"""Where one rule meets one task: its trials, the fresh runs of the best of them, and its clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, Protocol

import torch

from tasks.evaluation import metric_tables
from tasks.evaluation.plan import TUNING_SEED
from tasks.evaluation.results import Run, Study
from tasks.evaluation.spaces import WRITTEN, Space
from tasks.evaluation.tuning import Setting, comparable
from tasks.inner import recorded
from tasks.inner.schedules import SCHEDULES
from tasks.inner.unroll import advance, initial, shown, start, unroll
from tasks.inner.unroll import evaluate as losses_of
from tasks.types import HOST, Task, Unusable, UpdateRule

TRIED = 2
"""Runs side by side of a rule that is tried."""
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
    into the one that the rule is for, such as its muP version; ValueError if there is none.
    ``schedule``: what the rule is meant for, or ``asked`` for with. ``foreign``: somebody else's
    code, tried on every task before anything is measured. ``lr``: where tuning may start."""

    name: str
    identity: str
    source: str
    make: Make
    parametrise: Callable[[Task], Task] = _as_it_is
    schedule: str | None = None
    space: Space = WRITTEN
    asked: bool = False
    foreign: bool = False
    lr: float = 1e-3


@contextmanager
def said_of(entrant: Entrant, task: Task) -> Iterator[None]:
    """Say which rule and task an ``Unusable`` is about."""
    try:
        yield
    except Unusable as error:
        raise Unusable(f"{entrant.name}: {task.name}: {error}") from error


def made(task: Task, entrant: Entrant, instances: int, device: str) -> UpdateRule:
    """The rule of ``entrant``. Raises Unusable."""
    try:
        return entrant.make(task, instances, device)
    except ValueError as error:
        raise Unusable(str(error)) from error


def parametrised(task: Task, entrant: Entrant) -> Task:
    try:
        return entrant.parametrise(task)
    except ValueError as error:
        raise ValueError(f"{entrant.name}: {task.name}: {error}") from error


def marks(steps: int) -> tuple[int, ...]:
    """Where a learning curve of ``steps`` steps is measured after step 0."""
    return tuple(sorted({max(1, round(k * steps / MARKS)) for k in range(1, MARKS + 1)}))


def chosen(settings: Sequence[Setting], runs: dict[tuple[int, float, float], Run]) -> Setting:
    """The trial of the smallest loss; the first one where all diverged."""

    def loss(setting: Setting) -> float:
        found = runs[TUNING_SEED, *setting].loss
        return math.inf if found is None else found

    return min(settings, key=loss)


@dataclass
class Filed:
    """Runs of one study: those that a bench finds ``known``, what it adds, and facts about these.

    A bench may be in another process than the results file, so it writes here."""

    known: dict[tuple[int, float, float], Run]
    added: list[Run] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, runs: Sequence[Run]) -> None:
        self.added += runs
        self.known |= {(run.seed, run.lr, run.weight_decay): run for run in runs}


@dataclass(frozen=True)
class Bench:
    """Where one rule meets one task."""

    task: Task
    entrant: Entrant
    study: Study
    filed: Filed
    device: str

    def both(self, trials: int, fresh: Sequence[int]) -> tuple[int, int]:
        """Tune, then measure the best on ``fresh`` seeds; how many runs of each were missing."""
        settings = self.entrant.space.settings(trials)
        tuned = self.complete([(TUNING_SEED, setting) for setting in settings], curve=False)
        best = chosen(settings, self.filed.known)
        return tuned, self.complete([(seed, best) for seed in fresh], curve=True)

    def complete(self, wanted: Sequence[tuple[int, Setting]], curve: bool) -> int:
        """Run what is missing, side by side; how many runs that were."""
        missing = [(seed, s) for seed, s in wanted if (seed, *s) not in self.filed.known]
        if missing:
            self.filed.add(self._train(missing, curve))
        return len(missing)

    def _train(self, wanted: Sequence[tuple[int, Setting]], curve: bool) -> list[Run]:
        task, steps, device = self.task, self.study.steps, self.device
        lr = torch.tensor([s.lr for _, s in wanted], **HOST)
        decay = torch.tensor([s.weight_decay for _, s in wanted], **HOST)
        seeds = torch.tensor([seed for seed, _ in wanted], dtype=torch.int64, device="cpu")
        shared = int(seeds[0]) if len(seeds.unique()) == 1 else seeds
        at = marks(steps) if curve else (steps,)
        rule = made(task, self.entrant, len(wanted), device)
        trajectory = unroll(
            task,
            rule,
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
        last = shown(task, rule, trajectory.inner)
        test = losses_of(task, last, "test").tolist()
        comparable(torch.tensor([before, *validation, test], **HOST), task.name)
        if curve:
            self.filed.facts |= metric_tables.facts(self.study, task, last, wanted)
        return [
            _run(seed, setting, (0, *at), losses, tested, self.seconds)
            for (seed, setting), losses, tested in zip(wanted, curves, test, strict=True)
        ]

    @cached_property
    def seconds(self) -> float:
        """Of a step of one model among ``TIMED``, after what is compiled or recorded once."""
        rule = made(self.task, self.entrant, TIMED, self.device)
        settings = self.entrant.space.settings(TIMED)
        lr, decay = torch.tensor(settings, **HOST).T
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
            with recorded.at_once():
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
