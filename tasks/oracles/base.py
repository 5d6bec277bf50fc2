"""What a rule is told of the loss at a step, and who tells it.

A rule sees the loss only through its *oracle*: a function from a *point* of a run to what is told
there. Most tell the gradient. Others look elsewhere first (``perturbed.py``), or never go backward
(``two_point.py``). The loop is the same for all: it asks ``oracle(point)`` once a step.

A point offers two measurements, ``gradient`` and ``losses``, at its own parameters or at any
others, on the minibatch of the step. An oracle is made of these and of ``seed`` and ``step``,
which are what its random numbers are a function of (``tasks/rng.py``): so it needs no state, and a
resumed run is told the same again. Rows are instances, and no operation may mix them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from tasks.oracles.lifting import Ways, batching, lifted, noise, rows, seeded
from tasks.types import Batch, Task

Take = Callable[..., tuple[dict[str, Tensor], Tensor, dict[str, Tensor] | None]]
"""``gradient.derivatives``, or something that computes the same faster."""


class Told(NamedTuple):
    """Of ``N`` instances with ``n`` parameters each."""

    grads: Tensor  # [N, n], what the rule takes for its gradient
    loss: Tensor  # [N], at the parameters of the run
    hessian: Tensor | None = None  # [N, n], an estimate of its diagonal
    extras: Mapping[str, Tensor] | None = None  # [N, ...], what else the oracle has found


@dataclass(frozen=True)
class Point:
    """``N`` runs at the beginning of a step: where they are, and what may be measured there."""

    task: Task
    flat: Tensor  # [N, n]
    batch: Batch
    shared: bool  # one batch for all, else one each
    seed: int | Tensor
    step: int | Tensor
    known: Ways
    take: Take

    def gradient(self, flat: Tensor | None = None, signs: Tensor | None = None) -> Told:
        """Gradients and losses at ``flat [N, n]``, by default those of the runs. ``signs [N, n]``
        ask for the diagonal of the Hessian, too (see ``hutchinson.py``)."""
        layout, flat = self.task.layout, self.flat if flat is None else flat
        along = None if signs is None else layout.views(signs)
        grads, loss, curved = self.take(
            self.task, layout.views(flat), self.batch, self.shared, along, self._noise()
        )
        return Told(layout.flatten(grads), loss, None if curved is None else layout.flatten(curved))

    def losses(self, flat: Tensor) -> Tensor:
        """``[N]`` at ``flat [N, n]``, without a gradient. Random numbers that the loss draws are
        those of the step, so that losses of one step can be compared."""
        loss, views, drawn = self.task.training_loss, self.task.layout.views(flat), self._noise()
        with batching():
            if self.known.together(self.shared):
                with nullcontext() if drawn is None else seeded(drawn, flat.device):
                    return lifted(loss, self.shared)(views, self.batch)
            numbers = torch.zeros((), dtype=torch.int64, device="cpu") if drawn is None else drawn
            found = []
            for number, (one, own) in zip(
                numbers.expand(len(flat)).tolist(),
                rows(views, self.batch, self.shared),
                strict=True,
            ):
                with seeded(number, flat.device):
                    found.append(loss(one, own))
        return torch.stack(found)

    def loss_at(self, instance: int, params: Mapping[str, Tensor]) -> Tensor:
        """``StepInfo.loss_at``: for a rule that looks at the loss more than once."""
        batch = self.batch if self.shared else tuple(part[instance] for part in self.batch)
        return self.task.loss(params, batch)

    def _noise(self) -> Tensor | None:
        """What random numbers of the loss are drawn from: ``[]``, or ``[N]`` if not ``shared``."""
        return noise(self.seed, self.step, self.flat.device) if self.known.random else None


class Oracle(Protocol):
    """What is told at a point. Numbers alone, and the same for all instances."""

    memory: ClassVar[int] = 1
    """Times the memory of a gradient that an answer takes."""
    backward: ClassVar[bool] = True
    """Whether it takes gradients; else a loss that has none will do."""
    curvature: ClassVar[bool] = False
    """Whether it tells the diagonal of a Hessian."""
    steady: ClassVar[bool] = True
    """The same operations at every step: a CUDA graph may hold them."""

    def __call__(self, point: Point) -> Told: ...
