"""The command line: which commands there are, and what happens when one goes wrong.

A command is named by its import path and imported when it is called, so that ``l2o --help`` does
not have to wait for torch. Whatever a user got wrong is one line on standard error and status 2,
never a traceback; a traceback is a defect of ours.
"""

from __future__ import annotations

import math
import os
import sys
from argparse import ArgumentError
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path

from l2o.failures import explained
from tasks.checks import meant
from tasks.commands.parser import Arguments, Command, Parser, parser
from tasks.display.plain import Console, in_plain_words
from tasks.runs.interrupt import Interrupted

COMMANDS: dict[str, tuple[str, str]] = {
    "search": ("search.commands.search:search", "evolve update rules; does the best beat AdamW?"),
    "meta-train": ("l2o.commands:meta_train", "meta-train a learned optimizer"),
    "resume": ("l2o.cli:resume", "continue a run that was stopped or killed"),
    "watch": ("l2o.cli:watch", "show a run live, from another terminal"),
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
    "evaluate": ("l2o.judging:evaluate", "judge rules on a suite: tuned alike, fresh seeds"),
    "reproduce": ("l2o.cli:reproduce", "run a run again, compare every number"),
    "report": ("l2o.report:report", "an HTML report of a run or of results, with figures"),
    "coord-check": ("l2o.coord_check:coord_check", "do activations change alike at all widths?"),
    "suites": ("l2o.judging:suites", "the named suites, and a card of each task"),
    "data": ("tasks.data.fetch:data", "which data sets there are; fetch those that need it"),
}

TRUST = "run the code that the run names as its suites or families; with names: if it names these"
WORKERS = "worker processes of a search; 0: none; default: as when it begins"


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


def command(name: str) -> Command:
    """The function behind a command's name."""
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), function)


def resume(arguments: Arguments) -> int:
    """Continue a run of either engine that was stopped or killed, as if nothing had happened.

    It goes by the configuration that the run was begun with.

    l2o resume runs/first
    l2o resume runs/learned --trust my_tasks:suite
    """
    options_of = parser(resume)
    options_of.add_argument("run", type=Path, help="the directory of the run")
    options_of.add_argument("--workers", type=int | None, default=None, help=WORKERS)
    return _run_again(options_of, arguments, "commands", "resume")


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
    engine, console = import_module(f"{_engine(options.run)}.watch"), Console()
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
    return _run_again(options_of, arguments, "reproduce", "reproduce")


def _run_again(options_of: Parser, arguments: Arguments, module: str, function: str) -> int:
    """What the run's engine does about it, in its ``module``; the run may name a user's code."""
    options_of.add_argument(
        "--trust", nargs="?", const=True, default=False, type=bool | str | list[str], help=TRUST
    )
    options = options_of.parse_args(_trusting(arguments))
    more = _workers(options.run, options.workers)
    engine = import_module(f"{_engine(options.run)}.{module}")
    return getattr(engine, function)(options.run, trusted=options.trust, **more)


def _trusting(arguments: Arguments) -> list[str]:
    """``--trust`` takes import paths; anything after it that is none is an argument of its own."""
    words = list(arguments)
    for k, (word, following) in enumerate(pairwise([*words, ""])):
        if word == "--trust" and (":" not in following or Path(following).exists()):
            words[k] = "--trust=true"
    return words


def _engine(run: Path) -> str:
    """Whose run that is."""
    return "l2o" if (run / "run.json").is_file() else "search"


def _workers(run: Path, given: int | None) -> dict[str, int]:
    """What an engine is told of worker processes: nothing where nobody asked for some."""
    if given is None:
        return {}
    if _engine(run) == "l2o":
        raise ValueError(
            "--workers: got it beside a meta-training, expected it for searches alone: torchrun "
            "starts the processes of a meta-training"
        )
    return {"workers": given}


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


if __name__ == "__main__":
    sys.exit(main())
