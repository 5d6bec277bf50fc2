"""How many instances to run at a time, so that memory is bounded whatever ``N`` is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from tasks.types import State, Task

MEMORY = 512 * 2**20
"""Bytes that the instances of one chunk may need unless a chunk size is given."""


def chunks(instances: int, size: int) -> Iterator[slice]:
    """Consecutive row ranges of nearly equal length, none longer than ``size``."""
    if size < 1:
        raise ValueError(f"chunk: got {size}, expected at least 1")
    pieces = max(1, math.ceil(instances / size))
    for k in range(pieces):
        yield slice(k * instances // pieces, (k + 1) * instances // pieces)


def chunk_size(task: Task, flat: Tensor, state: State) -> int:
    """How many instances fit into ``MEMORY`` bytes: parameters, gradients, updates, state and the
    activations that one backward pass keeps (measured on one instance)."""
    memory = sum(value[:1].nbytes for value in state.values())
    row = 6 * flat[:1].nbytes + 2 * memory + 2 * _activations(task)
    return max(1, MEMORY // max(row, 1))


@lru_cache(maxsize=64)
def _activations(task: Task) -> int:
    """Bytes that the backward pass of one instance saves, weights included."""
    saved = {}
    batch = task.data.batch("train", torch.zeros(task.batch_size, dtype=torch.int64))
    row = torch.zeros(task.layout.n, device=batch[0].device if batch else None, requires_grad=True)

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        task.loss(task.layout.views(row), batch)
    return sum(saved.values())
