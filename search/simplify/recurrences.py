"""Linear algebra on a program: values as weighted sums, states as linear recurrences.

An exponential average of an average, a momentum that is kept twice, a sum where an average would
do: none of these is seen by rewriting one function at a time. Here a value is expanded into a sum
of *atoms*, the values that are no such sum themselves, with constant weights; what then is a sum
of two atoms whose weights add up to 1 is a single ``interp``.

The states s of a program follow ``s' = A s + B u`` for the atoms u of one step, whatever nonlinear
functions those are. From s = 0, the states that can be reached lie in the span of
``B, A B, A^2 B, ...``; where a row of that matrix is a combination of others, that state is the
same combination of the other states at every step, and need not be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from search.language.flow import Expression, Flow, Reference, insert

ROUNDING = 1e-9
CANCELLED = 1e-14
"""What rounding leaves of two weights that cancel, relative to them."""
SINGLE = 1e-3
"""By how much a weight may change, relatively, where float32 rounds its complement to 1."""
ONE = "1"
"""The atom of constants. (The number would be the same key as the row 1.)"""
Sum = dict[int | str, float]
"""Atoms and their weights."""


def sums(values: Flow) -> list[Sum]:
    """Each row as a sum of atoms; weights that cancel are gone. One pass: a value that is read
    twice is expanded once."""
    known: list[Sum] = []
    for row, (op, args) in enumerate(values.rows):
        parts = [expand(known, arg) for arg in args]
        known.append(_combine(op, parts, [_constant(part) for part in parts]) or {row: 1.0})
    return known


def expand(known: Sequence[Sum], reference: Reference) -> Sum:
    """``reference`` as a sum of atoms; ``known``: those of the rows."""
    if isinstance(reference, int):
        return known[reference]
    return {ONE: reference} if isinstance(reference, float) else {reference: 1.0}


def _constant(part: Sum) -> float | None:
    return part[ONE] if list(part) == [ONE] else None


def _combine(op: str, parts: list[Sum], constants: list[float | None]) -> Sum | None:
    """The sum that a linear function of sums is; None for other functions."""
    if op == "add":
        return _add(parts[0], 1.0, parts[1], 1.0)
    if op == "sub":
        return _add(parts[0], 1.0, parts[1], -1.0)
    if op == "mul" and constants[1] is not None:
        return _add(parts[0], constants[1], {}, 0.0)
    if op == "mul" and constants[0] is not None:
        return _add(parts[1], constants[0], {}, 0.0)
    if op == "interp" and constants[2] is not None:
        return _add(parts[0], 1 - constants[2], parts[1], constants[2])
    return None


def _add(x: Sum, a: float, y: Sum, b: float) -> Sum:
    one = {atom: a * weight for atom, weight in x.items()}
    other = {atom: b * weight for atom, weight in y.items()}
    total = {atom: one.get(atom, 0.0) + other.get(atom, 0.0) for atom in (one | other)}
    for atom in one.keys() & other.keys():
        if abs(total[atom]) <= CANCELLED * abs(one[atom]):
            total[atom] = 0.0
    return {atom: weight for atom, weight in total.items() if weight}


# Sums as statements -----------------------------------------------------------------------------


def collect(values: Flow, row: int, known: Sequence[Sum]) -> Expression | None:
    """``row`` written as one function of at most two atoms, if it is not yet."""
    if values.rows[row].op not in ("add", "sub", "mul", "interp"):
        return None
    total = known[row]
    if row in total or len(total) > 2:
        return None
    short = _short(values, total)
    unchanged = repr(short) == repr((values.rows[row].op, *values.rows[row].args))
    return None if unchanged else short


def _short(values: Flow, total: Sum) -> Expression | None:
    """One function that gives the sum, or None."""
    atoms = sorted(total, key=lambda atom: (atom in values.states, str(atom)))  # states last
    if not atoms:
        return 0.0
    if atoms == [ONE]:
        return total[ONE]
    values_of: list[Reference] = [1.0 if atom == ONE else atom for atom in atoms]
    weights = [total[atom] for atom in atoms]
    if len(atoms) == 1:
        return values_of[0] if abs(weights[0] - 1) < ROUNDING else ("mul", values_of[0], weights[0])
    (x, y), (a, b) = values_of, weights
    if abs(a + b - 1) < ROUNDING and abs(1 - float(np.float32(b)) - a) < SINGLE * abs(a):
        return ("interp", x, y, b)
    if abs(a - 1) < ROUNDING and abs(abs(b) - 1) < ROUNDING:
        return ("add" if b > 0 else "sub", x, y)
    return ("sub", y, x) if abs(a + 1) < ROUNDING and abs(b - 1) < ROUNDING else None


def weighted(terms: Iterable[tuple[Reference, float]]) -> Expression:
    """A sum of references, each with its weight, written out."""
    expression: Expression | None = None  # no number: the row 0 equals 0.0
    for reference, weight in terms:
        term: Expression = reference if weight == 1 else ("mul", reference, weight)
        expression = term if expression is None else ("add", expression, term)
    return 0.0 if expression is None else expression


def sign_of_average(values: Flow, row: int, known: Sequence[Sum]) -> Expression | None:
    """``sign(a x + b y)`` as ``sign(interp(x, y, b / (a + b)))``, where a + b is positive."""
    op, args = values.rows[row]
    if op != "sign":
        return None
    total = expand(known, args[0])
    scale = sum(total.values())
    if len(total) != 2 or args[0] in total or not scale > ROUNDING or abs(scale - 1) < ROUNDING:
        return None
    average = _short(values, {atom: weight / scale for atom, weight in total.items()})
    return None if average is None else ("sign", average)


# States -----------------------------------------------------------------------------------------


def recurrence(values: Flow) -> tuple[np.ndarray, np.ndarray, list[int | str]]:
    """``A [S, S]``, ``B [S, U]`` and the atoms u of ``s' = A s + B u``."""
    names, known = list(values.states), sums(values)
    after = [expand(known, reference) for reference in values.states.values()]
    atoms = list(dict.fromkeys(a for total in after for a in total if a not in values.states))
    a = np.array([[total.get(name, 0.0) for name in names] for total in after])
    b = np.array([[total.get(atom, 0.0) for atom in atoms] for total in after])
    return a.reshape(len(names), len(names)), b.reshape(len(names), len(atoms)), atoms


