"""Which architecture a name means: a file of this room, or a class in a module of the user's own.

``small_fc`` is the class that ``small_fc.py`` is named after: a new file is found by being there.
``my_module:Mine`` is a class of the user's. Checkpoints keep these names, and code that a
checkpoint names is run with consent alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TypeGuard

from l2o.base import LearnedOptimizer
from tasks.user_code.imports import imported, name_of_yours
from tasks.user_code.rooms import inhabitants

Kind = type[LearnedOptimizer]
FORM = "package.module:Class, a frozen dataclass that is an l2o.LearnedOptimizer"


@cache
def architectures() -> Mapping[str, Kind]:
    """All of this room, by the names of their modules."""
    return inhabitants("l2o.architectures", _is_architecture)


def own(name: str) -> Kind:
    """A class of the user's, whose module is run. Raises ValueError where there is none."""
    kind = imported("architecture", name, FORM)
    if _is_architecture(kind) and "__dataclass_fields__" in vars(kind):
        return kind
    raise ValueError(f"architecture: got {name!r}, expected {FORM}")


def name_of(kind: Kind) -> str:
    """By what a checkpoint names an architecture. Raises ValueError for one that no other process
    would find."""
    for name, known in architectures().items():
        if kind is known:
            return name
    name = name_of_yours(kind)
    try:
        found = own(name) if name else None
    except ValueError:
        found = None
    if not name or found is None or found.__qualname__ != kind.__qualname__:
        raise ValueError(
            f"optimizer: got {kind.__qualname__} of {kind.__module__}, expected one of "
            f"{', '.join(architectures())}, or a class at the top of a module that can be imported"
        )
    return name


def _is_architecture(kind: object) -> TypeGuard[Kind]:
    return isinstance(kind, type) and issubclass(kind, LearnedOptimizer) and not _abstract(kind)


def _abstract(kind: type) -> bool:
    return bool(getattr(kind, "__abstractmethods__", ()))
