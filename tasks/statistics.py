"""What the runs of an evaluation say, with how sure one can be of it.

Everything is computed from an array of losses ``[rules, tasks, seeds]`` and its learning curves.
Losses are compared as log ratios to a reference rule on the same task and seed, so tasks of any
scale can be averaged and 0.01 means about one per cent. Averages are interquartile means (the mean
of the middle half), which a single lucky or diverged run cannot move. Two rules differ when the
paired Wilcoxon test over all tasks and seeds says so after the false discoveries of all pairs are
controlled (Benjamini and Hochberg 1995); otherwise they tie.

A run that diverged has an infinite loss. It counts as the worst there is, never as missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import stats

from tasks.scoring import Interval

ALPHA = 0.05
"""Expected share of false discoveries among the differences that are reported."""
WORST = math.log(100.0)
"""What a diverged run counts in a paired test, as a log ratio; larger ratios count the same."""
RESAMPLES = 2000
FACTORS = np.linspace(1.0, 4.0, 61)
"""How much slower than the fastest rule: the abscissa of a performance profile, as AlgoPerf's."""
CLOSE = math.log(1.1)
"""A trial is good when its loss is within 10 % of the rule's best."""


def iqm(values: np.ndarray) -> np.ndarray:
    """``[..., tasks, seeds] -> [...]``: the mean of the middle half; infinite if that is."""
    flat = values.reshape(*values.shape[:-2], -1)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(stats.trim_mean(flat, 0.25, axis=-1), nan=math.inf, posinf=math.inf)


def mean(values: np.ndarray) -> np.ndarray:
    """``[..., tasks, seeds] -> [...]``."""
    return values.mean(axis=(-2, -1))


