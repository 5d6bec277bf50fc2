"""``small_fc`` on a CPU: features -> network -> update, without ever writing the features down.

Written naively a step reads and writes some eighty arrays of the size of the parameters. Here a
tensor is visited in blocks of ``WIDTH`` elements whose intermediate values stay in the first-level
cache, twice: once to update the averages and to sum the squares that features are normalised by,
and once to run the network and write the update. What makes the rest cheap:

* Features are normalised by scaling the first layer's weights, once a tensor.
* Time is the same for all elements of an instance, so its eleven features are part of the bias.
* Twelve features of a matrix depend on its row or its column alone. What they add to the first
  layer is computed once a row and once a column: twelve products an element become one addition.

So of 39 features 16 are computed for each element. Inner loops run over elements and call nothing,
which is what lets LLVM vectorise them; that the rows of a scratch array lie a constant distance
apart is what lets it prove that they do not overlap.

A tensor with axes (x, y) to average over is a stack of *lines*: contiguous runs along the later of
the two, y. An average over y is *along* a line: one number for all of it (``inner`` numbers in turn
where more axes follow y). An average over x lies *across* the lines: a line of its own.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from l2o.features import TIMESCALES, Block, Decays, blocks
from tasks.types import Layout, Params, State, StepInfo

if TYPE_CHECKING:
    from l2o.small_fc import SmallFCRule

WIDTH = 272
ELEMENT = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 25, 26, 27])
"""Features computed for each element: their places among the 28. Others are of rows and columns."""
COUNT, FACTORED, TIME, INPUTS = 16, 13, 28, 39
F = np.float32
ZERO, HALF, ONE = F(0), F(0.5), F(1)
FLOOR, TINY, V_EPS, ROOT_EPS, SQUARE_EPS = F(1e-9), F(1e-24), F(1e-6), F(1e-8), F(1e-30)
NORM_EPS, DENORMAL = F(1e-5), F(1e-36)
SCALES = np.array(TIMESCALES, F)

# Nothing here may assume that there are no NaN and no infinities.
compiled = njit(
    cache=True,
    _nrt=False,
    error_model="numpy",
    nogil=True,
    fastmath={"contract", "reassoc", "nsz", "arcp"},
)

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


def step(
    rule: SmallFCRule, grads: Tensor, state: State, params: Params, info: StepInfo
) -> tuple[Tensor, State]:
    """See ``small_fc.Step``. CPU tensors, float32; ``state`` is overwritten."""
    after = {name: state[name].contiguous() for name in ("m", "v", "row", "col")}
    updates = torch.empty(params.flat.shape)
    optimizer = rule.optimizer
    network = _network(optimizer.hidden_size, optimizer.hidden_layers)
    _run(
        rule.theta.detach().view(-1, optimizer.size).contiguous().numpy(),
        _weights(rule.decays),
        np.array([optimizer.hidden_size, optimizer.hidden_layers]),
        np.array([optimizer.step_mult, optimizer.exp_mult], F),
        torch.as_tensor(info.step).view(-1).contiguous().numpy(),
        params.flat.detach().contiguous().numpy(),
        grads.detach().contiguous().numpy(),
        *(value.numpy() for value in after.values()),
        places(params.layout),
        np.array(rule.factors(params.layout), F),
        info.lr.detach().contiguous().numpy(),
        info.weight_decay.detach().contiguous().numpy(),
        network,
        _scratch(network.first.shape[1], places(params.layout)),
        updates.numpy(),
    )
    return updates, after


def _weights(decays: Decays) -> np.ndarray:
    """``[N, 7, 2]``: of each average the weights of the old value and of the new.

    Were ``1 - decay`` computed in compiled code, LLVM would turn ``(1 - decay) * x`` into
    ``x - decay * x``, which is faster and wrong in the fifth digit.
    """
    old = torch.cat(decays, 1).detach()
    return torch.stack([old, 1 - old], dim=2).numpy()


class Network(NamedTuple):
    """The weights of an instance; layers are padded with zeros to ``H``, a multiple of four."""

    first: np.ndarray  # [39, H]
    bias: np.ndarray  # [layers + 1, H]; of the first layer, time included
    weights: np.ndarray  # [layers, H, H], of the layers after the first


class Scratch(NamedTuple):
    """Memory for intermediate values. Flat arrays hold rows that lie ``WIDTH`` apart."""

    features: np.ndarray  # [16 * WIDTH]
    units: np.ndarray  # [H * WIDTH]
    others: np.ndarray  # [H * WIDTH]
    whiten: np.ndarray  # [6 * WIDTH], for g and, below rank 2, for m
    roots: np.ndarray  # [3, rows, columns or WIDTH]
    sums: np.ndarray  # [16] float64
    weights: np.ndarray  # [16, H], the first layer's for element features, scaled
    shares: np.ndarray  # [2, 6, H], the first layer's for row and for column features, scaled
    row: np.ndarray  # [3 + H, rows], whitening, and what is added to units
    col: np.ndarray  # [3 + H, cols]


@compiled
def _run(
    theta, decays, sizes, mults, steps, flat, grads, m, v, row, col, tensors, factors, lr,
    weight_decay, network, scratch, updates,
):  # fmt: skip
    for i in range(len(flat)):
        own = min(i, len(theta) - 1)
        _load(theta[own], sizes[0], F(steps[min(i, len(steps) - 1)]), network)
        rate, decay = mults[0] * lr[i], weight_decay[i] * lr[i]
        for k in range(len(tensors)):
            _observe(
                tensors[k], network, decays[own], grads[i], flat[i], m[i], v[i, 0], row[i], col[i],
                scratch,
            )  # fmt: skip
            _answer(
                tensors[k], network, grads[i], flat[i], m[i], v[i, 0], row[i], scratch,
                rate * factors[k], mults[1], decay, updates[i],
            )  # fmt: skip


def _network(hidden, layers):
    padded = (max(hidden, 2) + 3) // 4 * 4
    return Network(
        np.zeros((INPUTS, padded), F),
        np.zeros((layers + 1, padded), F),
        np.zeros((layers, padded, padded), F),
    )


def _scratch(padded, tensors):
    rows, cols = 1, 1
    for k in range(len(tensors)):
        if tensors[k]["cols"]:
            rows, cols = max(rows, tensors[k]["rows"]), max(cols, tensors[k]["cols"])
    return Scratch(
        np.zeros(COUNT * WIDTH, F),
        np.zeros(padded * WIDTH, F),
        np.zeros(padded * WIDTH, F),
        np.zeros(6 * WIDTH, F),
        np.zeros((3, max(rows, cols, WIDTH)), F),
        np.zeros(COUNT),
        np.zeros((COUNT, padded), F),
        np.zeros((2, 6, padded), F),
        np.zeros((3 + padded, rows), F),
        np.zeros((3 + padded, cols), F),
    )


@compiled
def _load(theta, hidden, step, network):
    """Unpack the weights that follow the seven decays; put time into the first bias."""
    first, bias = network.first, network.bias
    at = _unpack(theta, 7, first[:, :hidden])
    at = _unpack(theta, at, bias[:1, :hidden])
    for s in range(len(SCALES)):
        late = np.tanh(step / SCALES[s] - ONE)
        for k in range(hidden):
            bias[0, k] += late * first[TIME + s, k]
    layers = len(network.weights)
    for layer in range(layers):
        outputs = hidden if layer < layers - 1 else 2
        at = _unpack(theta, at, network.weights[layer, :hidden, :outputs])
        at = _unpack(theta, at, bias[layer + 1 : layer + 2, :outputs])


@compiled
def _unpack(theta, at, out):
    """Fill ``out`` with what lies at ``at``, and return where that ends."""
    rows, columns = out.shape
    for q in range(rows):
        for k in range(columns):
            out[q, k] = theta[at + q * columns + k]
    return at + rows * columns


@compiled
def _observe(place, network, decays, grads, flat, m, v, row, col, scratch):
    """First visit of a tensor: its averages, and weights scaled by what its features sum up to."""
    start, stop = place.start, place.start + place.size
    rows = slice(place.row, place.row + place.rows)
    if place.cols:
        cols = slice(place.col, place.col + place.cols)
        _factored_averages(place, grads[start:stop], decays, row, col, scratch)
        _whiten_row(place, row, scratch.row)
        for c in range(3):
            _root(col[c, cols], ZERO, FLOOR, scratch.col[c])
    else:
        cols = rows
        for c in range(3):
            _average_squares(row[c, rows], grads[start:stop], decays[4 + c], SQUARE_EPS)
    other = col if place.cols else row
    _shares(row[0, rows], row[1, rows], row[2, rows], network.first, 0, scratch.shares[0])
    _shares(other[0, cols], other[1, cols], other[2, cols], network.first, 3, scratch.shares[1])
    if place.cols:
        _contribute(row, rows, scratch.shares[0], scratch.roots, scratch.row)
        _contribute(col, cols, scratch.shares[1], scratch.roots, scratch.col)
    else:
        for f in range(6):
            for k in range(len(network.first[0])):
                scratch.shares[0, f, k] += scratch.shares[1, f, k]
    scratch.sums[:] = 0
    for low in range(start, stop, WIDTH):
        block = slice(low, min(low + WIDTH, stop))
        for c in range(3):
            _average(m[c, block], grads[block], decays[c])
        _average_squares(v[block], grads[block], decays[3], ZERO)
        _whiten(place, low - start, block.stop - low, row, scratch)
        _sum_squares(
            grads[block], flat[block], m[0, block], m[1, block], m[2, block], v[block],
            scratch.whiten, scratch.sums,
        )  # fmt: skip
    for f in range(COUNT):
        norm = ONE / np.sqrt(NORM_EPS + F(scratch.sums[f] / place.size))
        for k in range(len(network.first[0])):
            scratch.weights[f, k] = norm * network.first[ELEMENT[f], k]


@compiled
def _answer(
    place, network, grads, flat, m, v, row, scratch, rate, exp_mult, decay, updates
):  # fmt: skip
    """Second visit: features, network, update."""
    start, stop = place.start, place.start + place.size
    for low in range(start, stop, WIDTH):
        block = slice(low, min(low + WIDTH, stop))
        count = block.stop - low
        _whiten(place, low - start, count, row, scratch)
        if place.cols:
            _spread(place, low - start, count, scratch.row, scratch.col, False, scratch.units)
        else:
            _spread_vector(place, low - start, count, row, scratch)
        _features(
            grads[block], flat[block], m[0, block], m[1, block], m[2, block], v[block],
            scratch.whiten, scratch.features,
        )  # fmt: skip
        _forward(network, scratch, count)
        _write(scratch.features, flat[block], rate, exp_mult, decay, updates[block])


# ------------------------------------------------------------------------- averages, and their sums


@compiled
def _average(old, new, weights):
    decay, fresh = weights[0], weights[1]
    for j in range(len(old)):
        x = decay * old[j] + fresh * new[j]
        # What decays to nothing would end as a denormal number, a hundred times slower.
        old[j] = ZERO if abs(x) < DENORMAL else x


@compiled
def _average_squares(old, new, weights, epsilon):
    decay, fresh = weights[0], weights[1]
    for j in range(len(old)):
        x = decay * old[j] + fresh * (new[j] * new[j] + epsilon)
        old[j] = ZERO if x < DENORMAL else x


@compiled
def _factored_averages(place, grads, decays, row, col, scratch):
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
def _sum_squares(g, p, m0, m1, m2, v, whiten, sums):
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
def _root(x, epsilon, floor, out):
    for j in range(len(x)):
        y = x[j] + epsilon
        out[j] = ONE / np.sqrt(floor if y < floor else y)


@compiled
def _whiten_row(place, row, out):
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
        _root(out[c, : place.rows], ZERO, FLOOR, out[c, : place.rows])


@compiled
def _shares(a0, a1, a2, first, kind, out):
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
def _contribute(averages, span, shares, roots, out):
    """What an average's features add to the units of the first layer: rows of ``out`` from 3 on."""
    for c in range(3):
        _root(averages[c, span], ROOT_EPS, ZERO, roots[c])
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
def _whiten(place, low, count, row, scratch):
    """What turns g, and m, into what it would be over its root mean square."""
    w = scratch.whiten
    if place.cols:
        _spread(place, low, count, scratch.row, scratch.col, True, w)
        for j in range(3 * WIDTH):
            w[3 * WIDTH + j] = w[j]
        return
    at = place.row + low
    for c in range(3):
        x = row[c, at : at + count]
        _root(x, FLOOR, FLOOR, w[c * WIDTH : c * WIDTH + count])
        _root(x, V_EPS, TINY, w[(3 + c) * WIDTH : (3 + c) * WIDTH + count])


