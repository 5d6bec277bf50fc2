"""Noisy quadratic bowls: the one family whose best answer is known exactly.

Each training example is a bowl ``1/2 (x - c)' H (x - c)`` of its own; the centres ``c`` scatter
around the optimum and average to it, which is what makes minibatch gradients noisy. Validation
and test hold the optimum as their only centre, so the loss there is 0 at the optimum and nowhere
else. The optimum is not the origin, so weight decay does not help by accident, and the axes of
``H`` are randomly rotated, so that a per-coordinate rule meets coupled coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from tasks.checks import natural, one_of, positive
from tasks.data.arrays import moved
from tasks.rng import draw
from tasks.types import HOST, Batch, Dataset, Split, Task

_EXAMPLES = 1024
_DOUBLE: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


@dataclass(frozen=True)
class Quadratic(Task):
    """A bowl in ``dimension`` variables; its only parameter is the vector ``x``.

    ``spectrum`` places the eigenvalues of the Hessian between ``1/condition`` and 1, evenly
    ("linear") or evenly in their logarithm ("log"), makes all of them 1 ("constant"), or lists
    them. ``noise`` is the standard deviation of the centres, ``seed`` chooses optimum, rotation
    and centres.
    """

    compared: ClassVar[bool] = True
    dimension: int = 32
    spectrum: str | tuple[float, ...] = "log"
    condition: float = 100.0
    noise: float = 0.1
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        positive(dimension=self.dimension, batch_size=self.batch_size)
        natural(seed=self.seed)
        if not 1 <= self.condition < math.inf:
            raise ValueError(f"condition: got {self.condition}, expected a number of at least 1")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: got {self.noise}, expected a number of at least 0")
        if isinstance(self.spectrum, str):
            one_of("spectrum", self.spectrum, ("log", "linear", "constant"))
        elif len(self.spectrum) != self.dimension or not all(v > 0 for v in self.spectrum):
            raise ValueError(
                f"spectrum: got {self.spectrum}, expected {self.dimension} positive eigenvalues"
            )

    @property
    def name(self) -> str:
        kind = self.spectrum if isinstance(self.spectrum, str) else "listed"
        return f"quadratic-{kind}-n{self.dimension}-c{self.condition:g}-s{self.seed}"

    @property
    def eigenvalues(self) -> Tensor:
        """Of the Hessian, ``[dimension]``."""
        if not isinstance(self.spectrum, str):
            return torch.tensor(self.spectrum, **HOST)
        if self.spectrum == "constant":
            return torch.ones(self.dimension, **HOST)
        if self.spectrum == "linear":
            return torch.linspace(1 / self.condition, 1, self.dimension, **_DOUBLE).float()
        exponents = torch.linspace(-math.log10(self.condition), 0, self.dimension, **_DOUBLE)
        return torch.tensor([10.0**x for x in exponents.tolist()], **HOST)

    @cached_property
    def optimum(self) -> Tensor:
        """The best ``x``, ``[dimension]``."""
        return torch.randn(self.dimension, generator=_generator(self.seed, 0), **HOST)

    @cached_property
    def data(self) -> Bowls:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The training bowls; their Hessian has ``eigenvalues`` on randomly rotated axes.

        Computed with twice the digits that are kept: the last one of LAPACK's decomposition, and
        of a square root, differs among processors.
        """
        n = self.dimension
        scatter = self.noise * torch.randn(_EXAMPLES, n, generator=_generator(self.seed, 1), **HOST)
        centres = self.optimum + scatter - scatter.mean(dim=0)
        axes = torch.randn(n, n, generator=_generator(self.seed, 2), **HOST)
        roots = self.eigenvalues.double().sqrt().float()
        rotation = torch.linalg.qr(axes.double()).Q.float()
        return Bowls(self.name, centres, self.optimum[None], rotation * roots)

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(self.dimension, generator=generator, **HOST)}

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        centres, roots = batch
        return ((params["x"] - centres) @ roots[0]).square().sum(dim=-1).mean() / 2


@dataclass(frozen=True, eq=False)
class Bowls(Dataset):
    """An example is a bowl: its centre ``[n]`` and a square root ``[n, n]`` of the common Hessian.

    The root travels with the examples so that it lies on their device; its batch axis has
    stride 0 and costs nothing.
    """

    name: str
    centres: Tensor
    optimum: Tensor
    root: Tensor

    def size(self, split: Split) -> int:
        return len(self._centres(split))

    def batch(self, split: Split, index: Tensor) -> Batch:
        return self._centres(split)[index], self.root.expand(*index.shape, *self.root.shape)

    def to(self, device: torch.device | str) -> Bowls:
        return moved(self, device)

    def _centres(self, split: Split) -> Tensor:
        return self.centres if split == "train" else self.optimum


def _generator(seed: int, purpose: int) -> torch.Generator:
    # Hashed, so that no run that starts from a small seed starts at the optimum.
    return torch.Generator().manual_seed(int(draw(seed, purpose, 2**31, 1)))
