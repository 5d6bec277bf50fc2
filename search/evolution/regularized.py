"""Regularized evolution: the oldest die, whatever their score (Lion paper, section 2.2).

The fittest of a few that are drawn is the parent. There may be several islands, which take turns
batch by batch and start again when they are stuck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from search.evolution.candidates import Candidate
from search.evolution.settings import Settings
from search.evolution.strategy import Founder, Population, Proposal, Strategy


@dataclass
class Island:
    """``best``: of its population at the last batch that gained enough to count, None if nobody
    has a score; ``idle``: the batches since; ``since``: the first batch that was asked after it
    last started again."""

    best: float | None = None
    idle: int = 0
    since: int = 0


class Regularized(Strategy):
    """Each group is an island, oldest first."""

    def __init__(self, settings: Settings, founders: Sequence[Founder]) -> None:
        self.islands = [Island() for _ in range(settings.islands)]
        super().__init__(settings, founders)
        self.groups = [[] for _ in self.islands]

    @property
    def state(self) -> dict[str, Any]:
        return {"islands": [asdict(island) for island in self.islands]}

    @state.setter
    def state(self, facts: dict[str, Any]) -> None:
        if facts:
            self.islands = [Island(**island) for island in facts["islands"]]

    def propose(self, batch: int, rng: np.random.Generator) -> Proposal:
        """A child of a tournament's winner, or of a founder while nobody has a score."""
        population = self.groups[batch % len(self.groups)]
        if self.settings.islands > 1 and rng.random() < self.settings.migration:
            population = self.groups[int(rng.integers(self.settings.islands))]
        if not population:
            return self.child(None, rng)
        return self.child(tournament(population, rng, self.settings.tournament), rng)

    def accept(self, batch: int, scored: Sequence[Candidate], asked: int) -> None:
        """Oldest out. Of a batch that was asked before its island started again, only the best
        count, which may be where the next one starts."""
        number = batch % len(self.groups)
        island, population = self.islands[number], self.groups[number]
        if batch >= island.since:
            population.extend(scored)
            del population[: -self.settings.population]
            best = min((c.score for c in scored if c.score is not None), default=math.inf)
            before = math.inf if island.best is None else island.best
            if best < before - self.settings.gain:
                island.best, island.idle = best, 0
            else:
                island.idle += 1
        if self.settings.patience and island.idle >= self.settings.patience:
            self.groups[number] = self._start_again()
            self.islands[number] = Island(since=asked)

    def _start_again(self) -> Population:
        """From one candidate, which may have died of age; or from none, and the next children are
        those of the start programs."""
        if self.best and self.settings.restart == "best":
            return [max(self.best, key=lambda c: (c.fitness, -c.id))]
        return []


def tournament(population: Sequence[Candidate], rng: np.random.Generator, size: int) -> Candidate:
    """The fittest of ``size`` members drawn with replacement."""
    drawn = [population[int(k)] for k in rng.integers(len(population), size=size)]
    return max(drawn, key=lambda candidate: candidate.fitness)
