"""The gradient: what a rule is told unless it asks for something else.

Instances are independent, so the gradient of the sum of their losses holds the gradient of each.
``derivatives`` takes it for all at once where that is right, else for one after another. Given
random signs, it goes backward a second time for the diagonal of the Hessian (``hutchinson.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.oracles.base import Oracle, Point, Told
from tasks.oracles.hutchinson import hessian_products
from tasks.oracles.lifting import CPU, Losses, batching, dense, lifted, rows, seeded, ways
from tasks.types import Batch, Task


@dataclass(frozen=True)
class Gradient(Oracle):
    """At the parameters of the run."""

    def __call__(self, point: Point) -> Told:
        return point.gradient()


class Derivatives(NamedTuple):
    """Of ``N`` instances at once."""

    grads: dict[str, Tensor]  # {name: [N, *shape]}
    loss: Tensor  # [N]
    hessian: dict[str, Tensor] | None = None  # {name: [N, *shape]}


def gradients(
    task: Task, views: Mapping[str, Tensor], batch: Batch, shared: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients ``{name: [N, *shape]}`` and losses ``[N]``; ``shared``: one batch for everybody."""
    return derivatives(task, views, batch, shared)[:2]


def derivatives(
    task: Task,
    views: Mapping[str, Tensor],
    batch: Batch,
    shared: bool,
    signs: Mapping[str, Tensor] | None = None,
    noise: Tensor | None = None,
) -> Derivatives:
    """``gradients``, and the estimate for ``signs`` ``{name: [N, *shape]}`` if these are given.

    Instances run together where that is right, else in turn (``lifting.py``). ``noise`` (``[]``, or
    ``[N]`` if not ``shared``) is what random numbers of the loss are drawn from, zeros if None.
    """
    known, loss = ways(task), task.training_loss
    device = next(iter(views.values())).device
    noise = torch.zeros((), dtype=torch.int64, device=CPU) if noise is None else noise
    with batching():
        if known.steady(shared):
            return _taken(lifted(loss, shared), views, batch, signs)
        if known.together(shared):
            with seeded(noise, device):
                return _taken(lifted(loss, shared), views, batch, signs)
        found = []
        numbers = noise.expand(len(next(iter(views.values())))).tolist()
        for k, (one, own) in enumerate(rows(views, batch, shared)):
            along = signs and {name: z[k] for name, z in signs.items()}
            with seeded(numbers[k], device):
                found.append(_taken(loss, one, own, along))
    return _joined(found)


def _taken(
    losses: Losses,
    views: Mapping[str, Tensor],
    batch: Batch,
    signs: Mapping[str, Tensor] | None,
) -> Derivatives:
    """Of the sum of ``losses``. Instances share nothing, so it holds each one's own.

    That is what ``vmap(grad(loss))`` computes, bit for bit, but the backward pass runs in plain
    autograd: a step of few or small instances takes half the time.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        at = {
            name: view if differentiable and view.requires_grad else view.detach().requires_grad_()
            for name, view in views.items()
        }
        loss = losses(at, batch)
        where = [*at.values()]
        curved = differentiable or signs is not None
        found = torch.autograd.grad(
            loss, where, torch.ones_like(loss), create_graph=curved, materialize_grads=True
        )
        second = None
        if signs is not None:
            along = [signs[name] for name in at]
            products = hessian_products(found, where, along, create_graph=differentiable)
            second = {
                name: z * product for name, z, product in zip(at, along, products, strict=True)
            }
    found = [dense(grad if differentiable else grad.detach()) for grad in found]
    history = any(view is views[name] for name, view in at.items())
    return Derivatives(
        dict(zip(at, found, strict=True)), loss if history else loss.detach(), second
    )


def _joined(found: Sequence[Derivatives]) -> Derivatives:
    """Of one instance each to those of all."""

    def stacked(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    second = [each.hessian for each in found if each.hessian is not None]
    return Derivatives(
        stacked([each.grads for each in found]),
        torch.stack([each.loss for each in found]),
        stacked(second) if second else None,
    )
