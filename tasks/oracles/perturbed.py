"""The gradient a little uphill: sharpness-aware minimisation (SAM).

The rule is told the gradient at w + e in place of that at w, where e is the step of length ``rho``
along which the loss rises most: e = rho g / |g|, the norm over all parameters (Foret et al. 2021,
eq. 2). ``adaptive`` measures that length in units of the parameters, e = rho w^2 g / |w g| (Kwon et
al. 2021, ASAM, eq. 9). Two gradients a step; with any rule it is SAM of that rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tasks.checks import above_zero
from tasks.oracles.base import Oracle, Point, Told

SMALLEST = 1e-12
"""Added to norms, which are divided by."""


@dataclass(frozen=True)
class Perturbed(Oracle):
    """``rho``: the length of the step uphill. Raises ValueError unless it is positive."""

    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self) -> None:
        above_zero(rho=self.rho)

    def __call__(self, point: Point) -> Told:
        here = point.gradient()
        there = point.gradient(point.flat + self.uphill(point.flat, here.grads))
        return here._replace(grads=there.grads)

    def uphill(self, flat: Tensor, grads: Tensor) -> Tensor:
        """``[N, n]``: where to look, from where the runs are."""
        if self.adaptive:
            return flat * flat * grads * (self.rho / (norms(flat.abs() * grads) + SMALLEST))
        return grads * (self.rho / (norms(grads) + SMALLEST))


def norms(x: Tensor) -> Tensor:
    """``[N, 1]``: of each instance of ``[N, n]``, over all of its parameters."""
    return x.norm(dim=1, keepdim=True)
