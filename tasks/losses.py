"""The loss that the targets of a data set ask for.

Integer targets are class numbers and mean cross-entropy; real targets mean squared error.
Predicting nothing costs ``log(classes)`` in the first case and, since real targets are
standardised, about 1 in the second.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prediction_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss (a scalar) of ``outputs [..., K]``.

    ``targets`` is int64 ``[...]`` (class numbers below K) or float ``[..., K]``.
    """
    if targets.dtype == torch.int64:
        return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))
    return F.mse_loss(outputs, targets)
