"""What a learned optimizer sees: decaying averages of the gradient, and features made of them.

Two kinds of average are kept (Metz et al. 2022, "Practical tradeoffs ..."):

* per element: momenta ``m`` of ``g`` with three decays, and ``v`` of ``g*g``;
* factored, as in Adafactor (Shazeer & Stern 2018): for a matrix only the means of ``g*g`` over
  rows and over columns, which is all but free. Their product approximates ``v``.

Everything is feature-major, ``[N, features, n]``: a feature of all parameters of an instance is one
contiguous row, tensors one after another as in the task's layout. Only the factored averages must
know shapes. Their trap is the square matrix: which axis is "row" is decided by ``factored_axes``
and by nothing else, and swapping the two makes another optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.base import THETA, zeros
from tasks.types import Layout, Params, State, StepInfo

TIMESCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
RMS_DECAY = 0.999
FACTORED_DECAYS = (0.9, 0.99, 0.999)

# --------------------------------------------------------------------------------- factored shapes


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """``(d1, d0)``: the second largest and the largest axis, or None below rank 2.

    Axes of equal size keep their order, so of a square matrix ``d1`` is axis 0 and ``d0`` axis 1.
    """
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return order[-2], order[-1]


@dataclass(frozen=True)
class Block:
    """A tensor and its factored averages: where they lie in ``[N, 3, ...]`` buffers.

    ``row`` averages over axis ``d0`` and ``col`` over ``d1``; shapes keep those axes at length 1.
    Below rank 2 ``axes`` is None, ``row`` is the full average and ``col`` is empty.
    """

    shape: tuple[int, ...]
    axes: tuple[int, int] | None
    span: slice
    row: slice
    col: slice

    def along(self, axis: int) -> tuple[int, ...]:
        """The shape with ``axis`` averaged away to length 1."""
        return (*self.shape[:axis], 1, *self.shape[axis + 1 :])


@lru_cache(maxsize=256)
def blocks(layout: Layout) -> tuple[Block, ...]:
    """The factored averages of every tensor of ``layout``, one after another."""
    found, row, col = [], 0, 0
    for spec, span in layout:
        axes = factored_axes(spec.shape)
        rows, cols = spec.numel, 0
        if axes is not None:
            rows, cols = (spec.numel // spec.shape[axis] for axis in reversed(axes))
        found.append(
            Block(spec.shape, axes, span, slice(row, row + rows), slice(col, col + cols)),
        )
        row, col = row + rows, col + cols
    return tuple(found)


# ------------------------------------------------------------------------------------- accumulators


class Decays(NamedTuple):
    """How fast the averages forget; ``[N, k]``, or ``[1, k]`` for all instances alike."""

    momentum: Tensor  # k = 3
    rms: Tensor  # k = 1
    factored: Tensor  # k = 3


def fixed_decays(like: Tensor) -> Decays:
    """The decays that are not learned, on the device of ``like``."""
    return Decays(
        *(
            constants(values, like.dtype, like.device)[None]
            for values in (MOMENTUM_DECAYS, (RMS_DECAY,), FACTORED_DECAYS)
        )
    )


def learned_decays(momentum: Tensor, rms: Tensor, factored: Tensor) -> Decays:
    """The decays moved by offsets ``[N, k]``: ``1 - exp(10 (ln(1 - decay) / 10 + offset))``.

    An offset of 0.07 halves a decay's memory. Only the averages of squares are kept within
    [0, 1]; a momentum may be driven beyond, as in the original.
    """
    start = fixed_decays(momentum)
    moved = [
        1 - torch.exp(10 * ((1 - decay).log() / 10 + offset))
        for decay, offset in zip(start, (momentum, rms, factored), strict=True)
    ]
    return Decays(moved[0], moved[1].clamp(0, 1), moved[2].clamp(0, 1))


def init_accumulators(params: Params) -> State:
    """``m [N, 3, n]``, ``v [N, 1, n]``, ``row [N, 3, rows]``, ``col [N, 3, cols]``, all zero."""
    last = blocks(params.layout)[-1]
    return {
        "m": zeros(params, len(MOMENTUM_DECAYS), params.layout.n),
        "v": zeros(params, 1, params.layout.n),
        "row": zeros(params, len(FACTORED_DECAYS), last.row.stop),
        "col": zeros(params, len(FACTORED_DECAYS), last.col.stop),
    }


def accumulate(grads: Tensor, state: State, layout: Layout, decays: Decays) -> State:
    """The averages after seeing ``grads`` ``[N, n]``; no bias correction."""
    squares = grads.square()
    rows, cols = [], []
    for block in blocks(layout):
        piece = squares[:, block.span] + 1e-30
        if block.axes is None:
            rows.append(piece)
            continue
        d1, d0 = block.axes
        piece = piece.view(-1, *block.shape)
        rows.append(piece.mean(dim=d0 + 1).flatten(1))
        cols.append(piece.mean(dim=d1 + 1).flatten(1))
    row = torch.cat(rows, dim=1)
    col = torch.cat(cols, dim=1) if cols else row[:, :0]
    return {
        "m": _average(state["m"], grads, decays.momentum),
        "v": _average(state["v"], squares, decays.rms),
        "row": _average(state["row"], row, decays.factored),
        "col": _average(state["col"], col, decays.factored),
    }


def _average(old: Tensor, new: Tensor, decay: Tensor) -> Tensor:
    """``decay * old + (1 - decay) * new`` for ``[N, k, n]``, ``[N, n]`` and ``[N, k]``."""
    return decay[..., None] * old + (1 - decay)[..., None] * new[:, None]


# ----------------------------------------------------------------------------------------- features


class Factored(NamedTuple):
    """Factored averages laid out over the parameters, each ``[N, 3, n]``."""

    row: Tensor
    col: Tensor
    whiten_g: Tensor  # times g: the gradient over its approximate root mean square
    whiten_m: Tensor  # times m: the same for momenta; differs from ``whiten_g`` below rank 2


def expand_factored(state: State, layout: Layout, epsilon: float) -> Factored:
    """``epsilon``: added under the root where a vector's momenta are whitened."""
    pieces = [_expand(state, block, epsilon) for block in blocks(layout)]
    return Factored(*(torch.cat(parts, dim=-1) for parts in zip(*pieces, strict=True)))


