"""Programs as text, and back.

A program is straight-line Python: one function of the vocabulary a statement, no nesting.

    def update(w, g, m, lr):
        update = interp(g, m, 0.9)
        update = sign(update)
        m = interp(g, m, 0.99)
        return update, m

Parameters are the weights ``w``, the gradient ``g``, state variables with free names (tensors,
zero before the first step), then any of ``lr`` (learning rate of this step), ``t`` (steps counted
from 1) and ``h`` (diagonal of the Hessian). It returns ``update`` and every state. The function's
name tells the form: ``update`` returns a direction and the harness does
``w <- w - lr * (update + weight_decay * w)``; ``full_update`` does ``w <- w - update``.

Text is read with ``ast`` and a whitelist: nothing is ever evaluated, so any text is safe to parse.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from search.language.flat import ProgramSyntaxError, refuse_nesting
from search.language.functions import (
    CONSTANT_BOUND,
    OPS,
    PAPER,
    Kind,
    ProgramTypeError,
    result_kind,
)
from tasks.checks import meant

Form = Literal["direction", "full"]
Argument = str | float
"""A variable or a constant."""

FUNCTION_NAMES: dict[Form, str] = {"direction": "update", "full": "full_update"}
FIXED_INPUTS = ("w", "g")
OPTIONAL_INPUTS = {"lr": Kind.SCALAR, "t": Kind.SCALAR, "h": Kind.TENSOR}
RESERVED = (*FIXED_INPUTS, *OPTIONAL_INPUTS, "update")
MAX_STATEMENTS = 256
MAX_CHARACTERS = 100_000

_INFIX = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_SIGNATURE = "def update(w, g, ...states, lr, t, h): the last three optional, in this order"


@dataclass(frozen=True)
class Statement:
    """``target = op(*args)``."""

    target: str
    op: str  # a name in OPS
    args: tuple[Argument, ...]

    def __str__(self) -> str:
        args = [arg if isinstance(arg, str) else repr(float(arg)) for arg in self.args]
        symbol = OPS[self.op].symbol
        if symbol:
            return f"{self.target} = {args[0]} {symbol} {args[1]}"
        return f"{self.target} = {self.op}({', '.join(args)})"


@dataclass(frozen=True)
class Program:
    """Statements, the names of the parameters (``w`` and ``g`` included), and the form."""

    statements: tuple[Statement, ...]
    inputs: tuple[str, ...]
    form: Form = "direction"

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The state variables, in the order they are returned."""
        return tuple(name for name in self.inputs if name not in RESERVED)

    @property
    def length(self) -> int:
        return len(self.statements)

    def __str__(self) -> str:
        return to_text(self)


def to_text(program: Program) -> str:
    """Source text; ``parse(to_text(p)) == p``, constants included."""
    lines = [f"def {FUNCTION_NAMES[program.form]}({', '.join(program.inputs)}):"]
    lines += [f"    {statement}" for statement in program.statements]
    lines += [f"    return {', '.join(('update', *program.states))}"]
    return "\n".join(lines) + "\n"


def to_rows(program: Program) -> list[list[Argument]]:
    """Statements as JSON-ready rows ``[target, function, *arguments]``."""
    return [[s.target, s.op, *s.args] for s in program.statements]


def from_rows(
    rows: Sequence[Sequence[Argument]], inputs: Sequence[str], form: Form = "direction"
) -> Program:
    """The inverse of ``to_rows``. Raises ProgramSyntaxError naming the faulty statement."""
    statements = []
    for row in rows:
        target, op, *args = row if len(row) >= 2 else (None, None)
        numbers_and_names = all(isinstance(arg, str | int | float) for arg in args)
        if not (isinstance(target, str) and isinstance(op, str) and numbers_and_names):
            raise ProgramSyntaxError(f"row {row!r} is not [target, function, *arguments]")
        args = tuple(arg if isinstance(arg, str) else _number(arg) for arg in args)
        statements.append(Statement(target, op, args))
    program = Program(tuple(statements), tuple(inputs), form)
    validate(program)
    return program


def validate(program: Program) -> None:
    """Raise ProgramSyntaxError unless ``to_text(program)`` is a program (kinds apart)."""
    for fault in _faults(program):
        where = "" if fault.row is None else f"statement {fault.row + 1}: "
        raise ProgramSyntaxError(where + fault.message)


