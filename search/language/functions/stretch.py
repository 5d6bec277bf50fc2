"""How much longer Muon's steps are where a matrix has more rows than columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def stretch(x: Tensor) -> Tensor:
    """x * sqrt(rows / columns) where there are more rows, else x."""
    return x * max(1.0, x.shape[-2] / max(x.shape[-1], 1)) ** 0.5
