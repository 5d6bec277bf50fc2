"""Which tasks a learned optimizer is meta-trained on, and what it is asked to do on each.

A distribution is a product, families x widths x data sets, or a suite. Each of its tasks becomes
a *lesson*: the task, in muP or not, with the factors that muP multiplies learned steps by, and an
objective that is the same for all tasks: the mean training loss, in units of one and a half times
what predicting nothing costs, where a loss above that, or NaN, counts as 1. So no task outweighs
another, predicting nothing is 2/3, and a run that diverged costs half as much again at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from l2o.estimators.episodes import Lesson, bounded
from tasks.checks import one_of, positive
from tasks.data.loaders import DATASETS
from tasks.families.named import family, fields_of, with_fields
from tasks.inner.unroll import evaluate
from tasks.mup.scaling import mup, update_multiplier
from tasks.suites import is_own, resolve
from tasks.types import HOST, Task

NEEDED = ("width", "depth", "data", "batch_size")
"""Fields of a family that a distribution is made of."""
CEILING = 1.5
"""Largest loss that counts, in units of what predicting nothing costs, ``log(classes)``."""


@dataclass(frozen=True)
class Distribution:
    """Tasks: every family at every width and depth on every data set, or a suite.

    Attributes:
        families: {families}, or import paths (module:class) of yours
        widths: of the networks
        depths: of the networks, in layers or blocks
        data: names of data sets (l2o data list)
        batch_size: of the inner training runs
        suite: in place of all the above, one by its name or import path (module:attribute)
    """

    families: tuple[str, ...] = ("mlp",)
    widths: tuple[int, ...] = (16, 32)
    depths: tuple[int, ...] = (1,)
    data: tuple[str, ...] = ("digits",)
    batch_size: int = 64
    suite: str | None = None

    def __post_init__(self) -> None:
        for name in ("families", "widths", "depths", "data"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none, expected at least one")
        for width, depth in product(self.widths, self.depths):
            positive(widths=width, depths=depth)
        for name in self.data:
            one_of("data", name, DATASETS)
        positive(batch_size=self.batch_size)

    def imports(self) -> list[str]:
        """The import paths of code that is none of ours, which ``tasks`` runs."""
        if self.suite is not None:
            return [self.suite] if is_own(self.suite) else []
        return [name for name in self.families if is_own(name)]

    def tasks(self) -> list[Task]:
        """All of them. Raises ValueError for a family that lacks a width, depth or such data."""
        if self.suite is not None:
            return [entry.task for entry in resolve(self.suite)]
        return [
            self._member(*choice)
            for choice in product(self.families, self.data, self.widths, self.depths)
        ]

    def _member(self, name: str, data: str, width: int, depth: int) -> Task:
        kind = family("families", name, with_fields(*NEEDED))
        wanted = {"width": width, "depth": depth, "batch_size": self.batch_size}
        if missing := sorted({*NEEDED} - fields_of(kind)):
            raise ValueError(f"families: {name} has no field {', '.join(missing)}")
        try:
            member = kind(data=DATASETS[data](), **wanted)  # type: ignore[call-arg]
            _ = member.layout  # some find out only here that they are not made for such data
            return member
        except (ValueError, AttributeError) as error:
            raise ValueError(f"families: no {name} of width {width} on {data}: {error}") from error


Distribution.__doc__ = (Distribution.__doc__ or "").format(families=", ".join(with_fields(*NEEDED)))


def lessons(tasks: Sequence[Task], in_mup: bool, chunk: int | None = None) -> list[Lesson]:
    """One for each task; ``in_mup``: in the maximal update parametrisation.

    Raises ValueError for muP of a task without a width, and where predicting nothing costs nothing
    or is not a number.
    """
    return [
        Lesson(
            mup(task) if in_mup else task,
            update_multiplier if in_mup else None,
            bounded(CEILING * _unit(task)),
            chunk,
        )
        for task in tasks
    ]


def nothing(task: Task) -> float:
    """The loss of a network that outputs zero: all its parameters are."""
    return float(evaluate(task, torch.zeros(1, task.layout.n, **HOST)))


def _unit(task: Task) -> float:
    """What objectives are in units of. Raises ValueError unless it can be."""
    loss = nothing(task)
    if not 0 < loss < math.inf:
        raise ValueError(
            f"task: {task.name} has a loss of {loss} where all its parameters are 0, expected a "
            "positive number, since that is what its losses are measured in"
        )
    return loss
