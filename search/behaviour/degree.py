"""How muP has to scale a program, measured.

muP's multipliers depend on a rule only through its degree: scale all gradients, past and present,
by ``c``; if every update is scaled by ``c ** k``, the degree is ``k``. Adam and Lion have 0, SGD
has 1. The program is run to find out, on gradients far above its epsilon.

Two things would spoil the conclusion from the degree to the multipliers, so they are looked for:
updates that depend on the parameters, whose size in muP differs from role to role, and updates
that depend on how many elements a tensor has, as those with a norm do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from search.behaviour.probe import respond
from search.language.program import Program
from tasks.types import Layout, ParamSpec

STEPS = 6
SHAPES = ((3, 4), (7,), (1,))
FACTOR = 16.0
TOLERANCE = 1e-3


class MixedError(ValueError):
    """A program that no set of muP multipliers fits."""


class Homogeneity(NamedTuple):
    """``degree`` in the gradient; None, and a ``reason``, where muP does not know the rule."""

    degree: float | None
    reason: str = ""

    @property
    def label(self) -> str:
        names = {0.0: "Adam-like", 1.0: "SGD-like", None: "mixed"}
        return names.get(self.degree, f"degree {self.degree}")


def degree(program: Program) -> float:
    """The degree, for ``tasks.mup.scaling``. Raises MixedError with the reason where there is
    none."""
    found = homogeneity(program)
    if found.degree is None:
        raise MixedError(f"muP: the program is of mixed degree: {found.reason}")
    return found.degree


def homogeneity(program: Program) -> Homogeneity:
    """Measure ``program``, which must have passed ``analyze.check``."""
    if "h" in program.inputs:
        return Homogeneity(None, "it reads a Hessian, whose size in muP is not known")
    rng = np.random.default_rng(20220307)
    elements = sum(int(np.prod(shape)) for shape in SHAPES)
    # No gradient near zero, where rounding decides a sign.
    sizes = rng.uniform(0.5, 2.0, (STEPS, elements)) * rng.choice([-1.0, 1.0], (STEPS, elements))
    grads = torch.from_numpy(sizes)
    weights = torch.from_numpy(rng.uniform(-0.9, 0.9, (STEPS, elements)))
    once = _run(program, grads, weights)
    if not torch.isfinite(once).all():
        return Homogeneity(None, "its updates are not finite")
    if not _alike(_run(program, grads, -0.5 * weights), once):
        return Homogeneity(None, "its updates depend on the parameters")
    if not _alike(_run(program, grads, weights, copies=2), once):
        return Homogeneity(None, "its updates depend on how many elements a tensor has")
    return _degree(program, grads, weights, once)


def _degree(program: Program, grads: Tensor, weights: Tensor, once: Tensor) -> Homogeneity:
    """Compare updates for gradients 16 times as large with those for the plain ones."""
    larger = _run(program, FACTOR * grads, weights)
    growth = larger[-1].norm() / once[-1].norm()
    exponent = float(growth.log() / np.log(FACTOR))
    if not np.isfinite(exponent):
        return Homogeneity(None, "its updates vanish, or overflow when gradients grow")
    rounded = nearest(exponent)
    if not _alike(larger, once * FACTOR**rounded):
        return Homogeneity(
            None,
            f"its updates are no power of the size of the gradients (about {exponent:.2f} here)",
        )
    return Homogeneity(rounded)


def nearest(exponent: float) -> float:
    """The degree that was measured as ``exponent``: in hundredths, from which epsilons lead away a
    little, or where it is none of those, as 1/3 is not, to four digits."""
    degree = round(exponent, 2)
    return (degree if abs(degree - exponent) < 1e-3 else round(exponent, 4)) + 0.0


def _run(program: Program, grads: Tensor, weights: Tensor, copies: int = 1) -> Tensor:
    """Updates ``[STEPS, elements]`` in float64 at a constant learning rate of 1, no decay.

    ``copies``: each tensor holds so many equal copies of itself; the first one is returned.
    """
    layout = _layout(copies)
    elements = torch.arange(weights.shape[-1], device="cpu")
    tensors = [elements[span] for _, span in _layout(1)]
    where = torch.cat([tensor.repeat(copies) for tensor in tensors])
    starts = zip(layout.offsets, tensors, strict=False)
    first = torch.cat([start + torch.arange(len(tensor), device="cpu") for start, tensor in starts])
    updates = respond([program], grads[:, None, where], weights[:, where], layout=layout)
    return updates[0, :, 0, first]


def _layout(copies: int) -> Layout:
    specs = (ParamSpec(str(k), (copies, *shape)) for k, shape in enumerate(SHAPES))
    return Layout(tuple(specs))


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal at every step, up to rounding and epsilon, beside the step's largest update."""
    size = torch.maximum(a.abs(), b.abs()).amax(1)
    return bool((((a - b).abs().amax(1)) <= TOLERANCE * size).all())
