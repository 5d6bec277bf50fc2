"""A name is a module of its room: what is added there is found by being there, nothing is listed.

``nsga2`` of the room ``search.evolution`` is the class that its module is named after, whatever its
capitals: ``NSGA2``; ``random_search`` is ``RandomSearch``. A name with a colon is an import path of
the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module, util
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from tasks.checks import meant
from tasks.user_code.imports import imported


def modules(room: str, others: Iterable[str]) -> list[str]:
    """The names of a room's modules but for ``others``, which serve them. Runs none of them."""
    spec = util.find_spec(room)
    places = spec.submodule_search_locations if spec else None
    return sorted({module.name for module in iter_modules(places)} - {*others})


def inhabitants(room: str, is_one: Callable[[type], bool]) -> dict[str, type]:
    """The classes of a room that its modules are named after, by their names. Imports them all."""
    found = {
        name: _named_after(name, import_module(f"{room}.{name}")) for name in modules(room, ())
    }
    return {name: kind for name, kind in found.items() if kind is not None and is_one(kind)}


def _named_after(name: str, module: ModuleType) -> type | None:
    classes = {key.lower(): thing for key, thing in vars(module).items() if isinstance(thing, type)}
    return classes.get(name.replace("_", ""))


def inhabitant(
    field: str, name: str, room: str, known: Iterable[str], base: type, form: str
) -> Any:
    """The class on ``base`` that ``name`` means: a module in ``known`` of the ``room``, or an
    import path, whose module is run.

    Raises ValueError, which says what was expected of the ``field``.
    """
    if ":" in name:
        found = imported(field, name, form)
    elif name in (names := [*known]):
        found = _named_after(name, _imported(field, name, room))
    else:
        listed = f"{', '.join(names)}{meant(name, names)}"
        raise ValueError(f"{field}: got {name!r}, expected one of {listed}, or {form}")
    if not isinstance(found, type) or base not in found.__mro__[1:]:
        raise ValueError(
            f"{field}: got {name!r}, expected a class on {base.__module__}.{base.__name__}"
        )
    return found


def _imported(field: str, name: str, room: str) -> Any:
    """What needs a package that is not installed has an extra that is called as it is."""
    try:
        return import_module(f"{room}.{name}")
    except ImportError as error:
        raise ValueError(
            f"{field}: got {name!r}, which needs more ({error}): pip install 'l2o[{name}]'"
        ) from None
