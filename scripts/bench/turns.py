"""Times of things that take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """What the turns of one subject took, in the unit of the table it is printed in."""

    turns: tuple[float, ...]

    @property
    def middle(self) -> float:
        return median(self.turns)

    def __str__(self) -> str:
        digits = 2 if self.middle < 20 else 0 if self.middle >= 200 else 1
        low, high = min(self.turns), max(self.turns)
        return f"{self.middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"

    def scaled(self, factor: float) -> Spread:
        return Spread(tuple(factor * turn for turn in self.turns))

    def rate(self, count: int) -> Spread:
        return Spread(tuple(count / turn for turn in self.turns))


def take_turns(subjects: dict[str, Callable[[], object]], turns: int) -> dict[str, Spread]:
    """Seconds of processor time of each subject, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(turns + 1):
        for name, run in subjects.items():
            before = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - before)
    return {name: Spread(tuple(values)) for name, values in seconds.items()}
