"""What a rule is worth on a task: tuned like every other rule, then measured on fresh seeds.

A comparison is fair when each rule gets the same trials (learning rate x weight decay) on the
same tuning seed, and is reported on seeds that the tuning never saw. All rules of a comparison
run side by side as instances of one unroll, on the same initial weights and minibatches, so that
differences are paired. The number reported is

    mean over tasks of log(loss of the rule / loss of the reference rule),    lower is better,

with Student's interval over the seeds. A run that diverges is a status, never a number: it
makes its rule's loss on that seed infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.evaluation.plan import FRESH_SEEDS as FRESH_SEEDS
from tasks.evaluation.plan import TUNING_SEED
from tasks.inner.schedules import Schedule, constant
from tasks.inner.unroll import evaluate, unroll
from tasks.types import HOST, Split, Task, UpdateRule

MakeRule = Callable[[Tensor], UpdateRule]
"""owner ``[N]`` int64, which of the compared rules each instance runs -> their joint rule."""


class Setting(NamedTuple):
    """What tuning chooses."""

    lr: float
    weight_decay: float = 0.0


def grid(trials: int, low: float = 1e-4, high: float = 1.0) -> tuple[Setting, ...]:
    """``trials`` learning rates at equal ratios from ``low`` to ``high``, no decay."""
    if trials < 1:
        raise ValueError(f"trials: got {trials}, expected at least 1")
    return tuple(Setting(float(lr)) for lr in np.geomspace(low, high, trials))


def tune(
    task: Task,
    make: MakeRule,
    rules: int,
    steps: int,
    settings: Sequence[Setting],
    seed: int = TUNING_SEED,
    schedule: Schedule = constant,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Final validation loss ``[rules, len(settings)]``, infinite where it is not finite.

    Runs on ``device``, and so must the rule of ``make``; the result is on the CPU. Raises
    ValueError for a task with losses below 0.
    """
    owner = torch.arange(rules, device="cpu").repeat_interleave(len(settings))
    lr = torch.tensor([s.lr for s in settings], **HOST).repeat(rules)
    decay = torch.tensor([s.weight_decay for s in settings], **HOST).repeat(rules)
    trajectory = unroll(
        task,
        make(owner.to(device)),
        instances=len(owner),
        steps=steps,
        lr=lr,
        weight_decay=decay,
        schedule=schedule,
        seed=seed,
        device=device,
    )
    return comparable(trajectory.validation[-1].cpu(), task.name).view(rules, len(settings))


def choose(losses: Tensor, settings: Sequence[Setting]) -> list[Setting]:
    """The setting of the smallest loss of each row; the first one where a row has none."""
    return [settings[int(k)] for k in losses.argmin(dim=1)]


def measure(
    task: Task,
    make: MakeRule,
    chosen: Sequence[Setting],
    steps: int,
    seeds: Sequence[int],
    split: Split = "validation",
    schedule: Schedule = constant,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Final loss ``[rules, seeds]`` of each rule at its chosen setting, infinite if diverged.

    As for ``tune``, runs are on ``device``, the result is on the CPU, and no loss is below 0.
    """
    owner = torch.arange(len(chosen), device=device)
    rule = make(owner)
    columns = []
    for seed in seeds:
        trajectory = unroll(
            task,
            rule,
            instances=len(chosen),
            steps=steps,
            lr=torch.tensor([s.lr for s in chosen], **HOST),
            weight_decay=torch.tensor([s.weight_decay for s in chosen], **HOST),
            schedule=schedule,
            seed=seed,
            device=device,
        )
        losses = evaluate(task, trajectory.inner.params, split).cpu()
        columns.append(comparable(losses, task.name))
    return torch.stack(columns, dim=1)


def finite(losses: Tensor) -> Tensor:
    """NaN and infinities of either sign become +inf, so that nothing non-finite looks good."""
    return torch.where(losses.isfinite(), losses, math.inf)


def comparable(losses: Tensor, task: str) -> Tensor:
    """``finite`` losses; raises ValueError for one below 0, of which no ratio means anything."""
    losses = finite(losses)
    if (losses < 0).any():
        least = float(losses.min())
        raise ValueError(
            f"{task}: got a loss of {least:.4g}, expected none below 0: rules are compared by "
            "ratios of losses"
        )
    return losses
