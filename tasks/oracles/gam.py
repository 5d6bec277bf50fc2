"""Where the gradient is flat, and not the loss alone: gradient norm aware minimisation (GAM).

Zhang et al. 2023, "Gradient norm aware minimization seeks first-order flatness and improves
generalization", algorithm 1, as its authors' code has it. Four gradients a step:

    g0 at w,    g1 at w + rho g0 / |g0|                       sharpness of the loss
    g2 at u = w + rho' (g1 - g0) / |g1 - g0|,                 where the norm of the gradient rises
    g3 at u + rho g2 / |g2|

The rule is told b1 g1 + b3 g3, less ``gamma`` times what g0 + b2 g2 has orthogonal to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tasks.checks import above_zero
from tasks.oracles.base import Oracle, Point, Told
from tasks.oracles.perturbed import SMALLEST, norms


@dataclass(frozen=True)
class Gam(Oracle):
    """``rho``: the steps uphill along gradients; ``norm_rho``: that along their difference."""

    rho: float = 0.04
    norm_rho: float = 0.05
    beta1: float = 0.5
    beta2: float = 0.3
    beta3: float = 0.5
    gamma: float = 0.02
    memory: ClassVar[int] = 2

    def __post_init__(self) -> None:
        above_zero(rho=self.rho, norm_rho=self.norm_rho)

    def __call__(self, point: Point) -> Told:
        here = point.gradient()
        g0, flat = here.grads, point.flat
        g1 = point.gradient(flat + self.rho * g0 / (norms(g0) + SMALLEST)).grads
        rise = g1 - g0
        steep = flat + self.norm_rho * rise / (norms(rise) + SMALLEST)
        g2 = point.gradient(steep).grads
        g3 = point.gradient(steep + self.rho * g2 / (norms(g2) + SMALLEST)).grads
        told, aside = self.beta1 * g1 + self.beta3 * g3, g0 + abs(self.beta2) * g2
        length = norms(told) + SMALLEST
        unit = told / length
        orthogonal = aside - (aside * unit).sum(1, keepdim=True) * unit
        return here._replace(grads=told - self.gamma * orthogonal)