def dependent_states(values: Flow) -> Iterator[tuple[str, Sum]]:
    """States that are always a combination of other states, and which."""
    names = list(values.states)
    a, b, _ = recurrence(values)
    if not b.size:
        yield from ((name, {}) for name in names)  # nothing ever reaches them
        return
    reach = np.concatenate([np.linalg.matrix_power(a, k) @ b for k in range(len(names))], axis=1)
    if not np.isfinite(reach).all():
        return
    for place, name in enumerate(names):
        others = [k for k in range(len(names)) if k != place]
        weights = np.linalg.lstsq(reach[others].T, reach[place], rcond=None)[0]
        error = np.abs(reach[others].T @ weights - reach[place]).max(initial=0.0)
        if error <= ROUNDING * np.abs(reach[place]).max(initial=0.0):
            combination = zip(others, weights.tolist(), strict=True)
            yield name, {names[k]: w for k, w in combination if abs(w) > ROUNDING}


def drop_state(values: Flow, state: str, total: Sum) -> Flow:
    """The same without ``state``, which is the combination ``total`` of others."""
    kept = {name: after for name, after in values.states.items() if name != state}
    fewer = replace(values, states=kept, inputs=tuple(n for n in values.inputs if n != state))
    # The rows of the combination read the inputs, so they are the first; `state` is read nowhere.
    longer, result = insert(fewer, 0, weighted(list(total.items())))
    return longer.instead(state, result)


def averaged_states(values: Flow) -> Iterator[tuple[str, float]]:
    """States ``s' = a s + b x`` and the factor by which they exceed an average of x."""
    known = sums(values)
    for name, after in values.states.items():
        total = expand(known, after)
        decay = total.get(name, 0.0)
        if len(total) == 2 and decay != 0 and abs(1 - decay) > ROUNDING:
            factor = (sum(total.values()) - decay) / (1 - decay)
            if abs(factor - 1) > ROUNDING:
                yield name, factor


def scale_state(values: Flow, state: str, factor: float) -> Flow:
    """The same with ``state`` holding what it held divided by ``factor``."""
    longer, result = insert(values.instead(state, ""), 0, ("mul", state, factor))
    read = longer.instead("", result)
    end = len(read.rows)
    scaled, after = insert(read, end, ("mul", read.states[state], 1 / factor))
    return replace(scaled, states={**scaled.states, state: after})
