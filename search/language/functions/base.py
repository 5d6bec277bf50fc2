"""What a function of the language is: one row, which says everything that is known of it.

A value is one number an instance, one a named tensor or one an element; the three broadcast, so
an elementwise function gives the highest kind among its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # names and kinds are asked for without torch, too
    from torch import Tensor


class ProgramError(ValueError):
    """A program that cannot be an update rule; the message says where and why."""


class ProgramTypeError(ProgramError):
    """A function was given, or a program returns, a value of the wrong kind."""


class Kind(IntEnum):
    """How many numbers a value holds."""

    SCALAR = 0  # one an instance: constants, lr, t, global norms
    ARRAY = 1  # one a named tensor: norms
    TENSOR = 2  # one an element: w, g, states


SCALAR, ARRAY, TENSOR = Kind
ANY = (SCALAR, ARRAY, TENSOR)


@dataclass(frozen=True, eq=False)
class Op:
    """One function. ``torch`` is its meaning: elementwise on broadcast tensors, unless it reduces.

    ``torch`` of a function without arguments takes a tensor whose shape, type and device the
    result has. That of a ``per_tensor`` function takes matrices ``[..., rows, columns]`` and gives
    such a matrix: the first axis of a tensor by the rest. A tensor that has no two axes stays as it
    is (the first argument). Other reductions look at all tensors: ``reference`` executes them.
    """

    name: str
    accepts: tuple[tuple[Kind, ...], ...]  # the kinds that each argument may have
    torch: Callable[..., Tensor]
    code: int = -1  # position in OPS; of this process alone, as the files of the room decide
    label: int = -1  # what stands for the function in canonical text's hashes; for good
    result: Kind | None = None  # None: the highest kind among the arguments
    symbol: str | None = None  # how to_text writes it, between its arguments
    source: str = ""  # ``torch`` as text, arguments {0}, {1}, {2}; "" for reductions
    doc: str = ""
    reduces: bool = False  # needs whole tensors
    per_tensor: bool = False
    compiled: bool = False  # kernels have it; a program with one that they have not runs in torch
    commutative: bool = False
    negative: Literal["maybe", "never", "inherited"] = "maybe"  # inherited: if an argument is

    @property
    def arity(self) -> int:
        return len(self.accepts)


def result_kind(op: Op, kinds: Sequence[Kind]) -> Kind:
    """What kind ``op`` gives for arguments of these ``kinds``; ProgramTypeError if none."""
    if len(kinds) != op.arity:
        raise ProgramTypeError(f"{op.name} takes {op.arity} arguments, not {len(kinds)}")
    for position, (kind, accepted) in enumerate(zip(kinds, op.accepts, strict=True), 1):
        if kind not in accepted:
            wanted = " or ".join(Kind(k).name for k in accepted)
            raise ProgramTypeError(
                f"{op.name}: argument {position} is {Kind(kind).name}, it accepts {wanted}"
            )
    if op.result is not None:
        return op.result
    return max(kinds, default=SCALAR)


def elementwise(
    name: str, arity: int, torch: Callable[..., Tensor], source: str, doc: str = "", **facts: Any
) -> Op:
    """``facts``: fields of ``Op`` that are not their defaults."""
    return Op(name, (ANY,) * arity, torch, source=source, doc=doc, **facts)


def per_tensor(meaning: Callable[..., Tensor]) -> Op:
    """The function of matrices that is called, documented and computed as ``meaning`` is.

    Exported files hold a copy of its text: it may use its arguments, their methods and ``torch``.
    """
    name, arguments = meaning.__name__, inspect.signature(meaning).parameters
    places = "".join(f", {{{k}}}" for k in range(len(arguments)))
    row = elementwise(name, 0, meaning, f"_by_matrix(_{name}{places})", meaning.__doc__ or "")
    accepts = ((TENSOR,),) * len(arguments)
    return replace(row, accepts=accepts, result=TENSOR, reduces=True, per_tensor=True)
