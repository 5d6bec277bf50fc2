"""The population step on a CPU: a bytecode interpreter compiled by numba.

An instance's parameters are visited in chunks of ``CHUNK`` elements that stay in the second-level
cache while all statements of its program run over them; shorter chunks would fit the first level
but pay the cost of starting a statement, some 50 ns, more often. A program with a reduction needs
its tensors whole, so for it the chunk is everything.

``_arithmetic``, ``_powers`` and ``_trigonometry`` have one loop for each ``compiled``
function that does not reduce, and pass over other codes; the tests hold every loop against its row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from search.interpreter.bytecode import CONSTANT, LR, STATES, G, T, Table, W
from search.interpreter.reference import SMALLEST
from search.language.functions import OPS, Kind
from tasks.runs import caches
from tasks.types import Layout

CHUNK = 4096
SCALAR, ARRAY, TENSOR = int(Kind.SCALAR), int(Kind.ARRAY), int(Kind.TENSOR)

# fmt: off
(ADD, SUB, MUL, DIV, ABS, COS, SIN, TAN, ARCSIN, ARCCOS, ARCTAN, EXP, LOG, SINH, COSH, TANH,
 ARCSINH, ARCCOSH, ARCTANH, SIGN, EXP2, EXP10, EXPM1, LOG10, LOG2, LOG1P, SQUARE, SQRT, CUBE, CBRT,
 RECIPROCAL, POWER, MAXIMUM, MINIMUM, NORM, GLOBAL_NORM, DOT, COSINE_SIM, CLIP_BY_GLOBAL_NORM,
 INTERP, GET_PI, GET_E, GET_EPS) = (OPS[name].code for name in (
    "add", "sub", "mul", "div", "abs", "cos", "sin", "tan", "arcsin", "arccos", "arctan", "exp",
    "log", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "sign", "exp2", "exp10",
    "expm1", "log10", "log2", "log1p", "square", "sqrt", "cube", "cbrt", "reciprocal", "power",
    "maximum", "minimum", "norm", "global_norm", "dot", "cosine_sim", "clip_by_global_norm",
    "interp", "get_pi", "get_e", "get_eps"))
# fmt: on

ARITY = np.array([op.arity for op in OPS.values() if op.compiled])
compiled = caches.compiled(error_model="numpy", nogil=True)


def step(
    table: Table,
    owner: Tensor,
    flat: Tensor,
    grads: Tensor,
    memory: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    t: Tensor,
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """See ``vm.Step``. CPU tensors, float32 or float64; ``memory`` is overwritten."""
    updates = torch.empty_like(flat)
    _run(
        table.length,
        table.code,
        table.out,
        table.args,
        table.constants,
        table.result,
        table.full,
        table.reduces,
        table.registers,
        owner.numpy(),
        flat.detach().contiguous().numpy(),
        grads.detach().contiguous().numpy(),
        memory.numpy(),
        lr.detach().contiguous().numpy(),
        weight_decay.detach().contiguous().numpy(),
        t.contiguous().numpy(),
        np.array(layout.offsets),
        updates.numpy(),
    )
    return updates, memory


@compiled
def _run(
    length, code, out, args, constants, result, full, reduces, registers,
    owner, flat, grads, memory, lr, weight_decay, t, offsets, updates,
):  # fmt: skip
    instances, n = flat.shape
    tensors, states = len(offsets) - 1, memory.shape[1]
    largest = n if reduces.any() else min(CHUNK, n)
    # The last rows of a bank hold operands that had to be broadcast.
    scalars = np.zeros((registers[SCALAR] + 3, 1), flat.dtype)
    arrays = np.zeros((registers[ARRAY] + 3, tensors), flat.dtype)
    banks = np.zeros((registers[TENSOR] + 3, largest), flat.dtype)
    for i in range(instances):
        p = owner[i]
        width = n if reduces[p] else largest
        for low in range(0, n, width):
            high = min(low + width, n)
            _copy(flat[i, low:high], banks[W])
            _copy(grads[i, low:high], banks[G])
            for k in range(states):
                _copy(memory[i, k, low:high], banks[STATES + k])
            scalars[LR, 0], scalars[T, 0] = lr[i], t[i]
            for s in range(length[p]):
                if _is_reduction(code[p, s]):
                    _reduce(
                        code[p, s], out[p, s], args[p, s], constants[p], offsets,
                        scalars, arrays, banks, high - low,
                    )  # fmt: skip
                else:
                    _statement(
                        code[p, s], out[p, s], args[p, s], constants[p], offsets, low,
                        scalars, arrays, banks, high - low,
                    )  # fmt: skip
            answer = banks[result[p, 0], : high - low]
            if full[p]:
                _copy(answer, updates[i, low:high])
            else:
                _scale(answer, flat[i, low:high], lr[i], weight_decay[i], updates[i, low:high])
            for k in range(states):
                _copy(banks[result[p, 1 + k], : high - low], memory[i, k, low:high])


@compiled
def _copy(source, target):
    for j in range(len(source)):
        target[j] = source[j]


@compiled
def _scale(direction, parameters, lr, weight_decay, updates):
    for j in range(len(direction)):
        updates[j] = lr * (direction[j] + weight_decay * parameters[j])


@compiled
def _is_reduction(code):
    return code in (NORM, GLOBAL_NORM, DOT, COSINE_SIM, CLIP_BY_GLOBAL_NORM)


@compiled
def _statement(code, out, args, constants, offsets, low, scalars, arrays, banks, size):
    """One elementwise statement on the bank of its result, rows being registers."""
    if out[0] == SCALAR:
        bank, size = scalars, 1
    elif out[0] == ARRAY:
        bank, size = arrays, arrays.shape[1]
    else:
        bank = banks
    spare = len(bank) - 3
    a = b = c = 0
    arity = ARITY[code]
    if arity > 0:
        a = _operand(args[0], out[0], bank, spare, constants, offsets, low, scalars, arrays, size)
    if arity > 1:
        b = _operand(
            args[1], out[0], bank, spare + 1, constants, offsets, low, scalars, arrays, size
        )
    if arity > 2:
        c = _operand(
            args[2], out[0], bank, spare + 2, constants, offsets, low, scalars, arrays, size
        )
    _arithmetic(code, bank, out[1], a, b, c, size)
    _powers(code, bank, out[1], a, b, size)
    _trigonometry(code, bank, out[1], a, size)


@compiled
def _operand(register, kind, bank, spare, constants, offsets, low, scalars, arrays, size):
    """The row of ``bank`` with the register's values: its own, or ``spare`` after broadcasting."""
    if register[0] == kind:
        return register[1]
    if register[0] == ARRAY:
        for k in range(len(offsets) - 1):
            for j in range(offsets[k] - low, offsets[k + 1] - low):
                bank[spare, j] = arrays[register[1], k]
        return spare
    if register[0] == CONSTANT:
        value = bank.dtype.type(constants[register[1]])
    else:
        value = scalars[register[1], 0]
    for j in range(size):
        bank[spare, j] = value
    return spare


