"""A name is a module of its room: what is added there is found by being there, nothing is listed.

``nsga2`` of the room ``search.evolution`` is the class that its module is named after, whatever its
capitals: ``NSGA2``; ``random_search`` is ``RandomSearch``. A name with a colon is an import path of
the user's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module, util
from pkgutil import iter_modules
from typing import Any

from tasks.checks import meant
from tasks.user_code.imports import imported


def modules(room: str, others: Iterable[str]) -> list[str]:
    """The names of a room's modules but for ``others``, which serve them. Runs none of them."""
    spec = util.find_spec(room)
    places = spec.submodule_search_locations if spec else None
    return sorted({module.name for module in iter_modules(places)} - {*others})


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
        module = _imported(field, name, room)
        called = {key.lower(): kind for key, kind in vars(module).items()}
        found = called.get(name.replace("_", ""))
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
