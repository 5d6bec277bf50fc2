"""The gradient, and every few steps the diagonal of the Hessian, estimated with random signs.

For signs z the product z * (H z) has the diagonal of H as its mean (Yao et al. 2021, AdaHessian,
section 3.2); where H is diagonal it is exact. H z is the gradient of gradient . z, so an estimate
costs one more backward pass, through the first one. It is made of the minibatch of the step. Signs
are a function of (seed, step) only, so that a resumed run draws them again.

A rule asks for it by an attribute ``hessian_every = k``: it gets an estimate at the steps that
``k`` divides. Where runs keep different times, all get one as soon as it is time for some; which
of them use it is then the rule's business. Rules without the attribute cost nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tasks.checks import positive
from tasks.oracles.base import Oracle, Point, Told
from tasks.rng import draw
from tasks.types import UpdateRule

STREAM = 1 << 61
"""Told from the seed of the minibatches by this, so that signs do not depend on examples."""


@dataclass(frozen=True)
class Hutchinson(Oracle):
    """The gradient, and an estimate at the steps that ``every`` divides."""

    every: int = 1
    memory: ClassVar[int] = 3
    curvature: ClassVar[bool] = True
    steady: ClassVar[bool] = False  # which steps are due is decided on the host

    def __post_init__(self) -> None:
        positive(every=self.every)

    def __call__(self, point: Point) -> Told:
        if not is_due(self.every, point.step):
            return point.gradient()
        n, flat = point.task.layout.n, point.flat
        signs = random_signs(n, point.seed, point.step, flat).expand_as(flat)
        return point.gradient(signs=signs)


def hessian_products(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool = False,
) -> list[Tensor]:
    """``H v``, from gradients that remember how they were made; zeros where they are constant."""
    curved = [(grad, v) for grad, v in zip(grads, vectors, strict=True) if grad.requires_grad]
    if not curved:
        return [torch.zeros_like(p) for p in params]
    return [
        *torch.autograd.grad(
            [grad for grad, _ in curved],
            params,
            [v for _, v in curved],
            create_graph=create_graph,
            retain_graph=retain_graph or create_graph,
            materialize_grads=True,
        )
    ]


def hessian_every(rule: UpdateRule) -> int:
    """Every how many steps ``rule`` is to be given an estimate; 0: never."""
    return getattr(rule, "hessian_every", 0)


def is_due(every: int, step: int | Tensor) -> bool:
    """Whether some run needs an estimate now."""
    if every == 0:
        return False
    return step % every == 0 if isinstance(step, int) else bool((step % every == 0).any())


def random_signs(n: int, seed: int | Tensor, step: int | Tensor, like: Tensor) -> Tensor:
    """``[n]`` for numbers, ``[N, n]`` for tensors ``[N]``: -1 or 1, of the type of ``like``."""
    return (2 * draw(seed ^ STREAM, step, 2, n, like.device) - 1).to(like.dtype)
