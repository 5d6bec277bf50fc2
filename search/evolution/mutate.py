"""Random programs and random changes to programs (Lion paper, section 2.1).

A mutation inserts a statement, deletes one, or changes one argument: to another variable, to a
new constant from N(0, 1), or, if it is a constant, to itself times 2^a with a from N(0, 1). Two
more kinds are not in the paper and off unless their weights in ``Mutation`` say otherwise:

    copy   a statement is repeated with one argument changed, into a variable of its own, which a
           later statement reads in place of the original's: one step makes a second memory of a
           first, as genes double and then diverge
    swap   a statement calls another function, on those of its arguments that fit: one step makes
           ``update = sign(m)`` of ``update = m / root``, for which an insertion would have to
           draw the place, the function, the variable to write and the one to read

Arguments are drawn among what is in scope and of a kind that the function accepts, so most
proposals are valid; those that are not are drawn again. Statements without effect are kept:
later mutations build on them.

Everything is pure: a program and a random generator in, a program out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.evolution.settings import INPUTS, Change, Mutation
from search.language.functions import CONSTANT_BOUND, OPS, Kind, ProgramError, result_kind
from search.language.program import (
    MAX_STATEMENTS,
    Argument,
    Form,
    Program,
    Statement,
    input_kinds,
    kinds,
)
from search.language.validity import check

ATTEMPTS = 1000  # proposals before giving up; a few are the rule


@dataclass(frozen=True)
class Child:
    """A changed program and what was changed, at which statement (counted from 0)."""

    program: Program
    kind: Change
    where: int
    before: Statement | None  # None: inserted
    after: Statement | None  # None: deleted
    rejected: int = 0  # invalid proposals that were drawn before this one

    def __str__(self) -> str:
        """For people: ``modify 2: update = sign(g) -> update = sign(m)``."""
        change = " -> ".join(str(s) for s in (self.before, self.after) if s is not None)
        return f"{self.kind} {self.where}: {change}"


def mutate(program: Program, rng: np.random.Generator, settings: Mutation | None = None) -> Child:
    """A valid child of a valid program (``analyze.check``), one change away.

    Raises ValueError when no change of the kinds that ``settings`` allow leads to a valid program.
    """
    settings = settings or Mutation()
    rejected = 0
    for _ in range(ATTEMPTS):
        child = _propose(program, rng, settings)
        if child is None:
            continue
        try:
            check(child.program)
        except ProgramError:
            rejected += 1
            continue
        return replace(child, rejected=rejected)
    raise ValueError(f"no valid child in {ATTEMPTS} attempts with {settings.kinds} of\n{program}")


def random_program(
    rng: np.random.Generator,
    length: int,
    inputs: Sequence[str] = ("w", "g", "m", "v", "lr"),
    form: Form = "direction",
    settings: Mutation | None = None,
) -> Program:
    """A valid program of ``length`` random statements; the last one writes ``update``."""
    settings = settings or Mutation()
    if not 1 <= length <= MAX_STATEMENTS:
        raise ValueError(f"length: got {length}, expected 1 to {MAX_STATEMENTS} statements")
    for _ in range(ATTEMPTS):
        program = Program((), tuple(inputs), form)
        scope = input_kinds(program)
        for row in range(length):
            name = "update" if row == length - 1 else _target(program, rng, settings)
            statement = _random_statement(name, scope, rng, settings)
            scope[name] = _kind(statement, scope)
            program = replace(program, statements=(*program.statements, statement))
        try:
            check(program)
        except ProgramError:
            continue
        return program
    raise ValueError(f"no valid program in {ATTEMPTS} attempts with {inputs=}, {settings}")


# Proposals: a child, valid or not, or None where there is nothing to change ---------------------


def _propose(program: Program, rng: np.random.Generator, settings: Mutation) -> Child | None:
    if settings.constants_only:
        return _modify(program, rng, settings)
    room = program.length < settings.max_length
    insert, copy = (settings.insert, settings.copy) if room else (0.0, 0.0)
    total = insert + settings.delete + settings.modify + copy + settings.swap
    if total == 0:
        return None
    draw = rng.random() * total
    if draw < insert:
        return _insert(program, rng, settings)
    if draw < insert + settings.delete:
        return _delete(program, rng)
    if draw < insert + settings.delete + settings.modify:
        return _modify(program, rng, settings)
    if draw < insert + settings.delete + settings.modify + copy:
        return _copy(program, rng, settings)
    return _swap(program, rng, settings)


def _insert(program: Program, rng: np.random.Generator, settings: Mutation) -> Child:
    where = _below(program.length + 1, rng)
    scope = _scope(program, where)
    after = _random_statement(_target(program, rng, settings), scope, rng, settings)
    rest = program.statements
    return _child(program, "insert", where, (*rest[:where], after, *rest[where:]), None, after)


def _delete(program: Program, rng: np.random.Generator) -> Child:
    where = _below(program.length, rng)
    rest = program.statements
    statements = (*rest[:where], *rest[where + 1 :])
    return _child(program, "delete", where, statements, rest[where], None)


def _modify(program: Program, rng: np.random.Generator, settings: Mutation) -> Child | None:
    rest = program.statements
    places = [
        (row, position)
        for row, statement in enumerate(rest)
        for position, arg in enumerate(statement.args)
        if isinstance(arg, float) or not settings.constants_only
    ]
    if not places:
        return None
    where, position = places[_below(len(places), rng)]
    before, after = rest[where], _changed(program, where, position, rng, settings)
    if after is None:
        return None
    statements = (*rest[:where], after, *rest[where + 1 :])
    return _child(program, "modify", where, statements, before, after)


def _changed(
    program: Program, where: int, position: int, rng: np.random.Generator, settings: Mutation
) -> Statement | None:
    """A statement with another argument at ``position``; None if the same was drawn, or none fits:
    what ``before`` reads may be hidden from new arguments."""
    before = program.statements[where]
    arg = before.args[position]
    if isinstance(arg, float) and rng.random() < settings.scale:
        new: Argument = _bounded(arg * 2.0 ** rng.standard_normal())
    elif settings.constants_only:
        new = float(rng.standard_normal())
    else:
        accepted = OPS[before.op].accepts[position]
        try:
            new = _random_argument(accepted, _scope(program, where), rng, settings)
        except LookupError:
            return None
    return None if new == arg else _reading(before, position, new)


def _reading(statement: Statement, position: int, new: Argument) -> Statement:
    args = statement.args
    return replace(statement, args=(*args[:position], new, *args[position + 1 :]))


def _copy(program: Program, rng: np.random.Generator, settings: Mutation) -> Child | None:
    """The copy stands right before or right after its original.

    What reads it may be any later reader of the original's name, after that was written again too.
    """
    rest = [*program.statements]
    row = _below(len(rest), rng)
    if not rest or not rest[row].args:
        return None
    original = rest[row]
    position = _below(len(original.args), rng)
    changed = _changed(program, row, position, rng, settings)
    if changed is None:
        return None
    copy = replace(changed, target=_new_name(program))
    where = row + _below(2, rng)
    rest.insert(where, copy)
    readers = [
        (k, position)
        for k in range(row + 2, len(rest))
        for position, arg in enumerate(rest[k].args)
        if arg == original.target
    ]
    if readers:
        k, position = readers[_below(len(readers), rng)]
        rest[k] = _reading(rest[k], position, copy.target)
    return _child(program, "copy", where, tuple(rest), original, copy)


def _swap(program: Program, rng: np.random.Generator, settings: Mutation) -> Child | None:
    """Arguments keep their places; where the new function has more of them, or accepts no such
    thing there, they are drawn."""
    rest = program.statements
    if not rest:
        return None
    where = _below(len(rest), rng)
    before, scope = rest[where], _scope(program, where)
    op = OPS[settings.functions[_below(len(settings.functions), rng)]]
    given = _argument_kinds(before, scope)
    args: list[Argument] = []
    for position, accepted in enumerate(op.accepts):
        if position < len(given) and given[position] in accepted:
            args.append(before.args[position])
            continue
        try:
            args.append(_random_argument(accepted, scope, rng, settings))
        except LookupError:
            return None
    after = Statement(before.target, op.name, tuple(args))
    if after == before:
        return None
    statements = (*rest[:where], after, *rest[where + 1 :])
    return _child(program, "swap", where, statements, before, after)


def _child(
    parent: Program,
    kind: Change,
    where: int,
    statements: tuple[Statement, ...],
    before: Statement | None,
    after: Statement | None,
) -> Child:
    return Child(Program(statements, parent.inputs, parent.form), kind, where, before, after)


# Draws ------------------------------------------------------------------------------------------


def _below(n: int, rng: np.random.Generator) -> int:
    return int(rng.random() * n)  # several times faster than rng.integers(n)


def _bounded(constant: float) -> float:
    return float(min(max(constant, -CONSTANT_BOUND), CONSTANT_BOUND))


def _scope(program: Program, where: int) -> dict[str, Kind]:
    """What can be read before statement ``where``, and of which kind it is there."""
    above = replace(program, statements=program.statements[:where])
    written = zip((s.target for s in above.statements), kinds(above), strict=True)
    return {**input_kinds(program), **dict(written)}


def _kind(statement: Statement, scope: dict[str, Kind]) -> Kind:
    return result_kind(OPS[statement.op], _argument_kinds(statement, scope))


def _argument_kinds(statement: Statement, scope: dict[str, Kind]) -> list[Kind]:
    return [scope[arg] if isinstance(arg, str) else Kind.SCALAR for arg in statement.args]


def _target(program: Program, rng: np.random.Generator, settings: Mutation) -> str:
    """A variable to write: a new local one, or any that the program has."""
    if rng.random() < settings.fresh:
        return _new_name(program)
    names = _names(program)
    return names[_below(len(names), rng)]


def _names(program: Program) -> list[str]:
    targets = (statement.target for statement in program.statements)
    return list(dict.fromkeys((*program.inputs, "update", *targets)))


def _new_name(program: Program) -> str:
    names = _names(program)
    return next(name for k in range(len(names) + 1) if (name := f"x{k}") not in names)


def _random_statement(
    target: str, scope: dict[str, Kind], rng: np.random.Generator, settings: Mutation
) -> Statement:
    """A function drawn among those that something in scope fits, and its arguments."""
    for _ in range(ATTEMPTS):
        op = OPS[settings.functions[_below(len(settings.functions), rng)]]
        try:
            args = tuple(_random_argument(kind, scope, rng, settings) for kind in op.accepts)
        except LookupError:
            continue
        return Statement(target, op.name, args)
    raise ValueError(f"nothing in scope ({', '.join(scope)}) fits {settings}")


def _random_argument(
    accepted: tuple[Kind, ...],
    scope: dict[str, Kind],
    rng: np.random.Generator,
    settings: Mutation,
) -> Argument:
    """A constant or a variable of a kind in ``accepted``; LookupError if there is none."""
    hidden = set(INPUTS).difference(settings.reads)
    names = [name for name, kind in scope.items() if kind in accepted and name not in hidden]
    if Kind.SCALAR in accepted and (not names or rng.random() < settings.constant):
        return float(rng.standard_normal())
    if not names:
        raise LookupError(f"no variable of kind {accepted}")
    return names[_below(len(names), rng)]
