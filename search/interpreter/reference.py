"""What a statement means, in torch: the reference that kernels and exported files are held to."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from search.interpreter.bytecode import LR, STATES, G, T, Table, W
from search.language.functions import OPS, Kind, Op
from tasks.types import Layout

OPERATIONS: tuple[Op, ...] = tuple(OPS.values())
SMALLEST = 2.0**-126
"""The least number that float32 has in full precision."""


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
    if op.per_tensor:
        return _per_tensor(op, layout, args)
    if op.reduces:
        return REDUCTIONS[op.name](layout, *args)
    if op.arity == 0:
        return op.torch(like.new_empty(1, 1))
    if kind == Kind.TENSOR:
        segments, n = layout.segments(like.device), like.shape[1]
        args = [x if x.shape[1] in (1, n) else x[:, segments] for x in args]
    return op.torch(*args)


def _per_tensor(op: Op, layout: Layout, args: list[Tensor]) -> Tensor:
    """Tensors by themselves, each of all instances at once."""
    return torch.cat([_matrix(op, spec.shape, [x[:, i] for x in args]) for spec, i in layout], 1)


def _matrix(op: Op, shape: tuple[int, ...], args: list[Tensor]) -> Tensor:
    """``op`` of a tensor as a matrix, the first axis by the rest; what has no two axes stays."""
    if len(shape) < 2:
        return args[0]
    return op.torch(*(x.unflatten(1, shape).flatten(2) for x in args)).flatten(1)


def _norm(layout: Layout, x: Tensor) -> Tensor:
    lengths = [x[:, span].double().square().sum(1).sqrt() for _, span in layout]
    return torch.stack(lengths, 1).to(x.dtype)


def _global_norm(layout: Layout, x: Tensor) -> Tensor:
    return _wide_norm(x).to(x.dtype)


def _wide_norm(x: Tensor) -> Tensor:
    return x.double().square().sum(1, keepdim=True).sqrt()


def _dot(layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    return (x.double() * y.double()).sum(1, keepdim=True).to(x.dtype)


def _cosine_sim(layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    u, v = x.double(), y.double()
    squares = u.square().sum(1, keepdim=True) * v.square().sum(1, keepdim=True)
    return ((u * v).sum(1, keepdim=True) / (squares.sqrt() + 1e-8)).to(x.dtype)


def _clip_by_global_norm(layout: Layout, x: Tensor, limit: Tensor) -> Tensor:
    """Where the norm is beyond float32, or nearly so, what is clipped is not: there in float64."""
    norm = _wide_norm(x)
    scale = (limit / (norm.to(x.dtype) + 1e-8)).clamp(max=1)
    wide = x.double() * (limit.double() / (norm + 1e-8))
    return torch.where(scale.abs() < SMALLEST, wide.to(x.dtype), x * scale)


REDUCTIONS = {
    "norm": _norm,
    "global_norm": _global_norm,
    "dot": _dot,
    "cosine_sim": _cosine_sim,
    "clip_by_global_norm": _clip_by_global_norm,
}
