"""Regularized evolution over programs, as ask and tell.

A *batch* is the unit of everything: ``ask`` makes one (tournament, mutate, check, compare with
all that is known), somebody evaluates its new programs, ``tell`` ages the population by it. As in
the Lion paper (Chen et al. 2023, section 2.2) the oldest die, whatever their score, and a child
that behaves like a known program shares its score without being run: it still enters the
population, since statements that do nothing yet are what later mutations build on.

Batches are made ahead of their results: batch ``k`` is asked after batch ``k - ahead`` was told,
however many workers there are and whatever order they finish in. With randomness drawn from
(seed, batch) this makes the whole search a function of its configuration. Nothing here reads a
clock, a file or a global generator.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from deap import base, tools

from search.analyze import canonical, check
from search.evaluate import Fate, Job, Outcome
from search.mutate import Mutation, mutate
from search.ops import ProgramTypeError
from search.program import Program, to_text
from search.signature import signatures


@dataclass(frozen=True)
class Settings:
    """The knobs of the search.

    ``population``: how many candidates live; ``tournament``: how many compete to be a parent;
    ``batch``: new programs an evaluation batch; ``ahead``: batches in flight; ``slack``: how far
    behind the population's median a candidate may be at a rung, in log loss, before it is out.
    """

    population: int = 200
    tournament: int = 8
    batch: int = 64
    ahead: int = 4
    slack: float = 0.1
    mutation: Mutation = field(default_factory=Mutation)

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "batch", "ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not self.slack >= 0:
            raise ValueError(f"slack: got {self.slack}, expected at least 0")


class Fitness(base.Fitness):
    """Score and length, both minimised; compared lexicographically, so ties go to the shorter."""

    weights = (-1.0, -1.0)


@dataclass
class Candidate:
    """One child, whatever became of it. ``original``: the candidate whose evaluation it shares."""

    id: int
    batch: int
    parent: int | None
    mutation: str
    program: Program | None  # None if invalid
    lr: float  # where its evaluation is centred, then its best
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
    number: int
    candidates: list[Candidate]

    @property
    def fresh(self) -> list[Candidate]:
        """Those to be evaluated."""
        return [candidate for candidate in self.candidates if candidate.pending]

    def job(self, hurdles: tuple[float, ...]) -> Job:
        fresh = self.fresh
        texts = tuple(to_text(c.program) for c in fresh if c.program is not None)
        return Job(texts, tuple(c.lr for c in fresh), hurdles)


class Evolution:
    """The state of a search between batches."""

    def __init__(self, settings: Settings, start: Sequence[Program], lr: float, seed: int) -> None:
        self.settings, self.seed, self.rungs = settings, seed, 0
        self.start, self.lr = tuple(start), lr
        self.candidates = 0  # ids given
        self.asked = self.told = 0
        self.population: deque[Candidate] = deque(maxlen=settings.population)
        self.known: dict[str, Candidate] = {}  # by signature
        self.texts: dict[str, str] = {}  # canonical text -> signature
        self.best = tools.HallOfFame(50, similar=lambda a, b: a.signature == b.signature)
        self.front = tools.ParetoFront(similar=lambda a, b: a.signature == b.signature)
        self.toolbox = base.Toolbox()
        self.toolbox.register("select", tournament, size=settings.tournament)
        self.toolbox.register("mutate", mutate, settings=settings.mutation)

    # -- ask ---------------------------------------------------------------------------------

    def ask(self) -> Batch:
        """The next batch: children until ``settings.batch`` of them are new programs."""
        number, self.asked = self.asked, self.asked + 1
        rng = np.random.default_rng([self.seed, number])
        candidates: list[Candidate] = []
        if number == 0:
            self._admit(candidates, [self._founder(program) for program in self.start])
            return Batch(number, candidates)
        wanted, tries = self.settings.batch, 0
        while wanted > 0 and tries < 30 * self.settings.batch:
            children = [self._child(number, rng) for _ in range(wanted)]
            wanted -= self._admit(candidates, children)
            tries += len(children)
        return Batch(number, candidates)

    def _founder(self, program: Program) -> Candidate:
        return self._number(Candidate(0, 0, None, "start", program, self.lr))

    def _child(self, batch: int, rng: np.random.Generator) -> Candidate:
        parents = self.population or [Candidate(0, 0, None, "", p, self.lr) for p in self.start]
        parent: Candidate = self.toolbox.select(parents, rng=rng)
        assert parent.program is not None
        child = self.toolbox.mutate(parent.program, rng)
        return self._number(
            Candidate(0, batch, parent.id, child.description, child.program, parent.lr)
        )

    def _number(self, candidate: Candidate) -> Candidate:
        candidate.id, self.candidates = self.candidates, self.candidates + 1
        return candidate

    def _admit(self, candidates: list[Candidate], children: list[Candidate]) -> int:
        """Check children, find duplicates, append all; how many are new."""
        canon: dict[int, Program] = {}
        for child in children:
            assert child.program is not None
            try:
                check(child.program)
            except ProgramTypeError:
                child.fate, child.program = "invalid", None
                continue
            canon[child.id] = canonical(child.program)
        texts = {id: to_text(program) for id, program in canon.items()}
        new = {text: canon[id] for id, text in texts.items() if text not in self.texts}
        self.texts.update(zip(new, signatures(list(new.values())), strict=True))
        fresh = 0
        for child in children:
            if child.fate is None:
                child.signature = self.texts[texts[child.id]]
                fresh += self._place(child)
        candidates.extend(children)
        return fresh

    def _place(self, child: Candidate) -> bool:
        if not child.signature:
            child.fate, child.program = "invalid", None
            return False
        original = self.known.setdefault(child.signature, child)
        if original is child:
            return True
        child.fate, child.original = "duplicate", original.id
        return False

    def hurdles(self, rungs: int) -> tuple[float, ...]:
        """The log ratio at each rung above which a candidate is out: median plus slack."""
        ladders = [c.ladder for c in self.population if len(c.ladder) == rungs]
        if not ladders:
            return (math.inf,) * rungs
        return tuple(float(x) + self.settings.slack for x in np.median(ladders, axis=0))

    # -- tell --------------------------------------------------------------------------------

    def tell(self, batch: Batch, outcomes: Iterable[Outcome]) -> None:
        """Results of a batch, in the order of ``batch.fresh``; batches come in order."""
        if batch.number != self.told:
            raise ValueError(f"batch: got {batch.number}, expected {self.told}: results in order")
        for candidate, outcome in zip(batch.fresh, outcomes, strict=True):
            candidate.fate, candidate.score = outcome.fate, outcome.score
            candidate.ladder = outcome.ladder
            if outcome.lr is not None:
                candidate.lr = outcome.lr
        self.settle(batch.candidates)
        self.told += 1

    def settle(self, candidates: Iterable[Candidate]) -> None:
        """Let decided candidates into the population, oldest out."""
        for candidate in candidates:
            if candidate.fate == "duplicate":
                original = self.known[candidate.signature]
                candidate.score, candidate.ladder = original.score, original.ladder
                candidate.lr = original.lr
            if candidate.score is None or candidate.program is None:
                continue
            candidate.fitness.values = (candidate.score, candidate.program.length)
            self.population.append(candidate)
            if candidate.fate == "evaluated":
                self.best.update([candidate])
                self.front.update([candidate])


def tournament(population: Sequence[Candidate], rng: np.random.Generator, size: int) -> Candidate:
    """The fittest of ``size`` members drawn with replacement."""
    drawn = [population[int(k)] for k in rng.integers(len(population), size=size)]
    return max(drawn, key=lambda candidate: candidate.fitness)
