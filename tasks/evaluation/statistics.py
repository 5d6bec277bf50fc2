"""What the runs of an evaluation say, with how sure one can be of it.

Everything is computed from an array of losses ``[rules, tasks, seeds]`` and its learning curves.
Losses are compared as log ratios to a reference rule on the same task and seed, so tasks of any
scale can be averaged (``averages.py``) and 0.01 means about one per cent. Two rules differ when the
paired Wilcoxon test over all tasks and seeds says so after the false discoveries of all pairs are
controlled (Benjamini and Hochberg 1995); otherwise they tie.

The runs of a rule on a task share the setting that tuning chose on one seed, so the test and the
intervals over seeds speak of those settings: how near the best the trials happened to come is in
neither. With many seeds even a rule and itself with another unit of learning rate may differ.

A run that diverged has an infinite loss. It counts as the worst there is, never as missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy

from tasks.evaluation.intervals import Interval, geometric, iqm, logs, over_seeds, over_tasks, share
from tasks.evaluation.sensitivity import Tuning, tuning
from tasks.evaluation.time_to_target import (
    Reached,
    middle,
    profile,
    reached,
    scores,
    steps_to,
    target,
)

ALPHA = 0.05
"""Expected share of false discoveries among the differences that are reported."""
WORST = math.log(100.0)
"""What a diverged run counts in a paired test, as a log ratio; larger ratios count the same."""


def log_ratios(losses: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``log(losses / reference)``, +inf where the loss is, -inf where only the reference's is.

    Where both diverged they are equal: 0.
    """
    with np.errstate(all="ignore"):
        ratios = logs(losses) - logs(reference)
    return np.where(np.isposinf(losses) & np.isposinf(reference), 0.0, ratios)


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    """That two rules with paired losses (same shape) are equally good, by Wilcoxon's test."""
    gaps = _gaps(first, second)
    if not gaps.any():
        return 1.0
    _, p = scipy.stats.wilcoxon(gaps, zero_method="zsplit")
    return float(p)  # type: ignore[arg-type]


def _gaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.clip(log_ratios(first, second), -WORST, WORST).ravel()


def least_p(pairs: int) -> float:
    """The smallest p-value that the test can give of so many pairs: they all agree."""
    return min(1.0, 2.0 ** (1 - pairs))


def q_values(losses: np.ndarray) -> np.ndarray:
    """``[rules, rules]``: p-values of all pairs of ``[rules, tasks, seeds]``, adjusted so that
    those below ALPHA hold at most that share of false discoveries; 1 on the diagonal."""
    rules = len(losses)
    adjusted = np.ones((rules, rules))
    pairs = np.triu_indices(rules, 1)
    if len(pairs[0]):
        raw = [p_value(losses[a], losses[b]) for a, b in zip(*pairs, strict=True)]
        adjusted[pairs] = scipy.stats.false_discovery_control(raw)
        adjusted = np.minimum(adjusted, adjusted.T)
    return adjusted


