"""Everything that a run is a function of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from search.evolution.settings import Mutation, Settings, own, renewed
from search.fitness.settings import Funnel, Verdict
from tasks.checks import plausible
from tasks.runs.sqlite_errors import NONSENSE

Kind = TypeVar("Kind")

BASELINES = ("adamw", "lion", "momentum")
"""What winners are measured against; the first is the reference of all scores, and what a discovery
must beat."""


@dataclass(frozen=True)
class Budget:
    """When to stop, whichever comes first. Only the count can be repeated row for row.

    Attributes:
        candidates: children tried, invalid ones and duplicates included; batches that are being
            measured by then are finished
        minutes: of wall clock, over all resumptions; batches that no worker has begun by then
            are withdrawn, those begun are finished
        total_minutes: of the whole run, tuning and judging included; what is dropped to meet it
            is said. null: no limit
    """

    candidates: int = 30_000
    minutes: float = 60.0
    total_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates: got {self.candidates}, expected at least 1")
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes: got {self.minutes}, expected a number above 0")
        if self.total_minutes is not None and not 0 < self.total_minutes < math.inf:
            got = self.total_minutes
            raise ValueError(f"total_minutes: got {got}, expected a number above 0, or null")


@dataclass(frozen=True)
class Config:
    """Everything that a run is a function of. ``start``: program texts."""

    start: tuple[str, ...]
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    funnel: Funnel = field(default_factory=Funnel)
    evolution: Settings = field(default_factory=Settings)
    verdict: Verdict = field(default_factory=Verdict)

    def __post_init__(self) -> None:
        if not self.start:
            raise ValueError("start: got none, expected at least one program")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected at least 0")

    def imports(self) -> list[str]:
        """The import paths of other people's code: what suites are made by, and the strategy."""
        from tasks.suites import is_own

        suites = (self.funnel.suite, self.verdict.held_out, self.verdict.meta_validation)
        named = [name for name in suites if name is not None and is_own(name)]
        strategy, _ = own(self.evolution.strategy)
        return [*named, strategy] if ":" in strategy else named

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Config:
        """From what ``asdict`` made and JSON kept. Raises ValueError for anything else."""
        try:
            plausible(cls, facts)
            funnel, evolution = dict(facts["funnel"]), renewed(facts["evolution"])
            funnel |= {name: tuple(funnel[name]) for name in ("rungs", "factors")}
            evolution["mutation"] = _checked(Mutation, evolution["mutation"])
            return cls(
                start=tuple(facts["start"]),
                seed=facts["seed"],
                budget=_checked(Budget, facts["budget"]),
                funnel=_checked(Funnel, funnel),
                evolution=_checked(Settings, evolution),
                verdict=_checked(Verdict, facts["verdict"]),
            )
        except NONSENSE as error:
            kind = type(error).__name__
            raise ValueError(f"config: not that of a search: {kind}: {error}") from error


def _checked(kind: Callable[..., Kind], facts: dict[str, Any]) -> Kind:
    """``kind`` of its fields, of which each could be meant."""
    plausible(kind, facts)
    return kind(**facts)
