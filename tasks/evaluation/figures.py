"""The figures of an evaluation's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.display.plots import COLOURS, GREY, Figure, drawing, label, sparse_ticks
from tasks.evaluation import statistics
from tasks.evaluation.intervals import FLOOR
from tasks.evaluation.plan import TUNING_SEED
from tasks.evaluation.statistics import Measured, Standing
from tasks.evaluation.time_to_target import FACTORS, middle
from tasks.evaluation.wording import interval, per_cent


def short(rules: Sequence[str]) -> dict[str, str]:
    """Names that fit into a legend, still different from each other, as ``label`` writes them."""
    ends = [rule.rstrip("/").removesuffix("/best") for rule in rules]  # of meta-trainings
    brief = [end.rpartition("/")[2].replace("torch.optim.", "") for end in ends]
    brief = [name if len(name) <= 24 else name[:23] + "…" for name in brief]
    clear = len(set(brief)) == len(brief)
    return dict(zip(rules, map(label, brief if clear else rules), strict=True))


def _seeds(measured: Measured) -> str:
    first, last, n = measured.seeds[0], measured.seeds[-1], len(measured.seeds)
    return f"n = {n} fresh seeds ({first} to {last})" if n > 1 else f"n = 1 fresh seed ({first})"


def _colours(measured: Measured) -> dict[str, str]:
    return {rule: COLOURS[k % len(COLOURS)] for k, rule in enumerate(measured.rules)}


def ranking(
    measured: Measured, table: Sequence[Standing], names: dict[str, str], reference: str
) -> Figure:
    colours = _colours(measured)
    shown = [s for s in table if math.isfinite(s.gap.mean)][::-1]
    with drawing((4.6, 1.0 + 0.32 * len(shown))) as (figure, axes):
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
        for y, s in enumerate(shown):
            for part, width in ((s.gap_tasks, 1.0), (s.gap, 3.2)):
                low, high = np.expm1([part.low, part.high]) * 100
                if np.isfinite([low, high]).all():
                    axes.plot([low, high], [y, y], color=colours[s.rule], linewidth=width)
            axes.plot(100 * math.expm1(s.gap.mean), y, "o", color=colours[s.rule], gid=f"rule-{y}")
        axes.set_yticks(range(len(shown)), [names[s.rule] for s in shown])
        axes.set_xlabel(label(f"final validation loss against {reference}, %"))
        axes.margins(y=0.15)
    hover = {
        f"rule-{y}": f"{s.rule}: {per_cent(s.gap.mean)} ({interval(s.gap)})"
        for y, s in enumerate(shown)
    }
    tasks = len(measured.tasks)
    caption = (
        f"Left is better. Interquartile mean over {tasks} tasks and {_seeds(measured)}; thick: "
        "95 % interval over seeds, thin: over seeds and tasks. Not shown: rules without a number, "
        "since they or the reference diverged."
    )
    return Figure("ranking", figure, caption, hover)


def curve(measured: Measured, t: int, names: dict[str, str]) -> Figure:
    colours, marks = _colours(measured), measured.marks[t]
    with drawing() as (figure, axes):
        for rule, curves in zip(measured.rules, measured.curves[t], strict=True):
            band(axes, marks, curves, colours[rule], names[rule])
        loss_axis(axes, measured.curves[t][:, :, 1:], measured.curves[t][:, :, 0].max())
        axes.set_xlabel("step")
        axes.set_title(label(measured.tasks[t]), loc="left")
        axes.legend(loc="upper right")
    caption = f"Validation loss of the tuned rules: median and range of {_seeds(measured)}."
    return Figure(f"curve-{t}", figure, caption)


def band(axes: Any, at: Sequence[int], curves: np.ndarray, colour: str, name: str) -> None:
    """Median and range of ``curves [seeds, at]``, where they are finite."""
    x, centre = np.array(at), middle(curves)
    low, high = curves.min(axis=0), curves.max(axis=0)
    shown = np.isfinite(centre)
    axes.plot(x[shown], centre[shown], color=colour, label=name)
    axes.fill_between(x, low, high, where=np.isfinite(high), color=colour, alpha=0.15, linewidth=0)


def loss_axis(axes: Any, losses: np.ndarray, top: float) -> None:
    """A logarithmic axis from the best loss to a little above ``top``, labelled sparsely."""
    finite = losses[np.isfinite(losses)]
    low = max(finite.min() if len(finite) else top / 10, FLOOR)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.05, top * 1.1)
    sparse_ticks(axes.yaxis)
    axes.set_ylabel("validation loss")


def budget(measured: Measured, table: Sequence[Standing], names: dict[str, str]) -> Figure:
    colours = _colours(measured)
    with drawing() as (figure, axes):
        for s in table:
            spent = range(1, len(s.tuning.budget) + 1)
            loss, low, high = 100 * np.expm1([x[:3] for x in s.tuning.budget]).T
            axes.plot(spent, loss, color=colours[s.rule], label=names[s.rule])
            if np.isfinite(low).all():
                axes.fill_between(spent, low, high, color=colours[s.rule], alpha=0.06, linewidth=0)
        axes.set_xlabel("trials")
        axes.set_ylabel("loss above the rule's best, %")
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(loc="upper right")
    caption = (
        f"Expected best of so many trials on the tuning seed ({TUNING_SEED}), mean of n = "
        f"{len(measured.tasks)} tasks; band: 95 % interval over tasks."
    )
    return Figure("budget", figure, caption)


def sensitivity(measured: Measured, t: int, names: dict[str, str]) -> Figure:
    colours = _colours(measured)
    with drawing() as (figure, axes):
        for rule, settings, losses in zip(
            measured.rules, measured.settings, measured.trials[:, t], strict=True
        ):
            lr, decay = np.array(settings).T
            order = np.argsort(lr)
            shown = order[np.isfinite(losses[order])]
            axes.plot(lr[shown], losses[shown], color=colours[rule], label=names[rule], alpha=0.7)
            for some, marker in ((decay[shown] == 0, "o"), (decay[shown] > 0, "x")):
                axes.plot(lr[shown][some], losses[shown][some], marker, color=colours[rule], ms=3.5)
        loss_axis(axes, measured.trials[:, t], measured.curves[t][:, :, 0].max())
        axes.set_xscale("log")
        sparse_ticks(axes.xaxis)
        axes.set_xlabel("learning rate")
        axes.set_title(label(measured.tasks[t]), loc="left")
        axes.legend(loc="best")
    caption = (
        f"All {measured.trials.shape[2]} trials, each once, on the tuning seed ({TUNING_SEED}); a "
        "dot has no weight decay, a cross has some. Trials that diverged or ended above the start "
        "are not shown."
    )
    return Figure(f"sensitivity-{t}", figure, caption)


def transfer(
    measured: Measured, cards: list[dict[str, Any]], members: list[int], size: str, names: Any
) -> Figure:
    members = sorted(members, key=lambda t: cards[t][size])
    sizes = [cards[t][size] for t in members]
    rates = np.concatenate([measured.rates(r) for r in range(len(measured.rules))])
    colours, aside = _colours(measured), 1.08  # so that lines do not cover each other
    with drawing() as (figure, axes):
        for r, rule in enumerate(measured.rules):
            best = measured.rates(r)[measured.chosen[r, members]] * aside**r
            axes.plot(sizes, best, "o-", color=colours[rule], label=names[rule])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(rates.min() / 1.5, rates.max() * 1.5)
        axes.set_xticks(sizes, [str(s) for s in sizes])
        axes.set_xlabel(size)
        axes.set_ylabel("best learning rate")
        family, data = (cards[members[0]][key] for key in ("family", "data"))
        axes.set_title(label(f"{family} on {data}"), loc="left")
        axes.legend(loc="best")
    caption = (
        f"The best of {measured.trials.shape[2]} trials at each "
        f"{'number of ' if size == 'steps' else ''}{size}, on one seed ({TUNING_SEED}), so without "
        "an interval; neighbouring rates of the grid may be as good. Flat lines transfer; they are "
        "drawn a little apart."
    )
    return Figure(f"transfer-{size}-{members[0]}", figure, caption)


def profile(measured: Measured, names: dict[str, str], reference: str) -> Figure:
    """Which share of the tasks a rule solves, for how many times the steps of the fastest."""
    colours = _colours(measured)
    with drawing() as (figure, axes):
        shares = statistics.profiles(measured, reference)
        for rule, share in zip(measured.rules, shares, strict=True):
            axes.step(FACTORS, 100 * share, where="post", color=colours[rule], label=names[rule])
        axes.set_xlabel("times the steps of the fastest rule")
        axes.set_ylabel("tasks solved, %")
        axes.set_ylim(-3, 103)
        axes.legend(loc="best")
    caption = (
        f"Performance profile over n = {len(measured.tasks)} tasks, medians of {_seeds(measured)}. "
        f"Solved: the final validation loss of tuned {reference} is reached. The mean height is "
        "the AlgoPerf score of the table, which has its interval."
    )
    return Figure("profile", figure, caption)
