"""An executor by its number of workers, and how many of these suit the machine."""

from __future__ import annotations

import os
from typing import Any

from tasks.executors.base import Executor, Function
from tasks.executors.inline import Inline
from tasks.executors.processes import Processes


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def executor(function: Function, context: Any, workers: int, retries: int = 2) -> Executor:
    """``workers`` processes, or this one if ``workers`` is 0. Raises ValueError if negative."""
    if workers < 0:
        raise ValueError(f"workers: {workers}; must be 0 (run in this process) or more")
    if workers == 0:
        return Inline(function, context)
    return Processes(function, context, workers, retries)
