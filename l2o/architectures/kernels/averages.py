"""Averages of the gradient: updated, spread over the elements, and summed up.

A tensor with axes (x, y) to average over is a stack of *lines*: contiguous runs along the later of
the two, y. An average over y is *along* a line: one number for all of it (``inner`` numbers in turn
where more axes follow y). An average over x lies *across* the lines: a line of its own.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain

import numpy as np

from l2o.architectures.features import Block, blocks
from l2o.architectures.kernels.compiled import ONE, V_EPS, WIDTH, ZERO, F, compiled
from tasks.types import Layout

FLOOR, TINY, ROOT_EPS, SQUARE_EPS = F(1e-9), F(1e-24), F(1e-8), F(1e-30)
NORM_EPS, DENORMAL = F(1e-5), F(1e-36)
FACTORED = 13
"""The first of the twelve features of rows and columns."""

PLACE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "start", "size",  # of the tensor in a row of parameters
            "row", "rows",  # of its average `row`
            "col", "cols",  # and of `col`; no columns below rank 2
            "along",  # 1 where `row` is along the lines and `col` across them, 0 if the reverse
            "x", "mid", "y", "inner",  # lengths: axis x, those between, axis y, those after
            "d1", "after",  # of `row`: the axis left of the two, and those after it
        )
    ]
)  # fmt: skip
"""A tensor, its averages, and how its lines run."""


@lru_cache(maxsize=256)
def places(layout: Layout) -> np.ndarray:
    """A PLACE for each tensor."""
    return np.array([_place(block) for block in blocks(layout)], PLACE)


def _place(block: Block) -> tuple[int, ...]:
    spans = [(s.start, s.stop - s.start) for s in (block.span, block.row, block.col)]
    where = tuple(chain.from_iterable(spans))
    if block.axes is None:
        return (*where, 1, 1, 1, 1, 1, 1, 1)
    d1, d0 = block.axes
    x, y = min(d1, d0), max(d1, d0)
    mid, inner = math.prod(block.shape[x + 1 : y]), math.prod(block.shape[y + 1 :])
    after = mid * inner if d1 == x else inner
    sizes = (block.shape[x], mid, block.shape[y], inner, block.shape[d1], after)
    return (*where, int(d0 == y), *sizes)


@compiled
def average(old, new, weights):
    decay, fresh = weights[0], weights[1]
    for j in range(len(old)):
        x = decay * old[j] + fresh * new[j]
        # What decays to nothing would end as a denormal number, a hundred times slower.
        old[j] = ZERO if abs(x) < DENORMAL else x


@compiled
def average_squares(old, new, weights, epsilon):
    decay, fresh = weights[0], weights[1]
    for j in range(len(old)):
        x = decay * old[j] + fresh * (new[j] * new[j] + epsilon)
        old[j] = ZERO if x < DENORMAL else x


@compiled
def factored_averages(place, grads, decays, row, col, scratch):
    rows, cols = scratch.row[0, : place.rows], scratch.col[0, : place.cols]
    rows[:] = 0
    cols[:] = 0
    if place.along:
        _add_lines(place, grads, rows, cols)
        over_row, over_col = F(place.y), F(place.x)
    else:
        _add_lines(place, grads, cols, rows)
        over_row, over_col = F(place.x), F(place.y)
    for c in range(3):
        decay, fresh = decays[4 + c, 0], decays[4 + c, 1]
        for j in range(place.rows):
            mean = rows[j] / over_row + SQUARE_EPS
            row[c, place.row + j] = decay * row[c, place.row + j] + fresh * mean
        for j in range(place.cols):
            mean = cols[j] / over_col + SQUARE_EPS
            col[c, place.col + j] = decay * col[c, place.col + j] + fresh * mean


@compiled
def _add_lines(place, grads, along, across):
    """Sums of squares along the lines and across them."""
    length, inner = place.y * place.inner, place.inner
    for line in range(place.size // length):
        first = _across(place, line)
        g, sums = grads[line * length : (line + 1) * length], across[first : first + length]
        if inner == 1:
            total = ZERO
            for j in range(length):
                total += g[j] * g[j]
            along[line] = total
        else:
            for j in range(length):
                along[line * inner + j % inner] += g[j] * g[j]
        for j in range(length):
            sums[j] += g[j] * g[j]


@compiled
def _across(place, line):
    """Where, in an average across lines, what belongs to a line begins."""
    stack, rest = divmod(line, place.x * place.mid)
    return (stack * place.mid + rest % place.mid) * place.y * place.inner


@compiled
def sum_squares(g, p, m0, m1, m2, v, whiten, sums):
    """Add each element feature's sum of squares."""
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = a9 = ZERO
    b0 = b1 = b2 = b3 = b4 = b5 = ZERO
    for j in range(len(g)):
        gg, m00, m11, m22 = g[j] * g[j], m0[j] * m0[j], m1[j] * m1[j], m2[j] * m2[j]
        inverse = ONE / (v[j] + V_EPS)
        w0, w1, w2 = whiten[j], whiten[WIDTH + j], whiten[2 * WIDTH + j]
        u0, u1, u2 = whiten[3 * WIDTH + j], whiten[4 * WIDTH + j], whiten[5 * WIDTH + j]
        a0 += gg
        a1 += p[j] * p[j]
        a2 += m00
        a3 += m11
        a4 += m22
        a5 += v[j] * v[j]
        a6 += m00 * inverse
        a7 += m11 * inverse
        a8 += m22 * inverse
        a9 += inverse
        b0 += gg * (w0 * w0)
        b1 += gg * (w1 * w1)
        b2 += gg * (w2 * w2)
        b3 += m00 * (u0 * u0)
        b4 += m11 * (u1 * u1)
        b5 += m22 * (u2 * u2)
    for f, x in enumerate((a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, b0, b1, b2, b3, b4, b5)):
        sums[f] += x


