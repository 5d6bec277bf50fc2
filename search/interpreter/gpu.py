"""The population step on a GPU: a bytecode interpreter in numba-cuda.

A block of threads takes one instance and a chunk of its elements: it reads w, g and the states
once, runs the whole program on registers in shared memory (``registers.py``), and writes the
update and the states once. All threads of a block run the same program, so the interpreter's
branches do not diverge. A program that reduces is run by one block for all chunks, and once more
for every reduction: a pass that ends at the reduction and sums, until the last pass knows all
results. Nothing is kept between passes, sums are added up in a fixed order in float64, and a step
is one launch, which a CUDA graph can hold.

Why numba-cuda and not Triton, by counting for 12 statements, an element, float32 (an H200: 4.3 TB/s
measured for a copy, 33 TB/s of shared memory, 30e12 instructions/s):

=====================  ==========================================  ======================  ========
memory                 read w, g, m, v; write update, m, v         28 bytes                6.5 ps
numba-cuda, registers  2.3 operands read, 1 written a statement    160 bytes, shared       4.8 ps
in shared memory       16 to 22 instructions a statement           ~230 instructions       7.7 ps
Triton, registers      an operand is a choice among 16 values      ~640 instructions        21 ps
selected
=====================  ==========================================  ======================  ========

Triton has no memory of its own choosing to index into: a register picked at run time is a chain of
selects over all of them, 16 for each operand and 16 for each result, which alone is three times the
floor; writing registers to global memory instead would multiply the bytes by six. Instructions are
counted in what ptxas makes for sm_90 (of interp and add, decoding shared by the 4 elements of a
thread; 80 registers, 17 words spilled, half of them in the slow paths of sine and cosine). The last
column assumes peak rates; nothing of it has been timed on a GPU.

The caller then subtracts the update, which reads w and the update and writes w: 12 bytes more, 40
in all. The kernel could write w itself, but a ``Step`` answers with updates because its caller may
want them (an optimizer for torch, a learned correction on top), and it is not where an inner step
spends its time: counted by ``bench.py gpu``, an inner step moves 360 KB an instance on the MLP
proxy, 170 bytes a parameter, and 5.7 MB on the smallest transformer, so 12 bytes are 7 % and 1 %.
"""
# pyright: reportOptionalSubscript=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false
# (What ``cuda.threadIdx`` and its like are is known inside a kernel only.)

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from numba import cuda, float32, float64
from torch import Tensor

from search.interpreter.bytecode import LR, STATES, G, T, Table, W
from search.interpreter.gpu_functions import (
    SIMULATED,
    choice,
    device_function,
    elementary,
    functions,
    operand,
    statement_of,
)
from search.interpreter.reference import SMALLEST
from search.interpreter.registers import (
    FULL,
    LAUNCHES,
    LENGTH,
    PASSES,
    RESULTS,
    Places,
    encode,
    places,
)
from search.language.functions import OPS
from tasks.types import Layout

NORM, GLOBAL_NORM, DOT, COSINE_SIM, CLIP = (
    OPS[name].code for name in ("norm", "global_norm", "dot", "cosine_sim", "clip_by_global_norm")
)  # consecutive: ``NORM <= code <= CLIP`` is a reduction
LARGE = 2.0**32
"""What norms that clip are divided by where they lie in memory: they may be beyond float32."""
LIMITS = {} if SIMULATED else {"max_registers": 80}  # three blocks share a multiprocessor
MOST_BLOCKS = 65_535  # along the second axis of a grid
warnings.filterwarnings("ignore", "Grid size .* under-utilization")  # survivors may be few


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
    """See ``vm.Step``. CUDA tensors, float32 or float64; ``memory`` is overwritten.

    Runs on torch's current stream and never waits for it. Raises ValueError where the programs
    have more registers than fit into shared memory.
    """
    updates = torch.empty_like(flat, memory_format=torch.contiguous_format)
    if not flat.numel():
        return updates, memory
    where, programs = _resident(_Same(table), len(layout.specs), flat.dtype, flat.device)
    chunks = 1 if table.reduces.all() else math.ceil(layout.n / where.chunk)
    arrays = [
        *programs,
        owner,
        flat.detach().contiguous(),
        grads.detach().contiguous(),
        memory,
        lr.detach().contiguous(),
        weight_decay.detach().contiguous(),
        t.contiguous(),
        *_shapes(layout, flat.device),
        updates,
    ]
    kernel = _population(float32 if flat.dtype == torch.float32 else float64, where.elements)
    bases = (where.scalar, where.constant, where.reduced)
    shared = where.size * flat.itemsize
    grid = (len(owner), min(chunks, MOST_BLOCKS))
    launch = kernel[grid, where.threads, _stream(flat.device), shared]
    launch(*map(_array, arrays), *bases)
    return updates, memory


