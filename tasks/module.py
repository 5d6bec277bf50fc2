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
from tasks.types import Batch, Dataset, Task


@dataclass(frozen=True)
class ModuleTask(Task):
    """``loss_fn(module(inputs), *targets)`` for batches ``(inputs, *targets)`` of ``data``.

    ``build`` makes a fresh, randomly initialised module; all its parameters are trained, in the
    order of ``named_parameters`` and under those names. Buffers keep the values they had when the
    task was made, so layers that write to theirs (batch normalisation with running statistics)
    raise a ValueError; layers that draw random numbers (active dropout) are refused by ``vmap``.

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
        with torch.random.fork_rng(devices=[]):
            module = self.build()
        for path, part in module.named_modules():
            if getattr(part, "track_running_stats", False):
                raise ValueError(
                    f"build: got {type(part).__name__} {path!r} with running statistics, expected "
                    "track_running_stats=False"
                )
        if not any(True for _ in module.parameters()):
            raise ValueError("build: got a module without parameters, expected at least one")
        # Not a field: only its structure and its buffers are ever used, not its parameters.
        object.__setattr__(self, "_skeleton", module)

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        # Modules initialise themselves from torch's global generator and take no other. So it is
        # seeded from ours for the time of one call, and forked, so that nobody else notices.
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = self.build()
        return {name: p.detach().clone().float() for name, p in module.named_parameters()}

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        inputs, *targets = batch
        skeleton: nn.Module = getattr(self, "_skeleton")  # noqa: B009
        buffers = {name: b.to(inputs.device) for name, b in skeleton.named_buffers()}
        outputs = functional_call(skeleton, {**params, **buffers}, (inputs,))
        return self.loss_fn(outputs, *targets)
