"""What optimizers are measured on.

Intel's matrix products choose among algorithms by how operands lie in memory, on some processors of
other makers even by where in a batch a matrix is: a run's bits would depend on its neighbours.
``MKL_CBWR`` forbids that, at no cost that could be measured. The library reads it once, at the
first product, so import this package before that.
"""

import os
from pathlib import Path


def _by_intel() -> bool:
    """Intel's own keep neighbours apart by themselves; nothing is changed there."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


if not _by_intel():
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