# -------------------------------------------------------------------- the host's side of a launch


class _Same:
    """A table as a key: tables are equal where they are the same object."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __hash__(self) -> int:
        return id(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.table is other.table


@lru_cache(maxsize=8)
def _resident(
    key: _Same, tensors: int, dtype: torch.dtype, device: torch.device
) -> tuple[Places, tuple[Tensor, ...]]:
    """A population's bytecode on the device, copied there once."""
    # A thread is a Python thread in the simulator, so there are few.
    where = places(key.table, tensors, dtype.itemsize, ((2, 2),) if SIMULATED else LAUNCHES)
    words, heads, constants = encode(key.table, where)
    numbers = torch.from_numpy(constants).to(device, dtype)
    return where, (torch.from_numpy(words).to(device), torch.from_numpy(heads).to(device), numbers)


@lru_cache(maxsize=32)
def _shapes(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where tensors begin, and the tensor that each element belongs to."""
    offsets = torch.tensor(layout.offsets, dtype=torch.int32, device="cpu")
    return offsets.to(device), layout.segments().to(device, torch.int32)


def _array(tensor: Tensor) -> Any:
    return tensor.numpy() if SIMULATED else cuda.as_cuda_array(tensor, sync=False)


def _stream(device: torch.device) -> Any:
    """Torch's current stream; 0 is the default one for both."""
    handle = 0 if SIMULATED else torch.cuda.current_stream(device).cuda_stream
    return cuda.external_stream(handle) if handle else 0


# --------------------------------------------------------------------------------------- the kernel


@lru_cache(maxsize=8)
def _population(real: Any, elements: int) -> Any:
    """The kernel for one type of number and so many elements a thread."""
    meanings = sorted((OPS[name].code, f) for name, f in functions(real).items())
    choose = choice([(code, statement_of(f, real, elements)) for code, f in meanings])
    run = _run(choose, real, elements)
    reduce = _reduce(run, elements)

    @cuda.jit(**LIMITS)
    def population(
        words, heads, constants, owner, flat, grads, memory, lr, weight_decay, t,
        offsets, segments, updates, scalar, constant, reduced,
    ):  # fmt: skip
        r = cuda.shared.array(0, real)
        sums = cuda.shared.array(256, float64)
        i, lane, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        p, high = owner[i], flat.shape[1]
        low, stride = cuda.blockIdx.y * threads * elements, cuda.gridDim.y * threads * elements
        if heads[p, PASSES] > 0:
            if low > 0:
                return
            stride = threads * elements
        r[scalar + LR * threads + lane] = lr[i]
        r[scalar + T * threads + lane] = t[i]
        for c in range(lane, constants.shape[1], threads):
            r[constant + c] = constants[p, c]
        cuda.syncthreads()
        inputs = (flat[i], grads[i], memory[i])
        for which in range(heads[p, PASSES]):
            reduce(words[p], heads[p], which, inputs, offsets, segments, r, reduced, sums)
        for start in range(low, high, stride):
            run(words[p], heads[p, LENGTH], inputs, start, high, offsets, segments, r, reduced)
            for k in range(elements):
                j = start + lane + k * threads
                if j < high:
                    update = r[heads[p, RESULTS] + j - start]
                    if heads[p, FULL] == 0:
                        update = lr[i] * (update + weight_decay[i] * flat[i, j])
                    updates[i, j] = update
                    for s in range(memory.shape[1]):
                        memory[i, s, j] = r[heads[p, RESULTS + 1 + s] + j - start]

    return population


def _run(choose: Callable[..., None], real: Any, elements: int) -> Callable[..., None]:
    one, eps, large, least = real(1), real(1e-8), real(LARGE), real(SMALLEST)

    @device_function
    def load(source, row, start, high, r):
        lane, threads = cuda.threadIdx.x, cuda.blockDim.x
        for k in range(elements):
            j = lane + k * threads
            if start + j < high:
                r[row * threads * elements + j] = source[start + j]

    @device_function
    def run(words, stop, inputs, start, high, offsets, segments, r, reduced):
        """The first ``stop`` statements on a chunk; of reductions the results are known."""
        lane, threads = cuda.threadIdx.x, cuda.blockDim.x
        load(inputs[0], W, start, high, r)
        load(inputs[1], G, start, high, r)
        for s in range(inputs[2].shape[0]):
            load(inputs[2][s], STATES + s, start, high, r)
        known = reduced
        for s in range(stop):
            code = words[s, 0]
            o, so = operand(words, s, 1)
            a, sa = operand(words, s, 4)
            b, sb = operand(words, s, 7)
            c, sc = operand(words, s, 10)
            if code < NORM or code > CLIP:
                choose(code, r, o, so, a, sa, b, sb, c, sc)
                continue
            for k in range(elements):
                j = start + lane + k * threads
                if code == NORM:
                    if j < high:
                        r[o + k * so] = r[known + segments[j]]
                elif code == CLIP:
                    scale = r[b] / (r[known] * large + eps)
                    if abs(scale) < least:
                        r[o + k * so] = r[a + k * sa] / large * (r[b] / r[known])
                    else:
                        r[o + k * so] = r[a + k * sa] * (one if scale > one else scale)
                else:
                    r[o + k * so] = r[known]
            known += offsets.shape[0] - 1

    return run


def _reduce(run: Callable[..., None], elements: int) -> Callable[..., None]:
    @device_function
    def total(x, sums):
        """The sum over the threads of a block, in the same order every time."""
        lane, half = cuda.threadIdx.x, cuda.blockDim.x // 2
        sums[lane] = x
        cuda.syncthreads()
        while half > 0:
            if lane < half:
                sums[lane] += sums[lane + half]
            cuda.syncthreads()
            half //= 2
        found = sums[0]
        cuda.syncthreads()
        return found

    @device_function
    def reduce(words, head, which, inputs, offsets, segments, r, reduced, sums):
        """Find the result of the program's reduction number ``which``."""
        lane, threads, tensors = cuda.threadIdx.x, cuda.blockDim.x, offsets.shape[0] - 1
        s = head[RESULTS + 1 + inputs[2].shape[0] + which]
        code = words[s, 0]
        a, sa = operand(words, s, 4)
        b, sb = operand(words, s, 7)
        for piece in range(tensors if code == NORM else 1):
            begin, end = offsets[piece], offsets[piece + 1]
            if code != NORM:
                end = offsets[tensors]
            xx, xy, yy = float64(0), float64(0), float64(0)
            for start in range(begin, end, threads * elements):
                run(words, s, inputs, start, end, offsets, segments, r, reduced)
                for k in range(elements):
                    if start + lane + k * threads < end:
                        x, y = float64(r[a + k * sa]), float64(r[b + k * sb])
                        xx, xy, yy = xx + x * x, xy + x * y, yy + y * y
            xx, xy, yy = total(xx, sums), total(xy, sums), total(yy, sums)
            found = elementary.sqrt(xx)
            if code == DOT:
                found = xy
            elif code == COSINE_SIM:
                found = xy / (elementary.sqrt(xx * yy) + 1e-8)
            elif code == CLIP:
                found /= LARGE
            if lane == 0:
                r[reduced + which * tensors + piece] = found
            cuda.syncthreads()

    return reduce
