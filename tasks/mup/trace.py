"""What a loss does with each of its parameters, found by watching it run once.

Which axis of a weight is summed over cannot be read from its shape: an embedding ``[symbols,
width]`` and a readout ``[outputs, width]`` look the same, and every author stores matrices his own
way round. So the loss is run once on one example while each tensor operation is looked at. The
first operation that is not a mere view of a parameter tells two things:

    summed   the axes it sums over: those a matrix product or a convolution contracts, and the
             rows that an embedding picks (a product with one-hot vectors)
    output   what comes out: the pre-activation that this parameter makes
    fed      which parameters made what it meets: those of the last contraction, and gains since

What is made of weights alone by a factor, a mask, a norm (``WEIGHTS``) is still that weight, and a
product of a weight and an activation that is summed, and nothing else, is a contraction. It needs
no hooks, names or conventions, so it serves modules and hand-written losses alike. An operation
that is in no table here counts as elementwise: ``tanh(w)`` could be a weight or an activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Use(NamedTuple):
    """One operation on a parameter."""

    summed: frozenset[int]  # axes of the parameter
    output: Tensor
    fed: frozenset[str] = frozenset()  # parameters, whose results it meets


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

DATA = {
    aten.mm: 0,
    aten.bmm: 0,
    aten.addmm: 1,
    aten.baddbmm: 1,
    aten.addbmm: 1,
    aten.mv: 1,
    aten.addmv: 2,
}
"""Products -> the position of what is weighted. A parameter there that another one is a weight of,
such as a learned query or a first state, is data, and nothing of it is summed over."""

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
    run: Callable[[Mapping[str, Tensor]], object], params: Mapping[str, Tensor], given: object
) -> dict[str, list[Use]]:
    """Call ``run(params)`` once; what it does with each parameter, in order.

    ``given``: what else it reads, such as a minibatch: tensors, however nested in lists, tuples
    and dictionaries. A parameter that is not used has an empty list.
    """
    own = {
        name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in params.items()
    }
    watch = _Watch(own, given)
    with torch.no_grad(), watch:
        run(own)
    watch.settle()
    return watch.uses


class _Origin(NamedTuple):
    """Which parameter a piece of memory holds, and at which stride each of its axes lies."""

    name: str
    strides: tuple[tuple[int, frozenset[int]], ...]
    tensor: Tensor  # kept alive, so that its memory cannot become another tensor's


class _Product(NamedTuple):
    """Of a parameter and an activation: a gain, unless all that is done with it is to sum it."""

    use: int
    origin: _Origin


class _Watch(TorchDispatchMode):
    def __init__(self, params: Mapping[str, Tensor], given: object) -> None:
        super().__init__()
        self.uses: dict[str, list[Use]] = {name: [] for name in params}
        self.origins: dict[int, list[_Origin]] = {}
        self.activations: dict[int, StorageWeakRef] = {}
        self.makers: dict[int, frozenset[str]] = {}
        self.products: dict[int, list[_Product]] = {}
        self.sums: dict[int, tuple[Tensor, Sequence[int], Tensor]] = {}
        for name, p in params.items():
            strides = ((stride, frozenset({axis})) for axis, stride in enumerate(p.stride()))
            self.origins[_memory(p)] = [_Origin(name, tuple(strides), p)]
        self._activate(given)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = next(_tensors(result), None)
        known = {*map(_memory, _tensors(args))}
        active = any(map(self._is_active, known))
        if first is None or not (active or known & self.origins.keys()):
            return result
        operation, alone = func.overloadpacket, known == {_memory(first)}
        if not (alone and not func._schema.is_mutable):  # no mere view
            self._read(operation, args, known, first)
        if alone or _memory(first) in self.origins:
            pass  # a view, or written in place
        elif operation in WEIGHTS and not active and (same := self._same(operation, args, first)):
            self.origins[_memory(first)] = same
        elif active or operation not in ASIDE:
            makers = [self.makers[memory] for memory in known if self._is_active(memory)]
            self._activate(result, self._use(operation, args, first, frozenset().union(*makers)))
        return result

    def _activate(self, values: object, makers: frozenset[str] = frozenset()) -> None:
        """``makers``: the parameters that made them, since the last contraction."""
        for tensor in _tensors(values):
            self.activations[_memory(tensor)] = StorageWeakRef(tensor.untyped_storage())
            self.makers[_memory(tensor)] = makers

    def _is_active(self, memory: int) -> bool:
        return memory in self.activations and not self.activations[memory].expired()

    def _read(self, operation: Any, args: Sequence[Any], known: set[int], output: Tensor) -> None:
        """Note what is done with products."""
        for memory in known & self.products.keys():
            if operation is aten.sum and memory not in self.sums:
                dims = args[1] if len(args) > 1 and args[1] else range(args[0].ndim)
                self.sums[memory] = args[0], dims, output.detach().clone()
            elif operation is not aten.sum:
                del self.products[memory]

    def settle(self) -> None:
        """At the end: what was nothing but summed is no gain but a contraction."""
        for memory, products in self.products.items():
            if memory in self.sums:
                tensor, dims, output = self.sums[memory]
                for use, origin in products:
                    if summed := _axes(origin, tensor, dims):
                        fed = self.uses[origin.name][use].fed
                        self.uses[origin.name][use] = Use(summed, output, fed)

    def _found(self, args: Sequence[Any]) -> Iterator[tuple[int, Tensor, _Origin]]:
        """Which arguments are parameters or views of one: position, tensor, origin."""
        for position, argument in enumerate(args):
            for tensor in _tensors(argument):
                for origin in self.origins.get(_memory(tensor), ()):
                    yield position, tensor, origin

    def _use(
        self, operation: Any, args: Sequence[Any], output: Tensor, fed: frozenset[str]
    ) -> frozenset[str]:
        """Note the use of each parameter among ``args``; returns what has made ``output``."""
        axes = CONTRACTIONS[operation](args) if operation in CONTRACTIONS else {}
        found = list(self._found(args))
        contracted: set[str] = set()
        if operation in DATA and axes.keys() <= {position for position, *_ in found}:
            del axes[DATA[operation]]
        for position, tensor, origin in found:
            uses = self.uses[origin.name]
            summed = _axes(origin, tensor, axes.get(position, ()))
            uses.append(Use(summed, output.detach().clone(), fed))
            contracted |= {origin.name} if summed else set()
            if operation is aten.mul:
                product = _Product(len(uses) - 1, _same_axes(origin, tensor, output))
                self.products.setdefault(_memory(output), []).append(product)
        return frozenset(contracted) or fed.union(origin.name for *_, origin in found)

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
    """Which storage it is a view of: on the meta device none has an address of its own."""
    return tensor.untyped_storage()._cdata


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
