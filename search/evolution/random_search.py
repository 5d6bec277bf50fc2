"""Random search, a baseline: independent programs, at learning rates anywhere in 1e-4 .. 1.

Nobody inherits anything. The latest live, as in regularized evolution, for they say what a
candidate has to keep up with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.evolution.mutate import random_program
from search.evolution.regularized import Regularized
from search.evolution.settings import Settings
from search.evolution.strategy import Founder, Proposal
from search.language.program import MAX_STATEMENTS


class RandomSearch(Regularized):
    """``length``: statements of a program, at most."""

    def __init__(self, settings: Settings, founders: Sequence[Founder], length: int = 8) -> None:
        super().__init__(settings, founders)
        if isinstance(length, bool) or length not in range(1, MAX_STATEMENTS + 1):
            raise ValueError(f"length: got {length!r}, expected 1 to {MAX_STATEMENTS} statements")
        self.length = int(length)

    def propose(self, batch: int, rng: np.random.Generator) -> Proposal:
        first = self.founders[0].program
        length = int(rng.integers(1, self.length + 1))
        program = random_program(rng, length, first.inputs, first.form, self.settings.mutation)
        return Proposal(program, float(10 ** rng.uniform(-4, 0)), mutation="random")
