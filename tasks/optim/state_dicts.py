"""State dicts that somebody brings: what they have to hold, checked before anything changes.

First their form: dictionaries, lists and numbers where an optimizer has them (``well_formed``).
Then whose they are: groups name the rule, and each parameter's states have its names and shapes
(``examined``). What is wrong is one line that names the entry.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.optim.memory import SHARED, Place, begin
from tasks.optim.rows import alike
from tasks.oracles.hutchinson import hessian_every
from tasks.types import HOST, UpdateRule

HYPER = ("lr", "weight_decay", "horizon")
"""What a group holds since ever, by which an unnamed state dict is known to be ours."""


class Foreign(ValueError):
    """A state dict that is another optimizer's; nothing has been changed."""

    def __init__(self, got: str, expected: str) -> None:
        text = f"state: got {got}, expected {expected}: the state dict is another optimizer's"
        super().__init__(text)


def well_formed(given: Any) -> None:
    """Raise ValueError, naming the entry, unless ``given`` has the form of a state dict."""
    _expect(isinstance(given, dict), "state dict", given, "a dictionary")
    if not {"state", "param_groups"} <= set(given):
        raise Foreign(f"entries {', '.join(map(str, given)) or 'none'}", "state and param_groups")
    states, groups = given["state"], given["param_groups"]
    _expect(isinstance(states, Mapping), "state", states, "a dictionary")
    _expect(isinstance(groups, list | tuple), "param_groups", groups, "a list")
    known: list[int | str] = []
    for place, group in enumerate(groups):
        where = f"param_groups[{place}]"
        _expect(isinstance(group, Mapping), where, group, "a dictionary")
        keys = group.get("params")
        good = isinstance(keys, list | tuple) and all(isinstance(key, int | str) for key in keys)
        _expect(good, f"{where}.params", keys, "a list of numbers or names")
        known += keys
    _expect(len(set(known)) == len(known), "param_groups", known, "each parameter once")


def _alike(given: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where a group has another kind of value than ours: a truth, or a number."""
    for place, (group, ours) in enumerate(zip(given, groups, strict=True)):
        for name in [name for name in ours if name in group and name not in ("params", "rule")]:
            where, value = f"param_groups[{place}].{name}", group[name]
            if isinstance(ours[name], bool | None):
                _expect(isinstance(value, bool | None), where, value, "True or False")
            elif isinstance(ours[name], int | float | Tensor):
                _expect(_is_number(value), where, value, "a number")


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and value.layout == torch.strided
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _expect(good: bool, where: str, got: Any, expected: str) -> None:
    if not good:
        raise ValueError(f"{where}: got {_brief(got)}, expected {expected}")


def _brief(value: Any) -> str:
    """A value in one short line."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number of over 64 bits"
    return (
        f"{value!r:.60}".replace("\n", " ") if isinstance(value, _PLAIN) else type(value).__name__
    )


_PLAIN = (str, int, float, list, tuple, type(None))


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
    for key in given["state"]:
        _expect(key in pairs, "state", key, "only parameters of param_groups")
    is_named = _names(given["param_groups"], identity(rule))
    _alike(given["param_groups"], groups)
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
            said = group["rule"]
            said = said if isinstance(said, str) else _brief(said)
            raise Foreign(f"that of {said}", f"that of {expected}")
        missing = [name for name in HYPER if name not in group and "rule" not in group]
        if missing:
            raise Foreign(f"groups without {', '.join(missing)}", f"those of {expected}")
    return all("rule" in group for group in groups)


def paired(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[Any, Tensor]:
    """The keys of a state dict's parameters, and which parameters they are.

    Raises ValueError where there are others than in ``groups``.
    """
    got, expected = ([len(g["params"]) for g in x] for x in (given["param_groups"], groups))
    if got != expected:
        raise ValueError(f"param_groups: got groups of {got} parameters, expected {expected}")
    keys = [key for group in given["param_groups"] for key in group["params"]]
    params = [p for group in groups for p in group["params"]]
    return dict(zip(keys, params, strict=True))


def remembered(given: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """The states by key. Distributed checkpoints make empty ones where nothing was: left out.

    Raises ValueError where a parameter's are no dictionary of tensors.
    """
    states = {}
    for key, state in given["state"].items():
        _expect(isinstance(state, Mapping), f"state[{key!r}]", state, "a dictionary")
        kept = {n: value for n, value in state.items() if isinstance(value, Tensor) or value != {}}
        for name, value in kept.items():
            if not isinstance(value, Tensor):
                raise Foreign(f"{name} = {_brief(value)}", "tensors")
        if kept:
            states[key] = kept
    return states


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
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    where: Mapping[str, Place],
    extra: Sequence[str],
) -> None:
    """Raise Foreign unless ``state`` is what one parameter keeps, by names and shapes.

    ``extra``: names that may be missing. So may what is shared, which others have.
    """
    needed = {name for name in expected if name not in extra and not name.startswith(SHARED)}
    if not needed <= state.keys() <= expected.keys():
        raise Foreign(_named(state), _named(expected))
    for name, value in state.items():
        by_row = where.get(name.removeprefix(SHARED), Place()).by_row
        if value.shape != expected[name].shape and not by_row:
            shapes = (f"{name} of shape {tuple(x.shape)}" for x in (value, expected[name]))
            raise Foreign(*shapes)
        if value.is_meta and not expected[name].is_meta:
            raise Foreign(f"{name} on the meta device", "numbers")
        if _kind(value) != _kind(expected[name]):
            raise Foreign(*(f"{name} of {_kind(x)}" for x in (value, expected[name])))


def _kind(x: Tensor) -> str:
    """What a state's numbers are, whatever their precision, and whether they are there."""
    kinds = ("complex numbers" if x.is_complex() else "real numbers", "whole numbers")
    lies = "" if x.layout == torch.strided else " in a sparse tensor"
    return kinds[not (x.is_complex() or x.is_floating_point())] + lies


def _named(state: Mapping[str, Any]) -> str:
    return ", ".join(sorted(name.removeprefix(SHARED) for name in state)) or "none"
