"""Features of a block of elements, the network that reads them, and the update it writes."""

from __future__ import annotations

import numpy as np

from l2o.architectures.kernels.compiled import HALF, ONE, V_EPS, WIDTH, ZERO, F, compiled

ELEMENT = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 25, 26, 27])
"""Features computed for each element: their places among the 28. Others are of rows and columns."""
COUNT = len(ELEMENT)


@compiled
def features(g, p, m0, m1, m2, v, whiten, x):
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
def forward(network, scratch, count):
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
def write(answer, flat, rate, exp_mult, decay, updates):
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
