"""The training loops one would write, for programs: what the batched path is compared with.

One program at a time, a torch call for every statement and tensor. ``train`` takes gradients by
autograd, one model at a time; ``train_lifted`` takes those of a few learning rates at once, by
plain ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from search.language.functions import OPS
from search.language.program import Program
from tasks.inner.unroll import initial
from tasks.rng import draw
from tasks.types import Task

CALLS: dict[str, Callable[..., Tensor]] = {"interp": torch.lerp}  # as one would write it


def train(task: Task, program: Program, steps: int, lr: float) -> None:
    """One model, eagerly."""
    params = task.init(torch.Generator().manual_seed(0))
    memory = {name: [torch.zeros_like(p) for _ in program.states] for name, p in params.items()}
    for k, index in enumerate(
        draw(0, torch.arange(steps), task.data.size("train"), task.batch_size)
    ):
        leaves = {name: p.requires_grad_() for name, p in params.items()}
        loss = task.loss(leaves, task.data.batch("train", index))
        found = torch.autograd.grad(loss, [*leaves.values()])
        with torch.no_grad():
            for (name, p), g in zip(leaves.items(), found, strict=True):
                update, memory[name] = run(program, p, g, memory[name], lr, k + 1.0)
                params[name] = p - update


def train_lifted(task: Task, program: Program, steps: int, rates: Sequence[float]) -> None:
    """All learning rates of one program together, by plain ``torch.func``."""
    lr = torch.tensor(rates)
    params = task.layout.views(initial(task, len(rates), 0))
    memory = {name: [torch.zeros_like(p) for _ in program.states] for name, p in params.items()}
    gradient = vmap(grad(task.loss), in_dims=(0, None))
    for k, index in enumerate(
        draw(0, torch.arange(steps), task.data.size("train"), task.batch_size)
    ):
        found = gradient(params, task.data.batch("train", index))
        new = {}
        for name, p in params.items():
            column = lr.view(-1, *[1] * (p.ndim - 1))
            update, memory[name] = run(program, p, found[name], memory[name], column, k + 1.0)
            new[name] = p - update
        params = new


def run(
    program: Program, w: Tensor, g: Tensor, states: Sequence[Tensor], lr: Tensor | float, t: float
) -> tuple[Tensor, list[Tensor]]:
    """A program on one tensor, a torch call a statement: the update and the next states."""
    env: dict[str, Any] = {"w": w, "g": g, "lr": lr, "t": t}
    env.update(zip(program.states, states, strict=True))
    for statement in program.statements:
        args = [env[a] if isinstance(a, str) else a for a in statement.args]
        if not any(isinstance(a, Tensor) for a in args):
            args = [torch.tensor(a) for a in args]
        env[statement.target] = CALLS.get(statement.op, OPS[statement.op].torch)(*args)
    update = env["update"] if program.form == "full" else lr * env["update"]
    return update, [env[name] for name in program.states]
