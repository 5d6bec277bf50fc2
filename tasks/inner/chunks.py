"""How many instances to run at a time, so that memory is bounded whatever ``N`` is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from tasks.types import State, Task

MEMORY = 512 * 2**20
"""Bytes that the instances of one chunk may need on a CPU unless a chunk size is given."""

SHARE = 4
"""On a GPU a chunk may need one part in so many of what the device has, whatever else is on it, so
that results do not depend on that; several processes may share a device."""

T = TypeVar("T")
log = logging.getLogger(__name__)


def chunks(instances: int, size: int) -> Iterator[slice]:
    """Consecutive row ranges of nearly equal length, none longer than ``size``."""
    if size < 1:
        raise ValueError(f"chunk: got {size}, expected at least 1")
    pieces = max(1, math.ceil(instances / size))
    for k in range(pieces):
        yield slice(k * instances // pieces, (k + 1) * instances // pieces)


def in_chunks(work: Callable[[slice], T], instances: int, size: int) -> list[T]:
    """``work`` on one chunk after another; a chunk that a GPU has no memory for is halved.

    ``work`` must leave what it reads as it was, should it run out of memory.
    """
    found, waiting = [], [*chunks(instances, size)]
    while waiting:
        rows = waiting.pop(0)
        count = rows.stop - rows.start
        try:
            found.append(work(rows))
            continue
        except torch.OutOfMemoryError:
            if count < 2:
                raise
        # Here and not above: a traceback would keep the memory of what has failed.
        torch.cuda.empty_cache()
        size = (count + 1) // 2
        log.warning("out of GPU memory with %d instances: going on with %d at a time", count, size)
        rest = chunks(instances - rows.start, size)
        waiting = [slice(rows.start + part.start, rows.start + part.stop) for part in rest]
    return found


def chunk_size(task: Task, flat: Tensor, state: State) -> int:
    """How many instances fit into ``MEMORY`` bytes: parameters, gradients, updates, state and the
    activations that one backward pass keeps (measured on one instance)."""
    kept = sum(value[:1].nbytes for value in state.values())
    row = 6 * flat[:1].nbytes + 2 * kept + 2 * _activations(task)
    memory = MEMORY
    if flat.is_cuda:
        memory = torch.cuda.get_device_properties(flat.device).total_memory // SHARE
    return max(1, memory // max(row, 1))


@lru_cache(maxsize=64)
def _activations(task: Task) -> int:
    """Bytes that the backward pass of one instance saves, weights included."""
    saved = {}
    batch = task.data.batch("train", torch.zeros(task.batch_size, dtype=torch.int64, device="cpu"))
    row = torch.zeros(
        task.layout.n,
        device=batch[0].device if batch else "cpu",
        requires_grad=True,
        dtype=torch.float32,
    )

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        task.loss(task.layout.views(row), batch)
    return sum(saved.values())
