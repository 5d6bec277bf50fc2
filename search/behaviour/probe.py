"""What a program does to gradients that are made up: the experiments behind several answers.

Whether two programs are the same rule, whether a rewriting is right and what kind of rule a
program is are all questions about its updates on chosen gradients. Gradients here do not depend
on the weights, so many experiments run side by side, each an instance, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor

from search.interpreter.bytecode import assemble
from search.interpreter.population import default_step, run
from search.language.functions import OPS
from search.language.program import Program
from tasks.types import Layout, ParamSpec


def respond(
    programs: Sequence[Program],
    gradients: Tensor,
    weights: Tensor | None = None,
    rates: Tensor | None = None,
    weight_decay: float = 0.0,
    layout: Layout | None = None,
    times: Sequence[int] | None = None,
) -> Tensor:
    """Updates ``[programs, T, N, n]`` of each program on gradients ``[T, N, n]`` (float64).

    ``weights`` are ``[n]``, which stay as they are, or ``[T, n]`` (default: zeros); ``rates``
    ``[T]`` are the learning rates (default: ones); ``layout`` names the tensors (default: a single
    one, or a matrix and a vector where a program tells them apart); ``times`` are what ``t`` is
    (default: 1, 2, ...). Raises ValueError for a program that reads ``h``.
    """
    steps, runs, n = gradients.shape
    layout = layout or _layout(programs, n)
    rates = torch.ones(steps, dtype=torch.float64, device="cpu") if rates is None else rates
    table = assemble(programs)
    if table.hessian:
        raise ValueError("program: it reads h, a Hessian, which is not made up here")
    owner = torch.arange(len(programs), device="cpu").repeat_interleave(runs)
    step = default_step(owner.device)
    places = gradients.new_zeros(steps, n) + (0.0 if weights is None else weights)
    flat = gradients.new_zeros(len(owner), n)
    memory = flat.new_zeros(len(owner), table.states, n)
    decay = flat.new_full((len(owner),), weight_decay)
    trace = []
    for k, now in enumerate(gradients):
        time = k + 1 if times is None else times[k]
        lr, t = rates[k].expand(len(owner)), flat.new_full((len(owner),), float(time))
        grads, flat = now.repeat(len(programs), 1), places[k].repeat(len(owner), 1)
        updates, memory = run(step, table, owner, flat, grads, memory, lr, decay, t, layout)
        trace.append(updates.view(len(programs), runs, n))
    return torch.stack(trace, dim=1)


def _layout(programs: Sequence[Program], n: int) -> Layout:
    """``n`` numbers: nearly all in one matrix where a program calls a function of matrices."""
    called = {statement.op for program in programs for statement in program.statements}
    rows = isqrt(n)
    if not any(OPS[name].per_tensor for name in called) or rows < 2:
        return Layout((ParamSpec("a", (n,)),))
    columns = (n - 1) // rows
    return Layout((ParamSpec("a", (rows, columns)), ParamSpec("b", (n - rows * columns,))))
