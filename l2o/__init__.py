"""Learned optimizers, their meta-training, and the command line.

    import l2o
    optimizer = l2o.load("lo_small").optimizer(model)

Importing the package imports nothing else.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2o.use import Learned


def load(name: str | PathLike[str]) -> Learned:
    """The learned optimizer in a folder, or of that name among those that come with the project.

    Raises ValueError listing the names there are, if it is neither.
    """
    from l2o import use

    return use.load(name)
