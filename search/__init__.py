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
    from search.commands.notebook import Result as Result
    from search.commands.notebook import resume as resume
    from search.commands.notebook import search as search
    from search.zoo.entry import Entry

IN_NOTEBOOK = ("search", "resume", "Result")
"""What ``search.commands.notebook`` has."""


def __getattr__(name: str) -> Any:
    if name not in IN_NOTEBOOK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("search.commands.notebook"), name)


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
