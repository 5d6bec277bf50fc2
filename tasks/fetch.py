"""Data sets that are too large for a package."""

from __future__ import annotations

import numpy as np


class DataMissing(RuntimeError):
    """A data set is not on this machine; the message names it and the command which gets it."""


def cached(name: str) -> dict[str, np.ndarray]:
    """The arrays of a fetched data set."""
    raise DataMissing(f"{name}: not fetched yet; `l2o data fetch {name}` gets it")
