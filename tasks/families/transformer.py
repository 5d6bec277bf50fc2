"""Causal transformers that predict the next character.

The family where the choice of optimizer matters most in practice. Pre-norm blocks, learned
positions, a GELU MLP four times the width, untied readout. Attention is written out: the fused
kernels neither batch over instances nor differentiate twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.checks import positive
from tasks.data.arrays import Text
from tasks.data.loaders import help_text
from tasks.families.layers import prediction_loss
from tasks.types import HOST, Batch, Task


@dataclass(frozen=True)
class Transformer(Task):
    """``depth`` blocks of ``width`` units; the context length is that of ``data``.

    Parameters: ``token [symbols, width]``, ``position [context, width]``, in block ``i``
    ``block{i}.query``, ``.key``, ``.value``, ``.mix``, ``.up``, ``.down`` (weights ``[in, out]``)
    and two normalisations, then ``norm`` and ``readout [width, symbols]``. ``logit_scale``
    multiplies the attention logits; muP makes it fall with the width (``mup.py``).
    """

    compared: ClassVar[bool] = True
    width: int = 32
    depth: int = 2
    heads: int = 2
    data: Text = field(default_factory=help_text)
    batch_size: int = 32
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        positive(width=self.width, depth=self.depth, heads=self.heads, batch_size=self.batch_size)
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of width={self.width}")

    @property
    def name(self) -> str:
        size = f"w{self.width}-d{self.depth}-c{self.data.context}"
        return f"transformer-{self.data.name}-{size}"

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        def normal(rows: int, columns: int, std: float) -> Tensor:
            return torch.randn(rows, columns, generator=generator, **HOST) * std

        width, symbols = self.width, self.data.vocabulary
        hidden = width**-0.5
        residual = (2 * self.depth) ** -0.5  # so that the sum of all blocks has the scale of one
        params = {
            "token": normal(symbols, width, 0.1),
            "position": normal(self.data.context, width, 0.1),
        }
        for i in range(self.depth):
            params |= _norm(f"block{i}.norm1", width)
            params |= {f"block{i}.{n}": normal(width, width, hidden) for n in _PROJECTIONS}
            params[f"block{i}.mix"] = normal(width, width, hidden * residual)
            params |= _norm(f"block{i}.norm2", width)
            params[f"block{i}.up"] = normal(width, 4 * width, hidden)
            params[f"block{i}.down"] = normal(4 * width, width, hidden / 2 * residual)
        params |= _norm("norm", width)
        params["readout"] = normal(width, symbols, hidden)
        return params

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        chars, following = batch
        return prediction_loss(self.forward(params, chars), following)

    def forward(self, params: Mapping[str, Tensor], chars: Tensor) -> Tensor:
        """Characters ``[B, T]`` to logits ``[B, T, symbols]``."""
        x = F.embedding(chars, params["token"]) + params["position"][: chars.shape[-1]]
        for i in range(self.depth):
            x = x + self._attend(params, f"block{i}", normalise(params, f"block{i}.norm1", x))
            up = normalise(params, f"block{i}.norm2", x) @ params[f"block{i}.up"]
            x = x + F.gelu(up) @ params[f"block{i}.down"]
        return normalise(params, "norm", x) @ params["readout"]

    def _attend(self, params: Mapping[str, Tensor], block: str, x: Tensor) -> Tensor:
        """Causal self-attention, ``[B, T, width]`` to the same shape."""
        split = (*x.shape[:-1], self.heads, self.head_size)
        query, key, value = (
            (x @ params[f"{block}.{name}"]).reshape(split).transpose(-3, -2)
            for name in _PROJECTIONS
        )
        scores = query @ key.transpose(-2, -1) * (self.logit_scale * self.head_size**-0.5)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1)
        return (weights @ value).transpose(-3, -2).reshape(x.shape) @ params[f"{block}.mix"]


def normalise(params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Layer normalisation over the last axis, with gain ``{name}.gain`` and ``{name}.bias``."""
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.gain"], params[f"{name}.bias"])


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.gain": torch.ones(width, **HOST), f"{name}.bias": torch.zeros(width, **HOST)}


_PROJECTIONS = ("query", "key", "value")
