"""What a program does, without running it: validity, dead statements, a normal form.

Search writes many programs that are the same rule in different words. ``canonical`` removes what
words can differ in and meaning cannot: statements that never reach an update, names, the order of
commuting arguments and of independent statements, repeated expressions, arithmetic on constants,
states that always hold the same values. Its text is the key under which a program is remembered.
Algebra, such as ``m * m`` against ``square(m)``, is left to ``signature``, which runs programs.

The idea behind it: give every value a label that depends only on how it is computed. A statement's
label is a hash of its function and its arguments' labels; a state's label is a hash of the label
of the value it will have after the step. The latter is circular, so labels start equal for all
states and are refined until no more are told apart, the way automata are minimised (Moore).
Since states start at zero, states with equal labels are equal at every step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, count
from typing import NamedTuple

import torch

from search.language.functions import CONSTANT_BOUND, OPS
from search.language.program import (
    FIXED_INPUTS,
    OPTIONAL_INPUTS,
    Argument,
    Program,
    Statement,
)
from search.language.validity import _live

COMMUTATIVE = frozenset(op.name for op in OPS.values() if op.commutative)


def canonical(program: Program) -> Program:
    """The normal form of a program that passes ``check``.

    Equal for programs that differ only in the ways listed at the top; a fixed point; the same
    rule, up to the rounding of constant arithmetic (done in float64). States and inputs that do
    not matter are gone.
    """
    statements, needed = _live(program)
    rows, ends = _single_assignment(statements)
    graph = _refine(rows, ends, [name for name in program.states if name in needed])
    order, states = _visit(graph)
    names: dict[int, Argument] = {
        label: value for label, value in graph.values.items() if not isinstance(value, tuple)
    }
    names.update(zip(states, _state_names(), strict=False))
    statements = _schedule(graph, order, names)
    read = {arg for statement in statements for arg in statement.args}
    inputs = (*FIXED_INPUTS, *(str(names[state]) for state in states))
    inputs += tuple(name for name in OPTIONAL_INPUTS if name in read)
    return Program(tuple(statements), inputs, program.form)


def _state_names() -> Iterator[str]:
    """Of a canonical program's states: m, v, s3, s4, ..."""
    return chain(("m", "v"), (f"s{k}" for k in count(3)))


# Values and their labels ----------------------------------------------------------------------

Reference = int | str | float
"""What a row reads: an earlier row, an input, or a constant."""
Row = tuple[str, list[Reference]]
Value = tuple[str, list[int]] | str | float
"""How a labelled value comes about: a function of labelled values, an input, or a constant."""

_START, _NEXT, _INPUT, _CONSTANT = range(1000, 1004)  # beside the labels of functions
_MASK = (1 << 64) - 1


class _Graph(NamedTuple):
    values: dict[int, Value]  # by label
    following: dict[int, int | None]  # label of a state -> of its value after the step
    update: int  # label of the update


def _single_assignment(statements: Sequence[Statement]) -> tuple[list[Row], dict[str, int]]:
    """Statements as numbered rows, constants folded; and the last row that writes each name."""
    rows: list[Row] = []
    ends: dict[str, int] = {}
    meaning: dict[str, Reference] = {}
    for target, op, given in ((s.target, s.op, s.args) for s in statements):
        # Adding zero makes -0.0 and 0.0 one constant.
        args = [meaning.get(arg, arg) if isinstance(arg, str) else arg + 0.0 for arg in given]
        value = None
        if all(isinstance(arg, float) for arg in args):
            value = constant_of(op, tuple(args))
        meaning[target] = len(rows) if value is None else value
        ends[target] = len(rows)
        rows.append((op, args))
    return rows, ends


@lru_cache(maxsize=4096)
def constant_of(op: str, args: tuple[float, ...]) -> float | None:
    """A function of constants, if that is a constant that a program may contain."""
    operands = [torch.tensor(arg, dtype=torch.float64, device="cpu") for arg in args]
    value = (
        OPS[op].torch(*(operands or [torch.zeros((), dtype=torch.float64, device="cpu")])).item()
    )
    return value + 0.0 if abs(value) <= CONSTANT_BOUND else None


def _refine(rows: list[Row], ends: dict[str, int], states: Sequence[str]) -> _Graph:
    """Label all values, telling states apart only where their futures differ."""
    inputs = _INPUT_LABELS | dict.fromkeys(states, _START)
    told_apart = 1
    while True:
        values, labels = _values(rows, inputs)
        after = {s: labels[ends[s]] if s in ends else None for s in states}
        distinct = len(set(after.values()))
        if distinct <= told_apart:
            following = {inputs[s]: after[s] for s in states}
            return _Graph(values, following, labels[ends["update"]])
        told_apart = distinct
        for s, label in after.items():
            inputs[s] = _label(_NEXT, () if label is None else (label,))


