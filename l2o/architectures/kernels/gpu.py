"""``small_fc`` on a GPU: features -> network -> update in Triton, without writing features down.

A feature is divided by its root mean square over the tensor, so a step takes two passes over the
parameters, and one over the gradients before them:

1. ``factored`` (torch): means of g*g over rows and columns;             read g twice
2. ``_observe``: averages, and each feature's sum of squares;            read g p m v, write m v
3. ``_answer``: features again, network, update;                         read g p m v, write update

In float32 these are 8 + 40 + 28 = 76 bytes a parameter (``m`` is three numbers), where AdamW moves
28: 2.7 times as many. Of arithmetic, ``_answer`` does 32 H + H H + 2 H multiplications with H the
hidden size padded to 16, 32 or 64. At 100 M parameters and H = 32 that is 0.4 TFLOP: 6 ms of an
H200's ordinary float32 units, more than the bytes take (1.8 ms at 4.3 TB/s). So the layers are
products of small matrices on the tensor cores, three tf32 products for each float32 one, and this
kernel is in Triton rather than in numba-cuda, which cannot reach those. (Compiled for sm_90 all
three are ``wgmma``; registers spill at H = 64 alone, no function is called, and ``_observe`` and
``_answer`` are 976 and 2,080 instructions at H = 32.)

Every program handles a *tile* of one tensor of one instance. Sums of tiles are written down and
added in a fixed order, so results do not depend on timing. Arithmetic is float32 whatever the type
of parameters, gradients and averages. Nothing of this has been timed on a GPU.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton is an extra, and what it makes of a function is known when it is compiled.)

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2o.architectures.features import Block, blocks, safe_rsqrt, time_features
from tasks.types import Layout, Params, State, StepInfo

if TYPE_CHECKING:
    from l2o.architectures.small_fc import SmallFCRule

BLOCK = 128  # elements at a time
TILE = 32 * BLOCK  # elements of a program: its weights are loaded once
FEATURES = 28


def step(
    rule: SmallFCRule, grads: Tensor, state: State, params: Params, info: StepInfo
) -> tuple[Tensor, State]:
    """See ``small_fc.Step``: hidden sizes up to 64, float32 or bfloat16; ``state`` is overwritten.

    Runs on torch's current stream. Besides the kernels it takes some ten small launches a tensor,
    which a CUDA graph makes cheap.
    """
    flat, grads = params.flat.contiguous(), grads.contiguous()
    instances, n = flat.shape
    optimizer, layout = rule.optimizer, params.layout
    after = {name: state[name].contiguous() for name in ("m", "v", "row", "col")}
    theta = rule.theta.detach().reshape(-1, optimizer.size).float().contiguous()
    decays = torch.cat(rule.decays, 1).detach().float().contiguous()
    whiten = factored(grads, after, layout, decays[:, 4:])
    time = time_features(info, theta)
    named = optimizer.layout.views(theta)
    bias = named["b0"] + (time[:, None] @ named["w0"][:, FEATURES:]).squeeze(1)
    tiles, tensors, factors = _map(layout, tuple(rule.factors(layout)), flat.device)
    partial = flat.new_empty((instances, len(tiles), 32), dtype=torch.float32)
    inverse = flat.new_empty((instances, len(tensors), 32), dtype=torch.float32)
    updates = torch.empty_like(flat)
    rate, decay = (x.float().contiguous() for x in (info.lr, info.weight_decay))
    averages = (after["m"], after["v"], after["row"], after["col"], whiten)
    sizes = (n, after["row"].shape[2], after["col"].shape[2], len(tiles), len(tensors))
    grid = (len(tiles) * instances,)
    every = _stride(decays)
    _observe[grid](
        grads, flat, *averages, decays, every, tiles, tensors, partial, *sizes, BLOCK=BLOCK
    )
    _normalize[(len(tensors) * instances,)](partial, tensors, inverse, *sizes[3:])
    _answer[grid](
        grads, flat, *averages, theta, _stride(theta), bias, _stride(bias),
        tiles, tensors, factors, inverse, rate, decay, updates,
        *sizes, optimizer.step_mult, optimizer.exp_mult, HIDDEN=optimizer.hidden_size,
        PADDED=max(16, triton.next_power_of_2(optimizer.hidden_size)),
        LAYERS=optimizer.hidden_layers, BLOCK=BLOCK,
    )  # fmt: skip
    return updates, after


def _stride(rows: Tensor) -> int:
    """From one instance's row to the next; 0 where all share one."""
    return rows.shape[1] if len(rows) > 1 else 0


