"""Training runs that meta-gradients are taken of: begun, cut into truncations, begun again.

A meta-gradient estimator advances its runs by one *truncation* per outer step and begins a new
*episode* of a run whenever the old one has reached its horizon. Runs keep their own time, so at any
moment they are spread over all ages.

All randomness is a function of integers: a run's ``number``, how many ``episode`` s it has begun,
and the ``step`` it is at. So a resumed run needs no random state, and what a run does does not
depend on which process it lives in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from l2o.base import LearnedOptimizer
from tasks.checks import above_zero, natural, positive
from tasks.inner.unroll import advance, start
from tasks.mup.scaling import Scale
from tasks.types import Inner, Task, UpdateRule

Objective = Callable[[Tensor], Tensor]
"""Training losses ``[steps, N]`` of a truncation to what each run should make small, ``[N]``."""


def mean_loss(losses: Tensor) -> Tensor:
    """The mean over the truncation; over an episode this makes the area under its loss curve."""
    return losses.mean(dim=0)


def bounded(ceiling: float) -> Objective:
    """Mean loss in units of ``ceiling``, where a loss above it, or NaN, counts as ``ceiling``.

    A diverged run then weighs as much as a bad one. 1.5 times the loss of untrained parameters
    is a good ceiling; 1.5 ln(classes) is usual.
    """
    above_zero(ceiling=ceiling)

    def objective(losses: Tensor) -> Tensor:
        cut = torch.where(losses <= ceiling, losses, ceiling)  # also where losses is NaN
        return cut.mean(dim=0) / ceiling

    return objective


@dataclass(frozen=True)
class Lesson:
    """A task to learn from, and how: muP's ``scale``, the objective, and the largest number of
    instances in flight (``chunk``; by default as many as fit, see
    ``tasks.inner.unroll.advance``)."""

    task: Task
    scale: Scale | None = None
    objective: Objective = mean_loss
    chunk: int | None = None

    def rule(self, optimizer: LearnedOptimizer, theta: Tensor) -> UpdateRule:
        return optimizer.on(self.task).rule(theta, self.scale)

    def advance(self, rule: UpdateRule, runs: Runs, steps: int) -> tuple[Inner, Tensor]:
        """The inner runs after ``steps`` steps, and the objective ``[N]``."""
        copies = runs.inner.params.shape[0] // len(runs.number)
        inner, losses = advance(
            self.task,
            rule,
            runs.inner,
            steps,
            horizon=runs.horizon.repeat(copies),
            lr=1.0,
            chunk=self.chunk,
        )
        return inner, self.objective(losses)


class Runs(NamedTuple):
    """``P`` runs. Evolution strategies keep two copies of each: then ``inner`` has ``2P`` rows, the
    second copies after all the first."""

    inner: Inner
    number: Tensor  # [P] int64: who is who, across all processes
    episode: Tensor  # [P] int64: how many episodes have begun
    horizon: Tensor  # [P] int64: when the present one ends
    noise: Tensor  # [P, D], or [P, 0]: what the estimator accumulates over an episode

    @property
    def step(self) -> Tensor:
        """``[P]``: steps done in the present episode."""
        assert isinstance(self.inner.step, Tensor)
        return self.inner.step[: len(self.number)]

    def rows(self, index: Tensor) -> Runs:
        """Some of the runs, where there is one copy of each."""
        return Runs(self.inner.rows(index), *(x[index] for x in self[1:]))


class Estimate(NamedTuple):
    """A meta-gradient, the mean objective it is the slope of, and the runs to go on with."""

    gradient: Tensor  # [D]
    loss: Tensor  # []
    runs: Runs


@dataclass(frozen=True)
class Episodes:
    """How long episodes are and where they are cut.

    ``horizon``: a number of steps, or a range to draw it from, log-uniformly; rounded to whole
    truncations. ``truncation``: steps between meta-gradients; None for whole episodes, which then
    are equally long for all runs. ``stagger``: cut each run's first episode short at a random
    place, so that runs begun together do not stay together.
    """

    horizon: int | tuple[int, int]
    truncation: int | None = None
    stagger: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.range
        positive(horizon=low)
        natural(seed=self.seed)
        if high < low:
            raise ValueError(f"horizon: got {self.horizon}, expected a range that does not fall")
        if self.truncation is not None:
            positive(truncation=self.truncation)
            if self.truncation > low:
                raise ValueError(
                    f"truncation: got {self.truncation}, expected at most the horizon, {low}"
                )

    @property
    def range(self) -> tuple[int, int]:
        """The shortest and the longest horizon."""
        if isinstance(self.horizon, int):
            return self.horizon, self.horizon
        return self.horizon[0], self.horizon[1]

    def begin(
        self,
        optimizer: LearnedOptimizer,
        theta: Tensor,
        lesson: Lesson,
        number: Tensor,
        copies: int,
    ) -> Runs:
        """Runs that are due to begin their first episode, on the device of ``theta``."""
        number = number.to(theta.device)
        rule = lesson.rule(optimizer, theta)
        seed = torch.zeros(copies * len(number), dtype=torch.int64, device="cpu")
        inner = start(lesson.task, rule, len(seed), seed, theta.device)
        nothing = torch.zeros_like(number)
        return Runs(inner, number, nothing, nothing, theta.new_zeros(len(number), 0))

    def turn(self, runs: Runs) -> tuple[Runs, Tensor]:
        """Count a new episode where the old one has ended: the runs, and where, ``[P]`` bool."""
        over = runs.step >= runs.horizon
        episode = runs.episode + over
        pairs = zip(runs.number[over].tolist(), episode[over].tolist(), strict=True)
        drawn = [self.length(number, begun) for number, begun in pairs]
        horizon = runs.horizon.clone()
        horizon[over] = torch.tensor(drawn, dtype=torch.int64, device=over.device)
        return runs._replace(episode=episode, horizon=horizon), over

    def renew(self, runs: Runs, over: Tensor, lesson: Lesson, rule: UpdateRule) -> Runs:
        """Begin the episodes that ``turn`` counted, all copies of a run from the same weights."""
        if not over.any():
            return runs
        pairs = zip(runs.number[over].tolist(), runs.episode[over].tolist(), strict=True)
        drawn = [self.inner_seed(number, begun) for number, begun in pairs]
        seed = torch.tensor(drawn, dtype=torch.int64, device="cpu")
        copies = runs.inner.params.shape[0] // len(over)
        rows = over.repeat(copies).nonzero().flatten()
        device = runs.inner.params.device
        chosen = rule if over.all() else rule.select(rows)
        fresh = start(lesson.task, chosen, len(rows), seed.repeat(copies), device)
        if over.all():
            return runs._replace(inner=fresh)
        old = runs.inner
        step, seeds, fresh_seeds = (
            torch.as_tensor(x, dtype=torch.int64, device=device)
            for x in (old.step, old.seed, fresh.seed)
        )
        inner = Inner(
            old.params.index_copy(0, rows, fresh.params),
            {name: old.state[name].index_copy(0, rows, new) for name, new in fresh.state.items()},
            step.index_fill(0, rows, 0),
            seeds.index_copy(0, rows, fresh_seeds),
        )
        return runs._replace(inner=inner)

    def steps(self, runs: Runs) -> int:
        """How many steps to take until the next meta-gradient."""
        return int(runs.horizon[0]) if self.truncation is None else self.truncation

    def length(self, number: int, episode: int) -> int:
        """The horizon of an episode."""
        low, high = self.range
        cut = self.truncation or 1
        # Whole episodes must be equally long for all runs, which advance together.
        random = self.random(0 if self.truncation is None else number, episode, 0)
        length = np.exp(random.uniform(np.log(low), np.log(high)))
        if self.stagger and episode == 1:
            length *= random.uniform()
        return max(1, round(length / cut)) * cut

    def inner_seed(self, number: int, episode: int) -> int:
        """What chooses an episode's initial weights and minibatches."""
        return int(self.random(number, episode, 1).integers(2**31))

    def random(self, *address: int) -> np.random.Generator:
        """Random numbers for an address: four integers at most, unlike those of any other."""
        key = np.array([self.seed, address[0]], dtype=np.uint64)
        counter = np.zeros(4, dtype=np.uint64)
        counter[1 : len(address)] = address[1:]
        return np.random.Generator(np.random.Philox(key=key, counter=counter))