def beaten_by(losses: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``[rules, rules]`` bool: whether the second index is better than the first, no tie;
    ``q``: ``q_values(losses)``. Where the mean that is shown and the ranks that the test looks at
    point different ways (a little better on most tasks, much worse on some), it is a tie."""
    gap = np.array([[iqm(log_ratios(a, b)) for b in losses] for a in losses])
    tendency = np.array([[_tendency(a, b) for b in losses] for a in losses])
    return (q < ALPHA) & (gap > 0) & (tendency > 0)


def _tendency(first: np.ndarray, second: np.ndarray) -> float:
    """The sum of signed ranks, which the test looks at: above 0 where ``first`` is worse."""
    gaps = _gaps(first, second)
    return float(np.sign(gaps) @ scipy.stats.rankdata(np.abs(gaps)))


# ---------------------------------------------------------------------------------- all together


@dataclass(frozen=True)
class Measured:
    """All runs of an evaluation as arrays. Losses are infinite where a run diverged."""

    rules: tuple[str, ...]
    schedules: tuple[str, ...]  # of each rule
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    marks: tuple[tuple[int, ...], ...]  # of each task
    final: np.ndarray  # [rules, tasks, seeds], validation
    test: np.ndarray  # [rules, tasks, seeds]
    curves: tuple[np.ndarray, ...]  # of each task: [rules, seeds, marks]
    settings: tuple[tuple[tuple[float, float], ...], ...]  # of each rule: (lr, decay) of each trial
    trials: np.ndarray  # [rules, tasks, trials], on the tuning seed
    chosen: np.ndarray  # [rules, tasks] int, which of the settings was best
    seconds: np.ndarray  # [rules, tasks], of a step

    def rates(self, rule: int) -> np.ndarray:
        """``[trials]``: the learning rates of a rule's trials."""
        return np.array([lr for lr, _ in self.settings[rule]])

    def best(self, rule: int, task: int) -> tuple[float, float]:
        """(learning rate, weight decay) that tuning chose."""
        return self.settings[rule][self.chosen[rule, task]]


class Standing(NamedTuple):
    """One rule of an evaluation against the reference. Log ratios: lower is better."""

    rule: str
    rank: int
    gap: Interval  # final validation loss, over seeds
    gap_tasks: Interval  # the same, over tasks and seeds
    test: Interval  # final test loss, over seeds
    area: Interval  # mean over the learning curve, over seeds
    q: float  # against the reference
    verdict: str  # against the reference: better, worse, tie or reference
    reached: tuple[Reached, ...]  # the reference's final loss, by task
    profile: Interval  # AlgoPerf's score, of 1, over seeds; higher is better
    seconds: Interval  # of a step, relative to the reference, geometric mean over tasks
    diverged: Interval  # share of the fresh runs
    tuning: Tuning


def standings(measured: Measured, reference: str) -> list[Standing]:
    """Every rule, the best first. Raises ValueError when ``reference`` was not measured."""
    if reference not in measured.rules:
        known = ", ".join(measured.rules)
        raise ValueError(f"reference: got {reference!r}, expected one of {known}")
    base = measured.rules.index(reference)
    q = q_values(measured.final)
    beaten = beaten_by(measured.final, q)
    solved = scores(measured.curves, measured.marks, base)
    before = untrained(measured)
    table = []
    for r, rule in enumerate(measured.rules):
        verdict = "better" if beaten[base, r] else "worse" if beaten[r, base] else "tie"
        ratios = log_ratios(measured.final[r], measured.final[base])
        table.append(
            Standing(
                rule=rule,
                rank=1 + int(beaten[r].sum()),
                gap=over_seeds(ratios),
                gap_tasks=over_tasks(ratios),
                test=over_seeds(log_ratios(measured.test[r], measured.test[base])),
                area=over_seeds(area(measured, r) - area(measured, base)),
                q=float(q[r, base]),
                verdict="reference" if r == base else verdict,
                reached=tuple(_reached(measured, r, base)),
                profile=solved[r],
                seconds=geometric(measured.seconds[r] / measured.seconds[base]),
                diverged=share(~np.isfinite(measured.final[r])),
                tuning=tuning(measured.trials[r], before[r], measured.rates(r)),
            )
        )
    return sorted(table, key=lambda s: (s.rank, s.gap.mean, s.rule))


def area(measured: Measured, rule: int) -> np.ndarray:
    """``[tasks, seeds]``: mean log validation loss along the run; a diverged point counts as 100
    times the loss before training."""
    rows = []
    for curves in measured.curves:
        heights = logs(curves[rule])
        worst = heights[:, :1] + WORST
        rows.append(np.minimum(heights, worst).mean(1))
    return np.stack(rows)


def untrained(measured: Measured) -> np.ndarray:
    """``[rules, tasks]``: the loss before the first step, mean over seeds."""
    return np.stack([curves[:, :, 0].mean(axis=1) for curves in measured.curves], axis=1)


def targets(measured: Measured, base: int) -> list[float]:
    """Of each task: the median final validation loss of the tuned reference."""
    return [float(target(curves[base])) for curves in measured.curves]


def _reached(measured: Measured, rule: int, base: int) -> list[Reached]:
    return [
        reached(curves[rule], curves[base], marks, (own, other))
        for curves, marks, own, other in zip(
            measured.curves,
            measured.marks,
            measured.seconds[rule].tolist(),
            measured.seconds[base].tolist(),
            strict=True,
        )
    ]


def profiles(measured: Measured, reference: str) -> np.ndarray:
    """Performance profiles ``[rules, len(FACTORS)]``, the target that of ``reference``."""
    goals = targets(measured, measured.rules.index(reference))
    steps = [
        [steps_to(middle(curve), marks, goal) for curve in curves]
        for curves, marks, goal in zip(measured.curves, measured.marks, goals, strict=True)
    ]
    return profile(np.array(steps).T)
