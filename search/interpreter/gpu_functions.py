"""What the functions of programs mean on a GPU, and how one is chosen while a program runs.

``functions`` has a row for each ``compiled`` function that does not reduce. The interpreter chooses
among them by comparing the opcode, six times at most; all threads of a block choose the same.
"""
# pyright: reportOptionalSubscript=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, uint32
from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)  # pyright: ignore[reportAttributeAccessIssue]
device_function = cuda.jit(device=True)
elementary: Any = np if SIMULATED else math  # simulated, math would raise where CUDA gives NaN


def functions(real: Any) -> dict[str, Callable[..., Any]]:
    """What the elementwise functions mean: a row for each, as in ``OPS``."""
    zero, one, two, ten = real(0), real(1), real(2), real(10)
    eps, third, pi, e = real(1e-8), real(1 / 3), real(math.pi), real(math.e)
    return {
        "add": lambda x, y, z: x + y,
        "sub": lambda x, y, z: x - y,
        "mul": lambda x, y, z: x * y,
        "div": lambda x, y, z: x / (y + eps),
        "abs": lambda x, y, z: abs(x),
        "cos": lambda x, y, z: np.cos(x),
        "sin": lambda x, y, z: np.sin(x),
        "tan": lambda x, y, z: np.tan(x),
        "arcsin": lambda x, y, z: np.arcsin(x),
        "arccos": lambda x, y, z: np.arccos(x),
        "arctan": lambda x, y, z: np.arctan(x),
        "exp": lambda x, y, z: elementary.exp(x),
        "log": lambda x, y, z: np.log(abs(x)),
        "sinh": lambda x, y, z: np.sinh(x),
        "cosh": lambda x, y, z: np.cosh(x),
        "tanh": lambda x, y, z: np.tanh(x),
        "arcsinh": lambda x, y, z: np.arcsinh(x),
        "arccosh": lambda x, y, z: np.arccosh(x),
        "arctanh": lambda x, y, z: np.arctanh(x),
        "sign": lambda x, y, z: one if x > zero else (-one if x < zero else zero),
        "exp2": lambda x, y, z: two**x,
        "exp10": lambda x, y, z: ten**x,
        "expm1": lambda x, y, z: elementary.expm1(x),
        "log10": lambda x, y, z: np.log10(abs(x)),
        "log2": lambda x, y, z: np.log2(abs(x)),
        "log1p": lambda x, y, z: np.log(abs(one + x)),
        "square": lambda x, y, z: x * x,
        "sqrt": lambda x, y, z: elementary.sqrt(abs(x)),
        "cube": lambda x, y, z: x * x * x,
        "cbrt": lambda x, y, z: (one if x > zero else (-one if x < zero else x)) * abs(x) ** third,
        "reciprocal": lambda x, y, z: one / (x + eps),
        "power": lambda x, y, z: x**y,
        "maximum": lambda x, y, z: x if x > y or x != x else y,
        "minimum": lambda x, y, z: x if x < y or x != x else y,
        "interp": lambda x, y, z: (one - z) * x + z * y,
        "get_pi": lambda x, y, z: pi,
        "get_e": lambda x, y, z: e,
        "get_eps": lambda x, y, z: eps,
    }


@device_function
def operand(words, s, place):
    """Where an operand's first element lies for this thread, and how far apart they are.

    Unsigned, here and below: a signed index may be negative, which costs three instructions.
    """
    return uint32(words[s, place] + words[s, place + 1] * cuda.threadIdx.x), uint32(
        words[s, place + 2]
    )


def statement_of(function: Callable[..., Any], real: Any, elements: int) -> Callable[..., None]:
    """A function on the elements of a thread; all are read before any is written."""
    inlined: Any = device_function(function)

    @device_function
    def statement(code, r, o, so, a, sa, b, sb, c, sc):
        results = cuda.local.array(elements, real)
        for e in range(elements):
            k = uint32(e)
            results[k] = inlined(r[a + k * sa], r[b + k * sb], r[c + k * sc])
        for e in range(elements):
            k = uint32(e)
            r[o + k * so] = results[k]

    return statement


def choice(statements: list[tuple[int, Callable[..., None]]]) -> Callable[..., None]:
    """One function that runs the statement with a given code: a balanced tree of comparisons."""
    if len(statements) == 1:
        return statements[0][1]
    half = len(statements) // 2
    middle = statements[half][0]
    low, high = choice(statements[:half]), choice(statements[half:])

    @device_function
    def choose(code, r, o, so, a, sa, b, sb, c, sc):
        if code < middle:
            low(code, r, o, so, a, sa, b, sb, c, sc)
        else:
            high(code, r, o, so, a, sa, b, sb, c, sc)

    return choose
