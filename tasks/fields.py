"""Checks of a task's fields: a ValueError names the field, its value and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


def positive(**fields: int) -> None:
    """Every keyword must be an integer of at least 1."""
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a positive integer")


def natural(**fields: int) -> None:
    """Every keyword must be an integer of at least 0."""
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}: got {value!r}, expected an integer of at least 0")


def one_of(name: str, value: str, accepted: Iterable[str]) -> None:
    """``value`` must be among ``accepted``."""
    names = sorted(accepted)
    if value not in names:
        known = f"{', '.join(names)}{meant(value, names)}"
        raise ValueError(f"{name}: got {value!r}, expected one of {known}")


def meant(value: str, accepted: Iterable[str], most: int = 1) -> str:
    """``; did you mean lion?`` with the ``most`` likely names, or nothing where none is like it."""
    close = get_close_matches(value, list(accepted), most)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def inside(name: str) -> Iterator[None]:
    """What is wrong with a field here is said of the field of ``name``: several may have one."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
