"""An executor by its name and number of workers, and how many of these suit the machine."""

from __future__ import annotations

import os
from typing import Any

from tasks.executors.base import Executor, Function
from tasks.executors.inline import Inline
from tasks.user_code.rooms import inhabitant, modules

ROOM = "tasks.executors"
FORM = "package.module:Class, one of your own"
PROCESSES = "processes"


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def executors() -> list[str]:
    """Those that have workers: the modules of this room that serve no other."""
    return modules(ROOM, others=("base", "inline", "named", "worker"))


def known(name: str) -> type[Executor]:
    """The executor called ``name``. Raises ValueError for none, and for one that is not installed;
    runs a user's own module."""
    return inhabitant("executor", name, ROOM, executors(), Executor, FORM)


def executor(
    function: Function, context: Any, workers: int, retries: int = 2, name: str = PROCESSES
) -> Executor:
    """``workers`` of the executor called ``name``, or this process if ``workers`` is 0.

    Raises ValueError for a number below 0, and what ``known`` does.
    """
    if workers < 0:
        raise ValueError(f"workers: {workers}; must be 0 (run in this process) or more")
    kind: Any = known(name) if workers else Inline
    return kind(function, context, workers, retries)
