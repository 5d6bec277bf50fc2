"""A population of programs as one update rule.

A ``Step`` runs all instances, each with its own program (``assemble``), for one optimizer step.
``reference`` is what the words mean, in torch, on any device. The modules in ``kernels/`` have
the same signature and are tested against it as trajectories; ``Population`` picks one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from search.assemble import LR, STATES, G, T, Table, W, assemble
from search.language.functions import OPS, Kind, Op
from search.language.program import Program
from tasks.types import Layout, Params, State, StepInfo

OPERATIONS: tuple[Op, ...] = tuple(OPS.values())
log = logging.getLogger(__name__)


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

    ``step`` is ``reference`` or a kernel of the same signature. Programs that read ``h`` get a
    new estimate at the steps that ``hessian_every`` divides, and keep it in between; 0: none does.
    """

    programs: tuple[Program, ...]
    owner: Tensor  # [N] int64
    step: Step
    table: Table = field(repr=False)
    hessian_every: int = 0

    @classmethod
    def of(
        cls,
        programs: Sequence[Program],
        owner: Tensor,
        step: Step | None = None,
        hessian_every: int = 1,
    ) -> Population:
        """``step`` defaults to the kernel for the device that ``owner`` is on."""
        if step is None:
            step = default_step(owner.device)
        if hessian_every < 1:
            raise ValueError(f"hessian_every: got {hessian_every}, expected at least 1")
        table = assemble(programs)
        return cls(tuple(programs), owner, step, table, hessian_every if table.hessian else 0)

    @property
    def identity(self) -> str:
        """What tells its memory from that of other programs."""
        text = "".join(map(str, self.programs))
        return f"program {hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def init(self, params: Params) -> State:
        instances, n = params.flat.shape
        return {"memory": params.flat.new_zeros(instances, self.table.states, n)}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        if isinstance(info.step, Tensor):
            t = (info.step + 1).to(params.flat.dtype)
        else:  # filled, because a number that is copied to a GPU has to be waited for
            t = params.flat.new_full((1,), info.step + 1)
        updates, memory = self.step(
            self.table,
            self.owner,
            params.flat,
            grads,
            self._memory(state["memory"], info),
            info.lr,
            info.weight_decay,
            t.expand(len(self.owner)),
            params.layout,
        )
        return updates, {"memory": memory}

    def _memory(self, memory: Tensor, info: StepInfo) -> Tensor:
        """With the Hessian where programs that read one expect it, if it is time for a new one."""
        if not self.hessian_every:
            return memory
        due = (
            torch.as_tensor(info.step, dtype=torch.int64, device=memory.device) % self.hessian_every
            == 0
        )
        if info.hessian is None:
            if due.any():
                raise ValueError("hessian: got none at this step, expected one: a program reads h")
            return memory
        hessian = torch.where(due.reshape(-1, 1), info.hessian, memory[:, -1])
        return torch.cat([memory[:, :-1], hessian[:, None]], dim=1)

    def select(self, index: Tensor) -> Population:
        return replace(self, owner=self.owner[index])


def default_step(device: torch.device) -> Step:
    """The fastest step there is for a device."""
    if device.type == "cpu":
        from search.kernels import cpu  # compiled on first use, so only where it is used

        return cpu.step
    if find_spec("numba_cuda") is None:
        log.warning(
            "numba-cuda is not installed: programs run in plain torch (pip install l2o[gpu])"
        )
        return reference
    from search.kernels import gpu

    return gpu.step