def kinds(program: Program) -> list[Kind]:
    """What each statement of a valid program computes.

    Raises ProgramTypeError naming the statement, the function, the argument and what it accepts.
    """
    known = input_kinds(program)
    result = []
    for row, statement in enumerate(program.statements, 1):
        args = [known[arg] if isinstance(arg, str) else Kind.SCALAR for arg in statement.args]
        try:
            kind = result_kind(OPS[statement.op], args)
        except ProgramTypeError as error:
            raise ProgramTypeError(f"statement {row} ({statement}): {error}") from None
        known[statement.target] = kind
        result.append(kind)
    return result


def input_kinds(program: Program) -> dict[str, Kind]:
    """What kind of value each parameter is at the start of a step."""
    return {name: OPTIONAL_INPUTS.get(name, Kind.TENSOR) for name in program.inputs}


# What text and rows have in common ------------------------------------------------------------


@dataclass(frozen=True)
class _Fault:
    message: str
    row: int | None = None  # None: the parameters, or the program as a whole
    argument: int | None = None  # None: the target or the function


def _faults(program: Program) -> Iterator[_Fault]:
    """Everything that is wrong with names and numbers."""
    yield from _input_faults(program.inputs)
    if program.length > MAX_STATEMENTS:
        yield _Fault(f"{program.length} statements; at most {MAX_STATEMENTS} are allowed")
    known = set(program.inputs)
    for row, statement in enumerate(program.statements):
        op = OPS.get(statement.op)
        if op is None:
            likely = meant(statement.op, OPS)
            yield _Fault(f"no function {statement.op!r}{likely}; there are {', '.join(OPS)}", row)
        elif len(statement.args) != op.arity:
            count = len(statement.args)
            yield _Fault(f"{op.name} takes {op.arity} arguments, {count} given", row)
        for position, arg in enumerate(statement.args):
            if isinstance(arg, str):
                if arg not in known:
                    yield _Fault(f"{arg!r} is read before it is assigned", row, position)
            elif not abs(arg) <= CONSTANT_BOUND:
                message = f"constant {arg!r} is outside +-{CONSTANT_BOUND:g}"
                yield _Fault(message, row, position)
        if not _is_name(statement.target):
            yield _Fault(f"{statement.target!r} cannot name a variable: {_NAMES}", row)
        known.add(statement.target)
    if "update" not in known:
        yield _Fault("'update' is never assigned; it is what the program returns")


_NAMES = "letters, digits and _ (ASCII), neither a keyword nor one of the functions"


def _is_name(name: str) -> bool:
    plain = name.isascii() and name.isidentifier()
    kept = keyword.iskeyword(name) or name == "__debug__"  # which Python does not assign either
    return plain and not kept and name not in PAPER  # a new function refuses no old program


def _input_faults(inputs: Sequence[str]) -> Iterator[_Fault]:
    states = [name for name in inputs if name not in RESERVED]
    optional = [name for name in OPTIONAL_INPUTS if name in inputs]
    for name in states:
        if not _is_name(name):
            yield _Fault(f"{name!r} cannot name a state: {_NAMES}")
    if len(set(inputs)) < len(inputs):
        yield _Fault(f"a parameter appears twice in ({', '.join(inputs)})")
    if list(inputs) != [*FIXED_INPUTS, *states, *optional]:
        yield _Fault(f"parameters ({', '.join(inputs)}) should read {_SIGNATURE}")


# Reading text ---------------------------------------------------------------------------------


def parse(text: str, filename: str = "<program>") -> Program:
    """Read a program. Raises ProgramSyntaxError with line and column, and nothing else."""
    try:
        function = _function(text)
        return _program(function)
    except ProgramSyntaxError as error:
        error.filename = filename
        raise


def _refuse(message: str, node: ast.AST) -> ProgramSyntaxError:
    return ProgramSyntaxError(
        message, getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
    )


