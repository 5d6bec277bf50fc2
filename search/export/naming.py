"""What the constants, variables and states of a program are called in an exported optimizer.

Constants become hyper-parameters: how much of the past an average keeps is ``beta`` (``beta1``,
``beta2`` if there are several), its complement ``alpha``; what multiplies ``w`` in a full program
is ``weight_decay``; others are ``c1``, ``c2``. Whole numbers up to two are part of the formula and
stay. States are called what other optimizers, and the frameworks around them, call theirs.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from search.language.canonical import constant_of
from search.language.functions import OPS
from search.language.program import Program, Statement

LITERALS = (-1.0, 0.0, 1.0, 2.0)
# fmt: off
TAKEN = {
    "w", "g", "t", "h", "p", "i", "x", "y", "lr", "self", "params", "grads", "steps", "rows",
    "value", "rates", "rate", "decay", "denominator", "copy", "step", "torch", "zip", "len", "list",
    "enumerate", "Any", "Callable", "Iterable", "Optimizer", "Tensor", "STATES", "COLUMNS", "HYPER",
    "exp_avg", "exp_avg_sq", "exp_avgs", "exp_avg_sqs", "weight_decay", "maximize", "foreach",
    "capturable", "differentiable", "fused", "move", "hessian", "hessians", "isinstance", "BLOCK",
    "TOGETHER", "Iterator", "_scalar", "_power", "_dot", "_global_norm", "_cosine_sim",
    "_clip_by_global_norm", "_tensor", "_wide", "_number", "_norm", "_sum", "warnings", "RULE",
    "ValueError", "RuntimeError", "OverflowError", "_by_matrix",
    *(f"_{op.name}" for op in OPS.values() if op.per_tensor),
}
# fmt: on
"""Names that the exported code uses for itself."""


def fold(program: Program) -> Program:
    """Without statements whose arguments are all constants; with their values instead."""
    meaning: dict[str, float] = {}
    statements = []
    for statement in program.statements:
        args = tuple(meaning.get(a, a) if isinstance(a, str) else a for a in statement.args)
        numbers = tuple(arg for arg in args if isinstance(arg, float))
        value = constant_of(statement.op, numbers) if len(numbers) == len(args) else None
        if value is None:
            meaning.pop(statement.target, None)
            statements.append(replace(statement, args=args))
        else:
            meaning[statement.target] = value
    return replace(program, statements=tuple(statements))


def single_names(program: Program) -> Program:
    """The same rule in which inputs are never assigned, and states once, by their last statement.

    Variables whose names the exported code needs for itself get other ones.
    """
    last = {statement.target: row for row, statement in enumerate(program.statements)}
    taken = TAKEN | {f"{name}{ending}" for name in program.states for ending in ("s", "_kept")}
    used = {*taken, *program.inputs, *last}
    clash = {name for name in program.states if name in taken or f"{name}s" in TAKEN}
    states = {n: _fresh(n, used) if n in clash else n for n in program.states}
    inputs = {name: states.get(name, name) for name in program.inputs}
    names = dict(inputs)
    statements = []
    for row, statement in enumerate(program.statements):
        args = tuple(names[a] if isinstance(a, str) else a for a in statement.args)
        target = statement.target
        if target in program.states and last[target] == row:
            name = inputs[target]
        elif target in program.inputs or target in taken:
            name = _fresh(target, used)
        else:
            name = target
        names[target] = name
        statements.append(Statement(name, statement.op, args))
    return replace(program, statements=tuple(statements), inputs=tuple(inputs.values()))


def _fresh(name: str, used: set[str]) -> str:
    """``name_1`` or the next that nobody uses; from now on it is used."""
    new = next(n for k in range(1, len(used) + 2) if (n := f"{name}_{k}") not in used)
    used.add(new)
    return new


def hyper_parameters(program: Program) -> dict[float, str]:
    """What each constant is called; equal constants are one hyper-parameter."""
    roles: dict[float, str] = {}
    for statement in program.statements:
        for place, arg in enumerate(statement.args):
            if isinstance(arg, float) and arg not in LITERALS:
                role = _role(program, statement, place)
                if role == "weight_decay" and role in roles.values() and roles.get(arg) != role:
                    role = "c"
                if roles.get(arg, "c") == "c":
                    roles[arg] = role
    variables = {*program.inputs, *(statement.target for statement in program.statements), *TAKEN}
    return {value: _numbered(value, roles, variables) for value in roles}


def _numbered(value: float, roles: dict[float, str], variables: set[str]) -> str:
    role = roles[value]
    same = [other for other, name in roles.items() if name == role]
    if role == "weight_decay" or (role != "c" and len(same) == 1 and role not in variables):
        return role
    numbers = range(1, len(variables) + len(same) + 1)
    return [n for k in numbers if (n := f"{role}{k}") not in variables][same.index(value)]


def _role(program: Program, statement: Statement, place: int) -> str:
    value = statement.args[place]
    if statement.op == "interp" and place == 2 and isinstance(value, float) and 0 <= value <= 1:
        return "alpha" if statement.args[0] in program.states else "beta"
    decays = statement.op == "mul" and program.form == "full" and "w" in statement.args
    if decays and isinstance(value, float) and value >= 0:
        return "weight_decay"
    return "c"


def digest(program: Program, constants: dict[float, str], keys: dict[str, str]) -> str:
    """What tells the memory of a rule from that of others, whatever its variables are called and
    its hyper-parameters are set to: eight digits."""
    names, lines = dict(keys), [program.form]
    for statement in program.statements:
        args = [
            names.get(arg, arg) if isinstance(arg, str) else constants.get(arg, repr(arg))
            for arg in statement.args
        ]
        target = names.setdefault(statement.target, f"x{len(names)}")
        lines.append(f"{target} = {statement.op}({', '.join(args)})")
    end = names.get("update", "update")
    return hashlib.blake2b("\n".join([*lines, end]).encode(), digest_size=4).hexdigest()


def state_keys(program: Program) -> dict[str, str]:
    """What each state is called in ``Optimizer.state``: by what it averages, or its own name."""
    written = {statement.target: statement for statement in program.statements}
    keys: dict[str, str] = {}
    for name in program.states:
        key = _key(name, written)
        keys[name] = name if key in keys.values() else key
    return keys


def _key(name: str, written: dict[str, Statement]) -> str:
    statement = written.get(name)
    if statement is None or statement.op != "interp" or name not in statement.args[:2]:
        return name
    averaged = statement.args[1 if statement.args[0] == name else 0]
    source = written.get(averaged) if isinstance(averaged, str) else None
    if source is None:
        return "exp_avg"
    is_square = source.op == "square" or (source.op == "mul" and len(set(source.args)) == 1)
    return "exp_avg_sq" if is_square else "exp_avg"
