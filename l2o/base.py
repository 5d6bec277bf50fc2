"""What a learned optimizer is: a function from ``theta`` to an update rule.

A learned optimizer is an architecture (a frozen dataclass: sizes, constants) and a vector
``theta`` of meta-parameters. ``rule(theta)`` joins the two into an ordinary ``UpdateRule``, so that
the inner loop cannot tell it from Adam. ``theta`` has two forms, linked by a ``Layout`` like the
parameters of any task:

    flat    [D]                one for all instances, or [N, D], one an instance
    named   {name: [*shape]}   what files and people read

Meta-training is an outer loop that changes ``theta``; evolution strategies give every instance its
own, ``theta + noise``, which is what the form ``[N, D]`` is for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from tasks.mup.scaling import Scale, by_tensor, factors
from tasks.types import Layout, Params, StepInfo, Task, UpdateRule

UNSAVED = {"saved": False}
"""Metadata of a dataclass field that a checkpoint cannot hold; to be given again after loading."""


class ThetaError(ValueError):
    """Meta-parameters that do not fit the architecture, or are not finite."""


THETA: dict[str, Any] = {"dtype": torch.float32}
"""What ``init_theta`` makes tensors with: on which device is the choice of its caller."""


class LearnedOptimizer(ABC):
    """An architecture. Subclasses are frozen dataclasses; ``tuned.py`` is the one to copy."""

    @abstractmethod
    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random named meta-parameters to start meta-training from: float32, on the device of the
        context (``THETA``), the CPU; for their shapes alone that is meta, where no tensor has
        numbers."""

    @abstractmethod
    def rule(self, theta: Tensor, scale: Scale | None = None) -> UpdateRule:
        """The update rule with meta-parameters ``theta``, ``[D]`` or ``[N, D]``.

        ``scale`` multiplies the learned step of each tensor (default 1). Differentiable with
        respect to ``theta``; make a new rule for every backward pass. Raises ThetaError when
        ``theta`` has the wrong length or is not finite.
        """

    def on(self, task: Task) -> Self:
        """The architecture as used on ``task``; itself, unless it must know the problem."""
        return self

    @cached_property
    def layout(self) -> Layout:
        """Where each named meta-parameter lies in the flat ``theta``."""
        with torch.device("meta"):
            return Layout.of(self.init_theta(torch.Generator().manual_seed(0)))

    @property
    def size(self) -> int:
        """``D``, the number of meta-parameters."""
        return self.layout.n

    def initial(self, seed: int = 0) -> Tensor:
        """Flat random meta-parameters ``[D]``, a function of ``seed``."""
        with torch.device("cpu"):
            return self.flatten(self.init_theta(torch.Generator().manual_seed(seed)))

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Named to flat ``[D]``; raises ThetaError unless names and shapes are as they should."""
        if sorted(named) != sorted(spec.name for spec in self.layout.specs):
            expected = ", ".join(spec.name for spec in self.layout.specs)
            raise ThetaError(f"theta: got tensors {', '.join(named)}, expected {expected}")
        for spec in self.layout.specs:
            got = tuple(named[spec.name].shape)
            if got != spec.shape:
                raise ThetaError(f"theta: {spec.name} has shape {got}, expected {spec.shape}")
        return self.layout.flatten(named)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Flat ``[D]`` or ``[N, D]`` to named views, after the checks that ``rule`` promises."""
        name = type(self).__name__
        if theta.ndim not in (1, 2) or theta.shape[-1] != self.size:
            shape = list(theta.shape)
            raise ThetaError(
                f"theta: {name} got shape {shape}, expected D = {self.size}: [D] or [N, D]"
            )
        if not theta.is_meta and not torch.isfinite(theta).all():
            bad = [k for k, v in self.layout.views(theta).items() if not torch.isfinite(v).all()]
            raise ThetaError(f"theta: {name} got NaN or infinity in {', '.join(bad)}")
        return self.layout.views(theta)

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that a checkpoint keeps."""
        return {f.name: getattr(self, f.name) for f in saved_fields(type(self))}


def saved_fields(architecture: type[LearnedOptimizer]) -> list[Field[Any]]:
    """Its fields that a checkpoint keeps."""
    every = fields(architecture)  # type: ignore[arg-type]
    return [f for f in every if f.metadata.get("saved", True)]


@dataclass(frozen=True, eq=False)
class LearnedRule:
    """What the rules of all architectures share: meta-parameters, and ``select`` by instance."""

    optimizer: Any  # the architecture; each subclass narrows it
    theta: Tensor
    scale: Scale | None = None

    @cached_property
    def named(self) -> dict[str, Tensor]:
        """Meta-parameters ``[N, *shape]``, or ``[1, *shape]`` when all instances share them."""
        rows = self.theta if self.theta.ndim == 2 else self.theta[None]
        return self.optimizer.layout.views(rows)

    @cached_property
    def identity(self) -> str:
        """What tells its memory from that of other architectures and meta-parameters."""
        theta = self.theta.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        text = repr(sorted(self.optimizer.arguments().items()))
        digest = hashlib.blake2b(text.encode() + theta, digest_size=4).hexdigest()
        return f"{type(self.optimizer).__name__} {digest}"

    def select(self, index: Tensor) -> Self:
        return replace(self, theta=self.theta[index]) if self.theta.ndim == 2 else self

    def factors(self, layout: Layout) -> list[float]:
        """What the learned step of each tensor is multiplied by."""
        if self.scale is None:
            return [1.0] * len(layout.specs)
        return by_tensor(self.scale, layout)

    def multiply(self, steps: Tensor, layout: Layout) -> Tensor:
        """``steps`` ``[N, n]`` times each tensor's ``scale``."""
        if self.scale is None:
            return steps
        return steps * factors(self.scale, layout, steps)


def decayed(steps: Tensor, params: Params, info: StepInfo) -> Tensor:
    """Updates ``lr * (step + weight_decay * params)``: what a schedule and decay mean here.

    Learned steps already have the right size, so they are run with ``lr = 1`` unless a user wants
    a schedule on top.
    """
    return info.lr[:, None] * (steps + info.weight_decay[:, None] * params.flat)


def zeros(params: Params, *shape: int) -> Tensor:
    """A state of zeros ``[N, *shape]``, of the parameters' device and type."""
    return params.flat.new_zeros(params.flat.shape[0], *shape)
