"""One step of many runs: an oracle tells of the loss, the rule says how to move.

Written once for the plain loop and for what a CUDA graph captures, which must not look at numbers
on the device.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tasks.oracles.base import Oracle, Point
from tasks.types import Params, State, StepInfo, UpdateRule


class Moved(NamedTuple):
    """What a step comes to. The next parameters are those of the point less ``updates``."""

    updates: Tensor  # [N, n]
    state: State
    loss: Tensor  # [N], before the step


def inner_step(
    point: Point,
    oracle: Oracle,
    rule: UpdateRule,
    state: State,
    *,
    horizon: int | Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    captured: bool = False,
) -> Moved:
    """``lr`` and ``weight_decay`` are ``[N]``; ``captured``: into a graph, which repeats no visits
    to the host, so the rule may look at no further losses."""
    flat, now = point.flat, point.step
    told = oracle(point)
    info = StepInfo(
        now if isinstance(now, int) else now.expand(len(flat)),
        horizon,
        lr,
        weight_decay,
        told.loss,
        told.hessian,
        None if captured else point.loss_at,
        told.extras,
    )
    updates, state = rule.update(told.grads, state, Params(flat, point.task.layout), info)
    return Moved(updates, state, told.loss)
