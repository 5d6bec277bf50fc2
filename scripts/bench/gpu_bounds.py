"""What bounds a step on a device: its launches, its bytes or its products, whichever takes longest.

What the machine can do is measured: a large copy, a large product of float32 matrices, a chain of
tiny operations (on a GPU replayed as a graph, as the inner loop is). What a step asks of it is
counted: every operation of torch that is dispatched, the tensors it reads and writes, and the
multiplications of matrix products. Kernels of our own are not dispatched, so what they move is
added by formula. The largest of the three times is a floor that no step of these operations can
beat; the share of the step that it explains says how close the step is to it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Row = dict[str, Any]
CHAIN = 200  # operations
FREE = ("_unsafe_view", "empty", "new_empty", "detach", "lift", "set_")
"""Operations that move nothing, besides those that torch itself calls views."""


@dataclass(frozen=True)
class Work:
    """``launches``: operations; ``moved``: bytes read and written; ``products``: floating-point
    operations of matrix products."""

    launches: float = 0
    moved: float = 0
    products: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.launches + other.launches,
            self.moved + other.moved,
            self.products + other.products,
        )

    def scaled(self, factor: float) -> Work:
        return Work(self.launches * factor, self.moved * factor, self.products * factor)


class Machine(NamedTuple):
    """What a device was seen to do in a second."""

    bandwidth: float  # bytes of a copy, read and written both counted
    products: float  # floating-point operations of a matrix product in float32
    launches: float  # tiny operations, one after the other

    def bounds(self, work: Work, step: float) -> Row:
        """Columns for work that took ``step`` seconds."""
        floors = {
            "launches": work.launches / self.launches,
            "bandwidth": work.moved / self.bandwidth,
            "arithmetic": work.products / self.products,
        }
        name = max(floors, key=floors.__getitem__)
        row: Row = {f"{floor} ms": 1e3 * seconds for floor, seconds in floors.items()}
        return row | {"bound by": name, "share explained": floors[name] / step}


def machine(device: torch.device, copied: int, side: int, repeats: int) -> Machine:
    """Measure ``device`` with a copy of ``copied`` bytes and a product of ``side``-square ones."""
    source = torch.randn(copied // 8, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device, repeats)
    left = torch.randn(side, side, device=device)
    product = seconds(lambda: left @ left, device, repeats)
    one = torch.zeros(1, device=device)

    def chain() -> None:
        for _ in range(CHAIN):
            one.add_(1)

    launch = seconds(replayed(chain, device), device, repeats) / CHAIN
    return Machine(2 * source.nbytes / copy, 2 * side**3 / product, 1 / launch)


def replayed(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``run`` as a CUDA graph, or as it is on a CPU."""
    if device.type != "cuda":
        return run
    run()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of ``run`` after one that does not count; the device's own on a GPU."""
    run()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run()
            events[1].record()
            events[1].synchronize()
            found.append(events[0].elapsed_time(events[1]) / 1e3)
        else:
            before = time.perf_counter()
            run()
            found.append(time.perf_counter() - before)
    return statistics.median(found)


def each(run: Callable[[int], object], steps: int, device: torch.device, repeats: int) -> float:
    """Seconds of one more step of ``run(steps)``: what is done once a run, such as capturing a
    graph, is left out by taking the difference of two lengths, unless noise is larger than that."""
    long = seconds(lambda: run(2 * steps), device, repeats)
    short = seconds(lambda: run(steps), device, repeats)
    return (long - short) / steps if long > short else long / (2 * steps)


def work_of_a_step(run: Callable[[int], object]) -> Work:
    """What one more step of ``run(steps)`` asks for. Its steps must not be a graph, so are few."""
    one, two = counted(lambda: run(1)), counted(lambda: run(2))
    return two + one.scaled(-1)


def counted(run: Callable[[], object]) -> Work:
    """What the operations of ``run`` ask for."""
    with _Counting() as mode:
        run()
    return mode.work


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.name().removeprefix("aten::")
        if func.is_view or name.startswith(FREE):
            return found
        count = flop_registry.get(func.overloadpacket)
        products = count(*args, **kwargs, out_val=found) if count else 0
        moved = sum(map(_bytes, (*tree_leaves((args, kwargs)), *tree_leaves(found))))
        self.work += Work(1, moved, products)
        return found


def _bytes(value: object) -> int:
    """What reading or writing ``value`` moves: of an expanded tensor, what there is of it."""
    if not isinstance(value, Tensor):
        return 0
    return min(value.nbytes, value.untyped_storage().nbytes())


def forget(device: torch.device) -> None:
    """Start counting memory anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def memory(device: torch.device) -> Row:
    """The most that was allocated since ``forget``."""
    if device.type != "cuda":
        return {}
    return {"memory GiB": torch.cuda.max_memory_allocated(device) / 2**30}
