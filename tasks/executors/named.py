"""An executor by its number of workers."""

from __future__ import annotations

from typing import Any

from tasks.executors.base import Executor, Function
from tasks.executors.inline import Inline
from tasks.executors.processes import Processes


def executor(function: Function, context: Any, workers: int, retries: int = 2) -> Executor:
    """``workers`` processes, or this one if ``workers`` is 0. Raises ValueError if negative."""
    if workers < 0:
        raise ValueError(f"workers: {workers}; must be 0 (run in this process) or more")
    if workers == 0:
        return Inline(function, context)
    return Processes(function, context, workers, retries)
