"""Meta-gradients by the chain rule, through the very loop that trains.

Exact for what it sees, which is one truncation: with ``truncation=None`` the whole episode, with
fewer steps a gradient as short-sighted as truncated evolution strategies. Memory grows with the
number of steps, and where training is chaotic gradients explode; then ``es.py`` is the better tool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.base import LearnedOptimizer
from l2o.estimators.episodes import Episodes, Estimate, Lesson, Runs
from tasks.types import Inner, UpdateRule


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
            inner, scores = self._advance(lesson, rule, runs)
            loss = scores.mean()
            # The loss of a first step is taken before theta can act, so one step has no slope.
            gradient = torch.zeros_like(leaf)
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, leaf)
        state = {name: value.detach() for name, value in inner.state.items()}
        inner = inner._replace(params=inner.params.detach(), state=state)
        return Estimate(gradient, loss.detach(), runs._replace(inner=inner))

    def _advance(self, lesson: Lesson, rule: UpdateRule, runs: Runs) -> tuple[Inner, Tensor]:
        """As ``lesson.advance``, but runs that have diverged stay as they are until their episode
        ends, and get what the objective gives to NaN. Its slope is then zero, where the chain rule
        says NaN, for the sum over all runs; without a ceiling it is NaN either way."""
        steps, finite = self.episodes.steps(runs), _finite(runs.inner)
        if finite.all():
            return lesson.advance(rule, runs, steps)
        ceiling = lesson.objective(runs.inner.params.new_full((steps, len(finite)), math.nan))
        if not ceiling.isfinite().all():
            return lesson.advance(rule, runs, steps)
        old, rows = runs.inner, finite.nonzero().flatten()
        whole = old._replace(step=old.step + steps)
        if not len(rows):
            return whole, ceiling
        new, scores = lesson.advance(rule.select(rows), runs.rows(rows), steps)
        # Diverged runs are left out of the pass: any numbers in their place might diverge as well.
        inner = whole._replace(
            params=old.params.index_copy(0, rows, new.params),
            state={name: old.state[name].index_copy(0, rows, x) for name, x in new.state.items()},
        )
        return inner, ceiling.index_copy(0, rows, scores)


def _finite(inner: Inner) -> Tensor:
    """Which runs have not diverged, ``[P]``."""
    finite = [x.isfinite() for x in (inner.params, *inner.state.values())]
    return torch.stack([x.reshape(len(x), x[:1].numel()).all(dim=1) for x in finite]).all(dim=0)
