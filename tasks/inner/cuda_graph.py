"""The inner step as a CUDA graph: captured once, then replayed without the host.

An inner step of small models is some hundred launches of a few microseconds each, so on a GPU the
host that launches them is what bounds it. A CUDA graph is the whole list of launches, launched as
one. That takes a step without arguments, which reads and writes the same memory every time: so
here the runs live in buffers, the clock that chooses minibatches is a number on the device, and
learning rates and losses are rows of tables at the place that the clock points to.

What is computed is what ``unroll`` computes, operation by operation. Nothing within an unroll waits
for the device but the capturing itself, once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.inner.step import inner_step
from tasks.oracles.base import Oracle, Point
from tasks.oracles.gradient import derivatives
from tasks.oracles.lifting import ways
from tasks.oracles.reading import reads
from tasks.rng import draw
from tasks.types import Inner, Task, UpdateRule

WARM = 3
"""Steps taken one launch at a time before capturing: libraries set themselves up in them, kernels
are compiled, and the last of them is watched."""

WORTH = 16
"""Steps below which capturing is not worth its while."""

SLOW = "an inner step that is no CUDA graph is slow: %s"
log = logging.getLogger(__name__)


def repeat(step: Callable[[], None], times: int, device: torch.device) -> None:
    """Do ``step`` so many times; on a GPU as replays of a graph.

    A step that cannot be captured is run as it is, with a log line that says why. One that waits
    for the device, as torch's own optimizers do, is found out before it is tried: a capture that
    fails leaves the allocator waiting for its end.
    """
    if device.type != "cuda" or times < WORTH:
        for _ in range(times):
            step()
        return
    here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM - 1):
            step()
        waits = _waits(step)
    here.wait_stream(side)
    if waits:
        log.warning(SLOW, "it waits for the device")
    play = step if waits else _capture(step)
    for _ in range(times - WARM):
        play()
    here.synchronize()  # the graph goes, and the memory that it works in


def _waits(step: Callable[[], None]) -> bool:
    """Do ``step`` once; whether the host waited for the device in it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return any("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def _capture(step: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if isinstance(error.__context__, torch.OutOfMemoryError):  # what made the capture fail
            raise error.__context__ from None
        log.warning(SLOW, str(error).partition("\n")[0])
        return step
    return graph.replay


@torch.no_grad()
def advance(
    task: Task,
    rule: UpdateRule,
    inner: Inner,
    steps: int,
    horizon: int | Tensor,
    rates: Tensor,
    weight_decay: Tensor,
    oracle: Oracle | None = None,
) -> tuple[Inner, Tensor]:
    """What ``unroll`` means by advancing a chunk, on copies of what ``inner`` holds.

    ``rates``: learning rates ``[steps, N]``. Returns the runs and their losses ``[steps, N]``.
    """
    device = inner.params.device
    oracle = reads(rule, oracle)
    known = ways(task, oracle.backward)
    instances = len(inner.params)
    data = task.data.to(device)
    shared = isinstance(inner.seed, int) and isinstance(inner.step, int)
    shape = () if shared else (instances,)
    seed, clock = (_filled(number, shape, device) for number in (inner.seed, inner.step))
    flat = inner.params.clone()
    state = {name: value.clone() for name, value in inner.state.items()}
    planned = _filled(horizon, (instances,), device)
    losses = flat.new_empty(steps, instances)
    place = torch.zeros(1, dtype=torch.int64, device=device)

    def step() -> None:
        index = draw(seed, clock, data.size("train"), task.batch_size, device)
        batch = data.batch("train", index)
        point = Point(task, flat, batch, shared, seed, clock, known, derivatives)
        updates, new, loss = inner_step(
            point,
            oracle,
            rule,
            state,
            horizon=planned,
            lr=rates.index_select(0, place)[0],
            weight_decay=weight_decay,
            captured=True,
        )
        losses.index_copy_(0, place, loss[None])
        flat.sub_(updates)
        for name, value in new.items():
            if name in state:
                state[name].copy_(value)
            else:  # a torch.optim.Optimizer makes its state at its first step
                state[name] = value.clone()
        clock.add_(1)
        place.add_(1)

    repeat(step, steps, device)
    return Inner(flat, state, inner.step + steps, inner.seed), losses


def _filled(number: int | Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if isinstance(number, int):
        return torch.full(shape, number, dtype=torch.int64, device=device)
    return number.to(device).expand(shape).clone()
