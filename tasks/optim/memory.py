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

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tasks.optim.rows import alike, as_row
from tasks.oracles.hutchinson import hessian_every
from tasks.types import HOST, Layout, Params, ParamSpec, State, UpdateRule

SHARED = "shared."
OURS = ("step", "hessian")
"""What is kept with each parameter besides the rule's own memory."""
HYPER = ("lr", "weight_decay", "horizon")
"""What a group holds since ever, by which an unnamed state dict is known to be ours."""
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


# State dicts ----------------------------------------------------------------------------------


class Foreign(ValueError):
    """A state dict that is another optimizer's; nothing has been changed."""

    def __init__(self, got: str, expected: str) -> None:
        text = f"state: got {got}, expected {expected}: the state dict is another optimizer's"
        super().__init__(text)


def identity(rule: UpdateRule) -> str:
    """What tells a rule's states from another's: its attribute ``identity``, or its class."""
    return getattr(rule, "identity", type(rule).__name__)


def examined(
    given: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    rule: UpdateRule,
    where: Callable[[Tensor], Mapping[str, Place]],
) -> dict[Any, dict[str, Any]]:
    """The states of a state dict, if they are those of this rule and of ``groups``.

    Raises ValueError if not; warns if the state dict does not say which rule it is of.
    """
    pairs = paired(given, groups)
    is_named = _names(given["param_groups"], identity(rule))
    states = remembered(given)
    for group in given["param_groups"]:
        params = {key: pairs[key] for key in group["params"]}
        if params and not is_named:
            from_rows(states, params, rule, where(next(iter(params.values()))))
    for key, p in pairs.items():
        if key in states:
            expected = begin(rule, p, where(p)) | {"step": torch.zeros((), **HOST)}
            expected |= {"hessian": p} if hessian_every(rule) else {}
            examine(states[key], expected, where(p), ("hessian",))
    if not is_named:
        text = "state: the state dict does not say which rule it is of; names and shapes decide"
        warnings.warn(text, stacklevel=2)
    return states


def _names(groups: Sequence[Mapping[str, Any]], expected: str) -> bool:
    """Whether a state dict's groups name this rule; raises Foreign where they name another."""
    for group in groups:
        if "rule" in group and group["rule"] != expected:
            raise Foreign(f"that of {group['rule']}", f"that of {expected}")
        missing = [name for name in HYPER if name not in group and "rule" not in group]
        if missing:
            raise Foreign(f"groups without {', '.join(missing)}", f"those of {expected}")
    return all("rule" in group for group in groups)


def paired(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[Any, Tensor]:
    """The keys of a state dict's parameters, and which parameters they are.

    Raises ValueError where there are others than in ``groups``.
    """
    if not {"state", "param_groups"} <= set(given):
        raise Foreign(f"entries {', '.join(map(str, given)) or 'none'}", "state and param_groups")
    got, expected = ([len(g["params"]) for g in x] for x in (given["param_groups"], groups))
    if got != expected:
        raise ValueError(f"param_groups: got groups of {got} parameters, expected {expected}")
    keys = [key for group in given["param_groups"] for key in group["params"]]
    params = [p for group in groups for p in group["params"]]
    return dict(zip(keys, params, strict=True))


def remembered(given: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """The states by key. Distributed checkpoints make empty ones where nothing was: left out."""
    states = {
        key: {n: value for n, value in state.items() if isinstance(value, Tensor) or value != {}}
        if isinstance(state, Mapping)
        else state
        for key, state in given["state"].items()
    }
    return {key: state for key, state in states.items() if state != {}}


def from_rows(
    states: dict[Any, dict[str, Any]],
    params: Mapping[Any, Tensor],
    rule: UpdateRule,
    where: Mapping[str, Place],
) -> None:
    """Cut what version 0.1 kept of a row with its first parameter: as long as all of its tensors.

    ``params``: those of one group. What does not fit is left for ``examine`` to refuse.
    """
    keys = {p: key for key, p in params.items()}
    for row in alike([p for p in keys if keys[p] in states]):
        members = [keys[p] for p in row]
        for name in [n for n, place in where.items() if place.axis]:
            holder = next((k for k in members if SHARED + name in states[k]), None)
            if holder is None:
                continue
            alone = [begin(rule, p, where)[name] for p in row]
            axis = where[name].axis - 1
            lengths, value = [x.shape[axis] for x in alone], states[holder].pop(SHARED + name)
            if value.ndim == alone[0].ndim and sum(lengths) == value.shape[axis]:
                parts = value.split(lengths, axis)
                for key, part in zip(members, parts, strict=True):
                    states[key][name] = part


def examine(
    state: Any, expected: Mapping[str, Tensor], where: Mapping[str, Place], extra: Sequence[str]
) -> None:
    """Raise Foreign unless ``state`` is what one parameter keeps, by names and shapes.

    ``extra``: names that may be missing. So may what is shared, which others have.
    """
    if not isinstance(state, Mapping):
        raise Foreign(repr(state), "a dictionary for each parameter")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise Foreign(f"{name} = {value!r}", "tensors")
    needed = {name for name in expected if name not in extra and not name.startswith(SHARED)}
    if not needed <= state.keys() <= expected.keys():
        raise Foreign(_named(state), _named(expected))
    for name, value in state.items():
        by_row = where.get(name.removeprefix(SHARED), Place()).by_row
        if value.shape != expected[name].shape and not by_row:
            shapes = (f"{name} of shape {tuple(x.shape)}" for x in (value, expected[name]))
            raise Foreign(*shapes)


def _named(state: Mapping[str, Any]) -> str:
    return ", ".join(sorted(name.removeprefix(SHARED) for name in state)) or "none"
