"""How much of a rule's result is tuning: with fewer trials, and around the best learning rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tasks.evaluation.intervals import Interval, logs, share, within

CLOSE = math.log(1.1)
"""A trial is good when its loss is within 10 % of the rule's best."""
NEAR = 3.0
"""Trials are near the best one when their learning rates differ by at most this factor."""


class Tuning(NamedTuple):
    """Of one rule, all on the tuning seed. ``budget``: the expected log ratio to the rule's own
    best after 1, 2, ... trials; ``near``: the mean log ratio of the trials near the best one, NaN
    if there is none; ``good``: share of the trials within 10 % of the best; these with intervals
    over tasks. ``diverged``: share of the trials that diverged."""

    budget: tuple[Interval, ...]
    near: Interval
    good: Interval
    diverged: Interval


def tuning(losses: np.ndarray, untrained: np.ndarray, rates: np.ndarray) -> Tuning:
    """``losses [tasks, trials]`` of one rule, each task's loss ``[tasks]`` before training, and the
    learning ``rates [trials]``.

    A trial that ends above where it started counts as untrained: nobody would use it.
    """
    used = np.minimum(losses, untrained[:, None])
    with np.errstate(invalid="ignore"):
        gaps = logs(used) - logs(used.min(axis=1, keepdims=True))
    gaps[np.isnan(gaps)] = 0.0  # all are infinite, and alike
    counts = range(1, gaps.shape[1] + 1)
    return Tuning(
        budget=tuple(within(np.array([best_of(row, k) for row in gaps]), 0) for k in counts),
        near=_near(gaps, np.log(rates)),
        good=within((gaps <= CLOSE).mean(axis=1), 0, 1),
        diverged=share(~np.isfinite(losses)),
    )


def _near(gaps: np.ndarray, logs: np.ndarray) -> Interval:
    """Tasks without a trial near the best one are left out."""
    found = []
    for row in gaps:
        best = int(row.argmin())
        close = np.abs(logs - logs[best]) <= math.log(NEAR)
        close[best] = False
        found += [row[close].mean()] if close.any() else []
    return within(np.array(found), 0) if found else Interval(math.nan, math.nan, math.nan, 0)


def best_of(losses: np.ndarray, trials: int) -> float:
    """The expected smallest of ``trials`` losses drawn from ``losses`` without replacement."""
    ordered, total = np.sort(losses), len(losses)
    # Of all draws, those whose smallest is the i-th: each share from the one before, as binomial
    # coefficients outgrow floats.
    left = total - np.arange(total - trials)
    shares = np.cumprod([trials / total, *((left - trials) / (left - 1))])
    return float(np.dot(shares, ordered[: len(shares)]))
