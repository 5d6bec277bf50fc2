"""A meta-trained optimizer in anyone's training script."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from l2o import checkpoint
from l2o.base import LearnedOptimizer
from tasks.optimizer import RuleOptimizer

SHIPPED = Path(__file__).parents[1] / "checkpoints"


@dataclass(frozen=True)
class Learned:
    """An architecture and its meta-parameters; ``card`` says how they came about."""

    name: str
    architecture: LearnedOptimizer
    theta: Tensor  # [D]
    card: dict[str, Any]

    def optimizer(
        self,
        model: nn.Module | Iterable[Any],
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        **settings: Any,
    ) -> RuleOptimizer:
        """As a ``torch.optim.Optimizer`` for a module, its parameters or parameter groups.

        Learned steps have the right size already: ``lr`` multiplies them, and is for schedules.
        ``settings`` are those of ``RuleOptimizer``, such as ``horizon``, the planned number of
        steps. For muP give it ``tasks.mup.param_groups(model, base, inputs, lr=1.0)``.
        """
        params = model.parameters() if isinstance(model, nn.Module) else model
        rule = self.architecture.rule(self.theta)
        return RuleOptimizer(params, rule, lr, weight_decay, **settings)


def load(name: str | PathLike[str], shipped: Path = SHIPPED) -> Learned:
    """The checkpoint in the folder ``name``, or in the folder of that name among the ``shipped``.

    Raises ValueError if there is neither, CheckpointError (a ValueError) for one that is damaged.
    """
    for folder in (Path(name), shipped / name):
        if (folder / checkpoint.TENSORS).is_file():
            return Learned(folder.name, *checkpoint.load(folder))
    known = sorted(path.parent.name for path in shipped.glob(f"*/{checkpoint.TENSORS}"))
    raise ValueError(
        f"no learned optimizer {str(name)!r}: expected a folder with {checkpoint.TENSORS}"
        + (f" or one of {', '.join(known)}" if known else "")
    )
