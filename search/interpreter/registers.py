"""Programs as the GPU kernel reads them: every register is a place in one block's shared memory.

The kernel gives each thread a few elements and keeps all registers of those elements in shared
memory, because a register file may not be indexed by a number that is only known when the program
runs. One block works on ``chunk = threads * elements`` elements of one instance:

    tensor and array registers   [rows, chunk]        an array's number stands at each element
    scalar registers             [scalars, threads]   each thread keeps its own copy
    constants                    [constants]
    results of reductions        [reductions, tensors]

The first two are touched by one thread alone, so statements need no barrier. An operand is three
numbers, ``at, lane, step``: element ``e`` of thread ``t`` lies at ``at + lane * t + step * e``, and
with ``lane`` and ``step`` zero or not, tensors, scalars and constants are read by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from search.interpreter.bytecode import CONSTANT, LR, STATES, G, T, Table, W
from search.language.functions import OPS, Kind

SHARED_BYTES = 46 * 1024  # of the 48 KiB that a block gets unasked; the rest is for sums
LAUNCHES = ((256, 4), (256, 2), (256, 1), (128, 1), (64, 1), (32, 1))
"""(threads, elements), the best first: more elements a thread share the cost of a statement."""

REDUCTIONS = tuple(op.code for op in OPS.values() if op.reduces and op.compiled)
LENGTH, FULL, PASSES, RESULTS = 0, 1, 2, 3  # columns of ``Bytecode.heads``


@dataclass(frozen=True)
class Places:
    """Where everything lies in a block's shared memory, in numbers from its start."""

    threads: int
    elements: int
    rows: int
    scalars: int
    constants: int
    reductions: int
    tensors: int

    @property
    def chunk(self) -> int:
        return self.threads * self.elements

    @property
    def scalar(self) -> int:
        return self.rows * self.chunk

    @property
    def constant(self) -> int:
        return self.scalar + self.scalars * self.threads

    @property
    def reduced(self) -> int:
        return self.constant + self.constants

    @property
    def size(self) -> int:
        return self.reduced + self.reductions * self.tensors


class Bytecode(NamedTuple):
    """What the kernel reads of ``P`` programs of at most ``L`` statements and ``S`` states.

    heads: statements, whether the form is full, how many reductions, where `update` and the ``S``
    states lie at the end, and which statements the reductions are.
    """

    words: np.ndarray  # [P, L, 13] int32: opcode; at, lane, step of the result and three operands
    heads: np.ndarray  # [P, 4 + S + M] int32
    constants: np.ndarray  # [P, C]


def places(
    table: Table, tensors: int, itemsize: int, launches: tuple[tuple[int, int], ...] = LAUNCHES
) -> Places:
    """The best launch whose registers fit; ValueError where none does."""
    passes = np.isin(table.code, REDUCTIONS) & _present(table)
    counts = (
        int(table.registers[Kind.TENSOR] + table.registers[Kind.ARRAY]),
        int(table.registers[Kind.SCALAR]),
        table.constants.shape[1],
        int(passes.sum(1).max(initial=0)),
        tensors,
    )
    for threads, elements in launches:
        found = Places(threads, elements, *counts)
        if found.size * itemsize <= SHARED_BYTES:
            return found
    raise ValueError(
        f"programs: {counts[0]} tensor registers and {counts[3]} reductions over {tensors} tensors "
        f"do not fit into {SHARED_BYTES} bytes of shared memory"
    )


def encode(table: Table, where: Places) -> Bytecode:
    """The bytecode of a table for these places."""
    registers = np.concatenate([table.out[:, :, None], table.args], axis=2)  # [P, L, 4, 2]
    bank, index = registers[..., 0], registers[..., 1]
    row = np.where(bank == Kind.ARRAY, index + table.registers[Kind.TENSOR], index)
    at = np.select(
        [bank == CONSTANT, bank == Kind.SCALAR],
        [where.constant + index, where.scalar + index * where.threads],
        row * where.chunk,
    )
    lane = bank != CONSTANT
    step = np.where((bank == Kind.TENSOR) | (bank == Kind.ARRAY), where.threads, 0)
    operands = np.stack([at, lane, step], axis=-1).reshape(*table.code.shape, 12)
    words = np.concatenate([table.code[..., None], operands], axis=-1).astype(np.int32)

    reduces = np.isin(table.code, REDUCTIONS) & _present(table)
    positions = np.zeros((len(table.code), where.reductions), np.int32)
    for p, found in enumerate(reduces):
        positions[p, : found.sum()] = found.nonzero()[0]
    heads = np.column_stack(
        [table.length, table.full, reduces.sum(1), table.result * where.chunk, positions]
    )
    return Bytecode(words, heads.astype(np.int32), table.constants)


def _present(table: Table) -> np.ndarray:
    """``[P, L]``: which places hold a statement rather than padding."""
    return np.arange(table.code.shape[1]) < table.length[:, None]


__all__ = ["LR", "STATES", "Bytecode", "G", "Places", "T", "W", "encode", "places"]
