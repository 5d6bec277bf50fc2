"""The command line: which commands there are, and what happens when one goes wrong.

A command is named by its import path and imported when it is called, so that ``l2o --help`` does
not have to wait for torch. Whatever a user got wrong is one line on standard error and status 2,
never a traceback; a traceback is a defect of ours.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper

from l2o.cli.failures import explained
from tasks.checks import meant
from tasks.commands.parser import Arguments, Command
from tasks.display.plain import in_plain_words
from tasks.runs.interrupt import Interrupted

COMMANDS: dict[str, tuple[str, str]] = {
    "search": ("search.commands.search:search", "evolve update rules; does the best beat AdamW?"),
    "meta-train": ("l2o.cli.meta_train:meta_train", "meta-train a learned optimizer"),
    "resume": ("l2o.cli.runs:resume", "continue a run that was stopped or killed"),
    "watch": ("l2o.cli.runs:watch", "show a run live, from another terminal"),
    "show": (
        "search.commands.inspection:show",
        "the best programs of a run, and how they came about",
    ),
    "export": (
        "search.commands.inspection:export",
        "write a rule as a torch.optim.Optimizer in one file",
    ),
    "simplify": ("search.commands.inspection:simplify", "a rule in fewer statements, with reasons"),
    "zoo": ("search.commands.zoo:zoo", "known optimizers as programs"),
    "evaluate": ("l2o.cli.evaluate:evaluate", "judge rules on a suite: tuned alike, fresh seeds"),
    "reproduce": ("l2o.cli.runs:reproduce", "run a run again, compare every number"),
    "report": ("l2o.cli.report:report", "an HTML report of a run or of results, with figures"),
    "coord-check": (
        "l2o.cli.coord_check:coord_check",
        "do activations change alike at all widths?",
    ),
    "suites": ("l2o.cli.suites:suites", "the named suites, and a card of each task"),
    "data": ("l2o.cli.suites:data", "which data sets there are; fetch those that need it"),
}


def main(arguments: Arguments | None = None) -> int:
    """Run ``l2o COMMAND ...``; the exit status."""
    # Before numpy is loaded: where no threads may be started, its library interrupts the process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):  # ASCII terminals get ? for what they do not have
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *rest = given
    if name not in COMMANDS:
        likely = meant(name, COMMANDS)
        return _refuse("l2o", f"no command {name!r}{likely}; there are {', '.join(COMMANDS)}")
    try:
        with spoken("tasks.oracles.lifting"):
            status = command(name)(rest)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        return 0
    except (Interrupted, KeyboardInterrupt):
        print(f"l2o {name}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except (ArgumentError, ValueError, OSError, MemoryError, RuntimeError, ImportError) as error:
        said = explained(error)
        if said is None:
            raise
        return _refuse(f"l2o {name}", said)
    finally:
        _flushed()


@contextmanager
def spoken(name: str) -> Iterator[None]:
    """What a module notes for whoever wants to know is told on standard error."""
    noted, teller = logging.getLogger(name), logging.StreamHandler()
    before = noted.level
    noted.addHandler(teller)
    noted.setLevel(logging.INFO)
    try:
        yield
    finally:
        noted.removeHandler(teller)
        noted.setLevel(before)


def command(name: str) -> Command:
    """The function behind a command's name."""
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), function)


def overview() -> str:
    """What ``l2o --help`` prints."""
    lines = ["usage: l2o COMMAND ...", "", "Discover optimizers.", ""]
    lines += [f"  {name:12}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "l2o COMMAND --help explains a command."])


def _flushed() -> None:
    """Leave nothing for the interpreter to write when it ends, where that cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # no descriptor of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(who: str, error: object) -> int:
    print(f"{who}: {in_plain_words(error)}", file=sys.stderr)
    return 2
