"""Learned optimizers, their meta-training, and the command line.

    import l2o
    optimizer = l2o.load("lo_small").optimizer(model)
    table = l2o.evaluate(["lion", "runs/first"], "held_out", trials=8)

Importing the package imports nothing else but ``tasks`` and ``search``, which it finds beside
itself: folders or files of these names may come earlier on ``sys.path``.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and "l2o.cli" in sys.orig_argv and not sys.flags.safe_path:
    del sys.path[0]  # python -m: the working directory, where libraries look for others

from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2o.base import LearnedOptimizer as LearnedOptimizer
    from l2o.cli.notebook import evaluate as evaluate
    from l2o.cli.notebook import meta_train as meta_train
    from l2o.cli.notebook import resume as resume
    from l2o.loading import Learned

HOMES = {
    "LearnedOptimizer": "l2o.base",
    "evaluate": "l2o.cli.notebook",
    "meta_train": "l2o.cli.notebook",
    "resume": "l2o.cli.notebook",
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


_own("tasks", "search")


def load(name: str | PathLike[str], *, trusted: bool = False) -> Learned:
    """The learned optimizer in a folder, or of that name among those that come with the project.

    ``trusted``: an architecture of your own, which the folder names, may be imported. Raises
    ValueError where it may not; where there is no such folder or name, listing the names there are.
    """
    from l2o import loading

    return loading.load(name, trusted=trusted)
