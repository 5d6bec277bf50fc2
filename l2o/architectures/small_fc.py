"""``small_fc``: one small network, the same for every parameter of every tensor.

Each parameter gets 39 features (28 of its gradient's history, made scale-free, and 11 of time); a
network 39 -> h -> h -> 2 turns them into a direction ``d`` and a magnitude ``m``; the step is

    step_mult * d * exp(exp_mult * m).

Also learned: how fast the seven running averages behind the features forget. This is
``AdafacMLPLOpt`` of Metz et al. 2022 (197 meta-parameters at hidden size 4), and with hidden size
32, ``step_mult = 0.01`` and muP's ``scale`` the optimizer of the muLO paper (arXiv 2406.00153).

With a ``nominal`` rule, say a program found by search, the network only learns a correction:
update = nominal update + learned step.

``weight_decay`` shrinks the parameters by that share a step, besides what a user asks for. Learned
steps keep their size when gradients get small, so without it parameters drift for as long as
training goes on: trained on 1,000 steps, the optimizer is lost after some 5,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from l2o.architectures.features import (
    FACTORED_DECAYS,
    MOMENTUM_DECAYS,
    TIMESCALES,
    Decays,
    accumulate,
    init_accumulators,
    learned_decays,
    normalizers,
    small_fc_features,
    time_features,
    truncated_normal,
)
from l2o.base import THETA, UNSAVED, LearnedOptimizer, LearnedRule, decayed
from tasks.checks import positive
from tasks.mup.scaling import Scale
from tasks.oracles.hutchinson import hessian_every
from tasks.types import Layout, Params, State, StepInfo, UpdateRule

FEATURES = 28


@dataclass(frozen=True)
class SmallFC(LearnedOptimizer):
    """A small network that writes the update of each parameter from its features.

    Attributes:
        hidden_size: units of a hidden layer
        hidden_layers: how many of them
        step_mult: multiplies the direction that the network gives
        exp_mult: multiplies the magnitude that it gives, before exp
        weight_decay: share of a parameter that each step takes away
        nominal: a rule that the network adds to; not saved
    """

    hidden_size: int = 4
    hidden_layers: int = 2
    step_mult: float = 1e-3
    exp_mult: float = 1e-3
    weight_decay: float = 0.0
    nominal: UpdateRule | None = field(default=None, metadata=UNSAVED)

    def __post_init__(self) -> None:
        positive(hidden_size=self.hidden_size, hidden_layers=self.hidden_layers)
        for name in ("step_mult", "exp_mult"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay: got {self.weight_decay}, expected 0 or more, below 1")

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights truncated normal with standard deviation 1/sqrt(inputs), all else zero."""
        theta = {
            "momentum_decays": torch.zeros(len(MOMENTUM_DECAYS), **THETA),
            "rms_decays": torch.zeros(1, **THETA),
            "factored_decays": torch.zeros(len(FACTORED_DECAYS), **THETA),
        }
        sizes = [FEATURES + len(TIMESCALES), *[self.hidden_size] * self.hidden_layers, 2]
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            theta[f"w{layer}"] = truncated_normal((inputs, outputs), inputs, generator)
            theta[f"b{layer}"] = torch.zeros(outputs, **THETA)
        return theta

    def rule(self, theta: Tensor, scale: Scale | None = None) -> SmallFCRule:
        self.named(theta)
        return SmallFCRule(self, theta, scale)


