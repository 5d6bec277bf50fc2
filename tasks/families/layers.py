"""The loss that the targets of a data set ask for.

Integer targets are class numbers and mean cross-entropy; real targets mean squared error.
Predicting nothing costs ``log(classes)`` in the first case and, since real targets are
standardised, about 1 in the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.types import HOST


def prediction_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss (a scalar) of ``outputs [..., K]``.

    ``targets`` is int64 ``[...]`` (class numbers below K) or float ``[..., K]``.
    """
    if targets.dtype == torch.int64:
        # F.cross_entropy under vmap costs half as much again for a whole training step.
        chosen = outputs.gather(-1, targets[..., None])[..., 0]
        return (torch.logsumexp(outputs, dim=-1) - chosen).mean()
    return F.mse_loss(outputs, targets)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}


def dense(
    sizes: Sequence[int], gains: Sequence[float], generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters of affine layers between ``sizes``: ``w0, b0, w1, b1, ...``.

    Weights ``[in, out]`` are normal with standard deviation ``gain / sqrt(in)``, biases zero.
    """
    params = {}
    for layer, gain in enumerate(gains):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        params[f"w{layer}"] = (
            torch.randn(fan_in, fan_out, generator=generator, **HOST) * gain / fan_in**0.5
        )
        params[f"b{layer}"] = torch.zeros(fan_out, **HOST)
    return params


def affine(params: Mapping[str, Tensor], layer: int, inputs: Tensor) -> Tensor:
    """``[..., in]`` to ``[..., out]`` by the parameters of one layer."""
    return inputs @ params[f"w{layer}"] + params[f"b{layer}"]


def gain(activation: str) -> float:
    """What keeps the scale of a signal through a layer: relu halves its square (He et al. 2015)."""
    return 2**0.5 if activation == "relu" else 1.0