def factored(grads: Tensor, state: State, layout: Layout, decays: Tensor) -> Tensor:
    """Update the averages over rows and columns in place.

    Returns ``[N, 3, rows]`` what a row contributes to whitening: one over the root of the row's
    average over the mean of all rows. Below rank 2 it is not used.
    """
    rows, cols, found = [], [], []
    for block in blocks(layout):
        piece = grads[:, block.span].float()
        if block.axes is None:
            rows.append(piece.square() + 1e-30)
            continue
        d1, d0 = block.axes
        piece = piece.view(-1, *block.shape)
        for kept, axis in ((rows, d0), (cols, d1)):
            lengths = torch.linalg.vector_norm(piece, dim=axis + 1)
            kept.append((lengths.square() / block.shape[axis] + 1e-30).flatten(1))
    for name, kept in (("row", rows), ("col", cols)):
        if kept:
            old, decay = state[name], decays[..., None]
            old.copy_(decay * old.float() + (1 - decay) * torch.cat(kept, dim=1)[:, None])
    for block in blocks(layout):
        row = state["row"][..., block.row].float()
        if block.axes is not None:
            shaped = row.view(*row.shape[:2], *block.along(block.axes[1]))
            mean = shaped.mean(dim=block.axes[0] + 2, keepdim=True)
            row = safe_rsqrt(shaped / (mean + 1e-9)).flatten(2)
        found.append(row)
    return torch.cat(found, dim=2).contiguous()


@lru_cache(maxsize=32)
def _map(
    layout: Layout, factors: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles ``[tiles, 3]`` (tensor, start, stop), tensors ``[T, 10]`` and factors ``[T]``.

    Raises ValueError for a tensor of 2**31 elements or more.
    """
    tiles, tensors = [], []
    for k, block in enumerate(blocks(layout)):
        if block.span.stop - block.span.start >= 2**31:
            raise ValueError(f"params: got a tensor of shape {block.shape}, expected below 2**31")
        first = len(tiles)
        for start in range(block.span.start, block.span.stop, TILE):
            tiles.append((k, start, min(start + TILE, block.span.stop)))
        tensors.append((*_place(block), first, len(tiles), block.span.stop - block.span.start))
    numbers = (
        torch.tensor(tiles, dtype=torch.int64, device="cpu"),
        torch.tensor(tensors, dtype=torch.int64, device="cpu"),
    )
    scale = torch.tensor(factors, dtype=torch.float32, device="cpu").expand(len(tensors))
    return numbers[0].to(device), numbers[1].to(device), scale.contiguous().to(device)


def _place(block: Block) -> tuple[int, ...]:
    """Where a tensor and its averages begin, and for row and column how an element finds its own.

    Element ``e`` belongs to ``e // line * inner + e % inner`` of an average over an axis, where
    ``inner`` is the product of the axes after it and ``line`` that of them and it.
    """
    where = (block.span.start, block.row.start, block.col.start)
    if block.axes is None:
        return (*where, 1, 1, 0, 0)  # a vector's row is itself
    d1, d0 = block.axes
    steps = []
    for axis in (d0, d1):
        inner = math.prod(block.shape[axis + 1 :])
        steps += [inner * block.shape[axis], inner]
    return (*where, *steps)


# ------------------------------------------------------------------------------------ the kernels


@triton.jit
def _load3(base, size, at, inside):
    """Three averages ``size`` apart, as float32. (``2 * size`` may be more than 32 bits hold.)"""
    x = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(base + size + at, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(base + size + size + at, mask=inside, other=0.0).to(tl.float32)
    return x, y, z


@triton.jit
def _at_least(x, low):
    """The larger of two; NaN stays NaN, as in torch, where the hardware would take the other."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _pack(
    f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, f12, f13, f14, f15, f16, f17, f18, f19, f20,
    f21, f22, f23, f24, f25, f26, f27, BLOCK: tl.constexpr,
):  # fmt: skip
    """28 features ``[BLOCK]`` as one matrix ``[BLOCK, 32]``, the last four columns zero."""
    zero = f0 * 0
    a0, a1, a2, a3 = tl.join(f0, f16), tl.join(f1, f17), tl.join(f2, f18), tl.join(f3, f19)
    a4, a5, a6, a7 = tl.join(f4, f20), tl.join(f5, f21), tl.join(f6, f22), tl.join(f7, f23)
    a8, a9, a10, a11 = tl.join(f8, f24), tl.join(f9, f25), tl.join(f10, f26), tl.join(f11, f27)
    a12, a13 = tl.join(f12, zero), tl.join(f13, zero)
    a14, a15 = tl.join(f14, zero), tl.join(f15, zero)
    b0, b1, b2, b3 = tl.join(a0, a8), tl.join(a1, a9), tl.join(a2, a10), tl.join(a3, a11)
    b4, b5, b6, b7 = tl.join(a4, a12), tl.join(a5, a13), tl.join(a6, a14), tl.join(a7, a15)
    c0, c1, c2, c3 = tl.join(b0, b4), tl.join(b1, b5), tl.join(b2, b6), tl.join(b3, b7)
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (BLOCK, 32))


