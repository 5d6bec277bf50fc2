"""Learning-rate schedules: (step, horizon) to the multiplier of the peak learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Schedule = Callable[[Tensor, Tensor], Tensor]
"""(step, horizon) -> multiplier of the peak learning rate; float tensors that broadcast."""


def constant(step: Tensor, horizon: Tensor) -> Tensor:
    return torch.ones_like(step + horizon)


def linear(step: Tensor, horizon: Tensor) -> Tensor:
    """From 1 at the first step to 0 at the horizon."""
    return (1 - step / horizon).clamp(min=0)


def cosine(step: Tensor, horizon: Tensor) -> Tensor:
    """Half a cosine from 1 at the first step to 0 at the horizon."""
    return 0.5 * (1 + torch.cos(math.pi * (step / horizon).clamp(max=1)))


def warmup(steps: int | Tensor, then: Schedule) -> Schedule:
    """Rise linearly over the first ``steps`` steps, then follow ``then`` over the rest."""

    def schedule(step: Tensor, horizon: Tensor) -> Tensor:
        rise = (step + 1) / steps
        return torch.where(step < steps, rise, then((step - steps).clamp(min=0), horizon - steps))

    return schedule


def warmup_cosine(step: Tensor, horizon: Tensor) -> Tensor:
    """Rise linearly over the first tenth of the horizon, then half a cosine over the rest."""
    return warmup((horizon / 10).ceil(), cosine)(step, horizon)


SCHEDULES: dict[str, Schedule] = {
    schedule.__name__: schedule for schedule in (constant, linear, cosine, warmup_cosine)
}
