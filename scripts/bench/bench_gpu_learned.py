"""Learned optimizers on a GPU: meta-training against particles, and a step on a large model.

* ``particles``: persistent evolution strategies with ``small_fc`` on the MLP proxy, inner steps a
  second against the number of antithetic pairs, and what bounds them.
* ``large_step``: a step of ``small_fc`` on a tensor list of 100 M parameters beside fused AdamW,
  launched operation by operation and as a CUDA graph, against their bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_bounds import Machine, Row, Work, each, forget, memory, replayed, seconds, work_of_a_step
from torch import Tensor

from l2o.architectures.small_fc import SmallFC
from l2o.estimators.episodes import Episodes, Lesson
from l2o.estimators.es import ES
from tasks.suites import proxy
from tasks.types import Layout, Params, ParamSpec, StepInfo

ADAMW = 28  # bytes a parameter and step: read w, g, m, v; write w, m, v
SMALL_FC = 76  # see l2o/architectures/kernels/gpu.py
KERNELS = Work(3, SMALL_FC - 8)  # what torch does not dispatch, a parameter; 8 are its reductions'
TENSORS = 24


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    particles: tuple[int, ...] = (16, 64, 256, 1024, 4096, 16384)
    steps: int = 50
    parameters: int = 100_000_000
    repeats: int = 3


def particles(device: torch.device, sizes: Sizes, can: Machine) -> list[Row]:
    """Inner steps a second of PES against the number of antithetic pairs."""
    optimizer, lesson = SmallFC(), Lesson(proxy()[0].task)
    theta = optimizer.initial().to(device)

    def outer_step(count: int) -> Callable[[int], object]:
        """A function that takes one outer step of so many inner ones, in the midst of episodes."""

        def estimator(truncation: int) -> ES:
            return ES(Episodes(1000 * sizes.steps, truncation), "persistent")

        runs = estimator(1).start(optimizer, theta, lesson, torch.arange(count))
        runs = estimator(1).step(optimizer, theta, lesson, runs).runs
        return lambda truncation: estimator(truncation).step(optimizer, theta, lesson, runs)

    rows: list[Row] = []
    for count in sizes.particles:
        forget(device)
        try:
            rows.append(one_count(outer_step(count), count, lesson, device, sizes, can))
        except torch.OutOfMemoryError:
            rows.append({"pairs": count, "bound by": "memory"})
    return rows


def one_count(
    go: Callable[[int], object],
    count: int,
    lesson: Lesson,
    device: torch.device,
    sizes: Sizes,
    can: Machine,
) -> Row:
    """Outer steps ``go(truncation)`` of ``count`` pairs."""
    inner = each(go, sizes.steps, device, sizes.repeats)
    outer = seconds(lambda: go(sizes.steps), device, sizes.repeats)
    parameters = 2 * count * lesson.task.layout.n
    work = work_of_a_step(go) + Work(KERNELS.launches, KERNELS.moved * parameters)
    row: Row = {"pairs": count, "inner steps/s": 2 * count * sizes.steps / outer}
    row |= {f"outer step of {sizes.steps} ms": 1e3 * outer, "inner step ms": 1e3 * inner}
    row |= can.bounds(work, inner)
    if outer > 2 * sizes.steps * inner:
        row["bound by"] = "what is done between unrolls, on the host"
    return row | memory(device)


def large_step(device: torch.device, sizes: Sizes, can: Machine) -> list[Row]:
    """``small_fc`` against AdamW on matrices of equal size, about ``sizes.parameters`` in all."""
    side = max(8, round((sizes.parameters / TENSORS) ** 0.5))
    layout = Layout(tuple(ParamSpec(f"w{k}", (side, side)) for k in range(TENSORS)))
    rows = [adamw(layout, device, sizes)]
    for dtype in (torch.float32, torch.bfloat16):
        for hidden in (4, 32, 64):
            forget(device)
            rows.append(learned(hidden, dtype, layout, device, sizes))
    for row in rows:
        row["x AdamW"] = row["step ms"] / rows[0]["step ms"]
        if row.get("bytes a parameter"):
            floor = 1e3 * row["bytes a parameter"] * layout.n / can.bandwidth
            row |= {"floor ms": floor, "x floor": row["step ms"] / floor}
    return rows


def adamw(layout: Layout, device: torch.device, sizes: Sizes) -> Row:
    params = [torch.randn(spec.shape, device=device) for spec in layout.specs]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(params, fused=True)
    taken = seconds(optimizer.step, device, sizes.repeats)
    row: Row = {"rule": "AdamW, fused", "parameters": layout.n, "step ms": 1e3 * taken}
    return row | {"bytes a parameter": ADAMW}


@torch.no_grad()
def learned(
    hidden: int, dtype: torch.dtype, layout: Layout, device: torch.device, sizes: Sizes
) -> Row:
    """A step as the caller launches it, and replayed as a graph."""
    optimizer = SmallFC(hidden_size=hidden)
    rule = optimizer.rule(optimizer.initial().to(device))
    params = Params(torch.randn(1, layout.n, device=device).to(dtype), layout)
    grads, one = torch.randn_like(params.flat), torch.ones(1, device=device)
    state = rule.init(params)
    time = torch.zeros(1, dtype=torch.int64, device=device)
    info = StepInfo(time, time + 1, one, one * 0, one)
    held: list[Tensor] = []

    def go() -> None:
        held[:] = [rule.update(grads, state, params, info)[0]]

    row: Row = {"rule": f"small_fc, hidden {hidden}, {str(dtype).removeprefix('torch.')}"}
    row |= {"parameters": layout.n, "step ms": 1e3 * seconds(go, device, sizes.repeats)}
    if dtype == torch.float32:
        row["bytes a parameter"] = SMALL_FC
    if device.type == "cuda":
        row["as a graph ms"] = 1e3 * seconds(replayed(go, device), device, sizes.repeats)
    return row
