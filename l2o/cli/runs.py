"""The commands on runs of either engine: ``l2o resume``, ``watch`` and ``reproduce``."""

from __future__ import annotations

import math
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from tasks.commands.parser import Arguments, Parser, parser
from tasks.display.plain import Console

TRUST = "run the code that the run names as its suites or families; with names: if it names these"

WORKERS = "worker processes of a search; 0: none; default: as when it begins"
ENGINES = (
    {
        "resume": "search.commands.search",
        "watch": "search.run.watch",
        "reproduce": "search.run.reproduce",
    },
    {"resume": "l2o.cli.meta_train", "watch": "l2o.meta.watch", "reproduce": "l2o.meta.reproduce"},
)
"""Which module goes on with a search, and which with a meta-training."""


def resume(arguments: Arguments) -> int:
    """Continue a run of either engine that was stopped or killed, as if nothing had happened.

    It goes by the configuration that the run was begun with.

    l2o resume runs/first
    l2o resume runs/learned --trust my_tasks:suite
    """
    options_of = parser(resume)
    options_of.add_argument("run", type=Path, help="the directory of the run")
    options_of.add_argument("--workers", type=int | None, default=None, help=WORKERS)
    return _run_again(options_of, arguments, "resume")


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
    engine, console = _engine(options.run, "watch"), Console()
    if not options.once:
        engine.follow(options.run, options.every, console)
    console.print(engine.line(options.run), highlight=False, soft_wrap=True)
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
    return _run_again(options_of, arguments, "reproduce")


def _run_again(options_of: Parser, arguments: Arguments, function: str) -> int:
    """What the run's engine does about it; the run may name a user's code."""
    options_of.add_argument(
        "--trust", nargs="?", const=True, default=False, type=bool | str | list[str], help=TRUST
    )
    options = options_of.parse_args(_trusting(arguments))
    more = _workers(options.run, options.workers)
    again = getattr(_engine(options.run, function), function)
    return again(options.run, trusted=options.trust, **more)


def _trusting(arguments: Arguments) -> list[str]:
    """``--trust`` takes import paths; anything after it that is none is an argument of its own."""
    words = list(arguments)
    for k, (word, following) in enumerate(pairwise([*words, ""])):
        if word == "--trust" and (":" not in following or Path(following).exists()):
            words[k] = "--trust=true"
    return words


def _is_learned(run: Path) -> bool:
    """Whether a run is a meta-training; else it is a search."""
    return (run / "run.json").is_file()


def _engine(run: Path, function: str) -> Any:
    """The module of the run's engine that has the ``function``."""
    return import_module(ENGINES[_is_learned(run)][function])


def _workers(run: Path, given: int | None) -> dict[str, int]:
    """What an engine is told of worker processes: nothing where nobody asked for some."""
    if given is None:
        return {}
    if _is_learned(run):
        raise ValueError(
            "--workers: got it beside a meta-training, expected it for searches alone: torchrun "
            "starts the processes of a meta-training"
        )
    return {"workers": given}
