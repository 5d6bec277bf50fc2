"""Programs as tables of numbers, which is what the kernels run.

A program becomes rows of opcodes and registers. A register holds one number an instance, one a
named tensor or one an element (``Kind``), so there are three banks of them, and a fourth for
constants; scalars and tensors meet by broadcasting.

The input ``h`` travels as the last state variable, whose register nothing writes and which
``vm.Population`` fills before every step; kernels need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from search.language.functions import OPS, Kind, result_kind
from search.language.program import Program

CONSTANT = 3  # the bank after those of Kind: numbers written in the program
W, G, STATES = 0, 1, 2  # tensor registers at the start of a step
LR, T, SCALARS = 0, 1, 2  # scalar registers at the start of a step


class Table(NamedTuple):
    """``P`` programs of at most ``L`` statements, ``S`` states and ``C`` constants.

    A register is a pair: its bank (a ``Kind`` or CONSTANT) and its place in the bank.
    """

    length: np.ndarray  # [P] int32, statements
    code: np.ndarray  # [P, L] int32, opcode
    out: np.ndarray  # [P, L, 2] int32, register written
    args: np.ndarray  # [P, L, 3, 2] int32, registers read
    constants: np.ndarray  # [P, C] float64
    result: np.ndarray  # [P, 1 + S] int32, tensor registers of `update` and the states at the end
    full: np.ndarray  # [P] bool, form is "full"
    reduces: np.ndarray  # [P] bool, some statement needs whole tensors at once
    registers: np.ndarray  # [3] int32, size of each bank
    compiled: np.ndarray  # [P] bool, kernels have all of its functions
    hessian: bool = False  # the last state is the input h of some program
    kernel: Table | None = None  # the table of the compiled programs, where others are not

    @property
    def states(self) -> int:
        return self.result.shape[1] - 1

    def only(self, which: np.ndarray) -> Table:
        """Of the programs in ``which``, ``[P]`` bool; registers and states stay where they are."""
        fields = self._asdict()
        shared = {name: fields.pop(name) for name in ("registers", "hessian", "kernel")}
        return Table(**{name: field[which] for name, field in fields.items()}, **shared)


class _Row(NamedTuple):
    statements: list[tuple[int, tuple[int, int], list[tuple[int, int]]]]
    constants: list[float]
    result: list[int]
    registers: list[int]


def assemble(programs: Sequence[Program]) -> Table:
    """The table of a population. Programs must have passed ``analyze.check``."""
    hessian = any("h" in program.inputs for program in programs)
    states = max((len(program.states) for program in programs), default=0) + hessian
    rows = [_assemble(program, states) for program in programs]
    count = len(rows)
    length = max((len(row.statements) for row in rows), default=0)
    table = Table(
        length=np.array([len(row.statements) for row in rows], np.int32),
        code=np.zeros((count, length), np.int32),
        out=np.zeros((count, length, 2), np.int32),
        args=np.zeros((count, length, 3, 2), np.int32),
        constants=np.zeros((count, max((len(row.constants) for row in rows), default=0))),
        result=np.array([row.result for row in rows], np.int32).reshape(count, 1 + states),
        full=np.array([program.form == "full" for program in programs]),
        reduces=np.array([any(OPS[s.op].reduces for s in p.statements) for p in programs]),
        registers=np.array([row.registers for row in rows], np.int32).reshape(count, 3).max(0),
        compiled=np.array([all(OPS[s.op].compiled for s in p.statements) for p in programs], bool),
        hessian=hessian,
    )
    for p, row in enumerate(rows):
        table.constants[p, : len(row.constants)] = row.constants
        for s, (code, out, args) in enumerate(row.statements):
            table.code[p, s], table.out[p, s] = code, out
            table.args[p, s, : len(args)] = np.array(args, np.int32).reshape(-1, 2)
    return table if table.compiled.all() else table._replace(kernel=table.only(table.compiled))


def _assemble(program: Program, states: int) -> _Row:
    where: dict[str, tuple[int, int]] = {
        "w": (Kind.TENSOR, W),
        "g": (Kind.TENSOR, G),
        "lr": (Kind.SCALAR, LR),
        "t": (Kind.SCALAR, T),
        **{name: (Kind.TENSOR, STATES + k) for k, name in enumerate(program.states)},
    }
    hessian = (Kind.TENSOR, STATES + states - 1) if "h" in program.inputs else None
    if hessian is not None:
        where["h"] = hessian
    constants: dict[float, int] = {}
    used = [SCALARS, 0, STATES + states]
    free: list[list[tuple[int, int]]] = [[], [], []]
    statements = []
    for statement in program.statements:
        op = OPS[statement.op]
        args = [
            where[arg]
            if isinstance(arg, str)
            else (CONSTANT, constants.setdefault(arg, len(constants)))
            for arg in statement.args
        ]
        kind = result_kind(op, [Kind.SCALAR if b == CONSTANT else Kind(b) for b, _ in args])
        target = where.get(statement.target)
        if target == hessian:
            target = None  # the next steps need it
        # Writing over what is being read would keep a compiled loop from being vectorised.
        if target is None or target[0] != kind or target in args:
            if target is not None:
                free[target[0]].append(target)
            spare = [register for register in free[kind] if register not in args]
            if spare:
                free[kind].remove(spare[0])
            else:
                spare, used[kind] = [(int(kind), used[kind])], used[kind] + 1
            target = where[statement.target] = spare[0]
        statements.append((op.code, target, args))
    # A program with fewer states than the largest leaves the other ones at zero.
    others = range(STATES + len(program.states), STATES + states)
    result = [*(where[name][1] for name in ("update", *program.states)), *others]
    return _Row(statements, list(constants), result, used)
