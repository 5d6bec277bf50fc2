"""Any ``torch.nn.Module`` with a loss, as a task.

The other families write their networks out; this one borrows yours. A module keeps its parameters
inside, a task receives them from outside, and ``torch.func.functional_call`` bridges the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.checks import positive
from tasks.oracles.lifting import CPU, attempt, batching, dense, seeded, slopes, unlike
from tasks.runs.environment import own_defaults
from tasks.types import Batch, Dataset, Metric, Task
from tasks.user_code.imports import yours


@dataclass(frozen=True)
class ModuleTask(Task):
    """``loss_fn(module(inputs), *targets)`` for batches ``(inputs, *targets)`` of ``data``.

    ``build`` makes a fresh, randomly initialised module; its parameters are trained, in the order
    of ``named_parameters`` and under those names, but for those that need no gradient. These and
    buffers keep the values that ``build`` gives them with torch's generator at seed 0, whatever
    ran before. Training takes the module as ``build`` returns it, parts in eval mode included;
    losses are measured with all of it in eval mode.

    ``steps`` is how long a run is in a suite that does not say; ``metric`` is what runs are
    measured in besides their loss (``metrics.accuracy``), in ``l2o evaluate`` and its report.

    Instances that cannot run together run in turn, as slowly as a plain loop (``lifting.py``):
    recurrent layers, active dropout on batches that differ. Raises ValueError for a module that
    writes to its buffers in training (batch normalisation with running statistics), that fails,
    whose loss is no function of parameters, batch and torch's random numbers, or whose gradients
    are others than the module by itself has (activation checkpoints).

    >>> from tasks.data.loaders import digits
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
    steps: int = 200
    metric: Metric | None = None

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size, steps=self.steps)
        if not (self.metric is None or isinstance(self.metric, Metric)):
            raise ValueError(
                f"metric: got {self.metric!r}, expected tasks.accuracy or a Metric(name, "
                "function of outputs and targets, whether higher is better)"
            )
        module = self._built(0)
        _check_sizes(module)
        for path, part in module.named_modules():
            if part.training and getattr(part, "track_running_stats", False):
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
        object.__setattr__(self, "_places", _places(module))
        object.__setattr__(self, "_modes", [(part, part.training) for part in module.modules()])
        with yours("build", self.name, "cannot be trained"):
            with _in_float32(module):
                self._check_buffers()
                attempt(self)
            if type(self).training_loss is ModuleTask.training_loss:  # not another's
                self._check_gradients()
        with yours("metric", str(self.metric), "cannot be taken"):
            self._check_metric()

    def _check_buffers(self) -> None:
        params = self.init(torch.Generator().manual_seed(0))
        batch = self.data.to("cpu").batch(
            "train", torch.zeros(self.batch_size, dtype=torch.int64, device="cpu")
        )
        fixed: Mapping[str, Tensor] = getattr(self, "_fixed")  # noqa: B009
        given = {**params, **{name: x.clone() for name, x in fixed.items()}}
        with torch.no_grad(), seeded(0, CPU):
            self._call(given, batch, training=True)
        for name, x in fixed.items():
            if not torch.equal(given[name].nan_to_num(), x.nan_to_num()):
                raise ValueError(
                    f"its buffer {name!r} is written in training, expected buffers that stay as "
                    "they are: leave that layer out, or return it in eval mode"
                )

    def _check_gradients(self) -> None:
        """Those of the borrowed module are those of the module itself, as a plain loop has them."""
        params = self.init(torch.Generator().manual_seed(0))
        data = self.data.to("cpu")
        index = torch.arange(self.batch_size, device="cpu") % data.size("train")
        batch, module = data.batch("train", index), self._built(0)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for name, p in trained.items():
            p.data = params[name].clone()
        with torch.enable_grad(), batching():
            with seeded(0, CPU):
                self.loss_fn(module(batch[0]), *batch[1:]).backward()
            with seeded(0, CPU):
                _, *found = slopes(self.training_loss, params, batch)
        own = [torch.zeros_like(p) if p.grad is None else dense(p.grad) for p in trained.values()]
        if differing := unlike(dict(zip(trained, found, strict=True)), own):
            raise ValueError(
                f"its gradient by {differing[0]!r} is not what the module by itself has, expected "
                "layers that read their weights in forward alone: leave out what runs forward "
                "again later, such as torch.utils.checkpoint"
            )

    def _check_metric(self) -> None:
        if self.metric is None:
            return
        batch = self.data.to("cpu").batch(
            "validation", torch.zeros(2, dtype=torch.int64, device="cpu")
        )
        with torch.no_grad():
            found = self.figure(self.init(torch.Generator().manual_seed(0)), batch)
        if not (isinstance(found, Tensor) and found.shape == ()):
            kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise ValueError(f"it is {kind}, expected a tensor of one number")

    def _built(self, seed: int) -> nn.Module:
        # Modules initialise themselves from torch's global generator and take no other. So it is
        # seeded for the time of one call, and forked, so that nobody else notices.
        with torch.random.fork_rng(devices=[]), own_defaults():
            torch.default_generator.manual_seed(seed)
            return self.build()

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        module = self._built(int(torch.randint(2**63 - 1, (), generator=generator, device="cpu")))
        return {
            name: p.detach().clone().float()
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.loss_fn(self._outputs(params, batch, training=False), *batch[1:])

    def training_loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.loss_fn(self._outputs(params, batch, training=True), *batch[1:])

    def figure(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        assert self.metric is not None
        return self.metric.of(self._outputs(params, batch, training=False), *batch[1:])

    def _outputs(self, params: Mapping[str, Tensor], batch: Batch, training: bool) -> Any:
        kept: Mapping[str, Tensor] = getattr(self, "_fixed")  # noqa: B009
        fixed = {name: x.to(batch[0].device) for name, x in kept.items()}
        return self._call({**params, **fixed}, batch, training)

    def _call(self, given: dict[str, Tensor], batch: Batch, training: bool) -> Any:
        """What the module makes of a batch's inputs, with tensors of its own all ``given``: each
        in all its places, as torch forgets some of a layer that is used twice."""
        skeleton: nn.Module = getattr(self, "_skeleton")  # noqa: B009
        modes: list[tuple[nn.Module, bool]] = getattr(self, "_modes")  # noqa: B009
        for part, as_built in modes:
            part.training = training and as_built
        places: dict[str, str] = getattr(self, "_places")  # noqa: B009
        everywhere = {place: given[name] for place, name in places.items()}
        return functional_call(skeleton, everywhere, (batch[0],), tie_weights=False)


def _places(module: nn.Module) -> dict[str, str]:
    """Every place of a tensor, each layer once, and the name that the tensor goes by."""
    names: dict[int, str] = {}
    found = {}
    for path, part in module.named_modules():
        own = (
            *part.named_parameters(recurse=False, remove_duplicate=False),
            *part.named_buffers(recurse=False, remove_duplicate=False),
        )
        for name, x in own:
            place = f"{path}.{name}" if path else name
            found[place] = names.setdefault(id(x), place)
    return found


def _check_sizes(module: nn.Module) -> None:
    for name, p in module.named_parameters():
        if isinstance(p, nn.UninitializedParameter):
            raise ValueError(
                f"build: got parameter {name!r} without a size, expected lazy layers that know "
                "theirs: name it, or run the module on an example before it is returned"
            )


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """Says so where a module of another precision fails."""
    other = {str(p.dtype) for p in module.parameters()} - {"torch.float32"}
    try:
        yield
    except RuntimeError as error:
        if not other:
            raise
        raise ValueError(
            f"its parameters are {', '.join(sorted(other))}, expected torch.float32, in which "
            f"tasks are trained: {str(error).partition(chr(10))[0]}"
        ) from error
