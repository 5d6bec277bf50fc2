"""The command line, and the one place where both engines meet.

Each command is a function from its arguments to an exit status; its docstring is its help. A
command builds its own parser, so that ``l2o --help`` does not have to import torch. Whatever a
user got wrong is one line on standard error and status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

Arguments = Sequence[str]


def main(arguments: Arguments | None = None) -> int:
    """Run ``l2o COMMAND ...``; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = given
    if name not in COMMANDS:
        return _refuse("l2o", f"no command {name!r}; there are {', '.join(COMMANDS)}")
    try:
        return COMMANDS[name](rest)
    except (ArgumentError, ValueError, OSError) as error:
        return _refuse(f"l2o {name}", error)
    except KeyboardInterrupt:
        return 130


def overview() -> str:
    lines = ["usage: l2o COMMAND ...", "", "Discover optimizers.", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:12}{(command.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", "l2o COMMAND --help explains a command."])


def _refuse(who: str, error: object) -> int:
    print(f"{who}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _parser(command: Callable[[Arguments], int], name: str) -> ArgumentParser:
    return ArgumentParser(
        prog=f"l2o {name}", description=command.__doc__, exit_on_error=False, version=None
    )


# -- search ---------------------------------------------------------------------------------------

PRESETS: dict[str, dict[str, Any]] = {
    # Ends within three minutes on two cores.
    "quick": {
        "budget": {"candidates": 20_000, "minutes": 1.3},
        "funnel": {"suite": "proxy", "length": 1.0},
        "evolution": {"population": 100, "tournament": 8, "batch": 48},
        "verdict": {"finalists": 8, "trials": 12, "seeds": 5},
    },
    # An hour; more of everything.
    "standard": {
        "budget": {"candidates": 1_000_000, "minutes": 60.0},
        "funnel": {"suite": "proxy", "length": 1.5},
        "evolution": {"population": 500, "tournament": 16, "batch": 64},
        "verdict": {"finalists": 20, "trials": 16, "seeds": 10},
    },
}


def search(arguments: Arguments) -> int:
    """Evolve update rules until one beats AdamW.

    A preset fixes the size of the run; every field of it can be overridden by name, such as
    --budget.minutes 10 or --evolution.population 300.
    """
    from search import run
    from search.evaluate import Funnel
    from search.evolve import Settings
    from search.rules import program_of, with_states
    from search.run import Budget, Config
    from search.verdict import Verdict

    parser = _parser(search, "search")
    parser.add_argument("--run-dir", type=Path, required=True, help="a new directory for the run")
    parser.add_argument("--preset", type=str, default="quick", help=", ".join(PRESETS))
    parser.add_argument(
        "--start",
        type=list[str],
        default=["adam_no_correction"],
        help="zoo names, program files, runs",
    )
    parser.add_argument("--states", type=int, default=2, help="state variables of a program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes; default: cores")
    parser.add_class_arguments(Budget, "budget")
    parser.add_class_arguments(Funnel, "funnel")
    parser.add_class_arguments(Settings, "evolution")
    parser.add_class_arguments(Verdict, "verdict")
    parser.set_defaults(_flat(_preset(arguments)))
    options = parser.instantiate_classes(parser.parse_args(list(arguments)))
    start = [program_of(name) for name in options.start]
    config = Config(
        start=tuple(str(with_states(program, options.states)) for program in start),
        seed=options.seed,
        budget=options.budget,
        funnel=options.funnel,
        evolution=options.evolution,
        verdict=options.verdict,
    )
    with run.begin(options.run_dir, config) as archive:
        return _proceed(archive, options.workers)


def _preset(arguments: Arguments) -> dict[str, Any]:
    """The defaults that ``--preset`` asks for, found before the parser is complete."""
    finder = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default="quick")
    name = finder.parse_known_args(list(arguments))[0].preset
    if name not in PRESETS:
        raise ValueError(f"--preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    return {f"{group}.{key}": v for group, fields in nested.items() for key, v in fields.items()}


def resume(arguments: Arguments) -> int:
    """Continue a search that was stopped or killed, from its last commit."""
    from search.archive import open_existing

    parser = _parser(resume, "resume")
    parser.add_argument("run", type=Path, help="the directory of the run")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: cores")
    options = parser.parse_args(list(arguments))
    with open_existing(options.run) as archive:
        return _proceed(archive, options.workers)


def _proceed(archive: Any, workers: int | None) -> int:
    import os

    from search import run, show
    from search.view import View

    if workers is None:
        workers = os.cpu_count() or 1
    with View() as view:
        try:
            run.proceed(archive, workers, view)
        except run.Interrupted:
            view.say(f"stopped; nothing is lost. Go on with: l2o resume {archive.run_dir}")
            return 130
    show.render(show.summary(archive), view.console)
    return 0


COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "search": search,
    "resume": resume,
}
