"""How a search goes, field by field: what changes programs, who lives, what a candidate is measured
on, how the best are judged.

The command line makes its flags and its help of these classes. So nothing here imports torch
before a value has to be checked.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from search.language.functions import OPS
from search.language.program import FIXED_INPUTS, MAX_STATEMENTS, OPTIONAL_INPUTS
from tasks.checks import meant
from tasks.evaluation.seeds import FRESH_SEEDS, TUNING_SEED

Change = Literal["insert", "delete", "modify", "copy", "swap"]
INPUTS = (*FIXED_INPUTS, *OPTIONAL_INPUTS)
MOST = 10_000_000
"""Candidates in a population, and the like."""


@dataclass(frozen=True)
class Mutation:
    """How programs change. Weights and probabilities are of proposals; invalid ones are redrawn.

    Attributes:
        insert: relative weight of inserting a statement
        delete: of deleting one
        modify: of changing an argument of one
        copy: of repeating one with another argument, to be read in place of the original
        swap: of calling another function in one
        max_length: nothing is inserted into a program as long as this
        fresh: probability that an inserted statement writes a new variable
        constant: probability that a drawn argument is a constant, where one fits
        scale: probability that a changed constant is multiplied by 2^a
        functions: what new and swapped statements may call
        reads: inputs that new arguments may name
        constants_only: change constants and nothing else: a baseline
    """

    insert: float = 1.0
    delete: float = 1.0
    modify: float = 1.0
    copy: float = 0.0
    swap: float = 0.0
    max_length: int = 40
    fresh: float = 0.5
    constant: float = 0.2
    scale: float = 0.5
    functions: tuple[str, ...] = tuple(OPS)
    reads: tuple[str, ...] = INPUTS
    constants_only: bool = False

    @property
    def kinds(self) -> str:
        """For people: what may change."""
        if self.constants_only:
            return "changes of constants alone"
        weights = {name: getattr(self, name) for name in get_args(Change)}
        return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())

    def __post_init__(self) -> None:
        for name in ("functions", "reads"):  # lists, where settings come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        weights = {name: getattr(self, name) for name in get_args(Change)}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}: got {weight}, expected a weight of at least 0")
        if not any(weights.values()):
            raise ValueError(f"{', '.join(weights)}: got 0 for all, expected one above 0")
        for name in ("fresh", "constant", "scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a probability")
        if not 1 <= self.max_length <= MAX_STATEMENTS:
            raise ValueError(
                f"max_length: got {self.max_length}, expected 1 to {MAX_STATEMENTS} statements"
            )
        unknown = sorted(set(self.functions) - OPS.keys())
        if unknown or not self.functions:
            raise ValueError(
                f"functions: got {', '.join(unknown) or 'none'}, expected some of {', '.join(OPS)}"
                + meant((unknown or [""])[0], OPS)
            )
        if not set(self.reads) <= set(INPUTS):
            raise ValueError(
                f"reads: got {', '.join(self.reads)}, expected some of {', '.join(INPUTS)}"
            )


@dataclass(frozen=True)
class Settings:
    """The knobs of the search.

    Attributes:
        population: how many candidates live
        tournament: how many of them compete to be a parent
        batch: new programs an evaluation batch
        ahead: batches in flight, so the most workers that can be busy
        slack: how far behind the population's median, in log loss, a candidate may be at a rung
        mutation: how programs change
        islands: populations that evolve apart, batch by batch in turn
        migration: probability that a parent comes from any island, drawn with its own among them
        patience: batches of an island without a better best after which it starts again; 0: never
        gain: by how much a best must be better than the last to count for that
        restart: from what, then: the best of the run so far, or the start programs
        random: no evolution but independent random programs of at most so many statements, at
            learning rates anywhere in 1e-4 .. 1: a baseline; 0 evolves
    """

    population: int = 200
    tournament: int = 8
    batch: int = 64
    ahead: int = 4
    slack: float = 0.1
    mutation: Mutation = field(default_factory=Mutation)
    islands: int = 1
    migration: float = 0.02
    patience: int = 0
    gain: float = 0.0
    restart: Literal["best", "start"] = "best"
    random: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "batch", "ahead", "islands"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 to {MOST:,}")
        if not 0 <= self.migration <= 1:
            raise ValueError(f"migration: got {self.migration}, expected a probability")
        if self.patience < 0:
            raise ValueError(f"patience: got {self.patience}, expected at least 0")
        if not 0 <= self.gain < math.inf:
            raise ValueError(f"gain: got {self.gain}, expected a number of at least 0")
        if self.restart not in ("best", "start"):
            raise ValueError(f"restart: got {self.restart!r}, expected 'best' or 'start'")
        if not 0 <= self.random <= MAX_STATEMENTS:
            raise ValueError(f"random: got {self.random}, expected 0 to {MAX_STATEMENTS}")
        m = self.mutation
        both = m.delete and m.insert + m.copy  # where one finds nothing to do the other does
        if not (self.random or m.constants_only or m.modify + m.swap or both):
            raise ValueError(
                f"mutation: got {m.kinds}, with which the longest programs, of max_length = "
                f"{m.max_length} statements, or the shortest have no children; expected modify or "
                "swap above 0, or delete and one of insert and copy"
            )
        if not 0 <= self.slack < math.inf:
            raise ValueError(f"slack: got {self.slack}, expected a number of at least 0")


@dataclass(frozen=True)
class Funnel:
    """How candidates are measured.

    Attributes:
        suite: name or import path (module:attribute) of the proxy tasks
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