@triton.jit
def _features(
    g, p, m0, m1, m2, v, row, col, whiten, tensor, rows, cols, element, inside, BLOCK: tl.constexpr
):  # fmt: skip
    """The 28 features of ``small_fc_features``, in its order, ``[BLOCK, 32]``."""
    # Divided in 32 bits: in 64 each of the four divisions takes a hundred instructions.
    element = element.to(tl.int32)
    row_line, row_inner = tl.load(tensor + 3).to(tl.int32), tl.load(tensor + 4).to(tl.int32)
    col_line, col_inner = tl.load(tensor + 5).to(tl.int32), tl.load(tensor + 6).to(tl.int32)
    vector = col_line == 0
    at = tl.load(tensor + 1) + element // row_line * row_inner + element % row_inner
    r0, r1, r2 = _load3(row, rows, at, inside)
    if vector:
        c0, c1, c2 = r0, r1, r2
        w0 = tl.rsqrt(_at_least(r0 + 1e-9, 1e-9))
        w1 = tl.rsqrt(_at_least(r1 + 1e-9, 1e-9))
        w2 = tl.rsqrt(_at_least(r2 + 1e-9, 1e-9))
        u0 = tl.rsqrt(_at_least(r0 + 1e-6, 1e-24))
        u1 = tl.rsqrt(_at_least(r1 + 1e-6, 1e-24))
        u2 = tl.rsqrt(_at_least(r2 + 1e-6, 1e-24))
    else:
        place = tl.load(tensor + 2) + element // col_line * col_inner + element % col_inner
        c0, c1, c2 = _load3(col, cols, place, inside)
        w0, w1, w2 = _load3(whiten, rows, at, inside)
        w0, w1, w2 = (
            w0 * tl.rsqrt(_at_least(c0, 1e-9)),
            w1 * tl.rsqrt(_at_least(c1, 1e-9)),
            w2 * tl.rsqrt(_at_least(c2, 1e-9)),
        )
        u0, u1, u2 = w0, w1, w2
    i = tl.rsqrt(v + 1e-6)
    return _pack(
        g, p, m0, m1, m2, v, m0 * i, m1 * i, m2 * i, i, g * w0, g * w1, g * w2, r0, r1, r2,
        c0, c1, c2, tl.rsqrt(r0 + 1e-8), tl.rsqrt(r1 + 1e-8), tl.rsqrt(r2 + 1e-8),
        tl.rsqrt(c0 + 1e-8), tl.rsqrt(c1 + 1e-8), tl.rsqrt(c2 + 1e-8),
        m0 * u0, m1 * u1, m2 * u2, BLOCK,
    )  # fmt: skip


