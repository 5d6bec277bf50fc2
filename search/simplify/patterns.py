"""Algebra as a table of rules, ``pattern -> replacement``, and how a pattern is matched.

In a pattern a letter stands for

    a b     any value           x y     a tensor or an array (anything but a scalar)
    s t     a scalar            c d     a constant
    p       a positive constant, or lr              n       a negative constant
    q       a positive constant

Each rule leads towards a smaller program, or moves scalars outwards, where they meet and fold.
Rules hold up to rounding and up to the guard of division, ``x / (y + 1e-8)``, near zero. At zero
they hold, too: ``a / a`` is 0 there, so it stays. So does what is divided by lr, which is small
enough for the guard to show. Where a rate of 0 matters is found out by running the program
(``search.simplify.agreement``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from search.language.canonical import COMMUTATIVE
from search.language.flow import Expression, Flow, Reference
from search.language.functions import Kind

ODD_AND_RISING = ("tanh", "arctan", "sinh", "arcsinh", "cube", "cbrt")
RULES = (
    # identities
    ("a * 1", "a"),
    ("a * 0", "0"),
    ("a + 0", "a"),
    ("a - 0", "a"),
    ("a - a", "0"),
    ("0 - (0 - a)", "a"),
    ("a / c", "a * reciprocal(c)"),
    ("a * reciprocal(x)", "a / x"),
    ("interp(a, b, 0)", "a"),
    ("interp(a, b, 1)", "b"),
    ("interp(a, a, s)", "a"),
    ("maximum(a, a)", "a"),
    ("minimum(a, a)", "a"),
    ("(a + c) + d", "a + (c + d)"),
    # powers
    ("a * a", "square(a)"),
    ("square(a) * a", "cube(a)"),
    ("power(a, 1)", "a"),
    ("power(a, 2)", "square(a)"),
    ("power(a, 3)", "cube(a)"),
    ("sqrt(square(a))", "abs(a)"),
    ("square(sqrt(a))", "abs(a)"),
    ("square(abs(a))", "square(a)"),
    ("sqrt(abs(a))", "sqrt(a)"),
    ("abs(square(a))", "square(a)"),
    ("abs(sqrt(a))", "sqrt(a)"),
    ("abs(abs(a))", "abs(a)"),
    ("cbrt(cube(a))", "a"),
    ("cube(cbrt(a))", "a"),
    ("square(a) / a", "a"),
    ("square(a) / abs(a)", "abs(a)"),
    # signs
    ("a / abs(a)", "sign(a)"),
    ("abs(a) / a", "sign(a)"),
    ("a / (abs(a) * q)", "sign(a) * reciprocal(q)"),
    ("a * sign(a)", "abs(a)"),
    ("sign(a) * abs(a)", "a"),
    ("sign(sign(a))", "sign(a)"),
    ("sign(a * p)", "sign(a)"),
    ("sign(a * n)", "sign(a) * -1"),
    ("sign(clip_by_global_norm(x, p))", "sign(x)"),
    *((f"sign({f}(a))", "sign(a)") for f in ODD_AND_RISING),
    # scalars move outwards, where they meet and fold
    ("(x * s) * y", "(x * y) * s"),
    ("(x * s) * t", "x * (s * t)"),
    ("(x * s) / y", "(x / y) * s"),
    ("x * s + y * s", "(x + y) * s"),
    ("x * s - y * s", "(x - y) * s"),
    ("interp(x * s, y * s, t)", "interp(x, y, t) * s"),
    ("square(x * s)", "square(x) * square(s)"),
    ("cube(x * s)", "cube(x) * cube(s)"),
    ("abs(x * p)", "abs(x) * p"),
    ("sqrt(x * p)", "sqrt(x) * sqrt(p)"),
)
Pattern = float | str | tuple[Any, ...]
Bindings = dict[str, Reference]


def rewritings(values: Flow, row: int) -> Iterator[tuple[str, Expression]]:
    """Which rules fit ``row``, and what it would become."""
    for rule, left, right in _TABLE:
        found = next(_match(values, left, row, {}), None)
        if found is not None:
            yield rule, _fill(right, found)


def _read(text: str) -> Pattern:
    """The pattern that a text means."""

    def build(node: ast.expr) -> Pattern:
        if isinstance(node, ast.BinOp):
            names = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
            return names[type(node.op)], build(node.left), build(node.right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return node.func.id, *(build(arg) for arg in node.args)
        return node.id if isinstance(node, ast.Name) else float(ast.literal_eval(node))

    return build(ast.parse(text, mode="eval").body)


_TABLE = [(f"{left} -> {right}", _read(left), _read(right)) for left, right in RULES]


def _match(
    values: Flow, pattern: Pattern, reference: Reference, bound: Bindings
) -> Iterator[Bindings]:
    """The ways in which ``reference`` fits ``pattern``."""
    if isinstance(pattern, tuple):
        if isinstance(reference, int) and values.rows[reference].op == pattern[0]:
            op, args = values.rows[reference]
            yield from _match_all(values, pattern[1:], args, bound)
            if op in COMMUTATIVE:
                yield from _match_all(values, pattern[1:], args[::-1], bound)
    elif isinstance(pattern, str):
        if pattern not in bound:
            if _fits(values, pattern, reference):
                yield {**bound, pattern: reference}
        elif bound[pattern] == reference and type(bound[pattern]) is type(reference):
            yield bound
    elif isinstance(reference, float) and reference == pattern:
        yield bound


def _match_all(
    values: Flow, patterns: tuple, references: tuple[Reference, ...], bound: Bindings
) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for found in _match(values, patterns[0], references[0], bound):
        yield from _match_all(values, patterns[1:], references[1:], found)


def _fits(values: Flow, letter: str, reference: Reference) -> bool:
    constant = isinstance(reference, float)
    if letter in "xy":
        return values.kind(reference) != Kind.SCALAR
    if letter in "st":
        return values.kind(reference) == Kind.SCALAR
    if letter in "pq":
        return (constant and reference > 0) or (letter == "p" and reference == "lr")
    if letter == "n":
        return constant and reference < 0
    return constant or letter in "ab"


def _fill(pattern: Pattern, bound: Bindings) -> Expression:
    if isinstance(pattern, tuple):
        return pattern[0], *(_fill(part, bound) for part in pattern[1:])
    return bound[pattern] if isinstance(pattern, str) else pattern
