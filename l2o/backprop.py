"""Meta-gradients by the chain rule, through the very loop that trains.

Exact for what it sees, which is one truncation: with ``truncation=None`` the whole episode, with
fewer steps a gradient as short-sighted as truncated evolution strategies. Memory grows with the
number of steps, and where training is chaotic gradients explode; then ``es.py`` is the better tool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.base import LearnedOptimizer
from l2o.episodes import Episodes, Estimate, Lesson, Runs


@dataclass(frozen=True)
class Backprop:
    """An estimator with the interface of ``ES``; one run for every number, none perturbed."""

    episodes: Episodes

    @torch.no_grad()
    def start(
        self, optimizer: LearnedOptimizer, theta: Tensor, lesson: Lesson, number: Tensor
    ) -> Runs:
        """One run for every ``number`` (int64 ``[P]``, unlike each other)."""
        return self.episodes.begin(optimizer, theta, lesson, number, copies=1)

    def step(
        self, optimizer: LearnedOptimizer, theta: Tensor, lesson: Lesson, runs: Runs
    ) -> Estimate:
        """Advance all runs by a truncation; ``theta`` is ``[D]`` and may have changed since."""
        runs, over = self.episodes.turn(runs)
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            rule = lesson.rule(optimizer, leaf)
            runs = self.episodes.renew(runs, over, lesson, rule)
            inner, scores = lesson.advance(rule, runs, self.episodes.steps(runs))
            loss = scores.mean()
            # The loss of a first step is taken before theta can act, so one step has no slope.
            gradient = torch.zeros_like(leaf)
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, leaf)
        state = {name: value.detach() for name, value in inner.state.items()}
        inner = inner._replace(params=inner.params.detach(), state=state)
        return Estimate(gradient, loss.detach(), runs._replace(inner=inner))
