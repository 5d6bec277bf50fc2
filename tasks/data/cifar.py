"""CIFAR-10 from a folder of yours.

Wanted is the *binary version*: ``data_batch_1.bin`` to ``data_batch_5.bin`` and
``test_batch.bin``, rows of 3,073 bytes: a label, then 32x32 pixels of red, green and blue. The
Python version is a pickle, which can run code when read, and is therefore never opened.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from tasks.data.arrays import Arrays
from tasks.data.fetch import DataMissing
from tasks.data.loaders import image_arrays, permutation

_ROW = 1 + 3 * 32 * 32


@lru_cache
def cifar10(folder: str | Path) -> Arrays:
    """CIFAR-10 images ``[3, 32, 32]``; a tenth of the training images validates.

    Raises ``DataMissing`` when a file is absent and ValueError when one has another format.
    """
    batches = [_read(Path(folder) / f"data_batch_{i}.bin") for i in range(1, 6)]
    pixels = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([numbers for _, numbers in batches])
    fit, hold = np.split(permutation(len(labels)).numpy(), [len(labels) * 9 // 10])
    test = _read(Path(folder) / "test_batch.bin")
    return image_arrays("cifar10", (pixels[fit], labels[fit]), (pixels[hold], labels[hold]), test)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 ``[n, 3, 32, 32]`` in [0, 1] and labels ``[n]``."""
    if not path.is_file():
        raise DataMissing(
            f"cifar10: no {path.name} in {path.parent}; it must hold the binary version of CIFAR-10"
        )
    raw = np.fromfile(path, dtype=np.uint8)
    if len(raw) == 0 or len(raw) % _ROW or raw[::_ROW].max() > 9:
        raise ValueError(f"{path}: expected rows of {_ROW} bytes that start with a label below 10")
    rows = raw.reshape(-1, _ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32) / np.float32(255), rows[:, 0]
