"""A meta-trained optimizer in anyone's training script."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2o import checkpoint
from l2o.base import LearnedOptimizer
from tasks.checks import meant
from tasks.mup.groups import param_groups
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.optim.state_dicts import identity
from tasks.oracles.hutchinson import hessian_every
from tasks.runs.files import SHIPPED, one_thing, or_shipped
from tasks.types import Params, State, StepInfo, UpdateRule
from tasks.user_code.imports import Trusted


class Placed:
    """The rule of an architecture, its ``theta`` where and as precise as the gradients of a step:
    models are moved, and given another precision, after their optimizer was made."""

    def __init__(self, architecture: LearnedOptimizer, theta: Tensor) -> None:
        self.architecture, self.theta = architecture, theta
        rule = architecture.rule(theta)
        self.reads_loss = getattr(rule, "reads_loss", False)
        self.hessian_every = hessian_every(rule)
        self.oracle = getattr(rule, "oracle", None)
        self.identity = identity(rule)
        self.rules: dict[tuple[str, torch.dtype], UpdateRule] = {_place(theta): rule}

    def init(self, params: Params) -> State:
        return self.at(params.flat).init(params)

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        return self.at(grads).update(grads, state, params, info)

    def select(self, index: Tensor) -> UpdateRule:
        return self.architecture.rule(self.theta).select(index)

    def at(self, like: Tensor) -> UpdateRule:
        """The rule for gradients such as these; theta is converted once."""
        place = _place(like)
        if place not in self.rules:
            self.rules[place] = self.architecture.rule(self.theta.to(like))
        return self.rules[place]


def _place(x: Tensor) -> tuple[str, torch.dtype]:
    return str(x.device), x.dtype


@dataclass(frozen=True)
class Learned:
    """An architecture and its meta-parameters; ``card`` says how they came about."""

    name: str
    architecture: LearnedOptimizer
    theta: Tensor  # [D]
    card: dict[str, Any]

    def optimizer(
        self,
        model: nn.Module | Iterable[Any],
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        *,
        base: nn.Module | None = None,
        inputs: tuple[Any, ...] | Tensor = (),
        tied: bool = False,
        **settings: Any,
    ) -> RuleOptimizer:
        """As a ``torch.optim.Optimizer`` for a module, its parameters or parameter groups.

        Learned steps have the right size already: ``lr`` multiplies them. It was 1 all through
        meta-training, so use no scheduler, or a constant one; Hugging Face's ``Trainer`` decays it
        linearly to 0 unless it gets ``lr_scheduler_type="constant"``. Between 0.3 and 10 it is
        worth tuning.
        ``settings`` are those of ``RuleOptimizer``, such as ``horizon``, the planned number of
        steps, which ``Velo`` reads (``SmallFC`` knows how many steps were taken, not how many will
        be).

        One that was meta-trained in muP must know which axes of a module grow with its width:
        ``base`` is the same network at another width, such as half of it, and ``inputs`` what
        ``base(*inputs)`` takes, or a tensor that it takes alone. The rest of muP is the network's,
        see ``tasks.mup.groups.param_groups``, where ``tied`` is explained, and the readout is said
        to be approximate: that of ``SmallFC`` moves about a third more than in the tasks it was
        meta-trained on, unless the module divides it by its fan-in and its weights are a group of
        multiplier 1. Raises ValueError for a module without a base, where there has to be one, and
        for a base without inputs or without a module.
        """
        inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
        if base is not None and not inputs:
            raise ValueError("inputs: got none, expected what base takes, such as inputs=(x,)")
        if base is not None and isinstance(model, nn.Module):
            params: Iterable[Any] = self._groups(model, base, inputs, lr, weight_decay, tied)
        elif isinstance(model, nn.Module):
            if self.card.get("mup"):
                raise ValueError(
                    f"base: got None for {self.name}, which was meta-trained in muP; expected the "
                    "same network at another width, and as inputs=(x,) what it takes"
                )
            params = model.parameters()
        elif base is not None:
            raise ValueError("base: got one beside parameters, expected their module to compare it")
        else:
            params = model
        rule = Placed(self.architecture, self.theta)
        return RuleOptimizer(params, rule, lr, weight_decay, **settings)

    def _groups(
        self,
        model: nn.Module,
        base: nn.Module,
        inputs: tuple[Any, ...],
        lr: float | Tensor,
        decay: float,
        tied: bool,
    ) -> list[dict[str, Any]]:
        """muP's parameter groups. A group's learning rate multiplies the decay that is part of the
        rule, too, and must not change it: the group's own decay makes up for that."""
        own = getattr(self.architecture, "weight_decay", 0.0)
        absolute = bool(self.card.get("mup"))
        groups = param_groups(
            model, base, inputs, lr=lr, weight_decay=decay + own, absolute=absolute, tied=tied
        )
        return [group | {"weight_decay": group["weight_decay"] - own} for group in groups]


def load(
    name: str | PathLike[str], shipped: Path = SHIPPED, *, trusted: Trusted | None = False
) -> Learned:
    """The checkpoint in the folder ``name``, or in the folder of that name among the ``shipped``;
    of a meta-training run the best so far.

    ``trusted``: whether an architecture of the user's own, which it names, may be imported; None:
    the user was asked before. Raises ValueError if it may not, or if there is neither folder nor
    checkpoint, CheckpointError (a ValueError) for one that is damaged.
    """
    folder = or_shipped(name, shipped)
    one_thing(folder)
    if (folder / checkpoint.TENSORS).is_file():
        return Learned(folder.name, *checkpoint.load(folder, trusted))
    if (folder / checkpoint.BEST / checkpoint.TENSORS).is_file():
        return Learned(folder.name, *checkpoint.load_best(folder, trusted))
    known = sorted(path.parent.name for path in shipped.glob(f"*/{checkpoint.TENSORS}"))
    raise ValueError(
        f"no learned optimizer {str(name)!r}: expected a folder with {checkpoint.TENSORS}, "
        + "a meta-training run"
        + (f" or one of {', '.join(known)}{meant(str(name), known)}" if known else "")
        + "; programs are loaded by search.load"
    )