def _values(rows: list[Row], inputs: dict[str, int]) -> tuple[dict[int, Value], list[int]]:
    """What each label stands for, and each row's label."""
    values: dict[int, Value] = {label: name for name, label in inputs.items()}
    labels: list[int] = []
    for op, references in rows:
        args = []
        for reference in references:
            if isinstance(reference, int):
                args.append(labels[reference])
            elif isinstance(reference, str):
                args.append(inputs[reference])
            else:
                args.append(_constant(reference))
                values[args[-1]] = reference
        if op in COMMUTATIVE:  # constants last, as people write them
            args.sort(key=lambda label: (isinstance(values[label], float), label))
        label = _label(OPS[op].label, args)
        values[label] = (op, args)
        labels.append(label)
    return values, labels


def _label(code: int, parts: Sequence[int]) -> int:
    """A hash of 64 bits; unlike Python's own it is the same everywhere, for text depends on it."""
    label = (code + 1) * 0xD1342543DE82EF95 & _MASK
    for part in parts:
        label = (label ^ part) * 0x9E3779B97F4A7C15 & _MASK
        label ^= label >> 32
    return label


_INPUT_LABELS = {
    name: _label(_INPUT, (place,)) for place, name in enumerate((*FIXED_INPUTS, *OPTIONAL_INPUTS))
}


@lru_cache(maxsize=65536)
def _constant(value: float) -> int:
    return _label(_CONSTANT, struct.unpack("<Q", struct.pack("<d", value)))


# Back to statements ---------------------------------------------------------------------------


def _visit(graph: _Graph) -> tuple[list[int], list[int]]:
    """Labels of statements, arguments first, and of states, as met from ``update`` on."""
    order: list[int] = []
    states: list[int] = []
    seen: set[int] = set()

    def visit(label: int) -> None:
        if label in seen:
            return
        seen.add(label)
        value = graph.values[label]
        if isinstance(value, tuple):
            for arg in value[1]:
                visit(arg)
            order.append(label)
        elif label in graph.following:
            states.append(label)

    visit(graph.update)
    for state in states:  # grows while it is read
        after = graph.following[state]
        if after is not None:
            visit(after)
    return order, states


class _Write(NamedTuple):
    """A statement to come. ``target`` None: a fresh local variable."""

    label: int
    target: str | None = None
    state: int | None = None  # label of the state that it overwrites


def _schedule(graph: _Graph, order: list[int], names: dict[int, Argument]) -> list[Statement]:
    """Statements in an order in which no state is overwritten before it was last read.

    There are no plain copies in the language, so a value with two destinations is computed twice.
    ``names`` holds what inputs, states and constants are called.
    """
    writes = {
        after: _Write(after, str(names[state]), state)
        for state, after in graph.following.items()
        if after is not None
    }
    pending = [writes.get(label) or _Write(label) for label in order]
    if graph.update in writes:
        pending.append(_Write(graph.update, "update"))
    else:
        pending[order.index(graph.update)] = _Write(graph.update, "update")
    statements: list[Statement] = []
    fresh = 0
    while pending:
        at = next(
            (i for i, write in enumerate(pending) if _ready(write, pending, graph, names)), None
        )
        if at is None:
            # A state's next value is wanted by a reader of the present one: keep it in a local
            # variable for now, and write the state at the end.
            at = next(i for i, write in enumerate(pending) if write.state is not None)
            pending.append(pending[at])
            pending[at] = _Write(pending[at].label)
            continue
        label, target, _ = pending.pop(at)
        if target is None:
            fresh += 1
            target = f"x{fresh}"
        op, args = _call(graph, label)
        statements.append(Statement(target, op, tuple(names[arg] for arg in args)))
        names.setdefault(label, target)
    return statements


def _ready(write: _Write, pending: list[_Write], graph: _Graph, names: dict[int, Argument]) -> bool:
    """Its arguments are known and nothing else still needs what it overwrites."""
    if not all(arg in names for arg in _call(graph, write.label)[1]):
        return False
    return write.state is None or not any(
        write.state in _call(graph, other.label)[1] for other in pending if other is not write
    )


def _call(graph: _Graph, label: int) -> tuple[str, list[int]]:
    value = graph.values[label]
    assert isinstance(value, tuple)
    return value
