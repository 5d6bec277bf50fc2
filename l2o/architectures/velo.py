"""``velo``: a network a tensor that writes the network a parameter is updated by.

A hypernetwork in two storeys (Metz et al. 2022, "VeLO"; the class ``HyperV2``):

* An LSTM runs over the training steps, one copy a tensor, and reads 30 numbers: how far training
  has come, how the loss moves, how large and how spread the tensor's averages are. It puts out a
  step size and mixing weights over a bank of small networks.
* The mixture, a network 30 -> 4 -> 4 -> 3, is then applied to every parameter of that tensor as in
  ``small_fc`` (its third output is unused; the decays are fixed).

    step = step_size * rms(params) * step_mult * d * exp(exp_mult * m)

``Velo()`` has the published size, 2,320,385 meta-parameters, and the original's ``bank_scale`` of
100; meta-training from scratch at small sizes is steadier at 1. muP drops the factor
``rms(params)`` (``param_scale = False``), by which a tensor that starts at zero would never move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from l2o.architectures.features import (
    MOMENTUM_DECAYS,
    accumulate,
    constants,
    fixed_decays,
    init_accumulators,
    normalizers,
    truncated_normal,
    velo_features,
)
from l2o.architectures.loss_buffer import (
    LOSS_FEATURES,
    follow_loss,
    init_loss_buffer,
    loss_features,
)
from l2o.base import THETA, LearnedOptimizer, LearnedRule, decayed, zeros
from tasks.checks import positive
from tasks.mup.scaling import Scale
from tasks.types import HOST, Layout, Params, State, StepInfo

FEATURES = 30
OUTPUTS = 3
TIMES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
RANKS = 5
TENSOR_INPUTS = len(TIMES) + LOSS_FEATURES + 1 + RANKS + 2 * len(MOMENTUM_DECAYS)


@dataclass(frozen=True)
class Velo(LearnedOptimizer):
    """``bank_size`` networks of two layers of ``hidden_size``; an LSTM of ``lstm_size`` units.

    ``loss_horizon`` replaces the planned number of steps in the loss features; 10 is what the
    original does unless told otherwise, and not what its released weights were trained with.
    """

    lstm_size: int = 512
    bank_size: int = 256
    hidden_size: int = 4
    hidden_layers: int = 2
    step_mult: float = 1e-3
    exp_mult: float = 1e-3
    bank_scale: float = 100.0
    param_scale: bool = True
    loss_horizon: int | None = None

    def __post_init__(self) -> None:
        positive(lstm_size=self.lstm_size, bank_size=self.bank_size)
        positive(hidden_size=self.hidden_size, hidden_layers=self.hidden_layers)
        if self.loss_horizon is not None:
            positive(loss_horizon=self.loss_horizon)
        for name in ("step_mult", "exp_mult", "bank_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")

    @property
    def network_sizes(self) -> list[int]:
        """Of the network that is applied to each parameter: inputs, hidden layers, outputs."""
        return [FEATURES, *[self.hidden_size] * self.hidden_layers, OUTPUTS]

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights truncated normal with standard deviation 1/sqrt(inputs), all else zero.

        ``mix0`` is unused; it is kept so that published weights fit.
        """
        units = self.lstm_size
        theta = {"hidden": torch.zeros(units, **THETA), "cell": torch.zeros(units, **THETA)}
        affine = {f"mix{k}": (TENSOR_INPUTS, units) for k in range(3)}
        affine |= {"lstm": (2 * units, 4 * units)}
        affine |= {"controls": (units, self.bank_size), "step_size": (units, 1)}
        for name, (inputs, outputs) in affine.items():
            theta[f"{name}.w"] = truncated_normal((inputs, outputs), inputs, generator)
            theta[f"{name}.b"] = torch.zeros(outputs, **THETA)
        for layer, (inputs, outputs) in enumerate(pairwise(self.network_sizes)):
            shape = (self.bank_size, inputs, outputs)
            theta[f"bank.w{layer}"] = truncated_normal(shape, inputs, generator)
            theta[f"bank.b{layer}"] = torch.zeros(self.bank_size, outputs, **THETA)
        return theta

    def rule(self, theta: Tensor, scale: Scale | None = None) -> VeloRule:
        if scale is not None and self.param_scale:
            raise ValueError(
                "param_scale: got True in muP, where a readout starts at zero and steps in its own "
                "size would never move it; expected False"
            )
        self.named(theta)
        return VeloRule(self, theta, scale)