@triton.jit
def _observe(
    grads, flat, m, v, row, col, whiten, decays, every, tiles, tensors, partial,
    n, rows, cols, tile_count, tensor_count, BLOCK: tl.constexpr,
):  # fmt: skip
    """Averages of a tile, and the sum of squares of its features."""
    tile, i = tl.program_id(0) % tile_count, (tl.program_id(0) // tile_count).to(tl.int64)
    tensor = tensors + tl.load(tiles + 3 * tile) * 10
    start, stop, begin = (
        tl.load(tiles + 3 * tile + 1),
        tl.load(tiles + 3 * tile + 2),
        tl.load(tensor),
    )
    decay = decays + i * every
    d0, d1, d2, d3 = tl.load(decay), tl.load(decay + 1), tl.load(decay + 2), tl.load(decay + 3)
    row, col, whiten = row + i * 3 * rows, col + i * 3 * cols, whiten + i * 3 * rows
    m, v, grads, flat = m + i * 3 * n, v + i * n, grads + i * n, flat + i * n
    sums = tl.zeros((BLOCK, 32), tl.float32)
    for low in range(start, stop, BLOCK):
        j = low + tl.arange(0, BLOCK)
        inside = j < stop
        g = tl.load(grads + j, mask=inside, other=0.0).to(tl.float32)
        p = tl.load(flat + j, mask=inside, other=0.0).to(tl.float32)
        m0, m1, m2 = _load3(m, n, j, inside)
        m0, m1, m2 = d0 * m0 + (1 - d0) * g, d1 * m1 + (1 - d1) * g, d2 * m2 + (1 - d2) * g
        square = tl.load(v + j, mask=inside, other=0.0).to(tl.float32)
        square = d3 * square + (1 - d3) * g * g
        tl.store(m + j, m0, mask=inside)
        tl.store(m + n + j, m1, mask=inside)
        tl.store(m + n + n + j, m2, mask=inside)
        tl.store(v + j, square, mask=inside)
        found = _features(
            g, p, m0, m1, m2, square, row, col, whiten, tensor, rows, cols, j - begin, inside, BLOCK
        )
        sums += tl.where(inside[:, None], found * found, 0.0)
    out = partial + (i * tile_count + tile) * 32 + tl.arange(0, 32)
    tl.store(out, tl.sum(sums, axis=0))


@triton.jit
def _normalize(partial, tensors, inverse, tile_count, tensor_count):
    """One over each feature's root mean square over a tensor."""
    k, i = tl.program_id(0) % tensor_count, (tl.program_id(0) // tensor_count).to(tl.int64)
    tensor = tensors + k * 10
    first, last = tl.load(tensor + 7), tl.load(tensor + 8)
    size = tl.load(tensor + 9).to(tl.float32)
    total = tl.zeros((32,), tl.float32)
    feature = tl.arange(0, 32)
    for low in range(first, last, 32):
        tile = low + tl.arange(0, 32)
        at = partial + (i * tile_count + tile[:, None]) * 32 + feature[None, :]
        total += tl.sum(tl.load(at, mask=(tile < last)[:, None], other=0.0), axis=0)
    tl.store(inverse + (i * tensor_count + k) * 32 + feature, tl.rsqrt(1e-5 + total / size))


@triton.jit
def _answer(
    grads, flat, m, v, row, col, whiten, theta, theta_every, bias, bias_every,
    tiles, tensors, factors, inverse, lr, weight_decay, updates,
    n, rows, cols, tile_count, tensor_count, step_mult, exp_mult,
    HIDDEN: tl.constexpr, PADDED: tl.constexpr, LAYERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The updates of a tile."""
    tile, i = tl.program_id(0) % tile_count, (tl.program_id(0) // tile_count).to(tl.int64)
    k = tl.load(tiles + 3 * tile)
    tensor = tensors + k * 10
    start, stop, begin = (
        tl.load(tiles + 3 * tile + 1),
        tl.load(tiles + 3 * tile + 2),
        tl.load(tensor),
    )
    row, col, whiten = row + i * 3 * rows, col + i * 3 * cols, whiten + i * 3 * rows
    m, v, grads, flat = m + i * 3 * n, v + i * n, grads + i * n, flat + i * n
    theta, unit, feature = theta + i * theta_every + 7, tl.arange(0, PADDED), tl.arange(0, 32)
    real = unit < HIDDEN
    scale = tl.load(inverse + (i * tensor_count + k) * 32 + feature)
    w = tl.load(
        theta + feature[:, None] * HIDDEN + unit[None, :],
        mask=(feature < 28)[:, None] & real[None, :],
        other=0.0,
    )
    first = w * scale[:, None]
    bias0 = tl.load(bias + i * bias_every + unit, mask=real, other=0.0)
    rate, decay = tl.load(lr + i), tl.load(weight_decay + i)
    mult = step_mult * tl.load(factors + k)
    for low in range(start, stop, BLOCK):
        j = low + tl.arange(0, BLOCK)
        inside = j < stop
        g = tl.load(grads + j, mask=inside, other=0.0).to(tl.float32)
        p = tl.load(flat + j, mask=inside, other=0.0).to(tl.float32)
        m0, m1, m2 = _load3(m, n, j, inside)
        square = tl.load(v + j, mask=inside, other=0.0).to(tl.float32)
        found = _features(
            g, p, m0, m1, m2, square, row, col, whiten, tensor, rows, cols, j - begin, inside, BLOCK
        )
        x = tl.dot(found, first, input_precision="tf32x3") + bias0[None, :]
        at = theta + 40 * HIDDEN  # after w0 [39, H] and b0 [H]
        for _ in tl.static_range(LAYERS - 1):
            weights = tl.load(
                at + unit[:, None] * HIDDEN + unit[None, :],
                mask=real[:, None] & real[None, :],
                other=0.0,
            )
            shift = tl.load(at + HIDDEN * HIDDEN + unit, mask=real, other=0.0)
            x = tl.dot(_at_least(x, 0.0), weights, input_precision="tf32x3") + shift[None, :]
            at += HIDDEN * HIDDEN + HIDDEN
        x = _at_least(x, 0.0)
        last = at + 2 * unit
        d = tl.sum(x * tl.load(last, mask=real, other=0.0)[None, :], axis=1)
        e = tl.sum(x * tl.load(last + 1, mask=real, other=0.0)[None, :], axis=1)
        d, e = d + tl.load(at + 2 * HIDDEN), e + tl.load(at + 2 * HIDDEN + 1)
        moved = mult * d * tl.exp(e * exp_mult)
        tl.store(updates + i * n + j, rate * (moved + decay * p), mask=inside)
