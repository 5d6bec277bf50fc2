"""Non-dominated sorting over score and length, NSGA-II (Deb et al. 2002).

Nobody dies of age. Those live whom no other beats in both, score and length; then those whom only
these beat, and so on until the population is full. Within a front those come first who have most
room: whose neighbours on the front are far away. So short programs live beside good ones, and the
search ends with a front of them.

Of those with the same score and length the youngest lives: a front is not filled with one program,
and what does not matter may still change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from deap import tools

from search.evolution.candidates import Candidate
from search.evolution.settings import Settings
from search.evolution.strategy import Founder, Population, Proposal, Strategy


class NSGA2(Strategy):
    """One group, ordered by front and then by room, so that its order is all a tournament needs.

    A tournament of 2 is the authors'.
    """

    def __init__(self, settings: Settings, founders: Sequence[Founder]) -> None:
        super().__init__(settings, founders)
        for name, only in {"islands": 1, "patience": 0}.items():
            if (given := getattr(settings, name)) != only:
                raise ValueError(f"{name}: got {given}, expected {only}: nsga2 has no islands")

    def propose(self, batch: int, rng: np.random.Generator) -> Proposal:
        (population,) = self.groups
        if not population:
            return self.child(None, rng)
        drawn = rng.integers(len(population), size=self.settings.tournament)
        return self.child(population[int(drawn.min())], rng)

    def accept(self, batch: int, scored: Sequence[Candidate], asked: int) -> None:
        (population,) = self.groups
        distinct = {c.fitness.values: c for c in sorted((*population, *scored), key=_age)}
        self.groups = [survivors([*distinct.values()], self.settings.population)]


def survivors(population: Population, size: int) -> Population:
    """The first ``size`` by front, and within a front by their distance to their neighbours."""
    fronts = tools.sortLogNondominated(population, size)
    for front in fronts:
        tools.emo.assignCrowdingDist(front)
        front.sort(key=_room)
    return [*chain(*fronts)][:size]


def _age(candidate: Candidate) -> int:
    return candidate.id


def _room(candidate: Candidate) -> tuple[float, int]:
    return -candidate.fitness.crowding_dist, candidate.id