# --------------------------------------------------------------------------- rows, columns, vectors


@compiled
def root(x, epsilon, floor, out):
    for j in range(len(x)):
        y = x[j] + epsilon
        out[j] = ONE / np.sqrt(floor if y < floor else y)


@compiled
def whiten_row(place, row, out):
    """One over the root of rows over their mean."""
    span, after = place.d1 * place.after, place.after
    for c in range(3):
        x = row[c, place.row : place.row + place.rows]
        for first in range(0, place.rows, span):
            for k in range(first, first + after):
                mean = FLOOR
                for j in range(k, k + span, after):
                    mean += x[j] / F(place.d1)
                for j in range(k, k + span, after):
                    out[c, j] = x[j] / mean
        root(out[c, : place.rows], ZERO, FLOOR, out[c, : place.rows])


@compiled
def shares(a0, a1, a2, first, kind, out):
    """``[6, H]``: first-layer weights of an average's features, over their root mean squares."""
    for c, a in enumerate((a0, a1, a2)):
        squares = inverses = ZERO
        for j in range(len(a)):
            squares += a[j] * a[j]
            inverses += ONE / (a[j] + ROOT_EPS)
        norm = ONE / np.sqrt(NORM_EPS + squares / F(len(a)))
        root = ONE / np.sqrt(NORM_EPS + inverses / F(len(a)))
        for k in range(len(first[0])):
            out[c, k] = norm * first[FACTORED + kind + c, k]
            out[3 + c, k] = root * first[FACTORED + 6 + kind + c, k]


@compiled
def contribute(averages, span, shares, roots, out):
    """What an average's features add to the units of the first layer: rows of ``out`` from 3 on."""
    for c in range(3):
        root(averages[c, span], ROOT_EPS, ZERO, roots[c])
    for k in range(len(out) - 3):
        _mix(
            averages[0, span], averages[1, span], averages[2, span], roots[0], roots[1], roots[2],
            shares, k, out[3 + k],
        )  # fmt: skip


