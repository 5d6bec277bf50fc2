"""Where a rule's memory belongs: to elements, to tensors or to all of a row.

A rule has one state for a row of parameters. A training script needs it in parts, one a parameter,
so that checkpoints may drop, freeze or move parameters and the rest goes on:

    of elements   NAME           in the parameter's shape: momenta
    of tensors    NAME           its stretch of the row's state: averages over rows, an LSTM
    of the row    shared.NAME    the same copy with every parameter: averages of the loss

Which is which is found out by asking the rule for states of one tensor, of another, and of both:
what is as long for both as for the one and the other together can be cut between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from tasks.optim.rows import as_row
from tasks.types import Layout, Params, ParamSpec, State, UpdateRule

SHARED = "shared."
OURS = ("step", "hessian")
"""What is kept with each parameter besides the rule's own memory."""
PROBES = (ParamSpec("p0", (3,)), ParamSpec("p1", (2, 3)))


class Place(NamedTuple):
    """``axis`` of ``[N, ...]`` along which tensors follow each other; 0: the row has one.

    ``by_element``: it is the last one, and as long as a tensor has elements. ``by_row``: another
    row has another shape, in a way that nobody knows to cut: there it starts again.
    """

    axis: int = 0
    by_element: bool = False
    by_row: bool = False

    def shape(self, part: Tensor, spec: ParamSpec) -> tuple[int, ...]:
        """How a parameter keeps its part ``[...]``."""
        return (*part.shape[:-1], *spec.shape) if self.by_element else tuple(part.shape)

    def flat(self, kept: Tensor, spec: ParamSpec) -> Tensor:
        """What a parameter keeps, as a part of the row's state."""
        if not self.by_element:
            return kept
        return kept.reshape(*kept.shape[: kept.ndim - len(spec.shape)], spec.numel)


def places(rule: UpdateRule, like: Tensor) -> dict[str, Place]:
    """Of all states of ``rule``; ``like`` has the device and the precision of its parameters.

    Raises ValueError where a name is taken.
    """
    layouts = (PROBES[:1], PROBES[1:], PROBES)
    probes = [Params(like.new_zeros(1, Layout(x).n), Layout(x)) for x in layouts]
    one, other, both = (rule.init(probe) for probe in probes)
    for name in both:
        if name in OURS or name.startswith(SHARED):
            raise ValueError(
                f"the rule has a state called {name!r}, expected none of {', '.join(OURS)} or "
                f"beginning with {SHARED!r}: these names are taken"
            )
    return {n: _place(one[n].shape, other[n].shape, both[n].shape) for n in both}


def _place(one: Sequence[int], other: Sequence[int], both: Sequence[int]) -> Place:
    one, other, both = tuple(one), tuple(other), tuple(both)
    if one == other == both:
        return Place()
    for axis in range(1, len(both)) if len(one) == len(other) == len(both) else ():
        length = one[axis] + other[axis]
        if all((*x[:axis], length, *x[axis + 1 :]) == both for x in (one, other)):
            elements = tuple(spec.numel for spec in PROBES)
            return Place(axis, axis == len(both) - 1 and (one[axis], other[axis]) == elements)
    return Place(by_row=True)


def begin(rule: UpdateRule, p: Tensor, where: Mapping[str, Place]) -> State:
    """What a parameter that has no past keeps, be it alone or not."""
    row = as_row([p])
    return {
        name if where[name].axis else SHARED + name: value[0]
        .reshape(where[name].shape(value[0], row.layout.specs[0]))
        .clone()
        for name, value in rule.init(row).items()
    }
