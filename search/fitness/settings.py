"""How candidates are measured and how the best are judged, field by field.

The command line makes its flags and its help of these classes. So nothing here imports torch
before a value has to be checked.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.checks import meant
from tasks.evaluation.plan import FRESH_SEEDS, TUNING_SEED


@dataclass(frozen=True)
class Funnel:
    """How candidates are measured.

    Attributes:
        suite: the proxy tasks: a suite, a family, mlp(width=64), or an import path module:attribute
        length: multiplies the steps of every task
        rungs: fractions of a task's steps at which losers are dropped, the last one 1
        factors: learning rates tried, relative to the best of the parent
        seed: of the inner runs, the same for all candidates
        seeds: inner runs of every task, on seed, seed + 1, ...: several where chance between seeds
            moves rules as far apart as they are
        schedule: of the learning rate: constant, linear, cosine or warmup_cosine
        device: where inner runs live, such as cpu or cuda
    """

    suite: str = "proxy"
    length: float = 1.0
    rungs: tuple[float, ...] = (0.25, 1.0)
    factors: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    seed: int = TUNING_SEED
    seeds: int = 1
    schedule: str = "cosine"
    device: str = "cpu"

    def __post_init__(self) -> None:
        from tasks.inner.schedules import SCHEDULES
        from tasks.runs.environment import check_device
        from tasks.suites import LONGEST

        if not self.rungs or self.rungs[-1] != 1 or sorted(set(self.rungs)) != list(self.rungs):
            raise ValueError(f"rungs: got {self.rungs}, expected rising fractions that end in 1")
        if not self.rungs[0] > 0:
            raise ValueError(f"rungs: got {self.rungs}, expected fractions above 0")
        if not self.factors or not all(0 < factor < math.inf for factor in self.factors):
            raise ValueError(f"factors: got {self.factors}, expected positive numbers")
        if len({*array("f", self.factors)}) < len(self.factors):
            raise ValueError(f"factors: got {self.factors}, expected different ones")
        if not 0 < self.length <= LONGEST:
            raise ValueError(f"length: got {self.length}, expected above 0, at most {LONGEST:,}")
        if self.seeds < 1:
            raise ValueError(f"seeds: got {self.seeds}, expected at least 1")
        fresh = FRESH_SEEDS.start
        if not 0 <= self.seed <= fresh - self.seeds:
            raise ValueError(
                f"seed: got {self.seed} and {self.seeds} seeds, expected at least 0, and all of "
                f"them below {fresh}: from there on they are kept for the verdict"
            )
        if self.schedule not in SCHEDULES:
            likely = meant(self.schedule, SCHEDULES)
            raise ValueError(
                f"schedule: got {self.schedule!r}, expected one of {[*SCHEDULES]}{likely}"
            )
        check_device(self.device)

    def tasks(self) -> list[tuple[Any, int]]:
        """The proxy tasks and the steps of each."""
        from tasks.suites import resolve

        return [(e.task, max(1, round(e.steps * self.length))) for e in resolve(self.suite)]

    def names(self) -> list[str]:
        """What the proxy tasks are called in measurements."""
        from tasks.suites import names, resolve

        return names(resolve(self.suite))

    def runs(self) -> list[Run]:
        """What a candidate is run on, the cheapest things to know first: all tasks on one seed,
        then on the next."""
        tasks = [*zip(self.names(), self.tasks(), strict=True)]
        seeds = range(self.seed, self.seed + self.seeds)
        return [Run(name, task, steps, seed) for seed in seeds for name, (task, steps) in tasks]

    def check(self) -> None:
        """Raise ValueError for a suite of which there is none, or that cannot be measured so."""
        for name, (_, steps) in zip(self.names(), self.tasks(), strict=True):
            marks = self.marks(steps)
            if len(set(marks)) < len(marks):
                raise ValueError(
                    f"rungs: got {self.rungs} at a length of {self.length}, at which {name} has "
                    f"{steps} steps, measured at {', '.join(map(str, marks))}; expected different"
                )

    def marks(self, steps: int) -> list[int]:
        """The steps at which a task of ``steps`` steps is measured."""
        return [max(1, round(fraction * steps)) for fraction in self.rungs]


class Run(NamedTuple):
    """A task, what it is called in measurements, how many steps of it, and on which seed."""

    name: str
    task: Any  # a Task: its module loads torch
    steps: int
    seed: int


@dataclass(frozen=True)
class Verdict:
    """How finalists are judged.

    Attributes:
        finalists: how many of the best programs are judged
        trials: learning rates tried for each rule on each task
        seeds: fresh seeds each is then measured on
        held_out: the suite that the search never sees
        meta_validation: the suite that its progress is measured on afterwards; null: none
    """

    finalists: int = 10
    trials: int = 16
    seeds: int = 8
    held_out: str = "held_out"
    meta_validation: str | None = "meta_validation"

    def __post_init__(self) -> None:
        for name in ("finalists", "trials", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
