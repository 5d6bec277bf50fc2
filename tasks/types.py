"""The nouns every other file uses: parameters, update rules, tasks.

An update rule is a pair of pure functions, ``init(params) -> state`` and
``update(grads, state, params, info) -> (updates, state)``. A hand-designed optimizer, a program
found by search and a neural network that outputs updates are all update rules, and judging one
always means the same work: apply it for many steps on many small problems at once. So every
tensor here leads with an axis ``N`` of independent *instances* (programs x learning rates x
seeds x antithetic pairs), and the parameters of an instance lie in one row of a contiguous
``[N, n]`` buffer, of which the named tensors are views:

    flat    [N, n]             what elementwise rules work on
    views   {name: [N, *shape]}  what losses and shape-aware rules work on

A task is written for *one* instance, as anyone would write it; batching is ``unroll``'s business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Role = Literal["input", "hidden", "output", "vector"]
Split = Literal["train", "validation", "test"]
State = dict[str, Tensor]
"""An update rule's memory: named tensors, each of shape ``[N, ...]``."""
Batch = tuple[Tensor, ...]
HOST: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""For torch's factories: what is made here is the same under any default dtype and device."""


class Unusable(ValueError):
    """A rule that cannot be used, or not on a task: one line about it, for who asked for it."""


@dataclass(frozen=True)
class ParamSpec:
    """One named tensor of a task. ``role`` and ``fan_in`` are what muP needs (see ``mup.py``)."""

    name: str
    shape: tuple[int, ...]
    role: Role = "hidden"
    fan_in: int = 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in a flat row of length ``n``, in the order of ``specs``."""

    specs: tuple[ParamSpec, ...]

    @classmethod
    def of(cls, params: Mapping[str, Tensor]) -> Layout:
        """The layout of one instance's parameters; roles unknown, so left at their default."""
        return cls(tuple(ParamSpec(name, tuple(p.shape)) for name, p in params.items()))

    @cached_property
    def n(self) -> int:
        return sum(spec.numel for spec in self.specs)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each tensor, and ``n`` at the end: one more entry than there are tensors."""
        starts = [0]
        for spec in self.specs:
            starts.append(starts[-1] + spec.numel)
        return tuple(starts)

    def __iter__(self) -> Iterator[tuple[ParamSpec, slice]]:
        for spec, start in zip(self.specs, self.offsets, strict=False):
            yield spec, slice(start, start + spec.numel)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """``[N, n]`` (or ``[n]``) to named views ``[N, *shape]`` (or ``[*shape]``), not copies."""
        lead = flat.shape[:-1]
        return {spec.name: flat[..., span].view((*lead, *spec.shape)) for spec, span in self}

    def flatten(self, views: Mapping[str, Tensor]) -> Tensor:
        """Named ``[N, *shape]`` tensors to a fresh ``[N, n]`` buffer (``[*shape]`` to ``[n]``)."""
        pieces = []
        for spec in self.specs:
            lead = views[spec.name].shape[: views[spec.name].ndim - len(spec.shape)]
            pieces.append(views[spec.name].reshape(*lead, spec.numel))
        return torch.cat(pieces, dim=-1)

    def segments(self, device: torch.device | str = "cpu") -> Tensor:
        """``[n]`` int64: for each element the number of the tensor it belongs to."""
        return _segments(self, torch.device(device))


@lru_cache(maxsize=64)
def _segments(layout: Layout, device: torch.device) -> Tensor:
    """Made on the CPU and brought to a GPU once: a step must not wait for such things."""
    sizes = torch.tensor([spec.numel for spec in layout.specs], dtype=torch.int64, device="cpu")
    return torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), sizes).to(device)


class Params(NamedTuple):
    """The parameters of ``N`` instances: a ``[N, n]`` buffer and the meaning of its columns."""

    flat: Tensor
    layout: Layout

    @property
    def views(self) -> dict[str, Tensor]:
        return self.layout.views(self.flat)


class StepInfo(NamedTuple):
    """What a rule may know about a step besides gradients, state and parameters.

    ``step`` counts from 0; it and ``horizon`` are ints when all instances keep the same time
    and ``[N]`` int64 tensors when they do not. ``lr`` already includes the schedule.
    """

    step: int | Tensor
    horizon: int | Tensor
    lr: Tensor  # [N]
    weight_decay: Tensor  # [N]
    loss: Tensor  # [N], the training loss at the parameters the gradient was taken at
    hessian: Tensor | None = None  # [N, n], an estimate of its diagonal (``hutchinson.py``)
    loss_at: Callable[[int, Mapping[str, Tensor]], Tensor] | None = None
    """(instance, its parameters) -> its loss there, on this step's minibatch; None on a GPU."""
    extras: Mapping[str, Tensor] | None = None  # [N, ...], what else the rule's oracle has found


