"""What a loss does with each of its parameters, found by watching it run once.

Which axis of a weight is summed over cannot be read from its shape: an embedding ``[symbols,
width]`` and a readout ``[outputs, width]`` look the same, and every author stores matrices his own
way round. So the loss is run once on one example while each tensor operation is looked at. The
first operation that is not a mere view of a parameter tells two things:

    summed   the axes it sums over: those a matrix product or a convolution contracts, and the
             rows that an embedding picks (a product with one-hot vectors)
    output   what comes out: the pre-activation that this parameter makes

What is made of weights alone by a factor, a mask, a norm (``WEIGHTS``) is still that weight, and a
product of a weight and an activation that is summed at once is a contraction. It needs no hooks,
names or conventions, so it serves modules and hand-written losses alike. An operation that is in
no table here counts as elementwise: ``tanh(w)`` could be a weight or an activation.
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
    weight, transposed, groups = args[1], args[6], args[8]
    spatial = tuple(range(2, weight.ndim))
    if transposed and groups == weight.shape[0]:
        return {1: spatial}  # each channel by itself
    return {1: (0 if transposed else 1, *spatial)}


CONTRACTIONS: dict[Any, Callable[[Sequence[Any]], dict[int, tuple[int, ...]]]] = {
    aten.mm: lambda args: {0: (-1,), 1: (-2,)},
    aten.bmm: lambda args: {0: (-1,), 1: (-2,)},
    aten.mv: lambda args: {0: (-1,), 1: (-1,)},
    aten.dot: lambda args: {0: (-1,), 1: (-1,)},
    aten.addmm: lambda args: {1: (-1,), 2: (-2,)},
    aten.baddbmm: lambda args: {1: (-1,), 2: (-2,)},
    aten.addbmm: lambda args: {1: (0, -1), 2: (0, -2)},
    aten._trilinear: lambda args: {1: (1, 2)},  # of nn.Bilinear
    aten.addmv: lambda args: {1: (-1,), 2: (-1,)},
    aten.convolution: _convolved,
    aten.embedding: lambda args: {0: (0,)},
    aten.mkldnn_rnn_layer: lambda args: {1: (-1,), 2: (-1,)},
}
"""Operation -> its arguments -> {position of an argument: the axes of it that are summed over}."""

WEIGHTS = {
    aten.clone,
    aten._to_copy,
    aten.mul,
    aten.div,
    aten.neg,
    aten.cat,
    aten._weight_norm_interface,
}
"""Without an activation among their arguments these give the same parameter again."""

ASIDE = {
    aten.sum,
    aten.mean,
    aten.norm,
    aten.linalg_vector_norm,
    aten.amax,
    aten.amin,
    aten.ones_like,
    aten.zeros_like,
    aten.empty_like,
}
"""Without an activation these measure a parameter, or take its shape, and do not use it."""


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


class _Product(NamedTuple):
    """Of a parameter and an activation; its use, unless the next thing is that it is summed."""

    use: int
    origin: _Origin


class _Watch(TorchDispatchMode):
    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.uses: dict[str, list[Use]] = {name: [] for name in params}
        self.origins: dict[int, list[_Origin]] = {}
        self.activations: dict[int, Tensor] = {}  # kept alive, as origins are
        self.products: dict[int, list[_Product]] = {}
        for name, p in params.items():
            strides = ((stride, frozenset({axis})) for axis, stride in enumerate(p.stride()))
            self.origins[_memory(p)] = [_Origin(name, tuple(strides), p)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = next(_tensors([result]), None)
        tensors = list(_tensors(args))
        known = {*map(_memory, tensors)}
        active = not known.isdisjoint(self.activations)
        if first is None or not (active or known & self.origins.keys()):
            return result
        operation = func.overloadpacket
        if known == {_memory(first)} or _memory(first) in self.origins:
            pass  # a view, or a parameter written in place
        elif operation in WEIGHTS and not active and (same := self._same(operation, args, first)):
            self.origins[_memory(first)] = same
        elif active or operation not in ASIDE:
            if operation is aten.sum:
                self._contract(args, first)
            self._use(operation, args, first)
            self._activate(result)
        return result

    def _activate(self, result: Any) -> None:
        self.activations |= {_memory(tensor): tensor for tensor in _tensors([result])}

    def _found(self, args: Sequence[Any]) -> Iterator[tuple[int, Tensor, _Origin]]:
        """Which arguments are parameters or views of one: position, tensor, origin."""
        for position, argument in enumerate(args):
            for tensor in _tensors([argument]):
                for origin in self.origins.get(_memory(tensor), ()):
                    yield position, tensor, origin

    def _use(self, operation: Any, args: Sequence[Any], output: Tensor) -> None:
        axes = CONTRACTIONS[operation](args) if operation in CONTRACTIONS else {}
        for position, tensor, origin in self._found(args):
            uses = self.uses[origin.name]
            summed = _axes(origin, tensor, axes.get(position, ()))
            uses.append(Use(summed, output.detach().clone()))
            if operation is aten.mul:
                product = _Product(len(uses) - 1, _same_axes(origin, tensor, output))
                self.products.setdefault(_memory(output), []).append(product)

    def _contract(self, args: Sequence[Any], output: Tensor) -> None:
        """Sums of products: what was a gain so far was a contraction."""
        tensor = args[0]
        dims = args[1] if len(args) > 1 and args[1] else range(tensor.ndim)
        for use, origin in self.products.pop(_memory(tensor), ()):
            if summed := _axes(origin, tensor, dims):
                self.uses[origin.name][use] = Use(summed, output.detach().clone())

    def _same(self, operation: Any, args: Sequence[Any], result: Tensor) -> list[_Origin]:
        """The parameters that ``result`` still is: of its shape, or joined in it."""
        return [
            _same_axes(origin, tensor, result)
            for _, tensor, origin in self._found(args)
            if tensor.shape == result.shape or operation is aten.cat
        ]


def _same_axes(origin: _Origin, view: Tensor, result: Tensor) -> _Origin:
    """The origin of ``result``, whose last axes are those of a view of a parameter."""
    ahead = result.ndim - view.ndim
    strides = (
        (step, _axes(origin, view, (axis - ahead,)))
        for axis, step in enumerate(result.stride())
        if axis >= ahead
    )
    return _Origin(origin.name, tuple(strides), result)


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
