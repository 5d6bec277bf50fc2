"""Which values of a program stay finite: ``torch.lerp`` takes no others.

It computes x + a * (y - x), which is NaN where x is infinite, and (1 - a) * x + a * y is not. To be
infinite, a value needs a function that makes infinities (``log`` of a dead gradient), states that
grow from step to step (``v = v * 2.0``), or products beyond the range of float32 (the sixth power
of ``reciprocal(g)`` where g is zero). Gradients and weights are taken to be below 10,000, and
hyper-parameters at their defaults.

States are assumed to stay as large as they are, give or take something bounded at each step. Those
that do so, all others being unknown, are bounded, and may bound more in the next round.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum

from search.language.program import Argument, Program, Statement


class Size(IntEnum):
    """How large a value may be."""

    SMALL = 0  # at most one
    BOUNDED = 1  # by gradients, weights and constants
    STEADY = 2  # no more than states were, plus something bounded
    UNKNOWN = 3


SMALL, BOUNDED, STEADY, UNKNOWN = Size
ALWAYS: dict[str, Size] = dict.fromkeys(("sign", "sin", "cos", "tanh", "cosine_sim"), SMALL)
ALWAYS |= dict.fromkeys(("tan", "arcsin", "arccos", "arctan", "get_pi", "get_e"), BOUNDED)
ALWAYS["get_eps"] = SMALL
KEPT = frozenset({"abs", "sqrt", "cbrt", "arcsinh", "arccosh", "maximum", "minimum"})
"""As large as the largest argument, or smaller; roots are only larger below one."""
PRODUCTS = frozenset({"mul", "square", "cube"})
EXPONENTIALS = frozenset({"exp", "expm1", "exp2", "exp10", "sinh", "cosh"})
FINITE = PRODUCTS | {"add", "sub", "div", "interp", "norm", "global_norm", "dot"}
FINITE |= {"clip_by_global_norm"}
"""Not infinite if no argument is, but for their range."""
LARGEST = 38
"""Decades of float32."""
INPUT = 4
GUARDED = 8
"""A divisor of zero is 1e-8."""


def finite(program: Program, positive: Sequence[Collection[str]]) -> list[frozenset[str]]:
    """For each statement, the variables that are finite before it runs.

    ``positive``: for each statement, those that cannot be negative then.
    """
    bounded: set[str] = set()
    while True:
        steady = set(program.states) - bounded
        while True:
            sizes = dict.fromkeys(program.states, UNKNOWN)
            sizes |= dict.fromkeys(steady, STEADY) | dict.fromkeys(bounded, BOUNDED)
            scopes = _scopes(program, sizes, positive)
            kept = {name for name in steady if scopes[-1][name] <= STEADY}
            if kept == steady:
                break
            steady = kept
        if not steady:
            break
        bounded |= steady
    return [
        frozenset(n for n, size in at.items() if size <= BOUNDED and decades[n] <= LARGEST)
        for at, decades in zip(scopes[:-1], _decades(program)[:-1], strict=True)
    ]


def _scopes(
    program: Program, states: dict[str, Size], positive: Sequence[Collection[str]]
) -> list[dict[str, Size]]:
    """The sizes of all variables before each statement, and at the end."""
    scopes = [dict.fromkeys(program.inputs, BOUNDED) | states]
    for statement, signs in zip(program.statements, positive, strict=True):
        scopes.append({**scopes[-1], statement.target: _size(statement, scopes[-1], signs)})
    return scopes


def _size(statement: Statement, known: Mapping[str, Size], positive: Collection[str]) -> Size:
    """How large the value of a statement may be."""

    def is_positive(arg: Argument) -> bool:
        return arg in positive if isinstance(arg, str) else arg >= 0

    op, args = statement.op, statement.args
    sizes = [known[arg] if isinstance(arg, str) else Size(abs(arg) > 1) for arg in args]
    if op in ALWAYS:
        return ALWAYS[op]
    largest = max(sizes)
    if op in KEPT or (op == "log1p" and is_positive(args[0])):
        return largest
    if op in ("add", "sub") and min(sizes) < STEADY:
        return max(largest, BOUNDED)
    if op in PRODUCTS and min(sizes) == SMALL:
        return largest
    if op == "interp" and sizes[2] == SMALL and is_positive(args[2]):
        return max(sizes[:2])
    if op == "power" and sizes[0] == SMALL and all(map(is_positive, args)):
        return SMALL
    if op == "reciprocal" and is_positive(args[0]):
        return BOUNDED
    if op in EXPONENTIALS and largest == SMALL:
        return BOUNDED
    if op == "div":  # by what is not -1e-8, be it infinite
        largest = sizes[0] if is_positive(args[1]) else UNKNOWN
    return BOUNDED if op in FINITE and largest <= BOUNDED else UNKNOWN


def _decades(program: Program) -> list[dict[str, float]]:
    """Before each statement, and at the end, what the variables that do not grow from step to step
    are below: powers of ten."""
    states, rounds, settled = dict.fromkeys(program.states, 0.0), 0, False
    while not settled:
        rounds += 1
        scopes = [dict.fromkeys(program.inputs, float(INPUT)) | states]
        for statement in program.statements:
            scopes.append({**scopes[-1], statement.target: _power(statement, scopes[-1])})
        after = {name: max(scopes[-1][name], before) for name, before in states.items()}
        if rounds > len(states) + 1:  # whoever still grows does so on and on
            after = {name: x if x == states[name] else math.inf for name, x in after.items()}
        settled, states = after == states, after
    return scopes


def _power(statement: Statement, known: Mapping[str, float]) -> float:
    """Ten to this is more than the value of a statement, if that does not grow on and on."""
    op = statement.op
    args = [known[a] if isinstance(a, str) else _of(a) for a in statement.args]
    if op in ALWAYS:
        return 0.0 if ALWAYS[op] == SMALL else GUARDED
    if op in ("mul", "dot"):
        return sum(args) + (INPUT if op == "dot" else 0)
    if op in ("square", "cube"):
        return args[0] * (2 if op == "square" else 3)
    if op in ("sqrt", "cbrt"):
        return args[0] / (2 if op == "sqrt" else 3)
    if op in ("div", "reciprocal"):
        return GUARDED + (args[0] if op == "div" else 0)
    return max(args) + (INPUT if op in ("norm", "global_norm") else 0)


def _of(constant: float) -> float:
    return max(0.0, math.log10(abs(constant))) if constant else 0.0
