"""Programs as optimizers, and the search for better ones.

    import search
    optimizer = search.load("runs/first").optimizer(model.parameters(), lr=1e-3, weight_decay=0.1)

Importing the package imports nothing else.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.zoo.entry import Entry


def load(name: str | PathLike[str], candidate: int | None = None) -> Entry:
    """The winner of a run (its directory), or ``candidate`` of it; the program in a file; or a
    known optimizer by its name. Raises ValueError, naming what is accepted, if it is none."""
    from search import rules

    return rules.load(name, candidate)
