"""An estimate of the gradient from two losses, without going backward.

For a random direction z the rule is told p z, where p = (L(w + eps z) - L(w - eps z)) / (2 eps) is
the slope along z (Spall 1992; for language models Malladi et al. 2023, MeZO, definition 1). Its
mean is the gradient. A loss that has no gradient will do, and memory is that of a forward pass.
The variance grows with the number of parameters: learning rates are as many times smaller.

z is normal, and a function of (seed, step): so nothing has to be kept, and runs that share a seed
share their directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tasks.checks import above_zero
from tasks.oracles.base import Oracle, Point, Told
from tasks.rng import draw

STREAM = 1 << 60
"""Told from the seed of the minibatches by this, so that directions do not depend on examples."""
FINE = 1 << 24
"""Uniform numbers are multiples of 1 / ``FINE``, which float32 holds exactly."""


def normal(n: int, seed: int | Tensor, step: int | Tensor, like: Tensor) -> Tensor:
    """Standard normal numbers (Box and Muller) of the type of ``like``: ``[n]`` where seed and step
    are numbers, ``[N, n]`` where they are tensors ``[N]``."""
    both = draw(seed ^ STREAM, step, FINE, 2 * n, like.device).to(torch.float32)
    radius, angle = (both + 0.5).div(FINE).split(n, dim=-1)
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).to(like.dtype)


@dataclass(frozen=True)
class TwoPoint(Oracle):
    """``eps``: how far to look; ``direction``: of (n, seed, step, like), as ``normal`` is.

    The loss that is told is the mean of the two. Raises ValueError unless ``eps`` is positive.
    """

    eps: float = 1e-3
    direction: Callable[[int, int | Tensor, int | Tensor, Tensor], Tensor] = normal
    backward: ClassVar[bool] = False

    def __post_init__(self) -> None:
        above_zero(eps=self.eps)

    def __call__(self, point: Point) -> Told:
        flat, n = point.flat, point.task.layout.n
        with torch.no_grad():
            z = self.direction(n, point.seed, point.step, flat).expand_as(flat)
            ahead = point.losses(flat + self.eps * z)
            behind = point.losses(flat - self.eps * z)
            slope = (ahead - behind) / (2 * self.eps)
            return Told(slope[:, None] * z, (ahead + behind) / 2)