@compiled
def _reduce(code, out, args, constants, offsets, scalars, arrays, banks, size):
    x = banks[args[0, 1], :size]
    if code == NORM:
        for k in range(len(offsets) - 1):
            total = _dot(x[offsets[k] : offsets[k + 1]], x[offsets[k] : offsets[k + 1]])
            arrays[out[1], k] = np.sqrt(total)
    elif code == GLOBAL_NORM:
        scalars[out[1], 0] = np.sqrt(_dot(x, x))
    elif code == DOT:
        scalars[out[1], 0] = _dot(x, banks[args[1, 1], :size])
    elif code == COSINE_SIM:
        y = banks[args[1, 1], :size]
        scalars[out[1], 0] = _dot(x, y) / (np.sqrt(_dot(x, x) * _dot(y, y)) + 1e-8)
    else:
        dtype = x.dtype.type
        bank, index = args[1, 0], args[1, 1]
        limit = dtype(constants[index]) if bank == CONSTANT else scalars[index, 0]
        norm = np.sqrt(_dot(x, x))
        scale = limit / (dtype(norm) + dtype(1e-8))
        if scale > 1:
            scale = dtype(1)
        o = banks[out[1]]
        if abs(scale) < SMALLEST:  # float32 holds neither it nor, maybe, the norm
            wide = np.float64(limit) / (norm + 1e-8)
            for j in range(size):
                o[j] = np.float64(x[j]) * wide
        else:
            for j in range(size):
                o[j] = x[j] * scale


@compiled
def _dot(x, y):
    total = 0.0
    for j in range(len(x)):
        total += np.float64(x[j]) * np.float64(y[j])
    return total


