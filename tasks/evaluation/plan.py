"""What an evaluation is a function of, and which seeds serve for what: rules are tuned on one, and
measured on others.

The command line makes its flags and its help of ``Plan``. So torch is imported when a plan is made,
not when it is described.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, Protocol

from tasks.checks import meant
from tasks.evaluation.results import Study

TUNING_SEED = 0
FRESH_SEEDS = range(1001, 1_000_000)
"""Those that no tuning and no search has seen."""
USUAL = "cosine"
"""The schedule of a rule of which nobody says another."""
MOST = 100_000
"""Trials, or seeds."""


class Scheduled(Protocol):
    """An ``Entrant``, as far as a plan asks it."""

    @property
    def identity(self) -> str: ...
    @property
    def schedule(self) -> str | None: ...
    @property
    def asked(self) -> bool: ...


@dataclass(frozen=True)
class Plan:
    """What an evaluation is a function of, besides its rules.

    Attributes:
        suite: the tasks: a suite, a family, mlp(width=64), or an import path (module:attribute)
        trials: settings of learning rate and weight decay tried for each rule on each task
        seeds: fresh seeds that the best of them is measured on
        length: multiplies the steps of each task
        schedule: of the learning rate, for all rules but those written RULE@schedule: constant,
            linear, cosine or warmup_cosine; null: each rule's own (constant for what was
            meta-trained), or cosine
    """

    suite: str = "held_out"
    trials: int = 16
    seeds: int = 5
    length: float = 1.0
    schedule: str | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "seeds"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 to {MOST:,}")
        from tasks.suites import LONGEST

        if not 0 < self.length <= LONGEST:
            raise ValueError(f"length: got {self.length}, expected above 0, at most {LONGEST:,}")
        if self.schedule is None:
            return
        from tasks.inner.schedules import SCHEDULES

        if self.schedule not in SCHEDULES:
            likely = meant(str(self.schedule), SCHEDULES)
            raise ValueError(
                f"schedule: got {self.schedule!r}, expected one of {[*SCHEDULES]}{likely}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Its fields alone: another process finds the suite itself, and the user's modules."""
        return Plan, astuple(self)

    @cached_property
    def entries(self) -> list[tuple[str, Any, int]]:
        """What each task is called, the task, and its steps. ValueError for an unknown suite."""
        from tasks.suites import names, resolve

        suite = resolve(self.suite)
        steps = [max(1, round(entry.steps * self.length)) for entry in suite]
        return list(zip(names(suite), (entry.task for entry in suite), steps, strict=True))

    def schedule_of(self, entrant: Scheduled) -> str:
        """What the learning rate of ``entrant`` follows."""
        own = entrant.schedule or USUAL
        return own if entrant.asked else self.schedule or own

    @cached_property
    def identities(self) -> list[str]:
        """By what each task is filed."""
        from tasks.cards import fingerprint

        return [fingerprint(task) for _, task, _ in self.entries]

    def study(self, task: int, entrant: Scheduled) -> Study:
        """What runs of ``entrant`` on that task are filed under."""
        steps = self.entries[task][2]
        return Study(entrant.identity, self.identities[task], steps, self.schedule_of(entrant))

    @property
    def fresh(self) -> range:
        """The seeds that are reported on."""
        return FRESH_SEEDS[: self.seeds]