@compiled
def _mix(a0, a1, a2, r0, r1, r2, shares, k, out):
    s0, s1, s2 = shares[0, k], shares[1, k], shares[2, k]
    s3, s4, s5 = shares[3, k], shares[4, k], shares[5, k]
    for j in range(len(a0)):
        x = s0 * a0[j] + s1 * a1[j] + s2 * a2[j]
        out[j] = x + s3 * r0[j] + s4 * r1[j] + s5 * r2[j]


@compiled
def whiten(place, low, count, row, scratch):
    """What turns g, and m, into what it would be over its root mean square."""
    w = scratch.whiten
    if place.cols:
        spread(place, low, count, scratch.row, scratch.col, True, w)
        for j in range(3 * WIDTH):
            w[3 * WIDTH + j] = w[j]
        return
    at = place.row + low
    for c in range(3):
        x = row[c, at : at + count]
        root(x, FLOOR, FLOOR, w[c * WIDTH : c * WIDTH + count])
        root(x, V_EPS, TINY, w[(3 + c) * WIDTH : (3 + c) * WIDTH + count])


@compiled
def spread_vector(place, low, count, row, scratch):
    """What row and column features, alike in a vector, add to the units of its elements."""
    span = slice(place.row + low, place.row + low + count)
    for c in range(3):
        root(row[c, span], ROOT_EPS, ZERO, scratch.roots[c])
    for k in range(len(scratch.units) // WIDTH):
        _mix(
            row[0, span], row[1, span], row[2, span],
            scratch.roots[0], scratch.roots[1], scratch.roots[2],
            scratch.shares[0], k, scratch.units[k * WIDTH : (k + 1) * WIDTH],
        )  # fmt: skip


@compiled
def spread(place, low, count, row, col, product, out):
    """Rows and columns over the elements: products of the first three rows of ``row`` and ``col``,
    which whiten, or sums of the others, which belong to units."""
    along, across = (row, col) if place.along else (col, row)
    length, inner = place.y * place.inner, place.inner
    line, offset = divmod(low, length)
    stack, rest = divmod(line, place.x * place.mid)
    at = 0
    while at < count:
        run = min(length - offset, count - at)
        begin = (stack * place.mid + (rest % place.mid if place.mid > 1 else 0)) * length + offset
        if inner > 1:
            first, last = (0, 3) if product else (3, len(row))
            for k in range(first, last):
                for j in range(run):
                    x = along[k, line * inner + (offset + j) % inner]
                    y = across[k, begin + j]
                    out[(k - first) * WIDTH + at + j] = x * y if product else x + y
        elif product:
            _multiply(along, line, across, begin, run, out[at:])
        else:
            for k in range(3, len(row), 4):
                _add(along, line, across, k, begin, run, out[(k - 3) * WIDTH + at :])
        at += run
        line, rest, offset = line + 1, rest + 1, 0
        if rest == place.x * place.mid:
            stack, rest = stack + 1, 0


@compiled
def _multiply(along, line, across, begin, run, out):
    a0, a1, a2 = along[0, line], along[1, line], along[2, line]
    x0, x1, x2 = across[0, begin:], across[1, begin:], across[2, begin:]
    for j in range(run):
        out[j] = a0 * x0[j]
        out[WIDTH + j] = a1 * x1[j]
        out[2 * WIDTH + j] = a2 * x2[j]


@compiled
def _add(along, line, across, k, begin, run, out):
    a0, a1, a2, a3 = along[k, line], along[k + 1, line], along[k + 2, line], along[k + 3, line]
    x0, x1, x2, x3 = (
        across[k, begin:],
        across[k + 1, begin:],
        across[k + 2, begin:],
        across[k + 3, begin:],
    )
    for j in range(run):
        out[j] = a0 + x0[j]
        out[WIDTH + j] = a1 + x1[j]
        out[2 * WIDTH + j] = a2 + x2[j]
        out[3 * WIDTH + j] = a3 + x3[j]