def log_ratios(losses: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``log(losses / reference)``, +inf where the loss is, -inf where only the reference's is.

    Where both diverged they are equal: 0.
    """
    with np.errstate(all="ignore"):
        ratios = np.log(losses) - np.log(reference)
    return np.where(np.isposinf(losses) & np.isposinf(reference), 0.0, ratios)


def over_seeds(values: np.ndarray) -> Interval:
    """Interquartile mean of ``[tasks, seeds]`` and its 95 % bootstrap interval over seeds.

    Seeds are drawn for each task by itself: would other seeds give the same, on these tasks?
    """
    tasks, seeds = values.shape

    def resampled(*index: np.ndarray, axis: int = -1) -> np.ndarray:
        return iqm(values[np.arange(tasks)[:, None], np.stack(index, axis=-2)])

    return _interval(values.size, resampled, *(np.arange(seeds),) * tasks)


def over_tasks(values: np.ndarray, average: Callable[..., np.ndarray] = iqm) -> Interval:
    """The same over tasks and seeds: would other tasks like these give the same?"""
    tasks, seeds = values.shape

    def resampled(task: np.ndarray, seed: np.ndarray, axis: int = -1) -> np.ndarray:
        return average(values[task[..., :, None], seed[..., None, :]])

    return _interval(values.size, resampled, np.arange(tasks), np.arange(seeds))


def _interval(n: int, resampled: Callable[..., np.ndarray], *samples: np.ndarray) -> Interval:
    """``resampled(*samples)`` and its percentile interval when ``samples`` are drawn anew."""
    value = float(resampled(*samples))
    if len(samples[-1]) < 2:
        return Interval(value, -math.inf, math.inf, n)  # one seed says nothing about others
    if len(samples) == 2 and len(samples[0]) < 2:
        samples, resampled = samples[1:], partial(resampled, samples[0])
    if not math.isfinite(value):
        return Interval(value, value, value, n)
    drawn = stats.bootstrap(
        samples,
        resampled,
        n_resamples=RESAMPLES,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).bootstrap_distribution
    low, high = np.sort(drawn)[[int(0.025 * RESAMPLES), int(0.975 * RESAMPLES) - 1]]
    return Interval(value, float(low), float(high), n)


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    """That two rules with paired losses (same shape) are equally good, by Wilcoxon's test."""
    gaps = np.clip(log_ratios(first, second), -WORST, WORST).ravel()
    if not gaps.any():
        return 1.0
    _, p = stats.wilcoxon(gaps, zero_method="zsplit")
    return float(p)  # type: ignore[arg-type]


def q_values(losses: np.ndarray) -> np.ndarray:
    """``[rules, rules]``: p-values of all pairs of ``[rules, tasks, seeds]``, adjusted so that
    those below ALPHA hold at most that share of false discoveries; 1 on the diagonal."""
    rules = len(losses)
    adjusted = np.ones((rules, rules))
    pairs = np.triu_indices(rules, 1)
    if len(pairs[0]):
        raw = [p_value(losses[a], losses[b]) for a, b in zip(*pairs, strict=True)]
        adjusted[pairs] = stats.false_discovery_control(raw)
        adjusted = np.minimum(adjusted, adjusted.T)
    return adjusted


def beaten_by(losses: np.ndarray) -> np.ndarray:
    """``[rules, rules]`` bool: whether the second index is better than the first, no tie."""
    q = q_values(losses)
    gap = np.array([[iqm(log_ratios(a, b)) for b in losses] for a in losses])
    return (q < ALPHA) & (gap > 0)


def ranks(losses: np.ndarray) -> list[int]:
    """1 + how many rules are better; rules that tie with the best share rank 1."""
    return [1 + int(row.sum()) for row in beaten_by(losses)]


# --------------------------------------------------------------------------------- time to target


def steps_to(curves: np.ndarray, marks: Sequence[int], target: float) -> np.ndarray:
    """``[..., marks] -> [...]``: the step at which a curve first is at ``target``, or inf.

    Between two marks it is interpolated.
    """
    at, reached = np.asarray(marks, float), curves <= target
    after = reached.argmax(axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    above, below = np.take_along_axis(curves, before, -1), np.take_along_axis(curves, after, -1)
    with np.errstate(all="ignore"):  # no slope at the first point, nor from a diverged one
        share = np.nan_to_num((above - target) / (above - below), nan=1.0, posinf=1.0)
    steps = at[before] + share * (at[after] - at[before])
    return np.where(reached.any(axis=-1), steps[..., 0], math.inf)


def median(curves: np.ndarray) -> np.ndarray:
    """``[..., seeds, marks] -> [..., marks]``; inf where half of the runs diverged."""
    ordered, seeds = np.sort(curves, axis=-2), curves.shape[-2]
    return (ordered[..., (seeds - 1) // 2, :] + ordered[..., seeds // 2, :]) / 2


def speed_up(
    curves: np.ndarray, reference: np.ndarray, marks: Sequence[int], target: float
) -> Interval:
    """How many times fewer steps than the reference to ``target``, with its interval over seeds.

    ``curves`` and ``reference``: ``[seeds, marks]``; medians over seeds are compared. 0 if never.
    """
    needed = steps_to(median(reference), marks, target)

    def resampled(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return needed / np.maximum(steps_to(median(curves[index]), marks, target), 1.0)

    return _interval(len(curves), resampled, np.arange(len(curves)))


def profile(steps: np.ndarray) -> np.ndarray:
    """Performance profiles ``[rules, len(FACTORS)]`` of steps to target ``[rules, tasks]``.

    The share of tasks on which a rule reaches the target within so many times the steps of the
    fastest rule (Dolan and Moré 2002); tasks whose target nobody reaches are left out.
    """
    fastest = steps.min(axis=0)
    known = np.isfinite(fastest)
    ratio = steps[:, known] / np.maximum(fastest[known], 1.0)
    return (ratio[:, :, None] <= FACTORS * (1 + 1e-9)).mean(axis=1)


# -------------------------------------------------------------------------------- how it was tuned


def best_of(losses: np.ndarray, trials: int) -> float:
    """The expected smallest of ``trials`` losses drawn from ``losses`` without replacement."""
    ordered, total = np.sort(losses), len(losses)
    ways = [math.comb(total - 1 - i, trials - 1) for i in range(total - trials + 1)]
    return float(np.dot(ways, ordered[: len(ways)]) / math.comb(total, trials))


class Tuning(NamedTuple):
    """``budget``: the expected log ratio to the rule's own best after 1, 2, ... trials, averaged
    over tasks; ``good``: share of the trials within 10 % of the best; ``diverged``: share that
    diverged."""

    budget: tuple[float, ...]
    good: float
    diverged: float


def tuning(losses: np.ndarray, untrained: np.ndarray) -> Tuning:
    """``losses [tasks, trials]`` of one rule and each task's loss ``[tasks]`` before training.

    A trial that ends above where it started counts as untrained: nobody would use it.
    """
    used = np.minimum(losses, untrained[:, None])
    gaps = np.log(used / used.min(axis=1, keepdims=True))
    budget = [
        float(np.mean([best_of(row, k) for row in gaps])) for k in range(1, gaps.shape[1] + 1)
    ]
    return Tuning(
        tuple(budget), float((gaps <= CLOSE).mean()), float((~np.isfinite(losses)).mean())
    )


# ---------------------------------------------------------------------------------- all together


@dataclass(frozen=True)
class Measured:
    """All runs of an evaluation as arrays. Losses are infinite where a run diverged."""

    rules: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    marks: tuple[tuple[int, ...], ...]  # of each task
    final: np.ndarray  # [rules, tasks, seeds], validation
    test: np.ndarray  # [rules, tasks, seeds]
    curves: tuple[np.ndarray, ...]  # of each task: [rules, seeds, marks]
    settings: tuple[tuple[float, float], ...]  # (lr, weight decay) of each trial
    trials: np.ndarray  # [rules, tasks, trials], on the tuning seed
    chosen: np.ndarray  # [rules, tasks] int, which of the settings was best
    seconds: np.ndarray  # [rules, tasks], of a step


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
    speed_ups: tuple[Interval, ...]  # steps to the reference's final loss, by task
    seconds: float  # of a step, relative to the reference, median over tasks
    diverged: float  # share of the fresh runs
    tuning: Tuning


def standings(measured: Measured, reference: str) -> list[Standing]:
    """Every rule, the best first. Raises ValueError when ``reference`` was not measured."""
    if reference not in measured.rules:
        known = ", ".join(measured.rules)
        raise ValueError(f"reference: got {reference!r}, expected one of {known}")
    base = measured.rules.index(reference)
    q, beaten = q_values(measured.final), beaten_by(measured.final)
    table = []
    for r, rule in enumerate(measured.rules):
        verdict = "better" if beaten[base, r] else "worse" if beaten[r, base] else "tie"
        table.append(
            Standing(
                rule=rule,
                rank=1 + int(beaten[r].sum()),
                gap=over_seeds(log_ratios(measured.final[r], measured.final[base])),
                gap_tasks=over_tasks(log_ratios(measured.final[r], measured.final[base])),
                test=over_seeds(log_ratios(measured.test[r], measured.test[base])),
                area=over_seeds(area(measured, r) - area(measured, base)),
                q=float(q[r, base]),
                verdict="reference" if r == base else verdict,
                speed_ups=tuple(_speed_ups(measured, r, base)),
                seconds=float(np.median(measured.seconds[r] / measured.seconds[base])),
                diverged=float((~np.isfinite(measured.final[r])).mean()),
                tuning=tuning(measured.trials[r], untrained(measured)),
            )
        )
    return sorted(table, key=lambda s: (s.rank, s.gap.mean, s.rule))


def area(measured: Measured, rule: int) -> np.ndarray:
    """``[tasks, seeds]``: mean log validation loss along the run; a diverged point counts as 100
    times the loss before training."""
    rows = []
    for curves in measured.curves:
        logs = np.log(curves[rule])
        worst = logs[:, :1] + WORST
        rows.append(np.minimum(np.nan_to_num(logs, nan=math.inf, posinf=math.inf), worst).mean(1))
    return np.stack(rows)


def untrained(measured: Measured) -> np.ndarray:
    """``[tasks]``: the loss before the first step, mean over seeds."""
    return np.array([curves[0, :, 0].mean() for curves in measured.curves])


def targets(measured: Measured, base: int) -> list[float]:
    """Of each task: the median final validation loss of the tuned reference."""
    return [float(median(curves[base])[-1]) for curves in measured.curves]


def _speed_ups(measured: Measured, rule: int, base: int) -> list[Interval]:
    return [
        speed_up(curves[rule], curves[base], marks, target)
        for curves, marks, target in zip(
            measured.curves, measured.marks, targets(measured, base), strict=True
        )
    ]


def profiles(measured: Measured, reference: str) -> np.ndarray:
    """Performance profiles ``[rules, len(FACTORS)]``, the target that of ``reference``."""
    goals = targets(measured, measured.rules.index(reference))
    steps = [
        [steps_to(median(curve), marks, goal) for curve in curves]
        for curves, marks, goal in zip(measured.curves, measured.marks, goals, strict=True)
    ]
    return profile(np.array(steps).T)