@dataclass(frozen=True, eq=False)
class VeloRule(LearnedRule):
    """State: accumulators, ``hidden`` and ``cell`` ``[N, tensors, lstm_size]``, loss averages."""

    reads_loss: ClassVar = True  # so a training script has to hand it over

    optimizer: Velo

    def init(self, params: Params) -> State:
        tensors = len(params.layout.specs)
        state = init_accumulators(params) | init_loss_buffer(params)
        for name in ("hidden", "cell"):
            empty = zeros(params, tensors, self.optimizer.lstm_size)
            state[name] = empty + self.named[name][:, None]
        return state

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        layout = params.layout
        losses = follow_loss(state, info, self.optimizer.loss_horizon)
        seen = loss_features(losses, info, self.optimizer.loss_horizon)
        inputs = tensor_features(state, params, info, seen)
        hidden, cell = self.lstm(self.mix(inputs), state["hidden"], state["cell"])
        grads = grads.clamp(-1000.0, 1000.0)
        after = accumulate(grads, state, layout, fixed_decays(grads))
        features = velo_features(grads, after, params)
        outputs = self.networks(self.affine("controls", hidden), features, layout)
        direction, magnitude = outputs[:, 0], outputs[:, 1]
        steps = direction * torch.exp(magnitude * self.optimizer.exp_mult)
        size = self.affine("step_size", hidden).squeeze(-1) * self.optimizer.step_mult
        if self.optimizer.param_scale:
            size = size * (_mean(params.flat.square(), layout) + 1e-9).sqrt()
        steps = self.multiply(steps * size[:, layout.segments(size.device)], layout)
        return decayed(steps, params, info), after | losses | {"hidden": hidden, "cell": cell}

    def affine(self, name: str, x: Tensor) -> Tensor:
        """``[N, tensors, in]`` to ``[N, tensors, out]``."""
        return x @ self.named[f"{name}.w"] + self.named[f"{name}.b"][:, None]

    def mix(self, inputs: Tensor) -> Tensor:
        """Let each tensor know of the others: add the maximum over tensors, unit by unit."""
        others = self.affine("mix1", inputs).relu().amax(dim=1, keepdim=True)
        return self.affine("mix2", inputs) + others

    def lstm(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """One step; the forget gate is open by default (1 is added to its argument)."""
        gates = self.affine("lstm", torch.cat([x, hidden], dim=-1))
        write, candidate, forget, read = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(write) * torch.tanh(candidate)
        return torch.sigmoid(read) * torch.tanh(cell), cell

    @cached_property
    def bank(self) -> Tensor:
        """All networks ``[N, bank_size, weights]``, each a flat row of ``w0, b0, w1, b1, ...``."""
        names = [n for n in self.named if n.startswith("bank.")]
        return torch.cat([self.named[name].flatten(2) for name in names], dim=-1)

    def networks(self, controls: Tensor, features: Tensor, layout: Layout) -> Tensor:
        """Mix each tensor's network and apply it: ``[N, 30, n]`` to ``[N, 3, n]``."""
        weights = controls @ self.bank * (self.optimizer.bank_scale / self.optimizer.bank_size)
        scales = normalizers(features, layout)
        outputs = [
            self.network(weights[:, tensor], features[..., span], scales[tensor])
            for tensor, (_, span) in enumerate(layout)
        ]
        return torch.cat(outputs, dim=-1)

    def network(self, weights: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        """One tensor's: ``[N, weights]``, features ``[N, 30, k]`` and what normalises them."""
        start = 0
        for layer, (fan_in, fan_out) in enumerate(pairwise(self.optimizer.network_sizes)):
            end = start + fan_in * fan_out
            weight = weights[:, start:end].unflatten(1, (fan_in, fan_out))
            if layer == 0:
                weight = weight * scale[..., None]
            else:
                x = x.relu()
            x = weight.mT @ x + weights[:, end : end + fan_out, None]
            start = end + fan_out
        return x


def tensor_features(state: State, params: Params, info: StepInfo, losses: Tensor) -> Tensor:
    """What the LSTM reads of every tensor, before this step's update: ``[N, tensors, 30]``.

    In order: time, loss features (``[N, 9]``), size of ``v``, rank, spread of ``m`` and of ``v``.
    The spread of ``v`` is taken around the mean of ``m``: an oversight of the original.
    """
    layout = params.layout
    instances, tensors = params.flat.shape[0], len(layout.specs)
    size = _mean(params.flat.square(), layout).clamp(min=1e-9).rsqrt()[:, None]  # [N, 1, tensors]
    around = _mean(state["m"], layout)[..., layout.segments(size.device)]
    spread_m = _mean((state["m"] - around).square(), layout)
    spread_v = _mean((state["v"] - around).square(), layout)
    rank = _ranks(layout, size.device)
    shared = torch.cat([_fraction(info, size).expand(instances, -1), losses], dim=-1)
    return torch.cat(
        [
            shared[:, None].expand(-1, tensors, -1),
            _log_size(_mean(state["v"], layout) * size).mT,
            rank.expand(instances, -1, -1),
            _log_size(spread_m * size.square()).mT,
            _log_size(spread_v * size.square()).mT,
        ],
        dim=-1,
    )


def _fraction(info: StepInfo, like: Tensor) -> Tensor:
    """How much of the planned training is done, softly compared with nine marks."""
    step = torch.as_tensor(info.step, dtype=like.dtype, device=like.device).reshape(-1, 1)
    horizon = torch.as_tensor(info.horizon, dtype=like.dtype, device=like.device).reshape(-1, 1)
    return torch.tanh(10 * (step / horizon - constants(TIMES, like.dtype, like.device)))


@lru_cache(maxsize=32)
def _ranks(layout: Layout, device: torch.device) -> Tensor:
    """How many axes longer than 1 each tensor has, ``[tensors, RANKS]``, one-hot."""
    ranks = [min(sum(length > 1 for length in spec.shape), RANKS) for spec in layout.specs]
    return torch.eye(RANKS + 1, **HOST)[ranks, :RANKS].to(device)


def _mean(x: Tensor, layout: Layout) -> Tensor:
    """The mean over each tensor: ``[..., n]`` to ``[..., tensors]``."""
    return torch.stack([x[..., span].mean(dim=-1) for _, span in layout], dim=-1)


def _log_size(x: Tensor) -> Tensor:
    return 0.5 * torch.log(1e-8 + (10 * x).abs()).clamp(-5, 5)
