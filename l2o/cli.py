"""The command line: which commands there are, and what happens when one goes wrong.

A command is named by its import path and imported when it is called, so that ``l2o --help`` does
not have to wait for torch. Whatever a user got wrong is one line on standard error and status 2,
never a traceback; a traceback is a defect of ours.
"""

from __future__ import annotations

import math
import os
import re
import sys
from argparse import ArgumentError
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console

from tasks.command import Arguments, Command, parser
from tasks.interrupt import Interrupted

COMMANDS: dict[str, tuple[str, str]] = {
    "search": ("search.commands:search", "evolve update rules; does the best beat AdamW?"),
    "meta-train": ("l2o.commands:meta_train", "meta-train a learned optimizer"),
    "resume": ("l2o.cli:resume", "continue a run that was stopped or killed"),
    "watch": ("l2o.cli:watch", "show a run live, from another terminal"),
    "show": ("search.commands:show", "the best programs of a run, and how they came about"),
    "export": ("search.commands:export", "write a rule as a torch.optim.Optimizer in one file"),
    "simplify": ("search.commands:simplify", "a rule in fewer statements, with reasons"),
    "zoo": ("search.commands:zoo", "known optimizers as programs"),
    "evaluate": ("l2o.judging:evaluate", "judge rules on a suite: tuned alike, fresh seeds"),
    "reproduce": ("l2o.cli:reproduce", "run a run again, compare every number"),
    "report": ("l2o.report:report", "an HTML report of a run or of results, with figures"),
    "coord-check": ("l2o.coord_check:coord_check", "do activations change alike at all widths?"),
    "suites": ("l2o.judging:suites", "the named suites, and a card of each task"),
    "data": ("search.commands:data", "which data sets there are; fetch those that need it"),
}

DEVICE_ERRORS = ("AcceleratorError", "OutOfMemoryError")
"""What torch raises where a GPU breaks or is too small, which nobody can mend here."""
BEYOND_US = ("can't allocate memory", "gloo/transport")
"""What else it says, in a RuntimeError, where that is the computer's doing: it has too little
memory, or another process of a meta-training was killed."""


def main(arguments: Arguments | None = None) -> int:
    """Run ``l2o COMMAND ...``; the exit status."""
    for stream in (sys.stdout, sys.stderr):  # ASCII terminals get ? for what they do not have
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *rest = given
    if name not in COMMANDS:
        return _refuse("l2o", f"no command {name!r}; there are {', '.join(COMMANDS)}")
    for package in ("search", "tasks"):  # ours, whatever folders lie where the user is
        import_module(package)
    sys.path.append(os.getcwd())  # so that a suite of the user's own can be named
    try:
        return command(name)(rest)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        return 0
    except (ArgumentError, ValueError, OSError) as error:
        return _refuse(f"l2o {name}", error)
    except MemoryError as error:
        return _refuse(f"l2o {name}", f"not enough memory: {error}")
    except RuntimeError as error:
        known = type(error).__name__ in DEVICE_ERRORS
        if not known and not any(words in str(error) for words in BEYOND_US):
            raise
        return _refuse(f"l2o {name}", str(error).partition("\n")[0])
    except (Interrupted, KeyboardInterrupt):
        print(f"l2o {name}: stopped by Ctrl-C", file=sys.stderr)
        return 130


def command(name: str) -> Command:
    """The function behind a command's name."""
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), function)


def resume(arguments: Arguments) -> int:
    """Continue a run of either engine."""
    return import_module(f"{_engine(arguments)}.commands").resume(arguments)


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
    engine, console = import_module(f"{_engine([str(options.run)])}.watch"), Console()
    if not options.once:
        engine.follow(options.run, options.every, console)
    console.print(engine.line(options.run), highlight=False, soft_wrap=True)
    return 0


def reproduce(arguments: Arguments) -> int:
    """Repeat a run of either engine."""
    return import_module(f"{_engine(arguments)}.reproduce").reproduce(arguments)


def _engine(arguments: Arguments) -> str:
    """Whose run is among the ``arguments``."""
    learned = any((Path(word) / "run.json").is_file() for word in arguments)
    if learned and any(word.partition("=")[0] == "--workers" for word in arguments):
        raise ValueError(
            "--workers: got it beside a meta-training, expected it for searches alone: torchrun "
            "starts the processes of a meta-training"
        )
    return "l2o" if learned else "search"


def overview() -> str:
    """What ``l2o --help`` prints."""
    lines = ["usage: l2o COMMAND ...", "", "Discover optimizers.", ""]
    lines += [f"  {name:12}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "l2o COMMAND --help explains a command."])


def _refuse(who: str, error: object) -> int:
    line = " ".join(str(error).split())
    for said, plain in IN_PLAIN_WORDS:
        line = re.sub(said, plain, line)
    if line.startswith("unrecognized arguments"):
        line += f"; {who} --help lists those there are"
    print(f"{who}: {line}", file=sys.stderr)
    return 2


def _kind(found: re.Match[str]) -> str:
    several = "values in brackets, such as [a,b]"
    kinds = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}
    kinds |= {"tuple": several, "list": several}
    return f"expected {kinds.get(found[1], found[1])}"


def _alternatives(found: re.Match[str]) -> str:
    """What is said of a value that may also be left out."""
    reasons = [reason for reason in found[1].split(" - ") if "NoneType" not in reason]
    said = "; ".join(reasons)
    return said if ": got " in said else f"{said}, got {found[2]}"


IN_PLAIN_WORDS = (
    ("Parser key ", ""),
    (r"Expected a <class '(\w+)'>", _kind),
    (r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1"),
    (
        "Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*) "
        "Given value type: .*? Given value: (.*)",
        _alternatives,
    ),
    (r'"([\w.]+)": (expected .*?)(?:\. Got value:|, got) (.*)', r"--\1: got \3, \2"),
    (
        r"\"([\w.]+)\": .*Option '(\w+)' is not accepted.*",
        r"--\1.\2: no such option; --\1.help NAME lists those there are",
    ),
)
"""What jsonargparse says, and what is said instead, one after the other."""


if __name__ == "__main__":
    sys.exit(main())
