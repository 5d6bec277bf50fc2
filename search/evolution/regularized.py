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
from dataclasses import dataclass
from typing import Any

import numpy as np
from deap import base, tools

from search.behaviour.signature import signatures
from search.evolution.candidates import Batch, Candidate, _alike
from search.evolution.mutate import mutate, random_program
from search.evolution.settings import Settings
from search.fitness.funnel import Outcome
from search.language.canonical import canonical
from search.language.program import Program, to_text


@dataclass
class Island:
    """A population, oldest first; its best score at the last batch that gained enough to count,
    and the batches since. ``since``: the first batch that was asked after it last started again."""

    population: deque[Candidate]
    best: float = math.inf
    idle: int = 0
    since: int = 0


class Evolution:
    """The state of a search between batches.

    ``lrs``: where the evaluation of each program of ``start`` is centred; ``rungs``: how many the
    funnel has.
    """

    def __init__(
        self,
        settings: Settings,
        start: Sequence[Program],
        lrs: Sequence[float],
        seed: int,
        rungs: int,
    ) -> None:
        self.settings, self.seed, self.rungs = settings, seed, rungs
        self.start = tuple(zip(start, lrs, strict=True))
        self.tried = self.born = 0  # children drawn, and those that got an id
        self.asked = self.told = 0  # batches
        self.islands = [Island(deque(maxlen=settings.population)) for _ in range(settings.islands)]
        self.known: dict[str, Candidate] = {}  # by signature
        self.texts: dict[str, str] = {}  # canonical text -> signature
        self.best = tools.HallOfFame(50, similar=_alike)
        self.toolbox: Any = base.Toolbox()
        self.toolbox.register("select", tournament, size=settings.tournament)
        self.toolbox.register("mutate", mutate, settings=settings.mutation)

    # -- ask ---------------------------------------------------------------------------------

    def ask(self) -> Batch:
        """The next batch: children until ``settings.batch`` of them are new programs."""
        number, self.asked = self.asked, self.asked + 1
        rng = np.random.default_rng([self.seed, number])
        candidates: list[Candidate] = []
        rejected, wanted = 0, self.settings.batch
        if number == 0:
            founders = [self._birth(0, None, "start", p, lr) for p, lr in self.start]
            self._admit(candidates, founders)
            wanted = 0
        while wanted > 0 and len(candidates) < 30 * self.settings.batch:
            children = []
            for _ in range(wanted):
                child, failures = self._child(number, rng)
                children.append(child)
                rejected += failures
            wanted -= self._admit(candidates, children)
        self.tried += len(candidates) + rejected
        return Batch(number, candidates, self._hurdles(number), rejected)

    @property
    def population(self) -> list[Candidate]:
        """Everybody who lives, on all islands."""
        return [candidate for island in self.islands for candidate in island.population]

    def _island(self, batch: int) -> Island:
        return self.islands[batch % len(self.islands)]

    def _child(self, batch: int, rng: np.random.Generator) -> tuple[Candidate, int]:
        """A child of a tournament's winner, or of a founder while nobody has a score."""
        if self.settings.random:
            return self._stranger(batch, rng), 0
        population = self._island(batch).population
        if self.settings.islands > 1 and rng.random() < self.settings.migration:
            population = self.islands[int(rng.integers(self.settings.islands))].population
        if population:
            parent = self.toolbox.select(population, rng=rng)
            program, lr, number = parent.program, parent.lr, parent.id
        else:
            number = int(rng.integers(len(self.start)))
            program, lr = self.start[number]
        try:
            child = self.toolbox.mutate(program, rng)
        except ValueError:  # nothing that may change is left in it: the start programs have some
            number = int(rng.integers(len(self.start)))
            program, lr = self.start[number]
            child = self.toolbox.mutate(program, rng)
        return self._birth(batch, number, str(child), child.program, lr), child.rejected

    def _stranger(self, batch: int, rng: np.random.Generator) -> Candidate:
        first, _ = self.start[0]
        length = int(rng.integers(1, self.settings.random + 1))
        settings = self.settings.mutation
        program = random_program(rng, length, first.inputs, first.form, settings)
        return self._birth(batch, None, "random", program, float(10 ** rng.uniform(-4, 0)))

    def _birth(
        self, batch: int, parent: int | None, mutation: str, program: Program, lr: float
    ) -> Candidate:
        self.born += 1
        return Candidate(self.born - 1, batch, parent, mutation, program, lr)

    def _admit(self, candidates: list[Candidate], children: list[Candidate]) -> int:
        """Compare children with all that is known, append them; how many are new."""
        forms = [canonical(child.program) for child in children if child.program]
        for child, form in zip(children, forms, strict=True):
            child.canonical = to_text(form)
        new = {
            child.canonical: form
            for child, form in zip(children, forms, strict=True)
            if child.canonical not in self.texts
        }
        self.texts.update(zip(new, signatures(list(new.values())), strict=True))
        candidates.extend(children)
        return sum(self._place(child) for child in children)

    def _place(self, child: Candidate) -> bool:
        child.signature = self.texts[child.canonical]
        if not child.signature:
            child.fate, child.program = "invalid", None
            return False
        original = self.known.setdefault(child.signature, child)
        if original is child:
            return True
        child.fate, child.original = "duplicate", original.id
        return False

    def _hurdles(self, batch: int) -> tuple[float, ...]:
        """The log ratio at each rung above which a candidate is out: median plus slack."""
        population = self._island(batch).population
        ladders = [c.ladder for c in population if len(c.ladder) == self.rungs]
        if not ladders:
            return (math.inf,) * self.rungs
        return tuple(float(x) + self.settings.slack for x in np.median(ladders, axis=0))

    # -- tell --------------------------------------------------------------------------------

    def tell(self, batch: Batch, outcomes: Iterable[Outcome]) -> None:
        """Results of a batch, in the order of ``batch.fresh``; batches come in order. What failed,
        which may be the machine's fault, is known no more: its like will be evaluated."""
        if batch.number != self.told:
            raise ValueError(f"batch: got {batch.number}, expected {self.told}: results in order")
        fresh = batch.fresh
        for candidate, outcome in zip(fresh, outcomes, strict=True):
            candidate.fate, candidate.score = outcome.fate, outcome.score
            candidate.ladder = outcome.ladder
            if outcome.lr is not None:
                candidate.lr = outcome.lr
        self._settle(batch)
        for candidate in fresh:
            if candidate.fate == "failed":
                del self.known[candidate.signature]
        self.told += 1

    def _settle(self, batch: Batch) -> None:
        """Let decided candidates onto their island, oldest out; of one that has started again
        since they were asked, only the score counts."""
        island = self._island(batch.number)
        lives, best = batch.number >= island.since, math.inf
        for candidate in batch.candidates:
            if candidate.fate == "duplicate":
                original = self.known.get(candidate.signature)
                if original is None:  # it failed
                    continue
                candidate.score, candidate.ladder = original.score, original.ladder
                candidate.lr = original.lr
            if candidate.score is None or candidate.program is None:
                continue
            self.remember(candidate)
            if lives:
                island.population.append(candidate)
                best = min(best, candidate.score)
        if lives:
            gained = best < island.best - self.settings.gain
            island.best, island.idle = (best, 0) if gained else (island.best, island.idle + 1)
        if self.settings.patience and island.idle >= self.settings.patience:
            self._start_again(island)

    def _start_again(self, island: Island) -> None:
        """From one candidate, which may have died of age; or from none, and the next children are
        those of the start programs."""
        island.population.clear()
        if self.best and self.settings.restart == "best":
            island.population.append(max(self.best, key=lambda c: (c.fitness, -c.id)))
        island.best, island.idle, island.since = math.inf, 0, self.asked

    def remember(self, candidate: Candidate) -> None:
        """Give a scored candidate its fitness, and a place among the best if it earned one."""
        assert candidate.program is not None
        candidate.fitness.values = (candidate.score, candidate.program.length)
        if candidate.fate == "evaluated":
            self.best.update([candidate])


def tournament(population: Sequence[Candidate], rng: np.random.Generator, size: int) -> Candidate:
    """The fittest of ``size`` members drawn with replacement."""
    drawn = [population[int(k)] for k in rng.integers(len(population), size=size)]
    return max(drawn, key=lambda candidate: candidate.fitness)
