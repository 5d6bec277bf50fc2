"""Autoencoders: the outputs are the inputs again, squeezed through a few numbers.

Their loss surface differs from a classifier's: no targets but the pixels, every output matters
equally, and the narrow middle makes progress slow for rules that ignore curvature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.checks import one_of, positive
from tasks.data.arrays import Arrays
from tasks.data.loaders import digits
from tasks.families.layers import ACTIVATIONS, affine, dense, gain
from tasks.types import Batch, Task


@dataclass(frozen=True)
class Autoencoder(Task):
    """``depth`` layers of ``width`` units down to ``latent`` linear units, and as many back up.

    The loss is the mean squared error of a (standardised) pixel.
    """

    compared: ClassVar[bool] = True
    width: int = 32
    depth: int = 1
    latent: int = 8
    activation: str = "tanh"
    data: Arrays = field(default_factory=digits)
    batch_size: int = 64

    def __post_init__(self) -> None:
        positive(width=self.width, depth=self.depth, latent=self.latent)
        positive(batch_size=self.batch_size)
        one_of("activation", self.activation, ACTIVATIONS)

    @property
    def name(self) -> str:
        name = f"autoencoder-{self.data.name}-w{self.width}-d{self.depth}-z{self.latent}"
        return name if self.activation == "tanh" else f"{name}-{self.activation}"

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        half = [self.width] * self.depth
        sizes = [self.data.features, *half, self.latent, *half, self.data.features]
        gains = ([gain(self.activation)] * self.depth + [1.0]) * 2
        return dense(sizes, gains, generator)

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        pixels = hidden = batch[0].flatten(1)
        layers = 2 * (self.depth + 1)
        for layer in range(layers):
            hidden = affine(params, layer, hidden)
            if (layer + 1) % (self.depth + 1):  # neither the latent layer nor the last
                hidden = ACTIVATIONS[self.activation](hidden)
        return F.mse_loss(hidden, pixels)