@dataclass(frozen=True, eq=False)
class SmallFCRule(LearnedRule):
    """State: the accumulators of ``features.py``, and ``nominal.*`` where there is such a rule."""

    optimizer: SmallFC

    @cached_property
    def decays(self) -> Decays:
        names = ("momentum_decays", "rms_decays", "factored_decays")
        return learned_decays(*(self.named[name] for name in names))

    @property
    def oracle(self) -> Any:
        return getattr(self.optimizer.nominal, "oracle", None)

    @property
    def hessian_every(self) -> int:
        return hessian_every(self.optimizer.nominal) if self.optimizer.nominal else 0

    @property
    def reads_loss(self) -> bool:
        return getattr(self.optimizer.nominal, "reads_loss", False)

    def init(self, params: Params) -> State:
        state = init_accumulators(params)
        nominal = self.optimizer.nominal
        inner = nominal.init(params) if nominal else {}
        return state | {f"nominal.{name}": value for name, value in inner.items()}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        step = self.compilable(self.fastest(grads, state, params))
        info = info._replace(weight_decay=info.weight_decay + self.optimizer.weight_decay)
        nominal = self.optimizer.nominal
        if nominal is None:
            return step(self, grads, state, params, info)
        inner = {
            k.removeprefix("nominal."): v for k, v in state.items() if k.startswith("nominal.")
        }
        updates, inner = nominal.update(grads, inner, params, info)
        undecayed = info._replace(weight_decay=torch.zeros_like(info.weight_decay))
        correction, after = step(self, grads, state, params, undecayed)
        return updates + correction, after | {f"nominal.{k}": v for k, v in inner.items()}

    def fastest(self, grads: Tensor, state: State, params: Params) -> Step:
        """The kernel for the device where there is one; kernels know no derivatives."""
        tensors = (self.theta, grads, state["m"], params.flat)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return reference
        devices, types = {x.device.type for x in tensors}, {x.dtype for x in tensors}
        if devices == {"cpu"} and types == {torch.float32}:
            from l2o.architectures.kernels import (
                cpu,  # compiled on first use, so only where it is used
            )

            return cpu.step
        known = types <= {torch.float32, torch.bfloat16} and self.optimizer.hidden_size <= 64
        if devices == {"cuda"} and known and find_spec("triton"):
            from l2o.architectures.kernels import gpu

            return gpu.step
        return reference

    def compilable(self, step: Step) -> Step:
        """``step`` as ``torch.compile`` can take it, which does not understand the kernels."""
        if step is reference or not torch.compiler.is_compiling():
            return step
        from l2o.architectures.kernels import whole

        return partial(whole.call, step)

    def network(self, features: Tensor, time: Tensor, layout: Layout) -> Tensor:
        """``[N, 28, n]`` and ``[N, 11]`` to direction and magnitude ``[N, 2, n]``."""
        out = self.first_layer(features, time, layout)
        for layer in range(1, self.optimizer.hidden_layers + 1):
            weight, bias = self.named[f"w{layer}"], self.named[f"b{layer}"]
            out = weight.mT @ out.relu() + bias[..., None]
        return out

    def first_layer(self, features: Tensor, time: Tensor, layout: Layout) -> Tensor:
        """``[N, hidden_size, n]``. Features are normalised by scaling their weights; time is the
        same for all parameters, so it is part of the bias."""
        weight, bias = self.named["w0"], self.named["b0"]
        bias = bias + (time[:, None] @ weight[:, FEATURES:]).squeeze(1)
        outputs = []
        for (_, span), scale in zip(layout, normalizers(features, layout), strict=True):
            scaled = weight[:, :FEATURES] * scale[..., None]
            outputs.append(scaled.mT @ features[..., span])
        return torch.cat(outputs, dim=-1) + bias[..., None]

    def select(self, index: Tensor) -> SmallFCRule:
        """The rule of the instances ``index``, their nominal rules included."""
        chosen = super().select(index)
        if self.optimizer.nominal is None:
            return chosen
        nominal = self.optimizer.nominal.select(index)
        return replace(chosen, optimizer=replace(self.optimizer, nominal=nominal))


class Step(Protocol):
    """One step of ``N`` instances, nominal rules aside."""

    def __call__(
        self, rule: SmallFCRule, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        """Updates ``[N, n]`` and the next accumulators; may reuse the memory of ``state``."""
        ...


def reference(
    rule: SmallFCRule, grads: Tensor, state: State, params: Params, info: StepInfo
) -> tuple[Tensor, State]:
    """See ``Step``; what the kernel means, on any device and with derivatives."""
    after = accumulate(grads, state, params.layout, rule.decays)
    features = small_fc_features(grads, after, params)
    time = time_features(info, features)
    direction, magnitude = rule.network(features, time, params.layout).unbind(1)
    steps = direction * torch.exp(magnitude * rule.optimizer.exp_mult)
    steps = rule.multiply(steps * rule.optimizer.step_mult, params.layout)
    return decayed(steps, params, info), after
