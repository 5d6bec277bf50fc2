"""What ``meta_generalization.py`` found: a table, mean ranks, a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tasks.evaluation.intervals import Interval, interval

Table = Mapping[tuple[str, int], Mapping[str, dict[str, Any]]]
"""(group, value) -> competitor -> what ``Bench.row`` found."""


def markdown(table: Table, names: Sequence[str], widest: int) -> Iterator[str]:
    """Final training loss / test loss, means over seeds; then mean ranks with 95 % intervals.

    ``widest``: the widest network of meta-training.
    """
    yield "| task | " + " | ".join(names) + " |"
    yield "|---|" + "---:|" * len(names)
    for (group, value), found in table.items():
        cells = (f"{_text(found[n]['train'])} / {_text(found[n]['test'])}" for n in names)
        yield f"| {group} {value} | " + " | ".join(cells) + " |"
    yield ""
    for title, chosen in {
        "all tasks": list(table),
        "8 times the widest of meta-training and wider": [
            case for case in table if case[0].startswith("width") and case[1] >= 8 * widest
        ],
    }.items():
        for split, loss in (("train", "training"), ("test", "test")) if chosen else ():
            places = ranks(table, names, chosen, split)
            scores = ", ".join(
                f"{name} {rank.mean:.2f} [{rank.low:.2f}, {rank.high:.2f}]"
                for name, rank in places.items()
            )
            yield f"Mean rank by {loss} loss, {title} ({len(chosen)}): {scores}.\n"


def _text(losses: Sequence[float | None]) -> str:
    value = mean(losses)
    return "diverged" if math.isinf(value) else f"{value:.4g}"


def mean(losses: Sequence[float | None]) -> float:
    """Infinite if any run diverged."""
    return math.inf if None in losses else float(np.mean([x for x in losses if x is not None]))


def ranks(
    table: Table, names: Sequence[str], chosen: Sequence[tuple[str, int]], split: str
) -> dict[str, Interval]:
    """Mean rank over tasks, 1 is best, with its interval over seeds; a run that diverged is last,
    and equals share their ranks."""
    places = []
    for case in chosen:
        losses = np.array([table[case][name][split] for name in names], float)
        places.append(rankdata(np.nan_to_num(losses, nan=math.inf), axis=0))
    by_seed = np.mean(places, axis=0)  # [competitors, seeds]
    return {name: interval(row) for name, row in zip(names, by_seed, strict=True)}


def draw(table: Table, names: Sequence[str], path: Path) -> None:
    """Final training loss against what grows, a panel a group; learning curves of the horizon.

    Lines are means over seeds, bands reach from the smallest to the largest.
    """
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(group for group, _ in table))
    figure = Figure(figsize=(3.6 * ((len(groups) + 1) // 2), 6.4), layout="constrained")
    axes = figure.subplots(2, (len(groups) + 1) // 2, squeeze=False).flat
    for axis, group in zip(axes, groups, strict=False):
        values = [value for g, value in table if g == group]
        for name in names:
            if group == "horizon":  # of which there is one
                row = table[group, values[0]][name]
                curve = np.array(row["curves"], float).mean(axis=0)
                axis.plot(np.linspace(0, values[0], len(curve)), curve, label=name)
                continue
            losses = [mean(table[group, value][name]["train"]) for value in values]
            (line,) = axis.plot(values, np.array(losses), "o-", label=name)
            rows = np.array([table[group, value][name]["train"] for value in values], float)
            axis.fill_between(values, rows.min(1), rows.max(1), color=line.get_color(), alpha=0.15)
            axis.set_xscale("log")
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
        axis.set(
            title=group,
            yscale="log",
            xlabel={"depth": "depth", "horizon": "step"}.get(group, "width"),
        )
    for axis in figure.axes[len(groups) :]:
        axis.set_axis_off()
    figure.axes[0].legend()
    figure.axes[0].set_ylabel("final training loss; no mark: diverged")
    figure.savefig(path, dpi=120)
