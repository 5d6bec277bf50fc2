"""Real data, resident in memory and addressed by integers.

A minibatch is a pure function of two integers: ``draw(seed, step, ...)`` hashes them into example
numbers and ``Dataset.batch`` gathers those examples. No generator is advanced, so every candidate
optimizer meets the same minibatches (common random numbers), a stopped run continues without any
saved random state, and every device draws the same numbers.

Two kinds of data set: ``Arrays`` (tensors with a common first axis) and ``Text`` (a long string of
characters, of which an example is a window). Which there are is the business of ``datasets.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.checks import positive
from tasks.types import Batch, Dataset, Split

# ------------------------------------------------------------------ which examples, at which step


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
        for split in _SPLITS:
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
        """The number of classes, or of real targets. Raises ValueError for targets of neither."""
        targets = self.train[1]
        if self.classified:
            return 1 + max(int(t.max()) for t in (targets, self.validation[1], self.test[1]))
        if targets.is_floating_point() and targets.ndim > 1:
            return targets.shape[-1]
        raise ValueError(
            f"{self.name}: got targets of {targets.dtype}, shape {list(targets.shape)}; expected "
            "class numbers (int64) or real numbers [n, K]"
        )

    @property
    def classified(self) -> bool:
        """Whether targets are class numbers (int64) rather than real numbers."""
        return self.train[1].dtype == torch.int64

    def size(self, split: Split) -> int:
        return len(getattr(self, split)[0])

    def batch(self, split: Split, index: Tensor) -> Batch:
        flat = index.reshape(-1)  # five times as fast as indexing by several axes
        return tuple(
            tensor.index_select(0, flat).view(*index.shape, *tensor.shape[1:])
            for tensor in getattr(self, split)
        )

    def contents(self, split: Split) -> tuple[Tensor, ...]:
        return getattr(self, split)

    def to(self, device: torch.device | str) -> Arrays:
        return moved(self, device)


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

    def contents(self, split: Split) -> tuple[Tensor, ...]:
        return (getattr(self, split),)

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
        return moved(self, device)


@lru_cache(maxsize=32)
def moved(data: Any, device: torch.device | str) -> Any:
    """A data set (a dataclass of tensors and tuples of tensors) on ``device``.

    The same object for the same arguments, and ``data`` itself if it is there already, so that
    one may ask for it as often as one likes.
    """
    # "cuda" is whichever of them is current.
    here = torch.empty(0, dtype=torch.float32, device=device).device

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(move(part) for part in value)
        return value.to(here) if isinstance(value, Tensor) else value

    old = {field.name: getattr(data, field.name) for field in fields(data)}
    flat = [t for v in old.values() for t in (v if isinstance(v, tuple) else (v,))]
    if all(tensor.device == here for tensor in flat if isinstance(tensor, Tensor)):
        return data
    return replace(data, **{name: move(value) for name, value in old.items()})


_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
