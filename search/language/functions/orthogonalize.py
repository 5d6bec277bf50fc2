"""Muon's function of a matrix (Jordan et al. 2024).

An update with singular value decomposition U S V' becomes U V', whose directions all move alike:
``orthogonalize`` comes near enough, and needs no decomposition. Five times a polynomial of the
matrix, x <- a x + b x^3 + c x^5 with steep a, brings each singular value into about 0.7 to 1.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def orthogonalize(x: Tensor) -> Tensor:
    """Singular values to about 1: five steps of Newton and Schulz's iteration, of degree five."""
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT  # the smaller of two products with itself
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT
