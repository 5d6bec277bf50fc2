"""How fast a rule gets where the tuned reference ends: steps, seconds, performance profiles.

The target of a task is the reference's final validation loss, the median over seeds; what is
compared is when the median of a rule's learning curves first gets there. A *performance profile* is
the share of tasks on which a rule is at most so many times slower than the fastest (Dolan and Moré
2002), and the score of AlgoPerf (Dahl et al. 2023, arXiv 2306.07179) is its mean height from 1 to
4 times. The reference gets to its own median by construction, and a rule just as good gets there on
about half of the tasks; intervals hold that too, for each draw of seeds has the target of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tasks.evaluation.intervals import RESAMPLES, Interval, bootstrapped, ends, enough

SLOWEST = 4.0
FACTORS = np.linspace(1.0, SLOWEST, 61)
"""How much slower than the fastest rule: the abscissa of a performance profile, as AlgoPerf's."""


class Reached(NamedTuple):
    """When a rule gets to the target of a task: ``steps``, infinite if never, and ``seconds`` of
    one model; how many times fewer steps (``faster``) and less time (``quicker``) than the
    reference, 0 if never. Intervals are over seeds; seconds were measured once."""

    steps: Interval
    seconds: float
    faster: Interval
    quicker: float


def steps_to(curves: np.ndarray, marks: Sequence[int], goal: np.ndarray | float) -> np.ndarray:
    """``[..., marks] -> [...]``: the step at which a curve first is at ``goal``, or inf.

    Between two marks it is interpolated. An infinite goal, of a reference that diverged, is
    reached by nothing.
    """
    at, goal = np.asarray(marks, float), np.asarray(goal, float)[..., None]
    reached = np.isfinite(goal) & (curves <= goal)
    after = reached.argmax(axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    above, below = np.take_along_axis(curves, before, -1), np.take_along_axis(curves, after, -1)
    with np.errstate(all="ignore"):  # no slope at the first point, nor from a diverged one
        share = np.nan_to_num((above - goal) / (above - below), nan=1.0, posinf=1.0)
    steps = at[before] + share * (at[after] - at[before])
    return np.where(reached.any(axis=-1), steps[..., 0], math.inf)


def middle(curves: np.ndarray) -> np.ndarray:
    """``[..., seeds, marks] -> [..., marks]``: medians; inf where half of the runs diverged."""
    ordered, seeds = np.sort(curves, axis=-2), curves.shape[-2]
    return (ordered[..., (seeds - 1) // 2, :] + ordered[..., seeds // 2, :]) / 2


def target(reference: np.ndarray) -> np.ndarray:
    """``[..., seeds, marks] -> [...]``: the median of the final losses."""
    return middle(reference)[..., -1]


def reached(
    curves: np.ndarray,
    reference: np.ndarray,
    marks: Sequence[int],
    seconds: tuple[float, float],
) -> Reached:
    """``curves`` and ``reference``: ``[seeds, marks]``; ``seconds``: theirs, of a step."""

    def needed(own: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.maximum(steps_to(middle(own), marks, goal), 1.0)

    def resampled(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return needed(curves[index], target(reference))

    def ratio(index: np.ndarray, axis: int = -1) -> np.ndarray:
        goal = target(reference[index])
        own, other = needed(curves[index], goal), needed(reference[index], goal)
        return np.where(np.isfinite(own), other / own, 0.0)

    seeds = np.arange(len(curves))
    steps = bootstrapped(len(curves), resampled, seeds)
    with np.errstate(invalid="ignore"):  # a target that nobody reaches
        faster = bootstrapped(len(curves), ratio, seeds)
    own, other = seconds
    return Reached(steps, steps.mean * own, faster, faster.mean * other / own)


def slowness(steps: np.ndarray) -> np.ndarray:
    """Steps to target ``[rules, tasks, ...]`` in units of the fastest rule's; inf if never."""
    fastest = np.maximum(steps.min(axis=0), 1.0)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(steps), np.maximum(steps, 1.0) / fastest, math.inf)


def profile(steps: np.ndarray) -> np.ndarray:
    """Performance profiles ``[rules, len(FACTORS)]`` of steps to target ``[rules, tasks]``.

    A task whose target nobody reaches is solved by nobody.
    """
    return (slowness(steps)[:, :, None] <= FACTORS * (1 + 1e-9)).mean(axis=1)


def profile_scores(steps: np.ndarray) -> np.ndarray:
    """AlgoPerf's scores ``[rules, ...]`` of steps ``[rules, tasks, ...]``: the mean of the profile
    from 1 to SLOWEST, exactly."""
    return (np.clip(SLOWEST - slowness(steps), 0.0, None) / (SLOWEST - 1)).mean(axis=1)


def scores(
    curves: Sequence[np.ndarray], marks: Sequence[Sequence[int]], base: int
) -> list[Interval]:
    """AlgoPerf's score of each rule, with its interval over seeds, drawn for each task by itself.

    ``curves``: of each task, ``[rules, seeds, marks]``; ``base``: the rule that sets the targets.
    """
    tasks = list(zip(curves, marks, strict=True))
    values = profile_scores(
        np.stack([steps_to(middle(own), at, target(own[base])) for own, at in tasks], axis=1)
    )
    seeds = curves[0].shape[1]
    n = len(tasks) * seeds
    if not enough(n, [range(seeds)]):
        return [Interval(float(value), -math.inf, math.inf, n) for value in values]
    generator = np.random.default_rng(0)
    columns = []
    for own, at in tasks:
        drawn = generator.integers(seeds, size=(RESAMPLES, seeds))  # paired: the same for all rules
        goal = target(own[base][drawn])
        columns.append(np.stack([steps_to(middle(rule[drawn]), at, goal) for rule in own]))
    spread = profile_scores(np.stack(columns, axis=1))
    return [Interval(float(v), *ends(row), n) for v, row in zip(values, spread, strict=True)]
