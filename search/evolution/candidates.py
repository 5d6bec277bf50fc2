"""What evolution keeps of a program: its text, score, learning rate and parents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from deap import base

from search.fitness.funnel import Fate, Job
from search.language.program import Program, to_text


class Fitness(base.Fitness):
    """Score and length, both minimised; compared lexicographically, so ties go to the shorter."""

    weights = (-1.0, -1.0)
    crowding_dist = 0.0  # of non-dominated sorting, which sets it


@dataclass(eq=False)
class Candidate:
    """One child, whatever became of it. ``original``: the candidate whose evaluation it shares."""

    id: int
    batch: int
    parent: int | None
    mutation: str
    program: Program | None  # None if invalid
    lr: float  # where its evaluation is centred, then its best
    canonical: str = ""
    signature: str = ""
    original: int | None = None
    fate: Fate | None = None  # None while pending
    score: float | None = None
    ladder: tuple[float, ...] = ()
    fitness: Fitness = field(default_factory=Fitness)

    @property
    def pending(self) -> bool:
        return self.fate is None


class Batch(NamedTuple):
    """Candidates asked together. ``hurdles``: for each rung, the log ratio above which one is
    out. ``rejected``: invalid children that were drawn on the way."""

    number: int
    candidates: list[Candidate]
    hurdles: tuple[float, ...]
    rejected: int = 0

    @property
    def fresh(self) -> list[Candidate]:
        """Those to be evaluated."""
        return [candidate for candidate in self.candidates if candidate.pending]

    @property
    def job(self) -> Job:
        fresh = self.fresh
        texts = tuple(to_text(c.program) for c in fresh if c.program is not None)
        return Job(texts, tuple(c.lr for c in fresh), self.hurdles)


def _alike(one: Candidate, other: Candidate) -> bool:
    return one.signature == other.signature