def _expand(state: State, block: Block, epsilon: float) -> Factored:
    row = state["row"][..., block.row]
    if block.axes is None:
        floor = 1e-24  # far below any gradient that matters; a root there has a derivative
        return Factored(row, row, safe_rsqrt(row + 1e-9), (row + epsilon).clamp(min=floor).rsqrt())
    d1, d0 = block.axes
    lead, full = row.shape[:2], (*row.shape[:2], *block.shape)
    row = row.view(*lead, *block.along(d0))
    col = state["col"][..., block.col].view(*lead, *block.along(d1))
    whiten = safe_rsqrt(row / (row.mean(dim=d1 + 2, keepdim=True) + 1e-9)) * safe_rsqrt(col)
    whiten = whiten.flatten(2)
    return Factored(row.expand(full).flatten(2), col.expand(full).flatten(2), whiten, whiten)


def safe_rsqrt(x: Tensor) -> Tensor:
    return x.clamp(min=1e-9).rsqrt()


def small_fc_features(grads: Tensor, state: State, params: Params) -> Tensor:
    """What ``small_fc`` sees of a parameter, before normalisation: ``[N, 28, n]``."""
    g, p, m, v = grads[:, None], params.flat[:, None], state["m"], state["v"]
    factored = expand_factored(state, params.layout, epsilon=1e-6)
    inverse = (v + 1e-6).rsqrt()
    raw = [g, p, m, v, m * inverse, inverse, g * factored.whiten_g, *_squares(factored)]
    return torch.cat([*raw, m * factored.whiten_m], dim=1)


def velo_features(grads: Tensor, state: State, params: Params) -> Tensor:
    """What ``velo`` sees of a parameter, before normalisation: ``[N, 30, n]``."""
    g, p, m, v = grads[:, None], params.flat[:, None], state["m"], state["v"]
    factored = expand_factored(state, params.layout, epsilon=0.0)
    inverse = (v + 1e-6).rsqrt()
    raw = [g, g.clamp(-0.1, 0.1), p, m, v, m * inverse, inverse, g * factored.whiten_g]
    raw += [g * inverse, *_squares(factored), m * factored.whiten_m]
    return torch.cat(raw, dim=1)


def _squares(factored: Factored) -> Iterator[Tensor]:
    yield from (factored.row, factored.col)
    yield from ((factored.row + 1e-8).rsqrt(), (factored.col + 1e-8).rsqrt())


def normalizers(features: Tensor, layout: Layout) -> list[Tensor]:
    """One over the root mean square of each feature over each tensor: ``[N, features]`` a tensor.

    Features are used divided by it. To scale the weights they meet does the same for less.
    """
    squares = [torch.linalg.vector_norm(features[..., span], dim=-1).square() for _, span in layout]
    sizes = [spec.numel for spec in layout.specs]
    return [(1e-5 + s / size).rsqrt() for s, size in zip(squares, sizes, strict=True)]


def time_features(info: StepInfo, like: Tensor) -> Tensor:
    """How late it is, on eleven scales: ``tanh(step / scale - 1)``, ``[N, 11]`` or ``[1, 11]``."""
    if isinstance(info.step, int):  # filled: a number copied to a GPU has to be waited for
        step = like.new_full((1, 1), info.step)
    else:
        step = info.step.to(like.dtype).reshape(-1, 1)
    return torch.tanh(step / constants(TIMESCALES, like.dtype, like.device) - 1)


@lru_cache(maxsize=32)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers ``[k]`` on a device, brought there once."""
    return torch.tensor(values, dtype=dtype, device=device)


def truncated_normal(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Normal numbers cut at two standard deviations of 1/sqrt(fan_in), the cut not made up for."""
    std = fan_in**-0.5
    values = torch.empty(shape, **THETA)
    return torch.nn.init.trunc_normal_(values, 0.0, std, -2 * std, 2 * std, generator=generator)
