"""A program with what a person wants to know of it, ready for a training script."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from search.language.program import Program, parse

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Entry:
    """A rule, its name, and the paper or the run that it is from.

    ``lr`` and ``weight_decay`` are where tuning may start, not tuned values; a full program holds
    its own decay, and its ``lr`` is the value of the schedule.
    """

    name: str
    program: Program
    origin: str
    lr: float = 1e-3
    weight_decay: float = 0.0

    def optimizer(self, params: Iterable[Any], **settings: Any) -> Optimizer:
        """The rule as a ``torch.optim.Optimizer``: ``lr``, ``weight_decay``, its constants,
        ``foreach`` and so on are those of the file that ``l2o export`` writes. The default ``lr``
        is safe rather than good, whatever a search or a paper had: tune it, as the docstring says.

        One that reads a Hessian estimates it where it is told to, by ``set_hessian(loss)``.
        """
        from search.export.build import to_class  # reads and writes Python: only where wanted

        made = to_class(self.program, self.name, self.origin, self.default_lr, self.weight_decay)
        return made(params, **settings)

    @property
    def default_lr(self) -> float | None:
        """Of exported files: the paper's where a Hessian is read, else that of the kind of rule."""
        return self.lr if "h" in self.program.inputs else None


def entry(
    name: str, origin: str, text: str, *, lr: float = 1e-3, weight_decay: float = 0.0
) -> Entry:
    """One whose program is given as indented text."""
    return Entry(name, parse(dedent(text), filename=name), origin, lr, weight_decay)
