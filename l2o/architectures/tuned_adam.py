"""``TunedAdam``: Adam whose four hyper-parameters are learned. The architecture to copy.

A new architecture needs two classes. The first is a frozen dataclass of sizes and constants with
``init_theta``, which names the meta-parameters and draws their starting values, and ``rule``. The
second is the rule: ``init`` makes the state, ``update`` does a step, both for all ``N`` instances
at once. ``LearnedRule.named`` gives the meta-parameters as ``[N, *shape]``, or as ``[1, *shape]``
when all instances share them, so that written with broadcasting both cases are one.

Meta-parameters should be unconstrained and of order one: meta-training takes steps of one size for
all of them. Hence logarithms and logits, as offsets from Adam's usual values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.base import THETA, LearnedOptimizer, LearnedRule, decayed, zeros
from tasks.mup.scaling import Scale
from tasks.types import Params, State, StepInfo


@dataclass(frozen=True)
class TunedAdam(LearnedOptimizer):
    """Starts from these values at theta = 0. The learned rate comes on top of ``info.lr``."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("lr", "beta1", "beta2", "eps"):
            value = getattr(self, name)
            if not 0 < value < (1 if name.startswith("beta") else math.inf):
                raise ValueError(f"{name}: got {value}, expected above 0 and, for a beta, below 1")

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Four zeros: no luck is needed to start from Adam."""
        return {
            name: torch.zeros((), **THETA)
            for name in ("log_lr", "logit_beta1", "logit_beta2", "log_eps")
        }

    def rule(self, theta: Tensor, scale: Scale | None = None) -> TunedAdamRule:
        self.named(theta)  # raises where theta does not fit
        return TunedAdamRule(self, theta, scale)


@dataclass(frozen=True, eq=False)
class TunedAdamRule(LearnedRule):
    """Adam with bias correction; state ``m`` and ``v``, both ``[N, n]``."""

    optimizer: TunedAdam

    def init(self, params: Params) -> State:
        return {"m": zeros(params, params.layout.n), "v": zeros(params, params.layout.n)}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        beta1 = self.beta(self.optimizer.beta1, "logit_beta1")
        beta2 = self.beta(self.optimizer.beta2, "logit_beta2")
        m = beta1 * state["m"] + (1 - beta1) * grads
        v = beta2 * state["v"] + (1 - beta2) * grads.square()
        count = 1 + torch.as_tensor(info.step, dtype=torch.int64, device=grads.device).reshape(
            -1, 1
        )
        root = (v / (1 - beta2**count) + 1e-30).sqrt()  # 1e-30: a root at 0 has no derivative
        eps = self.optimizer.eps * self.named["log_eps"].exp()[:, None]
        lr = self.optimizer.lr * self.named["log_lr"].exp()[:, None]
        steps = lr * (m / (1 - beta1**count)) / (root + eps)
        return decayed(self.multiply(steps, params.layout), params, info), {"m": m, "v": v}

    def beta(self, start: float, name: str) -> Tensor:
        """``[N, 1]`` within (0, 1): ``start`` moved by the offset of its logit."""
        return torch.sigmoid(math.log(start / (1 - start)) + self.named[name])[:, None]
