"""Which values of a program cannot be negative, so that no square root has to take an absolute.

States start at zero; one stays non-negative if, all those assumed to be so at the start of a step,
it is so at the end. Hyper-parameters can be changed by whoever uses the file: only averages'
decays, which are checked to lie in [0, 1], and whole numbers that are part of the formula count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search.language.functions import OPS
from search.language.program import Argument, Program, Statement

ZERO, UNIT = "not negative", "in [0, 1]"


def non_negative(program: Program, names: Mapping[float, str]) -> list[frozenset[str]]:
    """For each statement, the variables that cannot be negative before it runs.

    ``names``: the constants that are hyper-parameters, and what they are called.
    """
    assumed = set(program.states)
    while True:
        known = dict.fromkeys(assumed, ZERO) | ({"t": ZERO} if "t" in program.inputs else {})
        before = []
        for statement in program.statements:
            before.append(frozenset(known))
            found = _range(statement, lambda arg: _of(arg, known, names))  # noqa: B023
            known.pop(statement.target, None)
            known |= {statement.target: found} if found else {}
        if assumed <= known.keys():
            return before
        assumed &= known.keys()


def _of(arg: Argument, known: Mapping[str, str], names: Mapping[float, str]) -> str:
    if isinstance(arg, str):
        return known.get(arg, "")
    if arg in names:
        return UNIT if names[arg].startswith(("beta", "alpha")) else ""
    return UNIT if 0 <= arg <= 1 else ZERO if arg >= 0 else ""


def _range(statement: Statement, of: Callable[[Argument], str]) -> str:
    """What is known of a statement's value: UNIT, ZERO or nothing."""
    op, args = statement.op, statement.args
    known = [of(arg) for arg in args]
    if op == "power":
        return UNIT if known[0] == UNIT and known[1] else known[0] and ZERO
    if op == "sub":
        return UNIT if args[0] == 1.0 and known[1] == UNIT else ""
    if op == "interp":
        return ZERO if all(known) and known[2] == UNIT else ""
    if op == "mul" and args[0] == args[1]:
        return ZERO
    if op == "maximum":
        return ZERO if any(known) else ""
    negative = OPS[op].negative
    return ZERO if negative == "never" or (negative == "inherited" and all(known)) else ""
