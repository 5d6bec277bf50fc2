"""Linear regression and its sibling for classes: convex, and the cheapest tasks on real data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tasks.checks import positive
from tasks.data.arrays import Arrays
from tasks.data.loaders import breast_cancer, diabetes
from tasks.families.layers import affine, dense, prediction_loss
from tasks.types import Batch, Task


@dataclass(frozen=True)
class Linear(Task):
    """Least squares: ``data`` must have real targets. Parameters ``w0 [in, out]`` and ``b0``."""

    compared: ClassVar[bool] = True
    data: Arrays = field(default_factory=diabetes)
    batch_size: int = 32

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size)
        if self.data.classified:
            raise ValueError(f"data: got {self.data.name}, expected real targets, not classes")

    @property
    def name(self) -> str:
        return f"linear-{self.data.name}"

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return dense([self.data.features, self.data.outputs], [1.0], generator)

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        inputs, targets = batch
        return prediction_loss(affine(params, 0, inputs.flatten(1)), targets)


@dataclass(frozen=True)
class Logistic(Linear):
    """Softmax regression: ``data`` must have class numbers as targets."""

    compared: ClassVar[bool] = True
    data: Arrays = field(default_factory=breast_cancer)

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size)
        if not self.data.classified:
            raise ValueError(f"data: got {self.data.name}, expected classes, not real targets")

    @property
    def name(self) -> str:
        return f"logistic-{self.data.name}"
