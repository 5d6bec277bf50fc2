"""Meta-gradients from losses alone: evolution strategies with four schedules of noise.

Perturb ``theta`` both ways, run both, compare: with noise ``e`` of standard deviation ``sigma``,

    gradient = mean over pairs of  (L(theta + e) - L(theta - e)) * w / (2 sigma^2).

The estimate needs no derivative and does not mind chaos. What is perturbed when, and what ``w`` is,
makes the four (``K`` is the truncation):

============  ===================  ==================  ============================================
noise         a new ``e`` for      w                   bias
============  ===================  ==================  ============================================
full          each episode         e                   none, one gradient per episode
truncated     each truncation      e                   sees K steps ahead only: short-sighted
persistent    each truncation      sum of the          none (PES, Vicol et al. 2021, alg. 2)
                                   episode's e so far
reuse         each episode         e                   none, less variance where effects last
                                                       (NRES, Li et al. 2023)
============  ===================  ==================  ============================================

Unbiased means: for the smoothed objective, E L(theta + e). In ``truncated`` both halves of a pair
set out from the same state, which is then the positive half's; otherwise each keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from l2o.base import LearnedOptimizer
from l2o.estimators.episodes import Episodes, Estimate, Lesson, Runs

Noise = Literal["full", "truncated", "persistent", "reuse"]


def pair_gradient(difference: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """``[D]`` from ``L(theta + e) - L(theta - e)`` ``[P]`` and the weights ``w [P, D]``."""
    return difference @ weight / (2 * sigma**2 * len(difference))


@dataclass(frozen=True)
class ES:
    """An estimator; ``episodes.truncation`` is None for ``full`` and a number for the others."""

    episodes: Episodes
    noise: Noise = "persistent"
    sigma: float = 0.01

    def __post_init__(self) -> None:
        if self.noise not in get_args(Noise):
            accepted = ", ".join(get_args(Noise))
            raise ValueError(f"noise: got {self.noise!r}, expected one of {accepted}")
        if not self.sigma > 0:
            raise ValueError(f"sigma: got {self.sigma}, expected a positive number")
        if (self.noise == "full") != (self.episodes.truncation is None):
            wanted = "None" if self.noise == "full" else "a number of steps"
            got = self.episodes.truncation
            raise ValueError(f"truncation: got {got}, expected {wanted} for {self.noise} noise")

    @torch.no_grad()
    def start(
        self, optimizer: LearnedOptimizer, theta: Tensor, lesson: Lesson, number: Tensor
    ) -> Runs:
        """One antithetic pair for every ``number`` (int64 ``[P]``, unlike each other)."""
        runs = self.episodes.begin(optimizer, theta, lesson, number, copies=2)
        size = optimizer.size if self.noise == "persistent" else 0
        return runs._replace(noise=theta.new_zeros(len(number), size))

    @torch.no_grad()
    def step(
        self, optimizer: LearnedOptimizer, theta: Tensor, lesson: Lesson, runs: Runs
    ) -> Estimate:
        """Advance all pairs by a truncation; ``theta`` is ``[D]`` and may have changed since."""
        runs, over = self.episodes.turn(runs)
        noise = self.perturbations(runs, over, optimizer.size).to(theta)
        rule = lesson.rule(optimizer, torch.cat([theta + noise, theta - noise]))
        runs = self.episodes.renew(runs, over, lesson, rule)
        inner, scores = lesson.advance(rule, runs, self.episodes.steps(runs))
        weight = noise
        if self.noise == "persistent":
            weight = torch.where(over[:, None], 0, runs.noise) + noise
            runs = runs._replace(noise=weight)
        if self.noise == "truncated":
            inner = inner.rows(torch.arange(len(over), device=over.device).repeat(2))
        plus, minus = scores.chunk(2)
        gradient = pair_gradient(plus - minus, weight, self.sigma)
        return Estimate(gradient, scores.mean(), runs._replace(inner=inner))

    def perturbations(self, runs: Runs, over: Tensor, size: int) -> Tensor:
        """The noise ``[P, size]`` of the coming truncation, on the CPU.

        A function of seed, number, episode and, unless an episode keeps its noise, step.
        """
        step = torch.where(over, 0, runs.step)
        if self.noise in ("full", "reuse"):
            step = torch.zeros_like(step)
        addresses = zip(runs.number.tolist(), runs.episode.tolist(), step.tolist(), strict=True)
        rows = [
            self.episodes.random(number, episode, 2, at).standard_normal(size, dtype=np.float32)
            for number, episode, at in addresses
        ]
        return self.sigma * torch.from_numpy(np.stack(rows))