class Inner(NamedTuple):
    """``N`` training runs in progress.

    ``step`` and ``seed`` are ints when all runs share them (the minibatch is then gathered once
    for everybody) and ``[N]`` int64 tensors when each has its own.
    """

    params: Tensor  # [N, n]
    state: State
    step: int | Tensor
    seed: int | Tensor

    def rows(self, index: Tensor | slice) -> Inner:
        """A subset of the runs."""
        return Inner(
            self.params[index],
            {name: value[index] for name, value in self.state.items()},
            self.step if isinstance(self.step, int) else self.step[index],
            self.seed if isinstance(self.seed, int) else self.seed[index],
        )


class UpdateRule(Protocol):
    """Anything that turns gradients into updates; ``params - updates`` are the next parameters."""

    def init(self, params: Params) -> State:
        """The state before the first step."""
        ...

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        """Updates ``[N, n]`` and the next state. May reuse the memory of ``state``, never that of
        ``grads`` or ``params``."""
        ...

    def select(self, index: Tensor) -> UpdateRule:
        """The rule for a subset of instances (``index``: ``[K]`` int64); ``self`` when all
        instances share one rule."""
        ...


class Dataset(ABC):
    """Three fixed, disjoint splits of examples, addressed by integers."""

    name: str

    @abstractmethod
    def size(self, split: Split) -> int:
        """How many examples the split has."""

    @abstractmethod
    def batch(self, split: Split, index: Tensor) -> Batch:
        """Examples by number: ``index`` ``[..., B]`` int64 to tensors ``[..., B, *example]``."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Dataset:
        """The same data resident on ``device``."""

    def contents(self, split: Split) -> Iterable[Tensor]:
        """All that the split holds: by this it is told from another one."""
        for part in torch.arange(self.size(split), device="cpu").split(4096):
            yield from self.batch(split, part)


class Task(ABC):
    """A training problem, written for one instance.

    Subclasses are frozen dataclasses whose fields (``width``, ``depth``, ``data``, ...) make the
    family; one object is one member of it.
    """

    data: Dataset
    batch_size: int
    name: str
    evaluation_size: ClassVar[int] = 512
    """Validation and test losses are means over this many examples, evenly spaced in the split."""
    steps: int = 200
    """How long a run of it is in a suite that does not say."""
    metric: Metric | None = None
    """What it is measured in besides its loss, when an evaluation has ended."""
    compared: bool = False
    """Tests of this project have shown that instances together are what each is by itself; else it
    is found out when a task is first used (``lifting.py``). Subclasses do not inherit it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.compared = vars(cls).get("compared", False)

    @abstractmethod
    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters of one instance, float32, on the CPU."""

    @abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean loss (a scalar tensor) of one instance's ``params`` over ``batch``."""

    def training_loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """What gradients are taken of: ``loss``, unless training differs from being measured. May
        draw random numbers from torch's generator, which is seeded by (seed, step)."""
        return self.loss(params, batch)

    def figure(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """What ``metric`` says of one instance's ``params`` (a scalar tensor) over ``batch``."""
        raise NotImplementedError(f"{self.name}: has no metric")

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.init(torch.Generator().manual_seed(0)))


@dataclass(frozen=True)
class Metric:
    """``of(outputs, *targets)``: one number, a mean over the examples of a batch."""

    name: str
    of: Callable[..., Tensor]
    higher: bool = True  # is better

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: got nothing, expected what the metric is called")

    def __str__(self) -> str:
        return f"{self.name} ({'higher' if self.higher else 'lower'} is better)"


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of the largest outputs ``[..., classes]`` that are the ``targets [...]``."""
    return (outputs.argmax(-1) == targets).to(torch.float32).mean()


accuracy = Metric("accuracy", hits)
