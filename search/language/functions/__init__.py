"""The functions of the language: the paper's, and each file of this room that is called as one.

A function is one row (``base.py``): its name, what kinds of value it takes, its meaning as a torch
expression, its text in exported files and what algebra holds of it. Everything else that knows
about functions (the parser, the mutations, the interpreters, the exporter) reads this table, and
kernels are tested against it. A function that kernels have not is executed in torch, for the
programs that call it alone. ``paper.py`` holds the 43 that searches draw by default.

Nothing that has been written changes where a file comes or goes: canonical texts depend on the
names of functions, not on how many there are, and only the paper's names are refused to variables.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from importlib import import_module
from pkgutil import iter_modules

from search.language.functions import paper
from search.language.functions.base import (
    ANY,
    ARRAY,
    SCALAR,
    TENSOR,
    Kind,
    Op,
    ProgramError,
    ProgramTypeError,
    per_tensor,
    result_kind,
)
from search.language.functions.paper import EPSILON

CONSTANT_BOUND = 1e10
"""Constants in programs lie in ``[-CONSTANT_BOUND, CONSTANT_BOUND]``."""
PAPER = tuple(op.name for op in paper.ROWS)
"""The names of the paper's functions, which mutations draw unless they are told others."""


def _others() -> list[Op]:
    """Those of all other files: a row, or what a function of matrices means."""
    names = sorted({module.name for module in iter_modules(__path__)} - {"base", "paper"})
    found = (getattr(import_module(f"{__name__}.{name}"), name) for name in names)
    rows = (given if isinstance(given, Op) else per_tensor(given) for given in found)
    return [replace(op, label=_label(op.name)) for op in rows]


def _label(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


OPS: dict[str, Op] = {
    op.name: replace(op, code=code) for code, op in enumerate((*paper.ROWS, *_others()))
}

__all__ = [
    "ANY",
    "ARRAY",
    "CONSTANT_BOUND",
    "EPSILON",
    "OPS",
    "PAPER",
    "SCALAR",
    "TENSOR",
    "Kind",
    "Op",
    "ProgramError",
    "ProgramTypeError",
    "result_kind",
]
