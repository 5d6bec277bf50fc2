"""How the loss moves, on time scales from ten steps to the whole training: an input of ``velo``.

Ten running averages of the loss, their half-lives spread evenly in logarithm. A feature compares
two neighbours, each measured from the lowest value of the faster one: below 0 the loss falls
faster than it used to, above 0 it rises.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from l2o.base import zeros
from tasks.types import Params, State, StepInfo

AVERAGES = 10
LOSS_FEATURES = AVERAGES - 1
_UNSEEN = 1e12  # above any loss, below infinity: differences must stay numbers


def init_loss_buffer(params: Params) -> State:
    """``loss_means`` and ``loss_minima``, ``[N, 10]``."""
    means = zeros(params, AVERAGES)
    return {"loss_means": means, "loss_minima": means + _UNSEEN}


def follow_loss(state: State, info: StepInfo, horizon: int | None) -> State:
    """The averages after this step's loss, which counts at most twice the largest average."""
    decays, count = _decays(info, horizon), _count(info)
    loss = info.loss[:, None]
    corrected = state["loss_means"] / (1 - decays**count)
    largest = corrected.amax(dim=-1, keepdim=True)
    ceiling = 2 * torch.where(count == 1, loss, largest).abs()
    means = state["loss_means"] * decays + torch.minimum(ceiling, loss) * (1 - decays)
    minima = torch.minimum(state["loss_minima"], means / (1 - decays**count))
    return {"loss_means": means, "loss_minima": minima}


def loss_features(state: State, info: StepInfo, horizon: int | None) -> Tensor:
    """``[N, 9]`` within [-1, 1], of the averages after this step; 0 in the first two steps."""
    count = _count(info)
    means = state["loss_means"] / (1 - _decays(info, horizon) ** count)
    low = state["loss_minima"][:, :-1]
    slower = (means[:, 1:] - low).clamp(min=1e-8)
    compared = ((means[:, :-1] - low) / slower - 1).clamp(-1, 1)
    return torch.where(count <= 2, torch.zeros_like(compared), compared)


def _count(info: StepInfo) -> Tensor:
    """``[N, 1]`` or ``[1, 1]``: how many losses have been seen, this one included."""
    return 1 + torch.as_tensor(info.step, dtype=torch.int64, device=info.loss.device).reshape(-1, 1)


def _decays(info: StepInfo, horizon: int | None) -> Tensor:
    """``[N, 10]`` or ``[1, 10]``: half-lives from 10 to ``horizon`` (default: the planned one)."""
    device = info.loss.device
    planned = info.horizon if horizon is None else horizon
    last = torch.as_tensor(planned, dtype=torch.float32, device=device).reshape(-1, 1).log10()
    exponent = 1 + (last - 1) * torch.linspace(0, 1, AVERAGES, device=device, dtype=torch.float32)
    return torch.exp(-torch.exp(-exponent * math.log(10)))
