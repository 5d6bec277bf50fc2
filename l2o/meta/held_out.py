"""How good a learned optimizer is on tasks that it is not trained on.

    score = mean over tasks of log(objective / that of Adam),   lower is better,

where the objective is the one of meta-training (``distribution.py``) over a whole run, a mean over
seeds: the area under the bounded curve of the training loss. It is finite whatever the optimizer
does, steady enough to choose between checkpoints by a few seeds, and needs no tuning of the
optimizer; Adam runs at a fixed learning rate, as a landmark rather than a baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from l2o.architectures.tuned_adam import TunedAdam
from l2o.base import LearnedOptimizer
from l2o.estimators.episodes import Lesson
from l2o.meta.config import Evaluation
from l2o.meta.distribution import lessons
from tasks.evaluation.intervals import FLOOR
from tasks.inner.unroll import unroll
from tasks.types import Task

Objectives = Sequence[Sequence[float]]
"""Of each task: one number a seed."""
SEED = 3_000_000_000
"""The first of the seeds of held-out runs; those of meta-training are below 2**31."""


@dataclass(frozen=True)
class HeldOut:
    """Tasks to measure on; ``adam``: the objectives of Adam on each."""

    lessons: tuple[Lesson, ...]
    evaluation: Evaluation
    adam: Objectives

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        in_mup: bool,
        evaluation: Evaluation,
        adam: Objectives = (),
        device: str = "cpu",
    ) -> HeldOut:
        """Runs Adam, on the tasks as they are, unless its results are given. Raises ValueError
        where they are not above 0."""
        found = cls(tuple(lessons(tasks, in_mup)), evaluation, adam)
        if adam:
            return found
        plain = replace(found, lessons=tuple(lessons(tasks, in_mup=False)))
        optimizer = TunedAdam(lr=evaluation.adam_lr)
        adam = plain.objectives(optimizer, optimizer.initial().to(device))
        for name, own in zip(found.names, adam, strict=True):
            if not min(own) > 0:
                raise ValueError(
                    f"held_out: Adam's objective on {name} is {min(own):g}, expected above 0, for "
                    "scores are logarithms of ratios"
                )
        return replace(found, adam=adam)

    @property
    def names(self) -> list[str]:
        return [lesson.task.name for lesson in self.lessons]

    @torch.no_grad()
    def objectives(self, optimizer: LearnedOptimizer, theta: Tensor) -> Objectives:
        """The objective on each task from each seed; seeds are the same for all optimizers."""
        seeds = SEED + torch.arange(self.evaluation.seeds, device="cpu")
        found = []
        for lesson in self.lessons:
            trajectory = unroll(
                lesson.task,
                lesson.rule(optimizer, theta),
                instances=len(seeds),
                steps=self.evaluation.steps,
                lr=1.0,
                seed=seeds,
                eval_at=(),
                chunk=lesson.chunk,
                device=theta.device,
            )
            found.append(tuple(lesson.objective(trajectory.training).tolist()))
        return tuple(found)

    def score(self, objectives: Objectives) -> float:
        pairs = zip(objectives, self.adam, strict=True)
        return fmean(math.log(max(fmean(own), FLOOR) / fmean(adam)) for own, adam in pairs)