def _function(text: str) -> ast.FunctionDef:
    if len(text) > MAX_CHARACTERS:
        message = f"{len(text)} characters; at most {MAX_CHARACTERS} are allowed"
        raise ProgramSyntaxError(message, 1, 1)
    refuse_nesting(text)
    try:
        module = ast.parse(text)
    except SyntaxError as error:
        line, column = max(error.lineno or 1, 1), max(error.offset or 1, 1)
        raise ProgramSyntaxError(f"not Python: {error.msg}", line, column) from None
    except (ValueError, OverflowError) as error:
        raise ProgramSyntaxError(f"not Python: {error}", 1, 1) from None
    except (RecursionError, MemoryError):
        raise ProgramSyntaxError("not Python: nested too deeply", 1, 1) from None
    body = _without_docstring(module)
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        place = next((node for node in body if not isinstance(node, ast.FunctionDef)), module)
        raise _refuse(f"a program is one function, {_SIGNATURE}", place)
    return body[0]


def _without_docstring(node: ast.Module | ast.FunctionDef) -> list[ast.stmt]:
    return node.body[ast.get_docstring(node, clean=False) is not None :]


def _program(function: ast.FunctionDef) -> Program:
    forms: dict[str, Form] = {name: form for form, name in FUNCTION_NAMES.items()}
    if function.name not in forms:
        message = f"the function is called {function.name}; it should be {' or '.join(forms)}"
        raise _refuse(message, function)
    *assignments, last = _without_docstring(function) or [function]
    if not isinstance(last, ast.Return):
        raise _refuse("the last statement is `return update, ...`", last)
    parsed = [_assignment(node) for node in assignments]
    statements = tuple(statement for statement, _ in parsed)
    program = Program(statements, _parameters(function), forms[function.name])
    for fault in _faults(program):
        place: ast.AST = function
        if fault.row is not None:
            nodes = [assignments[fault.row], *parsed[fault.row][1]]
            place = nodes[0 if fault.argument is None else 1 + fault.argument]
        raise _refuse(fault.message, place)
    wanted = ("update", *program.states)
    values = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    if tuple(v.id if isinstance(v, ast.Name) else None for v in values) != wanted:
        raise _refuse(f"the last statement is `return {', '.join(wanted)}`", last)
    return program


def _parameters(function: ast.FunctionDef) -> tuple[str, ...]:
    given = function.args
    unwanted = [
        *function.decorator_list,
        *(given.posonlyargs + given.kwonlyargs + given.defaults),
        *(node for node in (given.vararg, given.kwarg, function.returns) if node),
        *(arg.annotation for arg in given.args if arg.annotation),
        *getattr(function, "type_params", ()),  # of Python 3.12
    ]
    for node in unwanted:
        raise _refuse(f"only plain parameters are allowed: {_SIGNATURE}", node)
    return tuple(arg.arg for arg in given.args)


def _assignment(node: ast.stmt) -> tuple[Statement, list[ast.expr]]:
    """A statement and where its arguments stand."""
    if not isinstance(node, ast.Assign):
        raise _refuse("only `name = function(...)` is allowed before the final return", node)
    if len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
        raise _refuse("a statement assigns one variable, `name = ...`", node.targets[-1])
    value = node.value
    if isinstance(value, ast.BinOp) and type(value.op) in _INFIX:
        name, args = _INFIX[type(value.op)], [value.left, value.right]
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        name, args = value.func.id, [*value.args, *(word.value for word in value.keywords)]
        for word in value.keywords:
            raise _refuse("arguments have no keywords", word)
    else:
        raise _refuse("the right-hand side is one function of the vocabulary, or + - * /", value)
    return Statement(node.targets[0].id, name, tuple(_argument(arg) for arg in args)), args


def _argument(node: ast.expr) -> Argument:
    if isinstance(node, ast.Name):
        return node.id
    sign, literal = 1.0, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, literal = -1.0, node.operand
    if isinstance(literal, ast.Constant) and type(literal.value) in (int, float):
        return sign * _number(literal.value)
    if isinstance(node, ast.Call | ast.BinOp | ast.UnaryOp):
        message = "one operation a statement: assign this to a variable first"
        if isinstance(node, ast.UnaryOp):
            message += ", with `name = 0 - ...` for a minus sign"
        raise _refuse(message, node)
    raise _refuse("an argument is a variable or a number", node)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf  # refused with every other constant out of bounds
