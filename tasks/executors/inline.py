"""Jobs run in this process, one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from tasks.executors.base import Executor, Function, attempt, load


class Inline(Executor):
    """Runs each job in this process when ``completed`` gets to it, in order of submission, and to
    its end, however long that takes. There are no workers to lose and no job to run again."""

    def __init__(
        self, function: Function, context: Any, workers: int = 0, retries: int = 0
    ) -> None:
        self._run = (load(function) if isinstance(function, str) else function)(context)
        self._jobs: dict[int, Any] = {}
        self._tickets = 0
        self.busy = [0.0]

    def submit(self, job: Any, limit: float = math.inf) -> int:
        self._tickets += 1
        self._jobs[self._tickets] = job
        return self._tickets

    def withdraw(self, ticket: int) -> bool:
        return self._jobs.pop(ticket, None) is not None

    def completed(self, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        while self._jobs:
            ticket = next(iter(self._jobs))
            start = time.perf_counter()
            result = attempt(self._run, self._jobs.pop(ticket))
            self.busy[0] += time.perf_counter() - start
            yield ticket, result
