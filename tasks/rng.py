"""Random numbers that are a function of (seed, step): no generator, no state.

A resumed run needs nothing to draw the same numbers again, and the numbers of an instance do not
depend on which others run beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.checks import positive


def draw(
    seed: int | Tensor,
    step: int | Tensor,
    size: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The example numbers of a minibatch, drawn with replacement from ``range(size)``.

    ``seed`` and ``step`` (ints or int64 tensors) broadcast against each other; the result is
    int64 ``[*broadcast, batch_size]``: ``draw(0, torch.arange(100), ...)`` is the first 100
    minibatches of seed 0. ``size`` is at most ``2**31``.
    """
    positive(size=size, batch_size=batch_size)
    seeds = torch.as_tensor(seed, dtype=torch.int64, device=device)
    steps = torch.as_tensor(step, dtype=torch.int64, device=device)
    key = mix(mix(mix(seeds) ^ (seeds >> 32)) ^ mix(steps))
    lanes = mix(torch.arange(1, batch_size + 1, device=device))
    return (mix(key[..., None] ^ lanes) * size) >> 32


def mix(x: Tensor) -> Tensor:
    """A bijective hash of 32-bit integers held in int64 (the constants of ``lowbias32``).

    Integer arithmetic alone, so that all devices agree; bits above the lowest 32 are ignored.
    """
    x = (x + 0x9E3779B9) & _MASK  # zero is a fixed point of the rounds below
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


_MASK = 0xFFFFFFFF
