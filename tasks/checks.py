"""Checks of a task's fields: a ValueError names the field, its value and what is accepted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any
from unicodedata import category


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


def above_zero(**fields: float) -> None:
    """Every keyword must be a positive, finite number."""
    for name, value in fields.items():
        if isinstance(value, bool | str) or not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value!r}, expected a positive number")


LARGEST = 2**64
"""No number of ours takes more bits."""


def plausible(kind: object, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of ``given`` that cannot be meant for the field of its name of
    the dataclass ``kind``: numbers of more than 64 bits, that are none or not finite, true or
    false for a number, a fraction for a whole one, text; anything else where text belongs."""
    for field in fields(kind) if is_dataclass(kind) else ():
        if field.name in given:
            _plausible(field.name, given[field.name], str(field.type))


def _plausible(name: str, value: Any, kind: str) -> None:
    if isinstance(value, list | tuple) and "tuple" in kind:
        for part in value:
            _plausible(name, part, kind.replace("tuple", "", 1))
        return
    numeric = re.search(r"\b(int|float)\b", kind)
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError(f"{name}: got a number of over 64 bits, expected a smaller one")
    if isinstance(value, float) and not math.isfinite(value) and numeric:
        raise ValueError(f"{name}: got {value}, expected a finite number")
    wrong = isinstance(value, bool) and "bool" not in kind
    wrong = wrong or (isinstance(value, str) and "str" not in kind and "Literal" not in kind)
    wrong = wrong or (isinstance(value, float) and "float" not in kind and value % 1 != 0)
    wrong = wrong or (value is None and "None" not in kind) or isinstance(value, list | dict)
    if numeric and wrong:
        meant = "a number" if "float" in kind else "a whole number"
        raise ValueError(f"{name}: got {value!r}, expected {meant}")
    if not numeric and not _other(value, kind):
        raise ValueError(f"{name}: got {value!r}, expected {_said(kind)}")


def _other(value: Any, kind: str) -> bool:
    """Whether ``value`` is of a ``kind`` that is no number, as far as its words say."""
    if value is None and "None" in kind:
        return True
    if "tuple" in kind:
        return False  # it is not several
    of = {r"\bstr\b|Literal": str, r"\bbool\b": bool}
    known = tuple(python for words, python in of.items() if re.search(words, kind))
    return not known or isinstance(value, known)


def _said(kind: str) -> str:
    if "tuple" in kind:
        return "several values"
    return "true or false" if "bool" in kind else "text"


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


STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that no reader sees."""


def printable(text: str) -> str:
    """``text`` with lines and tabs, and such as an escape character as ``\\x1b``."""
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in STEERING and c not in "\n\t" else c
        for c in text
    )