@compiled
def _arithmetic(code, r, o, a, b, c, count):
    zero, one, eps = r.dtype.type(0), r.dtype.type(1), r.dtype.type(1e-8)
    size = range(count)
    if code == ADD:
        for j in size:
            r[o, j] = r[a, j] + r[b, j]
    elif code == SUB:
        for j in size:
            r[o, j] = r[a, j] - r[b, j]
    elif code == MUL:
        for j in size:
            r[o, j] = r[a, j] * r[b, j]
    elif code == DIV:
        for j in size:
            r[o, j] = r[a, j] / (r[b, j] + eps)
    elif code == INTERP:
        for j in size:
            r[o, j] = (one - r[c, j]) * r[a, j] + r[c, j] * r[b, j]
    elif code == SIGN:
        for j in size:  # of NaN 0, as in torch
            r[o, j] = one if r[a, j] > 0 else (-one if r[a, j] < 0 else zero)
    elif code == SQUARE:
        for j in size:
            r[o, j] = r[a, j] * r[a, j]
    elif code == SQRT:
        for j in size:
            r[o, j] = np.sqrt(np.abs(r[a, j]))
    elif code == ABS:
        for j in size:
            r[o, j] = np.abs(r[a, j])
    elif code == CUBE:
        for j in size:
            r[o, j] = r[a, j] * r[a, j] * r[a, j]
    elif code == RECIPROCAL:
        for j in size:
            r[o, j] = one / (r[a, j] + eps)
    elif code == MAXIMUM:
        for j in size:
            r[o, j] = r[a, j] if r[a, j] > r[b, j] or r[a, j] != r[a, j] else r[b, j]
    elif code == MINIMUM:
        for j in size:
            r[o, j] = r[a, j] if r[a, j] < r[b, j] or r[a, j] != r[a, j] else r[b, j]
    elif code == GET_PI:
        r[o, :count] = np.pi
    elif code == GET_E:
        r[o, :count] = np.e
    elif code == GET_EPS:
        r[o, :count] = eps


@compiled
def _powers(code, r, o, a, b, count):
    one, third = r.dtype.type(1), r.dtype.type(1 / 3)
    two, ten = r.dtype.type(2), r.dtype.type(10)
    size = range(count)
    if code == CBRT:
        for j in size:
            r[o, j] = np.sign(r[a, j]) * np.abs(r[a, j]) ** third
    elif code == POWER:
        for j in size:
            r[o, j] = r[a, j] ** r[b, j]
    elif code == EXP:
        for j in size:
            r[o, j] = np.exp(r[a, j])
    elif code == EXP2:
        for j in size:
            r[o, j] = two ** r[a, j]
    elif code == EXP10:
        for j in size:
            r[o, j] = ten ** r[a, j]
    elif code == EXPM1:
        for j in size:
            r[o, j] = np.expm1(r[a, j])
    elif code == LOG:
        for j in size:
            r[o, j] = np.log(np.abs(r[a, j]))
    elif code == LOG10:
        for j in size:
            r[o, j] = np.log10(np.abs(r[a, j]))
    elif code == LOG2:
        for j in size:
            r[o, j] = np.log2(np.abs(r[a, j]))
    elif code == LOG1P:
        for j in size:
            r[o, j] = np.log(np.abs(one + r[a, j]))


@compiled
def _trigonometry(code, r, o, a, count):
    size = range(count)
    if code == COS:
        for j in size:
            r[o, j] = np.cos(r[a, j])
    elif code == SIN:
        for j in size:
            r[o, j] = np.sin(r[a, j])
    elif code == TAN:
        for j in size:
            r[o, j] = np.tan(r[a, j])
    elif code == ARCSIN:
        for j in size:
            r[o, j] = np.arcsin(r[a, j])
    elif code == ARCCOS:
        for j in size:
            r[o, j] = np.arccos(r[a, j])
    elif code == ARCTAN:
        for j in size:
            r[o, j] = np.arctan(r[a, j])
    elif code == SINH:
        for j in size:
            r[o, j] = np.sinh(r[a, j])
    elif code == COSH:
        for j in size:
            r[o, j] = np.cosh(r[a, j])
    elif code == TANH:
        for j in size:
            r[o, j] = np.tanh(r[a, j])
    elif code == ARCSINH:
        for j in size:
            r[o, j] = np.arcsinh(r[a, j])
    elif code == ARCCOSH:
        for j in size:
            r[o, j] = np.arccosh(r[a, j])
    elif code == ARCTANH:
        for j in size:
            r[o, j] = np.arctanh(r[a, j])
