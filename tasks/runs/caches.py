"""Where libraries keep things for the next process, for people whose home they cannot write to.

numba keeps what it has compiled beside the sources or in the home, and where it can do neither
compiles nothing at all; matplotlib wants a folder in the home. A program that root has installed
may be run by somebody without a home. Then a temporary folder has to do, which must be that
user's alone, for what is kept there is run; or nothing is kept.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

NUMBA, MATPLOTLIB = "NUMBA_CACHE_DIR", "MPLCONFIGDIR"
"""Variables of the environment, which win over all that is said here."""


def compiled(**options: Any) -> Callable[..., Any]:
    """``numba.njit`` of these ``options``; its work is kept wherever there is a place."""
    from numba import njit

    return njit(cache=kept(), **options)


@cache
def kept() -> bool:
    """Whether numba can keep something, if need be in a temporary folder, which it is told."""
    from numba import config

    if _keeps():
        return True
    if (folder := private()) is None:
        return False
    os.environ[NUMBA] = str(folder)
    setattr(config, "CACHE_DIR", str(folder))  # noqa: B010
    return _keeps()


def _keeps() -> bool:
    from numba import njit

    try:
        njit(cache=True)(_nothing)
    except RuntimeError:  # numba's only way to say so
        return False
    return True


def _nothing() -> None:
    """Never compiled."""


def settle_matplotlib() -> None:
    """Before it is imported: name a folder where the home has none for it."""
    usual = {"XDG_CONFIG_HOME": "~/.config", "XDG_CACHE_HOME": "~/.cache"}
    homes = [os.environ.get(name, default) for name, default in usual.items()]
    if MATPLOTLIB not in os.environ and not all(_can_be_made(home) for home in homes):
        folder = private()
        if folder is not None:
            os.environ[MATPLOTLIB] = str(folder / "matplotlib")


def _can_be_made(home: str) -> bool:
    path = Path(os.path.expanduser(home), "matplotlib").absolute()
    if path.is_relative_to(Path("~").absolute()):  # nobody of that number has a home
        return False
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    return os.access(there, os.W_OK)


def private() -> Path | None:
    """A temporary folder of this user's alone, the same for all processes; None if there is none
    or somebody has put something else there."""
    try:
        folder = Path(tempfile.gettempdir()) / f"l2o-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    alone = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return folder if alone and found.st_uid == os.getuid() else None
