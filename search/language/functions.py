"""The function vocabulary of programs: the 43 functions of the Lion paper (appendix H).

A function is one row: its name, what kinds of value it takes, and its meaning as a torch
expression. Everything else that knows about functions (the parser, the mutations, the
interpreters, the exporter) reads this table, and kernels are tested against it.

A value is one number an instance, one a named tensor or one an element; the three broadcast, so
an elementwise function gives the highest kind among its arguments. What keeps programs finite is
deliberately little: division adds 1e-8 to the denominator (so ``m / sqrt(v)`` is Adam's formula
with its usual epsilon), square root and logarithms take absolute values. All else is plain
floating point; a program that makes infinities is found out by running it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names and kinds are asked for without torch, too
    from torch import Tensor

EPSILON = 1e-8
CONSTANT_BOUND = 1e10
"""Constants in programs lie in ``[-CONSTANT_BOUND, CONSTANT_BOUND]``."""


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
    """One function. Not a reduction: ``torch`` is its meaning, elementwise on broadcast tensors.

    ``torch`` of a function without arguments takes a tensor whose shape, type and device the
    result has. Reductions need to know where each tensor lies: they are executed by ``vm``.
    """

    name: str
    code: int  # position in OPS
    accepts: tuple[tuple[Kind, ...], ...]  # the kinds that each argument may have
    torch: Callable[..., Tensor]
    result: Kind | None = None  # None: the highest kind among the arguments
    symbol: str | None = None  # how to_text writes it, between its arguments
    source: str = ""  # ``torch`` as text, arguments {0}, {1}, {2}; "" for reductions
    doc: str = ""
    reduces: bool = False

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


def _op(name: str, arity: int, torch: Callable[..., Tensor], source: str, doc: str = "") -> Op:
    return Op(name, -1, (ANY,) * arity, torch, source=source, doc=doc)


def _infix(symbol: str, op: Op) -> Op:
    return replace(op, symbol=symbol)


def _unary(name: str, torch: str | None = None) -> Op:
    """What torch calls ``torch``, or by the same name."""
    theirs = torch or name
    return _op(name, 1, lambda x: getattr(x, theirs)(), f"torch.{theirs}({{0}})")


def _constant(name: str, value: float, source: str) -> Op:
    return _op(name, 0, lambda like: like.new_full(like.shape, value), source)


def _reduction(name: str, result: Kind, accepts: tuple[tuple[Kind, ...], ...], doc: str) -> Op:
    def refuse(*_: Tensor) -> Tensor:
        raise TypeError(f"{name} needs the layout of its tensors: it is executed by vm.py")

    return Op(name, -1, accepts, refuse, result=result, doc=doc, reduces=True)


def _interp(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    return (1 - a) * x + a * y


_ROWS = (
    _infix("+", _op("add", 2, lambda x, y: x + y, "{0} + {1}")),
    _infix("-", _op("sub", 2, lambda x, y: x - y, "{0} - {1}")),
    _infix("*", _op("mul", 2, lambda x, y: x * y, "{0} * {1}")),
    _infix(
        "/", _op("div", 2, lambda x, y: x / (y + EPSILON), "{0} / ({1} + 1e-8)", "x / (y + 1e-8)")
    ),
    _unary("abs"),
    _unary("cos"),
    _unary("sin"),
    _unary("tan"),
    _unary("arcsin", "asin"),
    _unary("arccos", "acos"),
    _unary("arctan", "atan"),
    _unary("exp"),
    _op("log", 1, lambda x: x.abs().log(), "torch.log({0}.abs())", "log |x|"),
    _unary("sinh"),
    _unary("cosh"),
    _unary("tanh"),
    _unary("arcsinh", "asinh"),
    _unary("arccosh", "acosh"),
    _unary("arctanh", "atanh"),
    _unary("sign"),
    _unary("exp2"),
    _op("exp10", 1, lambda x: 10.0**x, "10.0 ** {0}"),
    _unary("expm1"),
    _op("log10", 1, lambda x: x.abs().log10(), "torch.log10({0}.abs())", "log10 |x|"),
    _op("log2", 1, lambda x: x.abs().log2(), "torch.log2({0}.abs())", "log2 |x|"),
    _op("log1p", 1, lambda x: (1 + x).abs().log(), "torch.log((1 + {0}).abs())", "log |1 + x|"),
    _op("square", 1, lambda x: x * x, "{0} * {0}"),
    _op("sqrt", 1, lambda x: x.abs().sqrt(), "torch.sqrt({0}.abs())", "square root of |x|"),
    _op("cube", 1, lambda x: x * x * x, "{0} * {0} * {0}"),
    _op("cbrt", 1, lambda x: x.sign() * x.abs() ** (1 / 3), "{0}.sign() * {0}.abs() ** (1 / 3)"),
    _op("reciprocal", 1, lambda x: 1 / (x + EPSILON), "1 / ({0} + 1e-8)", "1 / (x + 1e-8)"),
    _op("power", 2, lambda x, y: x**y, "{0} ** {1}"),
    _op("maximum", 2, lambda x, y: x.maximum(y), "torch.maximum({0}, {1})"),
    _op("minimum", 2, lambda x, y: x.minimum(y), "torch.minimum({0}, {1})"),
    _reduction("norm", ARRAY, ((TENSOR,),), "Euclidean norm of each named tensor"),
    _reduction("global_norm", SCALAR, ((TENSOR,),), "Euclidean norm of all tensors as one vector"),
    _reduction("dot", SCALAR, ((TENSOR,), (TENSOR,)), "inner product, all tensors as one vector"),
    _reduction(
        "cosine_sim",
        SCALAR,
        ((TENSOR,), (TENSOR,)),
        "dot(x, y) / (global_norm(x) * global_norm(y) + 1e-8)",
    ),
    _reduction(
        "clip_by_global_norm",
        TENSOR,
        ((TENSOR,), (SCALAR,)),
        "x * min(1, c / (global_norm(x) + 1e-8))",
    ),
    replace(
        _op("interp", 3, _interp, "(1 - {2}) * {0} + {2} * {1}", "(1 - a) * x + a * y"),
        accepts=(ANY, ANY, (SCALAR, ARRAY)),
    ),
    _constant("get_pi", math.pi, "math.pi"),
    _constant("get_e", math.e, "math.e"),
    _constant("get_eps", EPSILON, "1e-8"),
)

OPS: dict[str, Op] = {op.name: replace(op, code=code) for code, op in enumerate(_ROWS)}
