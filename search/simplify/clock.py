"""A limit of time for work that could go on for long, looked at between two pieces of it."""

from __future__ import annotations

import math
import time


class OutOfTime(Exception):
    """The clock has struck."""


class Clock:
    """Strikes ``seconds`` from now.

    ``struck``: somebody has asked since, so work was cut short.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds: got {seconds:g}, expected above 0")
        self.seconds = seconds
        self.end = time.monotonic() + seconds
        self.struck = False

    def check(self) -> None:
        """Raise OutOfTime if time is up."""
        if self.struck or time.monotonic() >= self.end:
            self.struck = True
            raise OutOfTime
