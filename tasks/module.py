"""Any ``torch.nn.Module`` with a loss, as a task.

The other families write their networks out; this one borrows yours. A module keeps its parameters
inside, a task receives them from outside, and ``torch.func.functional_call`` bridges the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.fields import positive
from tasks.gradients import attempt
from tasks.suites import yours
from tasks.types import Batch, Dataset, Task


@dataclass(frozen=True)
class ModuleTask(Task):
    """``loss_fn(module(inputs), *targets)`` for batches ``(inputs, *targets)`` of ``data``.

    ``build`` makes a fresh, randomly initialised module; its parameters are trained, in the order
    of ``named_parameters`` and under those names, but for those that need no gradient. These and
    buffers keep the values that ``build`` gives them with torch's generator at seed 0, whatever
    ran before. Raises ValueError for a module whose gradient cannot be taken for two instances at
    once: layers that write to their buffers (batch normalisation with running
    statistics) or draw random numbers (active dropout), recurrent layers, data of other types than
    the module and the loss expect.

    >>> from tasks.datasets import digits
    >>> def network() -> nn.Module:
    ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.SiLU(), nn.Linear(16, 10))
    >>> task = ModuleTask(network, nn.functional.cross_entropy, digits(), 32, "my-network")
    >>> params = task.init(torch.Generator().manual_seed(0))
    >>> list(params)
    ['1.weight', '1.bias', '3.weight', '3.bias']
    >>> batch = task.data.batch("train", torch.arange(32))
    >>> task.loss(params, batch).shape
    torch.Size([])
    """

    build: Callable[[], nn.Module]
    loss_fn: Callable[..., Tensor]
    data: Dataset
    batch_size: int
    name: str

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size)
        module = self._built(0)
        for path, part in module.named_modules():
            if getattr(part, "track_running_stats", False):
                raise ValueError(
                    f"build: got {type(part).__name__} {path!r} with running statistics, expected "
                    "track_running_stats=False"
                )
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                "build: got a module without parameters to train, expected at least one"
            )
        # Not fields: of the module only its structure is used, and what is not trained.
        named = (*module.named_parameters(), *module.named_buffers())
        fixed = {
            name: x.detach()
            for name, x in named
            if not (isinstance(x, nn.Parameter) and x.requires_grad)
        }
        object.__setattr__(self, "_skeleton", module)
        object.__setattr__(self, "_fixed", fixed)
        with yours("build", self.name, "cannot be differentiated for many instances at once"):
            attempt(self)

    def _built(self, seed: int) -> nn.Module:
        # Modules initialise themselves from torch's global generator and take no other. So it is
        # seeded for the time of one call, and forked, so that nobody else notices.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.build()

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        module = self._built(int(torch.randint(2**63 - 1, (), generator=generator)))
        return {
            name: p.detach().clone().float()
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        inputs, *targets = batch
        skeleton: nn.Module = getattr(self, "_skeleton")  # noqa: B009
        kept: Mapping[str, Tensor] = getattr(self, "_fixed")  # noqa: B009
        fixed = {name: x.to(inputs.device) for name, x in kept.items()}
        outputs = functional_call(skeleton, {**params, **fixed}, (inputs,))
        return self.loss_fn(outputs, *targets)
