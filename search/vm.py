"""A population of programs as one update rule.

``assemble`` turns programs into a table of numbers: for every statement its opcode and the
registers it reads and writes. A register holds one number an instance, one a named tensor or one
an element (``ops.Kind``), so there are three banks and a fourth for constants, and scalars and
tensors meet by broadcasting. A ``Step`` then runs all instances, each with its own program, for
one optimizer step.

``reference`` is what the words mean, in torch, on any device. The modules in ``kernels/`` have
the same signature and are tested against it as trajectories; ``Population`` picks one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from search.ops import OPS, Kind, Op, result_kind
from search.program import Program
from tasks.types import Layout, Params, State, StepInfo

OPERATIONS: tuple[Op, ...] = tuple(OPS.values())
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

    @property
    def states(self) -> int:
        return self.result.shape[1] - 1


class _Row(NamedTuple):
    statements: list[tuple[int, tuple[int, int], list[tuple[int, int]]]]
    constants: list[float]
    result: list[int]
    registers: list[int]


def assemble(programs: Sequence[Program]) -> Table:
    """The table of a population. Programs must have passed ``analyze.check``.

    Raises ValueError for a program that reads ``h``: no curvature is available here.
    """
    states = max((len(program.states) for program in programs), default=0)
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
    )
    for p, row in enumerate(rows):
        table.constants[p, : len(row.constants)] = row.constants
        for s, (code, out, args) in enumerate(row.statements):
            table.code[p, s], table.out[p, s] = code, out
            table.args[p, s, : len(args)] = np.array(args, np.int32).reshape(-1, 2)
    return table


def _assemble(program: Program, states: int) -> _Row:
    if "h" in program.inputs:
        raise ValueError("input h (Hessian diagonal) is not supplied by these tasks")
    where: dict[str, tuple[int, int]] = {
        "w": (Kind.TENSOR, W),
        "g": (Kind.TENSOR, G),
        "lr": (Kind.SCALAR, LR),
        "t": (Kind.SCALAR, T),
        **{name: (Kind.TENSOR, STATES + k) for k, name in enumerate(program.states)},
    }
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


class Step(Protocol):
    """One optimizer step of ``N`` instances."""

    def __call__(
        self,
        table: Table,
        owner: Tensor,  # [N] int64, which program each instance runs
        flat: Tensor,  # [N, n] parameters
        grads: Tensor,  # [N, n]
        memory: Tensor,  # [N, S, n] state variables; may be overwritten
        lr: Tensor,  # [N]
        weight_decay: Tensor,  # [N]
        t: Tensor,  # [N], steps counted from 1
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        """Updates ``[N, n]``, to be subtracted from ``flat``, and the next ``memory``."""
        ...


def reference(
    table: Table,
    owner: Tensor,
    flat: Tensor,
    grads: Tensor,
    memory: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    t: Tensor,
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """See ``Step``; the meaning that all kernels share."""
    updates, memory = torch.empty_like(flat), memory.clone()
    for p in torch.unique(owner).tolist():
        rows = (owner == p).nonzero().flatten()
        banks: list[dict[int, Tensor]] = [
            {LR: lr[rows, None], T: t[rows, None]},
            {},
            {W: flat[rows], G: grads[rows]},
            {c: flat.new_full((len(rows), 1), x) for c, x in enumerate(table.constants[p])},
        ]
        banks[Kind.TENSOR].update({STATES + k: s for k, s in enumerate(memory[rows].unbind(1))})
        for s in range(int(table.length[p])):
            op = OPERATIONS[table.code[p, s]]
            bank, index = table.out[p, s].tolist()
            args = [banks[b][i] for b, i in table.args[p, s, : op.arity].tolist()]
            banks[bank][index] = _apply(op, args, bank, layout, flat)
        direction, *states = (banks[Kind.TENSOR][i] for i in table.result[p].tolist())
        if not table.full[p]:
            direction = lr[rows, None] * (direction + weight_decay[rows, None] * flat[rows])
        updates[rows] = direction
        for k, state in enumerate(states):
            memory[rows, k] = state
    return updates, memory


def _apply(op: Op, args: list[Tensor], kind: int, layout: Layout, like: Tensor) -> Tensor:
    """One statement on scalars ``[K, 1]``, arrays ``[K, tensors]`` and tensors ``[K, n]``."""
    if op.reduces:
        return REDUCTIONS[op.name](layout, *args)
    if op.arity == 0:
        return op.torch(like.new_empty(1, 1))
    if kind == Kind.TENSOR:
        segments, n = layout.segments(like.device), like.shape[1]
        args = [x if x.shape[1] in (1, n) else x[:, segments] for x in args]
    return op.torch(*args)


# Sums run in float64, so that the order in which a kernel adds up does not show in float32.


def _norm(layout: Layout, x: Tensor) -> Tensor:
    lengths = [x[:, span].double().square().sum(1).sqrt() for _, span in layout]
    return torch.stack(lengths, 1).to(x.dtype)


def _global_norm(layout: Layout, x: Tensor) -> Tensor:
    return x.double().square().sum(1, keepdim=True).sqrt().to(x.dtype)


def _dot(layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    return (x.double() * y.double()).sum(1, keepdim=True).to(x.dtype)


def _cosine_sim(layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    u, v = x.double(), y.double()
    squares = u.square().sum(1, keepdim=True) * v.square().sum(1, keepdim=True)
    return ((u * v).sum(1, keepdim=True) / (squares.sqrt() + 1e-8)).to(x.dtype)


def _clip_by_global_norm(layout: Layout, x: Tensor, limit: Tensor) -> Tensor:
    return x * (limit / (_global_norm(layout, x) + 1e-8)).clamp(max=1)


REDUCTIONS = {
    "norm": _norm,
    "global_norm": _global_norm,
    "dot": _dot,
    "cosine_sim": _cosine_sim,
    "clip_by_global_norm": _clip_by_global_norm,
}


@dataclass(frozen=True)
class Population:
    """Programs as an ``UpdateRule``: instance ``i`` runs ``programs[owner[i]]``.

    ``step`` is ``reference`` or a kernel of the same signature.
    """

    programs: tuple[Program, ...]
    owner: Tensor  # [N] int64
    step: Step
    table: Table = field(repr=False)

    @classmethod
    def of(cls, programs: Sequence[Program], owner: Tensor, step: Step | None = None) -> Population:
        """``step`` defaults to the kernel for the device that ``owner`` is on."""
        if step is None:
            step = default_step(owner.device)
        return cls(tuple(programs), owner, step, assemble(programs))

    def init(self, params: Params) -> State:
        instances, n = params.flat.shape
        return {"memory": params.flat.new_zeros(instances, self.table.states, n)}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        t = torch.as_tensor(info.step + 1, dtype=params.flat.dtype, device=grads.device)
        updates, memory = self.step(
            self.table,
            self.owner,
            params.flat,
            grads,
            state["memory"],
            info.lr,
            info.weight_decay,
            t.expand(len(self.owner)),
            params.layout,
        )
        return updates, {"memory": memory}

    def select(self, index: Tensor) -> Population:
        return replace(self, owner=self.owner[index])


def default_step(device: torch.device) -> Step:
    """The fastest step there is for a device."""
    if device.type == "cpu":
        from search.kernels import cpu  # compiled on first use, so only where it is used

        return cpu.step
    return reference
