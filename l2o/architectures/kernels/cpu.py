"""``small_fc`` on a CPU: features -> network -> update, without ever writing the features down.

Written naively a step reads and writes some eighty arrays of the size of the parameters. Here a
tensor is visited in blocks of ``WIDTH`` elements whose intermediate values stay in the first-level
cache, twice: once to update the averages and to sum the squares that features are normalised by,
and once to run the network and write the update. What makes the rest cheap:

* Features are normalised by scaling the first layer's weights, once a tensor.
* Time is the same for all elements of an instance, so its eleven features are part of the bias.
* Twelve features of a matrix depend on its row or its column alone. What they add to the first
  layer is computed once a row and once a column: twelve products an element become one addition.

So of 39 features 16 are computed for each element. The loops over elements are in ``averages.py``
and ``network.py``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from l2o.architectures.features import TIMESCALES, Decays
from l2o.architectures.kernels.averages import (
    FLOOR,
    NORM_EPS,
    SQUARE_EPS,
    average,
    average_squares,
    contribute,
    factored_averages,
    places,
    root,
    shares,
    spread,
    spread_vector,
    sum_squares,
    whiten,
    whiten_row,
)
from l2o.architectures.kernels.compiled import ONE, WIDTH, ZERO, F, compiled
from l2o.architectures.kernels.network import COUNT, ELEMENT, features, forward, write
from tasks.types import Layout, Params, State, StepInfo

if TYPE_CHECKING:
    from l2o.architectures.small_fc import SmallFCRule

TIME, INPUTS = 28, 39
SCALES = np.array(TIMESCALES, F)


def step(
    rule: SmallFCRule, grads: Tensor, state: State, params: Params, info: StepInfo
) -> tuple[Tensor, State]:
    """See ``small_fc.Step``. CPU tensors, float32; ``state`` is overwritten."""
    after = {name: state[name].contiguous() for name in ("m", "v", "row", "col")}
    updates = torch.empty_like(params.flat, memory_format=torch.contiguous_format)
    plan = _plan(rule, params.layout)
    network = _network(*plan.sizes)
    _run(
        rule.theta.detach().view(-1, rule.theta.shape[-1]).contiguous().numpy(),
        plan.decays,
        plan.sizes,
        plan.mults,
        torch.as_tensor(info.step, dtype=torch.int64, device="cpu").view(-1).contiguous().numpy(),
        params.flat.detach().contiguous().numpy(),
        grads.detach().contiguous().numpy(),
        after["m"].numpy(),
        after["v"].numpy(),
        after["row"].numpy(),
        after["col"].numpy(),
        plan.places,
        plan.factors,
        info.lr.detach().contiguous().numpy(),
        info.weight_decay.detach().contiguous().numpy(),
        network,
        _scratch(network.first.shape[1], plan.rows, plan.cols),
        updates.numpy(),
    )
    return updates, after


class Plan(NamedTuple):
    """What is the same for all steps of a rule on tensors of one layout."""

    decays: np.ndarray  # [N, 7, 2]
    sizes: np.ndarray  # [2]: hidden units and layers
    mults: np.ndarray  # [2]
    places: np.ndarray
    factors: np.ndarray  # one a tensor
    rows: int  # the most of a tensor
    cols: int


@lru_cache(maxsize=16)
def _plan(rule: SmallFCRule, layout: Layout) -> Plan:
    optimizer, tensors = rule.optimizer, places(layout)
    matrices = tensors[tensors["cols"] > 0]
    return Plan(
        _weights(rule.decays),
        np.array([optimizer.hidden_size, optimizer.hidden_layers]),
        np.array([optimizer.step_mult, optimizer.exp_mult], F),
        tensors,
        np.array(rule.factors(layout), F),
        int(matrices["rows"].max(initial=1)),
        int(matrices["cols"].max(initial=1)),
    )


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


def _scratch(padded, rows, cols):
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
        factored_averages(place, grads[start:stop], decays, row, col, scratch)
        whiten_row(place, row, scratch.row)
        for c in range(3):
            root(col[c, cols], ZERO, FLOOR, scratch.col[c])
    else:
        cols = rows
        for c in range(3):
            average_squares(row[c, rows], grads[start:stop], decays[4 + c], SQUARE_EPS)
    other = col if place.cols else row
    shares(row[0, rows], row[1, rows], row[2, rows], network.first, 0, scratch.shares[0])
    shares(other[0, cols], other[1, cols], other[2, cols], network.first, 3, scratch.shares[1])
    if place.cols:
        contribute(row, rows, scratch.shares[0], scratch.roots, scratch.row)
        contribute(col, cols, scratch.shares[1], scratch.roots, scratch.col)
    else:
        for f in range(6):
            for k in range(len(network.first[0])):
                scratch.shares[0, f, k] += scratch.shares[1, f, k]
    scratch.sums[:] = 0
    for low in range(start, stop, WIDTH):
        block = slice(low, min(low + WIDTH, stop))
        for c in range(3):
            average(m[c, block], grads[block], decays[c])
        average_squares(v[block], grads[block], decays[3], ZERO)
        whiten(place, low - start, block.stop - low, row, scratch)
        sum_squares(
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
        whiten(place, low - start, count, row, scratch)
        if place.cols:
            spread(place, low - start, count, scratch.row, scratch.col, False, scratch.units)
        else:
            spread_vector(place, low - start, count, row, scratch)
        features(
            grads[block], flat[block], m[0, block], m[1, block], m[2, block], v[block],
            scratch.whiten, scratch.features,
        )  # fmt: skip
        forward(network, scratch, count)
        write(scratch.features, flat[block], rate, exp_mult, decay, updates[block])
