"""What the compiled loops share.

Inner loops run over the elements of a block and call nothing, which is what lets LLVM vectorise
them; that the rows of a flat scratch array lie a constant ``WIDTH`` apart is what lets it prove
that they do not overlap.

numba caches a function by the file it is in: after a change to these files in a checkout, delete
``__pycache__`` (an installed version is always fresh).
"""

from __future__ import annotations

import numpy as np

from tasks.runs import caches

WIDTH = 272
"""Elements of a block. Not a power of two: rows would compete for the same places in the cache."""
F = np.float32
ZERO, HALF, ONE = F(0), F(0.5), F(1)
V_EPS = F(1e-6)
"""Added to averages of squares, which are divided by."""

# Nothing may assume that there are no NaN and no infinities. No memory is allocated in compiled
# code, so that arrays need not be counted (``_nrt``): that took as long as the arithmetic.
# ``forceinline``: sums may be reordered, so a function compiled by itself rounds otherwise than
# within its caller. Were it called, a process that has just compiled both would run the one, and
# a process that found them compiled the other.
compiled = caches.compiled(
    error_model="numpy",
    nogil=True,
    fastmath={"contract", "reassoc", "nsz", "arcp"},
    _nrt=False,
    forceinline=True,
)
