"""What a task is measured in besides its loss: accuracy, an error rate.

Rules are tuned and compared by losses alone, for these are smooth and have ratios. A metric says
what a loss means to the person whose task it is: it is taken of the runs on fresh seeds when they
have ended, on validation and test examples, and stands beside the losses in tables and reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """``of(outputs, *targets)``: one number, a mean over the examples of a batch."""

    name: str
    of: Callable[..., Tensor]
    higher: bool = True  # is better

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: got nothing, expected what the metric is called")

    def __str__(self) -> str:
        return f"{self.name} ({'higher' if self.higher else 'lower'} is better)"


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of the largest outputs ``[..., classes]`` that are the ``targets [...]``."""
    return (outputs.argmax(-1) == targets).to(torch.float32).mean()


accuracy = Metric("accuracy", hits)
