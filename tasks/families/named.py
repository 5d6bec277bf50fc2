"""Families by name: a file of this room is one, by the class in it that is called as the file is.

    mlp                          ``tasks/families/mlp.py``, the class ``MLP``
    mlp(width=64, depth=2)       a member of it; fields that are not named have their defaults
    my_module:Spirals(arms=3)    the same of a user's own class

The member without arguments is what tests take for the family, so it is a small one.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from inspect import isabstract
from typing import Any

from tasks.checks import meant
from tasks.types import Task
from tasks.user_code.calls import call
from tasks.user_code.imports import imported, yours
from tasks.user_code.rooms import inhabitants


@cache
def families() -> dict[str, type[Task]]:
    """All of this room, by the names of their files."""
    return inhabitants("tasks.families", is_family)


def is_family(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Task) and not isabstract(kind)


def fields_of(kind: type[Task]) -> set[str]:
    """What a member may be asked for."""
    return {field.name for field in fields(kind)} if is_dataclass(kind) else set()


def with_fields(*names: str) -> list[str]:
    """The families of this room that have all these fields."""
    return [name for name, kind in families().items() if fields_of(kind) >= {*names}]


def family(field: str, name: str, known: list[str]) -> type[Task]:
    """The family called ``name``, or the class that an import path of the user's leads to.

    Raises ValueError about ``field``, which is said to expect one of the ``known``.
    """
    if name in families():
        return families()[name]
    form = f"{', '.join(known)} or an import path module:class of a Task{meant(name, known)}"
    kind = imported(field, name, form)
    if not is_family(kind):
        raise ValueError(f"{field}: got {name!r}, expected {form}")
    return kind


def member(field: str, text: str) -> Task:
    """The task that ``text`` says: a family, with settings in brackets or without.

    Raises ValueError about ``field`` for no family, and for settings that it does not have.
    """
    name, settings = call(text, "FAMILY(field=value)")
    kind = family(field, name, [*families()])
    with yours(field, text):
        return _made(kind, settings)


def _made(kind: Any, settings: dict[str, Any]) -> Task:
    return kind(**settings)
