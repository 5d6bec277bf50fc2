"""Programs as optimizers, and the search for better ones.

    import search
    found = search.search("runs/first", preset="quick", callback=print)
    optimizer = search.load("runs/first").optimizer(model.parameters(), lr=1e-3, weight_decay=0.1)

Importing the package imports nothing else but ``tasks``, which it finds beside itself: a folder or
a file of that name may come earlier on ``sys.path``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.behaviour.degree import degree as degree
    from search.commands.notebook import Result as Result
    from search.commands.notebook import resume as resume
    from search.commands.notebook import search as search
    from search.evolution.strategy import Proposal as Proposal
    from search.evolution.strategy import Strategy as Strategy
    from search.interpreter.population import Population as Population
    from search.language.program import Program as Program
    from search.language.program import parse as parse
    from search.language.program import to_text as to_text
    from search.zoo.entry import Entry

HOMES = {
    "Population": "search.interpreter.population",
    "Program": "search.language.program",
    "Proposal": "search.evolution.strategy",
    "Result": "search.commands.notebook",
    "Strategy": "search.evolution.strategy",
    "degree": "search.behaviour.degree",
    "parse": "search.language.program",
    "resume": "search.commands.notebook",
    "search": "search.commands.notebook",
    "to_text": "search.language.program",
}
"""Where a public name is defined; imported when it is asked for."""
__all__ = [*HOMES, "load"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]


def _own(*names: str) -> None:
    """Import our packages from beside this one. Raises ImportError where others have taken their
    names."""
    for name in names:
        spec = PathFinder.find_spec(name, [str(Path(__file__).resolve().parents[1])])
        assert spec is not None
        assert spec.loader is not None
        if name not in sys.modules:
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        other = getattr(sys.modules[name], "__spec__", None)
        if other is None or other.origin != spec.origin:
            raise ImportError(
                f"{name}: {other and (other.origin or other.submodule_search_locations)} was "
                f"imported before {__name__}, which comes with a package of that name; import "
                f"{__name__} first: then both are found, each by its own code"
            )
    import_module("tasks.user_code.imports").give_way()


_own("tasks")


def load(name: str | PathLike[str], candidate: int | None = None) -> Entry:
    """The winner of a run (its directory), or ``candidate`` of it; the program in a file; or a
    known optimizer by its name. Raises ValueError, naming what is accepted, if it is none."""
    from search import loading

    return loading.load(name, candidate)
