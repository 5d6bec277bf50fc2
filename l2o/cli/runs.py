"""The commands on runs of either engine: ``l2o resume``, ``watch`` and ``reproduce``."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from l2o.cli.run import run_at
from tasks.commands.parser import Arguments, Parser, parser
from tasks.display.plain import Console
from tasks.executors.named import PROCESSES, executors

TRUST = "run the code that the run names as its suites or families; with names: if it names these"

WORKERS = "worker processes of a search; 0: none; default: as when it begins"
EXECUTOR = f"of the workers of a search: {', '.join(executors())}; default: {PROCESSES}"


def resume(arguments: Arguments) -> int:
    """Continue a run of either engine that was stopped or killed, as if nothing had happened.

    It goes by the configuration that the run was begun with.

    l2o resume runs/first
    l2o resume runs/learned --trust my_tasks:suite
    """
    options_of = parser(resume)
    options_of.add_argument("run", type=Path, help="the directory of the run")
    options_of.add_argument("--workers", type=int | None, default=None, help=WORKERS)
    options_of.add_argument("--executor", type=str | None, default=None, help=EXECUTOR)
    options = _trusting(options_of, arguments)
    return run_at(options.run).resume(options.trust, options.workers, options.executor)


def watch(arguments: Arguments) -> int:
    """Show a run live, from another terminal; it ends with the run.

    l2o watch runs/first
    l2o watch runs/learned --once
    """
    options_of = parser(watch)
    options_of.add_argument("run", type=Path, help="the directory of a run, of either engine")
    options_of.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    options_of.add_argument("--once", action="store_true", help="one line, and no more")
    options = options_of.parse_args(list(arguments))
    if not 0 < options.every < math.inf:
        raise ValueError(f"--every: got {options.every}, expected a positive number of seconds")
    run, console = run_at(options.run), Console()
    if not options.once:
        run.follow(options.every, console)
    console.print(run.line(), highlight=False, soft_wrap=True)
    return 0


def reproduce(arguments: Arguments) -> int:
    """Run a finished search or meta-training again; does every number come out the same?

    The second run is made in a temporary directory and takes as long as the first with as many
    workers; a meta-training is repeated in one process. Exit status 0 if they are identical, 1 if
    not.

    l2o reproduce runs/first
    l2o reproduce runs/learned
    """
    options_of = parser(reproduce)
    options_of.add_argument("run", type=Path, help="the directory of a finished run")
    options_of.add_argument("--workers", type=int | None, default=None, help="default: 1; 0: none")
    options_of.add_argument("--executor", type=str | None, default=None, help=EXECUTOR)
    options = _trusting(options_of, arguments)
    return run_at(options.run).reproduce(options.trust, options.workers, options.executor)


def _trusting(options_of: Parser, arguments: Arguments) -> Any:
    """``--trust`` takes import paths; anything after it that is none is an argument of its own."""
    options_of.add_argument(
        "--trust", nargs="?", const=True, default=False, type=bool | str | list[str], help=TRUST
    )
    words = list(arguments)
    for k, (word, following) in enumerate(pairwise([*words, ""])):
        if word == "--trust" and (":" not in following or Path(following).exists()):
            words[k] = "--trust=true"
    return options_of.parse_args(words)
