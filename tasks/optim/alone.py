"""The optimizer of one training run, alive for as long as the run is.

A ``torch.optim.Optimizer`` keeps what it knows wherever it likes: tensors, lists, deques, strings,
its groups, attributes of its own. So nothing is taken out of it and put back: every run has one of
its own, made once and stepped as its user would step it. Three things come from outside at a step:
weights, gradients and the learning rate, which is written into the groups when the schedule
changes it, as torch's schedulers do.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""The loss on the minibatch of a step, at other weights."""
Needs = tuple[torch.optim.Optimizer, bool]
"""An optimizer, and whether its step needs a closure."""
Build = Callable[[Sequence[nn.Parameter], float, float], list[Needs]]
"""(weights, lr, weight decay) -> optimizers that share the weights among them."""


class Alone:
    """One run: its weights, and its optimizers."""

    def __init__(self, build: Build, views: Mapping[str, Tensor], lr: float, decay: float) -> None:
        self.weights = {name: nn.Parameter(view.clone()) for name, view in views.items()}
        content = b"".join(view.float().cpu().numpy().tobytes() for view in views.values())
        content += np.array([lr, decay]).tobytes()
        self.seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "little")
        self.steps = 0
        sow(self.seed)
        self.optimizers = build([*self.weights.values()], lr, decay)
        self.first = self.lr = lr
        self.rates = [group["lr"] for group in self._groups()]
        for optimizer, _ in self.optimizers:
            switch(optimizer, "train")

    def step(
        self,
        views: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        lr: float,
        loss: Loss | None = None,
    ) -> dict[str, Tensor]:
        """The weights after a step from ``views``. Whatever the optimizer raises is raised."""
        self._place(views)
        for weight, grad in zip(self.weights.values(), grads.values(), strict=True):
            weight.grad = grad.clone()
        self._follow(lr)
        self.steps += 1
        sow(self.seed + self.steps)
        for optimizer, closure in self.optimizers:
            if closure:
                optimizer.step(self._closure(optimizer, loss))  # type: ignore[arg-type]
            else:
                optimizer.step()
        return {name: weight.detach() for name, weight in self.weights.items()}

    def evaluated(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights to be measured where training is at ``views``: a schedule-free optimizer
        trains at others than those it has found, and switches between the two."""
        self._place(views)
        for optimizer, _ in self.optimizers:
            switch(optimizer, "eval")
        found = {name: weight.detach().clone() for name, weight in self.weights.items()}
        for optimizer, _ in self.optimizers:
            switch(optimizer, "train")
        return found

    @property
    def switches(self) -> bool:
        return any(switchable(optimizer) for optimizer, _ in self.optimizers)

    def _place(self, views: Mapping[str, Tensor]) -> None:
        for weight, view in zip(self.weights.values(), views.values(), strict=True):
            weight.data.copy_(view)

    def _groups(self) -> Iterator[dict]:
        for optimizer, _ in self.optimizers:
            yield from optimizer.param_groups

    def _follow(self, lr: float) -> None:
        """Where the schedule stays, what the optimizer made of its learning rate stays, too."""
        if lr != self.lr:
            for group, rate in zip(self._groups(), self.rates, strict=True):
                group["lr"] = lr if rate == self.first else rate * (lr / self.first)
        self.lr = lr

    def _closure(self, optimizer: torch.optim.Optimizer, loss: Loss | None) -> Callable[[], Tensor]:
        if loss is None:
            raise ValueError("its step needs a closure, and there is none on this device")

        def closure() -> Tensor:
            with torch.enable_grad():
                optimizer.zero_grad()
                found = loss(self.weights)
                found.backward()
            return found.detach()

        return closure


def switchable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it has a ``train()`` and an ``eval()``, as schedule-free optimizers do."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    if switchable(optimizer):
        getattr(optimizer, mode)()


def sow(seed: int) -> None:
    """Seed every generator that an optimizer may draw from, so that a run is a function of its
    start alone, whatever runs beside it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch's own function notes its stack for each GPU
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Everybody else's random numbers are what they would have been without ``sow``."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
