"""Smooth plus l1: the problems that proximal methods are made for, and FISTA to solve them.

    F(x) = f(x) + penalty * |x|_1          f smooth, with an L-Lipschitz gradient

LASSO and sparse logistic regression as in Liu et al. 2023 ("Towards constituting mathematical
structures for learning to optimize", L2O-PA). One task holds ``problems`` independent instances
drawn alike; its parameter ``x [problems, columns]`` holds all their solutions, its loss is their
mean ``F``. There is nothing to generalise to: all splits are the same, every batch is the whole.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.checks import natural, positive
from tasks.data.arrays import moved
from tasks.types import HOST, Batch, Dataset, Split, Task


@dataclass(frozen=True, eq=False)
class Problems(Dataset):
    """``matrix [problems, rows, columns]`` and ``target [problems, rows]``: one single example.

    A batch is only its index. Losses read the tensors from here, so that ``vmap`` sees them as the
    constants they are and no instance gets a copy.
    """

    name: str
    matrix: Tensor
    target: Tensor

    def size(self, split: Split) -> int:
        return 1

    def batch(self, split: Split, index: Tensor) -> Batch:
        return (index,)

    def to(self, device: torch.device | str) -> Problems:
        return moved(self, device)


@dataclass(frozen=True)
class Composite(Task):
    """What the two have in common; ``seed`` chooses matrices and solutions."""

    problems: int = 1
    rows: int = 250
    columns: int = 500
    nonzeros: int = 50
    penalty: float = 0.1
    seed: int = 0
    batch_size: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        positive(problems=self.problems, rows=self.rows, columns=self.columns)
        natural(nonzeros=self.nonzeros, seed=self.seed)
        if self.nonzeros > self.columns:
            raise ValueError(f"nonzeros: got {self.nonzeros}, expected at most {self.columns}")
        if not self.penalty >= 0:
            raise ValueError(f"penalty: got {self.penalty}, expected a number of at least 0")

    @property
    def name(self) -> str:
        kind = type(self).__name__.lower()
        return f"{kind}-{self.rows}x{self.columns}-p{self.problems}-s{self.seed}"

    @cached_property
    def data(self) -> Problems:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Drawn when first asked for."""
        return self.draw(torch.Generator().manual_seed(self.seed))

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Zeros, as in the paper."""
        return {"x": torch.zeros(self.problems, self.columns, **HOST)}

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.objective(params["x"]).mean()

    def objective(self, x: Tensor) -> Tensor:
        """``F`` of every problem: ``[..., problems, columns]`` to ``[..., problems]``."""
        return self.smooth(x) + self.penalty * x.abs().sum(dim=-1)

    def product(self, x: Tensor) -> Tensor:
        """Each problem's matrix times its ``x``: ``[..., problems, rows]``.

        Instances that are trained side by side become columns of one product, whose rounding
        depends on how many they are.
        """
        return (self.data.to(x.device).matrix @ x[..., None]).squeeze(-1)

    def adjoint(self, z: Tensor) -> Tensor:
        """Each problem's transposed matrix times ``z [..., problems, rows]``."""
        return (self.data.to(z.device).matrix.mT @ z[..., None]).squeeze(-1)

    def solution(self, generator: torch.Generator) -> Tensor:
        """Sparse ``[problems, columns]`` that the targets are made from."""
        x = torch.randn(self.problems, self.columns, generator=generator, **HOST)
        rank = torch.rand(x.shape, generator=generator, **HOST).argsort(dim=-1).argsort(dim=-1)
        return torch.where(rank < self.nonzeros, x, 0.0)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Problems:
        """Random matrices and targets."""

    @abstractmethod
    def smooth(self, x: Tensor) -> Tensor:
        """``f`` of every problem."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """Of ``f`` at ``x [..., problems, columns]``, same shape."""

    @cached_property
    @abstractmethod
    def lipschitz(self) -> Tensor:
        """``L`` of every problem, ``[problems]``, on the device of ``data``."""


@dataclass(frozen=True)
class Lasso(Composite):
    """``f(x) = 1/2 |A x - b|^2``; columns of ``A`` have length 1, ``b = A x*`` without noise."""

    compared: ClassVar[bool] = True

    def draw(self, generator: torch.Generator) -> Problems:
        matrix = torch.randn(self.problems, self.rows, self.columns, generator=generator, **HOST)
        matrix = matrix / matrix.norm(dim=1, keepdim=True)
        target = (matrix @ self.solution(generator)[..., None]).squeeze(-1)
        return Problems(self.name, matrix, target)

    def smooth(self, x: Tensor) -> Tensor:
        return 0.5 * self.residual(x).square().sum(dim=-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.adjoint(self.residual(x))

    def residual(self, x: Tensor) -> Tensor:
        return self.product(x) - self.data.to(x.device).target

    @cached_property
    def lipschitz(self) -> Tensor:
        return torch.linalg.matrix_norm(self.data.matrix, ord=2).square()


@dataclass(frozen=True)
class SparseLogistic(Composite):
    """``f(x)``: mean cross-entropy of sigmoid(a x) over the rows ``a``; targets are a x* >= 0."""

    compared: ClassVar[bool] = True
    rows: int = 1000
    columns: int = 50
    nonzeros: int = 20

    def draw(self, generator: torch.Generator) -> Problems:
        matrix = torch.randn(self.problems, self.rows, self.columns, generator=generator, **HOST)
        margin = (matrix @ self.solution(generator)[..., None]).squeeze(-1)
        return Problems(self.name, matrix, (margin >= 0).float())

    def smooth(self, x: Tensor) -> Tensor:
        margin = self.product(x)
        return (F.softplus(margin) - self.data.to(x.device).target * margin).mean(dim=-1)

    def gradient(self, x: Tensor) -> Tensor:
        error = torch.sigmoid(self.product(x)) - self.data.to(x.device).target
        return self.adjoint(error) / self.rows

    @cached_property
    def lipschitz(self) -> Tensor:
        return torch.linalg.matrix_norm(self.data.matrix, ord=2).square() / (4 * self.rows)


def soft(x: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal operator of ``threshold * |x|_1``: every entry moved towards 0, not past it."""
    return x.sign() * (x.abs() - threshold).clamp(min=0)


@torch.no_grad()
def fista(task: Composite, steps: int = 5000, momentum: bool = True) -> Tensor:
    """Solutions ``[problems, columns]`` by accelerated proximal gradient steps of size 1/L.

    Beck & Teboulle 2009; without ``momentum`` it is ISTA. The reference that gaps are measured to.
    """
    size = 1 / task.lipschitz[:, None]
    x = torch.zeros(
        task.problems, task.columns, device=task.data.matrix.device, dtype=torch.float32
    )
    y, t = x, 1.0
    for _ in range(steps):
        before = x
        x = soft(y - size * task.gradient(y), size * task.penalty)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = x + (t - 1) / following * (x - before) if momentum else x
        t = following
    return x