@compiled
def _spread_vector(place, low, count, row, scratch):
    """What row and column features, alike in a vector, add to the units of its elements."""
    span = slice(place.row + low, place.row + low + count)
    for c in range(3):
        _root(row[c, span], ROOT_EPS, ZERO, scratch.roots[c])
    for k in range(len(scratch.units) // WIDTH):
        _mix(
            row[0, span], row[1, span], row[2, span],
            scratch.roots[0], scratch.roots[1], scratch.roots[2],
            scratch.shares[0], k, scratch.units[k * WIDTH : (k + 1) * WIDTH],
        )  # fmt: skip


@compiled
def _spread(place, low, count, row, col, product, out):
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


# -------------------------------------------------------------------------------------- the network


@compiled
def _features(g, p, m0, m1, m2, v, whiten, x):
    """Element features of a block, in the order of ``ELEMENT``."""
    for j in range(len(g)):
        x[j], x[WIDTH + j] = g[j], p[j]
        x[2 * WIDTH + j], x[3 * WIDTH + j], x[4 * WIDTH + j] = m0[j], m1[j], m2[j]
    for j in range(len(g)):
        inverse = ONE / np.sqrt(v[j] + V_EPS)
        x[6 * WIDTH + j] = x[2 * WIDTH + j] * inverse
        x[7 * WIDTH + j] = x[3 * WIDTH + j] * inverse
        x[8 * WIDTH + j] = x[4 * WIDTH + j] * inverse
        x[5 * WIDTH + j], x[9 * WIDTH + j] = v[j], inverse
    for j in range(len(g)):
        x[10 * WIDTH + j] = x[j] * whiten[j]
        x[11 * WIDTH + j] = x[j] * whiten[WIDTH + j]
        x[12 * WIDTH + j] = x[j] * whiten[2 * WIDTH + j]
        x[13 * WIDTH + j] = x[2 * WIDTH + j] * whiten[3 * WIDTH + j]
        x[14 * WIDTH + j] = x[3 * WIDTH + j] * whiten[4 * WIDTH + j]
        x[15 * WIDTH + j] = x[4 * WIDTH + j] * whiten[5 * WIDTH + j]


@compiled
def _forward(network, scratch, count):
    """Direction and magnitude, into rows 0 and 1 of ``scratch.features``."""
    units, others, last = scratch.units, scratch.others, len(network.weights) - 1
    padded = len(network.bias[0])
    _dense(scratch.features, scratch.weights, COUNT, padded, units, count)
    for k in range(padded):
        _shift(network.bias[0, k], units[k * WIDTH : k * WIDTH + count])
    for layer in range(last + 1):
        outputs = 2 if layer == last else padded
        out = scratch.features if layer == last else others
        for k in range(padded):
            _relu(units[k * WIDTH : k * WIDTH + count])
        for k in range(outputs):
            _fill(network.bias[layer + 1, k], out[k * WIDTH : k * WIDTH + count])
        _dense(units, network.weights[layer], padded, outputs, out, count)
        units, others = others, units


@compiled
def _shift(x, out):
    for j in range(len(out)):
        out[j] += x


@compiled
def _fill(x, out):
    for j in range(len(out)):
        out[j] = x


@compiled
def _relu(x):
    for j in range(len(x)):
        x[j] = ZERO if x[j] < ZERO else x[j]  # NaN stays NaN


@compiled
def _dense(x, weights, inputs, outputs, out, count):
    """``out += weights.T @ x``, four inputs and two outputs at a time."""
    for k in range(0, outputs, 2):
        z = out[k * WIDTH : (k + 2) * WIDTH]
        for q in range(0, inputs, 4):
            y = x[q * WIDTH : (q + 4) * WIDTH]
            a0, b0 = weights[q, k], weights[q, k + 1]
            a1, b1 = weights[q + 1, k], weights[q + 1, k + 1]
            a2, b2 = weights[q + 2, k], weights[q + 2, k + 1]
            a3, b3 = weights[q + 3, k], weights[q + 3, k + 1]
            for j in range(count):
                y0, y1, y2, y3 = y[j], y[WIDTH + j], y[2 * WIDTH + j], y[3 * WIDTH + j]
                z[j] += a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
                z[WIDTH + j] += b0 * y0 + b1 * y1 + b2 * y2 + b3 * y3


@compiled
def _write(answer, flat, rate, exp_mult, decay, updates):
    for j in range(len(updates)):
        size = _exp(exp_mult * answer[WIDTH + j])
        updates[j] = rate * answer[j] * size + decay * flat[j]


LOWEST, HIGHEST = F(-87), F(89)  # of exp the first is nearly zero and the second infinite
LOG2_E, LN2_HIGH, LN2_LOW = F(1.4426950408889634), F(0.693359375), F(-2.12194440e-4)
LEAST, MOST, MANTISSA, OFFSET = F(-126), F(128), np.int32(23), np.int32(127)
E6, E5, E4, E3, E2 = F(1 / 720), F(1 / 120), F(1 / 24), F(1 / 6), F(1 / 2)


@compiled
def _exp(x):
    """``2**k * exp(r)`` with a polynomial for ``r``: unlike a call of ``exp``, it vectorises."""
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    k = np.floor(x * LOG2_E + HALF)
    r = x - k * LN2_HIGH - k * LN2_LOW
    k = k if k > LEAST else LEAST  # also where x is NaN, which has no integer
    power = np.int32((np.int32(k) + OFFSET) << MANTISSA).view(np.float32)
    return power * (ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6))))))
