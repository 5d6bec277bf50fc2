"""What a loss does with each of its parameters, found by watching it run once.

Which axis of a weight is summed over cannot be read from its shape: an embedding ``[symbols,
width]`` and a readout ``[outputs, width]`` look the same, and every author stores matrices his own
way round. So the loss is run once on one example while each tensor operation is looked at. The
first operation that is not a mere view of a parameter tells two things:

    summed   the axes it sums over: those a matrix product or a convolution contracts, and the
             rows that an embedding picks (a product with one-hot vectors)
    output   what comes out: the pre-activation that this parameter makes

It needs no hooks, names or conventions, so it serves modules and hand-written losses alike. An
operation that is not in ``CONTRACTIONS`` counts as elementwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Use(NamedTuple):
    """One operation on a parameter."""

    summed: frozenset[int]  # axes of the parameter
    output: Tensor


def _convolved(args: Sequence[Any]) -> dict[int, tuple[int, ...]]:
    spatial = tuple(range(2, args[1].ndim))
    transposed = args[6]
    return {1: (0 if transposed else 1, *spatial)}


CONTRACTIONS: dict[Any, Callable[[Sequence[Any]], dict[int, tuple[int, ...]]]] = {
    aten.mm: lambda args: {0: (-1,), 1: (-2,)},
    aten.bmm: lambda args: {0: (-1,), 1: (-2,)},
    aten.mv: lambda args: {0: (-1,), 1: (-1,)},
    aten.dot: lambda args: {0: (-1,), 1: (-1,)},
    aten.addmm: lambda args: {1: (-1,), 2: (-2,)},
    aten.baddbmm: lambda args: {1: (-1,), 2: (-2,)},
    aten.addmv: lambda args: {1: (-1,), 2: (-1,)},
    aten.convolution: _convolved,
    aten.embedding: lambda args: {0: (0,)},
    aten.mkldnn_rnn_layer: lambda args: {1: (-1,), 2: (-1,)},
}
"""Operation -> its arguments -> {position of an argument: the axes of it that are summed over}."""

COPIES = {aten.clone, aten._to_copy, aten.mul, aten.div, aten.neg}
"""With a single tensor argument these give the same parameter again, up to a factor."""


def trace(
    run: Callable[[Mapping[str, Tensor]], object], params: Mapping[str, Tensor]
) -> dict[str, list[Use]]:
    """Call ``run(params)`` once; what it does with each parameter, in order.

    A parameter that is not used has an empty list.
    """
    own = {
        name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in params.items()
    }
    watch = _Watch(own)
    with torch.no_grad(), watch:
        run(own)
    return watch.uses


class _Origin(NamedTuple):
    """Which parameter a piece of memory holds, and at which stride each of its axes lies."""

    name: str
    strides: tuple[tuple[int, frozenset[int]], ...]
    tensor: Tensor  # kept alive, so that its memory cannot become another tensor's


class _Watch(TorchDispatchMode):
    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.uses: dict[str, list[Use]] = {name: [] for name in params}
        self.origins: dict[int, _Origin] = {}
        for name, p in params.items():
            strides = ((stride, frozenset({axis})) for axis, stride in enumerate(p.stride()))
            self.origins[_memory(p)] = _Origin(name, tuple(strides), p)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = next(_tensors([result]), None)
        tensors = list(_tensors(args))
        if first is None or not any(_memory(t) in self.origins for t in tensors):
            return result
        operation = func.overloadpacket
        axes = CONTRACTIONS[operation](args) if operation in CONTRACTIONS else {}
        for position, argument in enumerate(args):
            for tensor in _tensors([argument]):
                origin = self.origins.get(_memory(tensor))
                if origin is None or _memory(first) == _memory(tensor):  # not ours, or a view
                    continue
                if operation in COPIES and len(tensors) == 1:
                    self._follow(origin, tensor, first)
                else:
                    summed = _axes(origin, tensor, axes.get(position, ()))
                    self.uses[origin.name].append(Use(summed, first.detach().clone()))
        return result

    def _follow(self, origin: _Origin, view: Tensor, copy: Tensor) -> None:
        strides = ((s, _axes(origin, view, (axis,))) for axis, s in enumerate(copy.stride()))
        self.origins[_memory(copy)] = _Origin(origin.name, tuple(strides), copy)


def _axes(origin: _Origin, view: Tensor, dims: Sequence[int]) -> frozenset[int]:
    """The parameter's axes that lie within the dimensions ``dims`` of a view of it."""
    found: set[int] = set()
    for dim in dims:
        size, step = view.shape[dim], view.stride(dim)
        for stride, axes in origin.strides:
            if size > 1 and step <= stride < step * size:
                found |= axes
    return frozenset(found)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
