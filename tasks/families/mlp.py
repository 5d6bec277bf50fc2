"""Multi-layer perceptrons: the family most update rules are first measured on.

``MLP()`` is the proxy: 64-32-10 on 8x8 digits, 2,410 parameters, small enough that a learning
curve of a few hundred steps takes milliseconds and real enough that optimizers rank much as they
do on larger networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tasks.checks import one_of, positive
from tasks.data.arrays import Arrays
from tasks.data.loaders import digits
from tasks.families.layers import ACTIVATIONS, affine, dense, gain, prediction_loss
from tasks.types import Batch, Task


@dataclass(frozen=True)
class MLP(Task):
    """``depth`` hidden layers of ``width`` units between the inputs and the targets of ``data``.

    Parameters are ``w0, b0, w1, b1, ...`` with weights stored ``[in, out]``. The loss is
    cross-entropy or squared error, as the targets demand.
    """

    compared: ClassVar[bool] = True
    width: int = 32
    depth: int = 1
    activation: str = "relu"
    data: Arrays = field(default_factory=digits)
    batch_size: int = 128

    def __post_init__(self) -> None:
        positive(width=self.width, depth=self.depth, batch_size=self.batch_size)
        one_of("activation", self.activation, ACTIVATIONS)

    @property
    def name(self) -> str:
        name = f"mlp-{self.data.name}-w{self.width}-d{self.depth}"
        return name if self.activation == "relu" else f"{name}-{self.activation}"

    @property
    def sizes(self) -> list[int]:
        """Units of each layer, from the inputs to the outputs."""
        return [self.data.features, *[self.width] * self.depth, self.data.outputs]

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return dense(self.sizes, [gain(self.activation)] * self.depth + [1.0], generator)

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        inputs, targets = batch
        return prediction_loss(self.forward(params, inputs), targets)

    def forward(self, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """``[B, *example]`` to logits or predictions ``[B, outputs]``."""
        hidden = inputs.flatten(1)
        for layer in range(self.depth):
            hidden = ACTIVATIONS[self.activation](affine(params, layer, hidden))
        return affine(params, self.depth, hidden)
