"""Is a program valid, and which of its statements have an effect?"""

from __future__ import annotations

from dataclasses import replace

from search.language.functions import Kind, ProgramTypeError
from search.language.program import Program, Statement, kinds, validate


def check(program: Program) -> None:
    """Raise ProgramError unless the program is a rule that can run and that learns.

    ProgramSyntaxError for names and numbers; ProgramTypeError for kinds (``update`` and the states
    have to be tensors at the end), and if no update ever depends on the gradient.
    """
    validate(program)
    final = dict(zip((s.target for s in program.statements), kinds(program), strict=True))
    for name in ("update", *program.states):
        kind = final.get(name, Kind.TENSOR)
        if kind != Kind.TENSOR:
            raise ProgramTypeError(f"{name!r} is {kind.name} at the end; it has to be TENSOR")
    _, needed = _live(program)
    if "g" not in needed:
        raise ProgramTypeError("update does not depend on the gradient")


def live(program: Program) -> Program:
    """Only the statements that can influence ``update`` at this or any later step.

    A state that ends up unused stays a parameter, so the programs can be compared.
    """
    return replace(program, statements=tuple(_live(program)[0]))


def _live(program: Program) -> tuple[list[Statement], set[str]]:
    """The live statements, and the names whose values at the start of a step matter."""
    states = set(program.states)
    carried: set[str] = set()  # states that matter at the end of a step
    while True:
        needed = {"update", *carried}
        kept = []
        for statement in reversed(program.statements):
            if statement.target in needed:
                needed.discard(statement.target)
                needed.update(arg for arg in statement.args if isinstance(arg, str))
                kept.append(statement)
        if needed & states <= carried:
            return kept[::-1], needed
        carried |= needed & states
