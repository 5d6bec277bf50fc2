"""The 43 functions of the Lion paper (appendix H), which both kernels have.

What keeps programs finite is deliberately little: division adds 1e-8 to the denominator (so
``m / sqrt(v)`` is Adam's formula with its usual epsilon), square root and logarithms take absolute
values. All else is plain floating point; a program that makes infinities is found out by running
it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search.language.functions.base import ANY, ARRAY, SCALAR, TENSOR, Kind, Op
from search.language.functions.base import elementwise as _op

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8
COMMUTES: dict[str, Any] = {"commutative": True}
NEVER: dict[str, Any] = {"negative": "never"}
INHERITS: dict[str, Any] = {"negative": "inherited"}


def _infix(symbol: str, op: Op) -> Op:
    return replace(op, symbol=symbol)


def _unary(name: str, torch: str | None = None, **facts: Any) -> Op:
    """What torch calls ``torch``, or by the same name."""
    theirs = torch or name
    source = f"torch.{theirs}({{0}})"
    return _op(name, 1, lambda x: getattr(x, theirs)(), source, **facts)


def _constant(name: str, value: float, source: str) -> Op:
    return _op(name, 0, lambda like: like.new_full(like.shape, value), source)


def _reduction(
    name: str, result: Kind, accepts: tuple[tuple[Kind, ...], ...], doc: str, **facts: Any
) -> Op:
    def refuse(*_: Tensor) -> Tensor:
        raise TypeError(f"{name} needs the layout of its tensors: the interpreter executes it")

    return Op(name, accepts, refuse, result=result, doc=doc, reduces=True, **facts)


def _interp(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    return (1 - a) * x + a * y


_ROWS = (
    _infix("+", _op("add", 2, lambda x, y: x + y, "{0} + {1}", **COMMUTES, **INHERITS)),
    _infix("-", _op("sub", 2, lambda x, y: x - y, "{0} - {1}")),
    _infix("*", _op("mul", 2, lambda x, y: x * y, "{0} * {1}", **COMMUTES, **INHERITS)),
    _infix(
        "/",
        _op(
            "div",
            2,
            lambda x, y: x / (y + EPSILON),
            "{0} / ({1} + 1e-8)",
            "x / (y + 1e-8)",
            **INHERITS,
        ),
    ),
    _unary("abs", **NEVER),
    _unary("cos"),
    _unary("sin"),
    _unary("tan"),
    _unary("arcsin", "asin"),
    _unary("arccos", "acos"),
    _unary("arctan", "atan"),
    _unary("exp", **NEVER),
    _op("log", 1, lambda x: x.abs().log(), "torch.log({0}.abs())", "log |x|"),
    _unary("sinh"),
    _unary("cosh", **NEVER),
    _unary("tanh"),
    _unary("arcsinh", "asinh"),
    _unary("arccosh", "acosh"),
    _unary("arctanh", "atanh"),
    _unary("sign"),
    _unary("exp2", **NEVER),
    _op("exp10", 1, lambda x: 10.0**x, "10.0 ** {0}", **NEVER),
    _unary("expm1"),
    _op("log10", 1, lambda x: x.abs().log10(), "torch.log10({0}.abs())", "log10 |x|"),
    _op("log2", 1, lambda x: x.abs().log2(), "torch.log2({0}.abs())", "log2 |x|"),
    _op("log1p", 1, lambda x: (1 + x).abs().log(), "torch.log((1 + {0}).abs())", "log |1 + x|"),
    _op("square", 1, lambda x: x * x, "{0} * {0}", **NEVER),
    _op(
        "sqrt", 1, lambda x: x.abs().sqrt(), "torch.sqrt({0}.abs())", "square root of |x|", **NEVER
    ),
    _op("cube", 1, lambda x: x * x * x, "{0} * {0} * {0}", **INHERITS),
    _op("cbrt", 1, lambda x: x.sign() * x.abs() ** (1 / 3), "{0}.sign() * {0}.abs() ** (1 / 3)"),
    _op(
        "reciprocal",
        1,
        lambda x: 1 / (x + EPSILON),
        "1 / ({0} + 1e-8)",
        "1 / (x + 1e-8)",
        **INHERITS,
    ),
    _op("power", 2, lambda x, y: x**y, "{0} ** {1}"),
    _op("maximum", 2, lambda x, y: x.maximum(y), "torch.maximum({0}, {1})", **COMMUTES),
    _op("minimum", 2, lambda x, y: x.minimum(y), "torch.minimum({0}, {1})", **COMMUTES, **INHERITS),
    _reduction("norm", ARRAY, ((TENSOR,),), "Euclidean norm of each named tensor", **NEVER),
    _reduction(
        "global_norm", SCALAR, ((TENSOR,),), "Euclidean norm of all tensors as one vector", **NEVER
    ),
    _reduction(
        "dot",
        SCALAR,
        ((TENSOR,), (TENSOR,)),
        "inner product, all tensors as one vector",
        **COMMUTES,
    ),
    _reduction(
        "cosine_sim",
        SCALAR,
        ((TENSOR,), (TENSOR,)),
        "dot(x, y) / (global_norm(x) * global_norm(y) + 1e-8)",
        **COMMUTES,
    ),
    _reduction(
        "clip_by_global_norm",
        TENSOR,
        ((TENSOR,), (SCALAR,)),
        "x * min(1, c / (global_norm(x) + 1e-8))",
        **INHERITS,
    ),
    replace(
        _op("interp", 3, _interp, "(1 - {2}) * {0} + {2} * {1}", "(1 - a) * x + a * y"),
        accepts=(ANY, ANY, (SCALAR, ARRAY)),
    ),
    _constant("get_pi", math.pi, "math.pi"),
    _constant("get_e", math.e, "math.e"),
    _constant("get_eps", EPSILON, "1e-8"),
)

ROWS = tuple(replace(op, code=code, label=code, compiled=True) for code, op in enumerate(_ROWS))
