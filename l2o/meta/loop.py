"""Meta-training: the outer loop that changes ``theta``.

An outer step advances all particles of all tasks by a truncation, averages their meta-gradients
and takes a step of AdamW. A task whose meta-gradient has no finite norm is left out of the mean,
and counted.

``Training`` is plain state and three things to do with it: ``advance``, and ``tensors`` and
``restore``, between which it can be put on disk. There is no generator among the state, since all
randomness is a function of integers (``episodes.py``), so a restored training goes on bit for bit
as if it had never been away. Particles that live in other processes are the business of
``ranks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from l2o.base import LearnedOptimizer
from l2o.estimators.episodes import Runs
from l2o.meta.config import Config, Outer
from l2o.meta.distribution import lessons
from l2o.meta.ranks import Ranks, share
from tasks.types import HOST, Inner

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch's AdamW remembers of every parameter, besides the step."""


def learning_rate(outer: Outer, step: int) -> float:
    """Of outer step ``step``, from 0: a linear rise, then half a cosine down to ``final_lr``."""
    if step < outer.warmup:
        return outer.lr * (step + 1) / outer.warmup
    done = (step - outer.warmup) / max(1, outer.steps - outer.warmup)
    return outer.final_lr + (outer.lr - outer.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


class Training:
    """``step``: outer steps done; ``by_lesson``: the objective of each task in each of them, and
    ``losses`` their means; ``skipped``: meta-gradients that were not finite; ``norm``: of the last
    one, before clipping."""

    def __init__(
        self, config: Config, optimizer: LearnedOptimizer, theta: Tensor, ranks: Ranks | None = None
    ) -> None:
        self.config, self.optimizer, self.ranks = config, optimizer, ranks or Ranks()
        self.lessons = lessons(config.train.tasks(), config.mup, config.estimation.chunk)
        self.estimator = config.estimation.estimator(config.seed)
        self.theta = theta.to(config.device, copy=True)
        self.adam = torch.optim.AdamW([self.theta], weight_decay=config.outer.weight_decay)
        self.own = self.ranks.own(config.estimation.particles)
        self.runs = [
            self.estimator.start(optimizer, self.theta, lesson, self._numbers(k))
            for k, lesson in enumerate(self.lessons)
        ]
        self.step, self.skipped, self.norm = 0, 0, 0.0
        self.losses: list[float] = []
        self.by_lesson: list[list[float]] = []

    def _numbers(self, lesson: int) -> Tensor:
        particles = self.config.estimation.particles
        return (lesson * particles + torch.arange(particles, device="cpu"))[self.own]

    def advance(self) -> None:
        """One outer step."""
        rows = []
        for k, lesson in enumerate(self.lessons):
            found = self.estimator.step(self.optimizer, self.theta, lesson, self.runs[k])
            self.runs[k] = found.runs
            rows.append(torch.cat([found.gradient, found.loss[None]]))
        gradients, losses = self.ranks.mean(torch.stack(rows)).tensor_split([-1], dim=1)
        good = gradients.norm(dim=1).isfinite()
        self.skipped += int((~good).sum())
        if good.any():
            self._descend(gradients[good].mean(dim=0))
        self.by_lesson.append(losses[:, 0].tolist())
        self.losses.append(sum(self.by_lesson[-1]) / len(self.lessons))
        self.step += 1

    def _descend(self, gradient: Tensor) -> None:
        outer = self.config.outer
        self.norm = float(gradient.norm())
        self.theta.grad = gradient * min(1.0, outer.clip / max(self.norm, 1e-30))
        self.adam.param_groups[0]["lr"] = learning_rate(outer, self.step)
        self.adam.step()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, with all particles in the first process; numbers as tensors."""
        whole = {"dtype": torch.int64, "device": "cpu"}
        found = {"step": torch.tensor(self.step, **whole)}
        found |= {"skipped": torch.tensor(self.skipped, **whole)}
        found |= {"norm": torch.tensor(self.norm, **HOST)}
        found["losses"] = torch.tensor(self.losses, dtype=torch.float64, device="cpu")
        found["by_lesson"] = torch.tensor(self.by_lesson, **HOST).view(self.step, len(self.lessons))
        found["theta"] = self.theta
        # Torch counts its steps in float64 where that is the default.
        moments = {name: value.float() for name, value in self.adam.state[self.theta].items()}
        found |= {f"adam.{name}": value for name, value in moments.items()}
        for k, runs in enumerate(self.runs):
            found |= {f"{k}.{name}": t for name, t in _flat(self.ranks.gather(runs)).items()}
        return {name: value.detach().cpu().clone() for name, value in found.items()}

    def grown(
        self, tensors: Mapping[str, Tensor], fresh: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What ``tensors`` should be like: the ``fresh`` ones of a training before its first step,
        with what steps add to them."""
        counts = [tensors.get(name, fresh[name]) for name in ("step", "skipped")]
        step, skipped = (int(x) if x.numel() == 1 else 0 for x in counts)
        rows = max(step, 0)
        found = dict(fresh)
        for name in ("losses", "by_lesson"):
            found[name] = fresh[name].new_empty(rows, *fresh[name].shape[1:])
        if skipped < step * len(self.lessons):  # Adam has taken a step
            moments = {"step": torch.zeros((), **HOST)} | dict.fromkeys(MOMENTS, fresh["theta"])
            found |= {f"adam.{name}": value for name, value in moments.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the training whose ``tensors`` these are."""
        device = self.theta.device
        self.step, self.skipped = int(tensors["step"]), int(tensors["skipped"])
        self.losses = tensors["losses"].tolist()
        self.by_lesson = tensors["by_lesson"].tolist()
        self.norm = float(tensors["norm"])
        self.theta.copy_(tensors["theta"])
        kept = _below("adam.", tensors)
        if kept:  # none before the first step
            moments = {n: t if n == "step" else t.to(device) for n, t in kept.items()}
            self.adam.state[self.theta] = moments
        for k in range(len(self.runs)):
            flat = {name: t.to(device) for name, t in _below(f"{k}.", tensors).items()}
            self.runs[k] = share(_runs(flat), self.own)


def _flat(runs: Runs) -> dict[str, Tensor]:
    """Named tensors of ``runs``."""
    inner = runs.inner
    found = {f"state.{name}": value for name, value in inner.state.items()}
    whole = {"dtype": torch.int64, "device": inner.params.device}
    times = {name: torch.as_tensor(getattr(inner, name), **whole) for name in ("step", "seed")}
    rest = {name: getattr(runs, name) for name in Runs._fields if name != "inner"}
    return found | times | rest | {"params": inner.params}


def _runs(flat: Mapping[str, Tensor]) -> Runs:
    """The inverse of ``_flat``."""
    inner = Inner(flat["params"], _below("state.", flat), flat["step"], flat["seed"])
    return Runs(inner, **{name: flat[name] for name in Runs._fields if name != "inner"})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
