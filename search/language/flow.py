"""A program as values instead of variables, which is the form to rewrite it in.

A statement names a variable, and which value that is depends on where one stands. Here every
statement is a numbered row, an argument is a row, an input or a constant, and each state has a
value after the step. ``flow`` and ``to_program`` go there and back; ``to_program`` finds an order
in which no state is overwritten before it was last read, and copies (``1.0 * x``) where there is
none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

from search.language.canonical import canonical
from search.language.functions import OPS, Kind, result_kind
from search.language.program import Argument, Form, Program, Statement, input_kinds
from search.language.validity import check

Reference = int | str | float
"""A row, an input or state at the start of the step, a constant."""
Expression = Reference | tuple[Any, ...]
"""A reference, or ``(op, expression, ...)``: rows to be."""


class Row(NamedTuple):
    """``op(*args)``; rows that are read stand above."""

    op: str
    args: tuple[Reference, ...]


@dataclass(frozen=True)
class Flow:
    """Rows; the update; what each state is after the step; the parameters and the form."""

    rows: tuple[Row, ...]
    update: Reference
    states: Mapping[str, Reference]
    inputs: tuple[str, ...]
    form: Form

    @cached_property
    def kinds(self) -> list[Kind]:
        """Of each row."""
        result: list[Kind] = []
        inputs = input_kinds(Program((), self.inputs))
        for op, args in self.rows:
            given = [
                result[arg]
                if isinstance(arg, int)
                else inputs[arg]
                if isinstance(arg, str)
                else Kind.SCALAR
                for arg in args
            ]
            result.append(result_kind(OPS[op], given))
        return result

    def kind(self, reference: Reference) -> Kind:
        if isinstance(reference, int):
            return self.kinds[reference]
        if isinstance(reference, str):
            return input_kinds(Program((), self.inputs))[reference]
        return Kind.SCALAR

    def instead(self, old: Reference, new: Reference) -> Flow:
        """``new`` wherever ``old`` was read. The constant 1.0 is not the row 1."""
        return self.renamed(lambda r: new if r == old and type(r) is type(old) else r)

    def renamed(self, change: Callable[[Reference], Reference]) -> Flow:
        """Every reference changed."""
        return replace(
            self,
            rows=tuple(Row(op, tuple(map(change, args))) for op, args in self.rows),
            update=change(self.update),
            states={name: change(after) for name, after in self.states.items()},
        )


def flow(program: Program) -> Flow:
    """The values of a program that passes ``analyze.check``."""
    rows: list[Row] = []
    meaning: dict[str, Reference] = {name: name for name in program.inputs}
    for target, op, args in ((s.target, s.op, s.args) for s in program.statements):
        rows.append(Row(op, tuple(meaning[a] if isinstance(a, str) else a for a in args)))
        meaning[target] = len(rows) - 1
    states = {name: meaning[name] for name in program.states}
    return Flow(tuple(rows), meaning["update"], states, program.inputs, program.form)


def insert(values: Flow, where: int, expression: Expression) -> tuple[Flow, Reference]:
    """The same with the rows of ``expression`` put before row ``where``, and what it became."""
    added: list[Row] = []

    def build(part: Expression) -> Reference:
        if not isinstance(part, tuple):
            return part
        op, *args = part
        added.append(Row(str(op), tuple(build(arg) for arg in args)))
        return where + len(added) - 1

    result = build(expression)
    moved = values.renamed(lambda r: r + len(added) if isinstance(r, int) and r >= where else r)
    rows = (*moved.rows[:where], *added, *moved.rows[where:])
    return replace(moved, rows=rows), result


def replace_row(values: Flow, where: int, expression: Expression) -> Flow:
    """Row ``where`` becomes ``expression``, which may read what that row could read."""
    longer, result = insert(values, where, expression)
    old = where + len(longer.rows) - len(values.rows)
    return longer.instead(old, result)


def to_program(values: Flow) -> Program:
    """In normal form. Raises ProgramError where the result is no rule that can run."""
    program = Program(tuple(_statements(values)), values.inputs, values.form)
    check(program)
    return canonical(program)


def _statements(values: Flow) -> Iterator[Statement]:
    rows, ends = _ends(values)
    taken = {*values.inputs, "update"}
    fresh = (name for k in count(1) if (name := f"x{k}") not in taken)
    names: dict[int, str] = {}
    pending = list(range(len(rows)))

    def ready(row: int) -> bool:
        return all(arg in names for arg in rows[row].args if isinstance(arg, int))

    def safe(row: int) -> bool:
        return not any(ends.get(row) in rows[other].args for other in pending if other != row)

    while pending:
        row = next((row for row in pending if ready(row) and safe(row)), None)
        if row is None:
            # Its state is still to be read: keep the value in a variable, write the state later.
            row = next(row for row in pending if ready(row))
            rows.append(Row("mul", (row, 1.0)))
            ends[len(rows) - 1] = ends.pop(row)
            pending.append(len(rows) - 1)
        pending.remove(row)
        names[row] = ends.get(row) or next(fresh)
        op, references = rows[row]
        args: list[Argument] = [names[a] if isinstance(a, int) else a for a in references]
        yield Statement(names[row], op, tuple(args))


def _ends(values: Flow) -> tuple[list[Row], dict[int, str]]:
    """Rows, one for each name that has to be written, and which name it is."""
    rows, ends = list(values.rows), {}
    for name, reference in (*values.states.items(), ("update", values.update)):
        if reference == name:
            continue
        if not isinstance(reference, int) or reference in ends:
            rows.append(Row("mul", (reference, 1.0)))
            reference = len(rows) - 1
        ends[reference] = name
    return rows, ends
