"""What a candidate is worth: a funnel of ever dearer measurements.

A batch of programs, each at three learning rates around its parent's best, is one population of
instances that climbs a ladder of *rungs*: a quarter of the steps of the first task, all of them,
then the same on the next task, or on the next seed. At each rung an instance is compared with
tuned AdamW at the same step of the same run (same weights, same minibatches); those that are not
finite, or behind by more than the rung's hurdle, are taken out of the batch and cost nothing from
then on.

    score = mean over runs of log(validation loss / that of tuned AdamW),   lower is better,

a run being a task on a seed, at the best learning rate that survived every rung. This module runs
in worker processes; jobs and results are plain data, and a result is a function of its job alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from search.fitness.settings import Funnel, Run
from search.interpreter.population import Population
from search.language.program import Program, parse
from tasks.evaluation import tuning
from tasks.evaluation.intervals import floored, log_ratio
from tasks.inner.schedules import SCHEDULES
from tasks.inner.unroll import unroll
from tasks.runs.environment import prepare
from tasks.types import HOST

Fate = Literal["invalid", "duplicate", "stopped", "diverged", "evaluated", "failed"]
RATES = 1e-12, 1e12
"""Least and greatest learning rate of a parent: beyond, products with factors leave float32."""


class Job(NamedTuple):
    """A batch to evaluate. ``hurdles``: for each rung, the log ratio above which one is out."""

    texts: tuple[str, ...]
    lrs: tuple[float, ...]
    hurdles: tuple[float, ...]


class Measurement(NamedTuple):
    """One instance at one rung; ``loss`` is None where it is not finite."""

    task: str
    seed: int
    steps: int
    lr: float
    loss: float | None


class Outcome(NamedTuple):
    """What became of one program of a job."""

    fate: Fate
    score: float | None
    lr: float | None  # the best learning rate
    ladder: tuple[float, ...]  # best log ratio at each rung reached
    measurements: tuple[Measurement, ...]


class Calibration(NamedTuple):
    """What candidates are compared with. The first rule of a calibration is the reference.

    ``references``: validation losses ``[runs][rungs]`` of the reference, its learning rate tuned
    for each run; ``lrs`` and ``scores``: for each rule, the one learning rate that is best over
    all runs together and the score there.
    """

    references: list[list[float]]
    lrs: list[float]
    scores: list[float]


def calibrate(
    funnel: Funnel,
    programs: Sequence[Program],
    trials: int,
    tell: Callable[[int], None] | None = None,
) -> Calibration:
    """Tune known rules on the proxy tasks, ``trials`` learning rates each.

    ``tell`` hears after each run how many are done.

    Raises ValueError where the reference diverges at every learning rate, or a loss is below 0.
    """
    prepare(funnel.device)
    settings = tuning.grid(trials)
    rates = torch.tensor([setting.lr for setting in settings], **HOST)
    owner = torch.arange(len(programs), device="cpu").repeat_interleave(trials)
    references, gaps = [], torch.zeros(len(programs), trials, **HOST)
    runs = funnel.runs()
    for run in runs:
        trajectory = unroll(
            run.task,
            Population.of(programs, owner.to(funnel.device)),
            instances=len(owner),
            steps=run.steps,
            lr=rates.repeat(len(programs)),
            schedule=SCHEDULES[funnel.schedule],
            seed=run.seed,
            eval_at=funnel.marks(run.steps),
            device=funnel.device,
        )
        losses = floored(tuning.comparable(trajectory.validation.cpu(), run.name))
        losses = losses.view(-1, len(programs), trials)
        best = int(losses[-1, 0].argmin())
        reference = losses[:, 0, best]
        if not reference.isfinite().all():
            raise ValueError(f"the reference diverges on {run.name} at every learning rate")
        references.append(reference.tolist())
        gaps += log_ratio(losses[-1], reference[-1]) / len(runs)
        if tell is not None:
            tell(len(references))
    scores, places = gaps.min(dim=1)
    return Calibration(references, rates[places].tolist(), scores.tolist())


class Evaluator:
    """Measures jobs; one lives in each worker process.

    ``references``: those of a ``Calibration``.
    """

    def __init__(self, funnel: Funnel, references: list[list[float]]) -> None:
        prepare(funnel.device)
        self.funnel = funnel
        self.runs = funnel.runs()
        self.references = torch.tensor(references, **HOST)

    def __call__(self, job: Job) -> list[Outcome]:
        if not job.texts:
            return []
        climb = _Climb(job, self.funnel)
        for run, reference in zip(self.runs, self.references, strict=True):
            if not len(climb.alive):
                break
            climb.run(run, reference)
        return climb.outcomes(len(self.runs) * len(self.funnel.rungs))


class _Climb:
    """One batch on its way up. Instance ``i`` runs program ``i // factors``."""

    def __init__(self, job: Job, funnel: Funnel) -> None:
        self.job, self.funnel = job, funnel
        self.programs = [parse(text) for text in job.texts]
        factors = torch.tensor(funnel.factors, **HOST)
        self.owner = torch.arange(len(job.texts), device="cpu").repeat_interleave(len(factors))
        self.lr = (torch.tensor(job.lrs, **HOST).clamp(*RATES)[:, None] * factors).flatten()
        self.who, self.rates = self.owner.tolist(), self.lr.tolist()  # read one by one, often
        self.population = Population.of(self.programs, self.owner.to(funnel.device))
        self.alive = torch.arange(len(self.owner), device="cpu")
        # Sums over finished runs of final log ratios:
        self.gap = torch.zeros(len(self.owner), **HOST)
        self.runs = 0
        self.ladders: list[list[float]] = [[] for _ in job.texts]
        self.measurements: list[list[Measurement]] = [[] for _ in job.texts]

    def run(self, run: Run, reference: Tensor) -> None:
        marks = self.funnel.marks(run.steps)
        start = self.alive

        def keep(step: int, instances: Tensor, losses: Tensor) -> Tensor:
            who, rung = start[instances.cpu()], marks.index(step)
            passed = self.rung(run, step, who, losses.cpu(), rung, reference)
            return passed.to(losses.device)

        trajectory = unroll(
            run.task,
            self.population.select(start.to(self.funnel.device)),
            instances=len(start),
            steps=run.steps,
            lr=self.lr[start],
            schedule=SCHEDULES[self.funnel.schedule],
            seed=run.seed,
            eval_at=marks,
            keep=keep,
            device=self.funnel.device,
        )
        left = start[trajectory.alive.cpu()]
        final = trajectory.validation[-1, trajectory.alive].cpu()
        passed = self.rung(run, run.steps, left, final, len(marks) - 1, reference)
        self.alive = left[passed]
        self.gap[left] += log_ratio(tuning.finite(final), reference[-1])
        self.runs += 1

    def rung(
        self, run: Run, step: int, instances: Tensor, losses: Tensor, rung: int, reference: Tensor
    ) -> Tensor:
        """Note the losses of one rung and say who clears its hurdle."""
        ratio = log_ratio(tuning.finite(losses), reference[rung])
        best = [math.inf] * len(self.programs)
        for i, loss, gap in zip(instances.tolist(), losses.tolist(), ratio.tolist(), strict=True):
            p = self.who[i]
            best[p] = min(best[p], gap)
            known = loss if math.isfinite(loss) else None
            self.measurements[p].append(Measurement(run.name, run.seed, step, self.rates[i], known))
        for p in {self.who[i] for i in instances.tolist()}:
            self.ladders[p].append(best[p])
        hurdle = self.job.hurdles[self.runs * len(self.funnel.rungs) + rung]
        return ratio.isfinite() & (ratio <= hurdle)

    def outcomes(self, rungs: int) -> list[Outcome]:
        gaps, survivors = self.gap.tolist(), dict[int, list[int]]()
        # Where the learning rate makes no difference it stays, or descendants would carry it away.
        aside = [abs(math.log(factor)) for factor in self.funnel.factors]
        for i in self.alive.tolist():
            survivors.setdefault(self.who[i], []).append(i)
        results = []
        for p, ladder in enumerate(self.ladders):
            fate, score, lr = "stopped", None, None
            if p in survivors and len(ladder) == rungs:
                best = min(survivors[p], key=lambda i: (gaps[i], aside[i % len(aside)]))
                fate, score, lr = "evaluated", gaps[best] / self.runs, self.rates[best]
            elif not math.isfinite(ladder[-1]):
                fate = "diverged"
            finite = tuple(x for x in ladder if math.isfinite(x))
            results.append(Outcome(fate, score, lr, finite, tuple(self.measurements[p])))
        return results
