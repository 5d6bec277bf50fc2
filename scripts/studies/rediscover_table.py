"""What ``rediscover_lion.py`` found, in words and pictures. ``results``: its records, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from search.run.view import clock
from tasks.evaluation.intervals import Interval

Rows = Sequence[dict[str, Any]]
CONSTANTS = "constants alone"
"""The strategy that cannot find a form, for no constants make a sign of m / sqrt(v)."""


def table(results: Rows) -> str:
    """Markdown: how many seeds got there, what the spread of time and work is, and how good the
    best of each seed was, on the proxies and on held-out tasks."""
    lines = [
        "| strategy | seeds | found (95 % interval) | time to discovery, median (range) | "
        "candidates, median | million inner steps, median (range) | "
        "best proxy score, median (range) | "
        "held-out log loss of the best against AdamW, median (range) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, rows in grouped(results).items():
        found = [row["seconds"] for row in rows if row["found"]]
        cells = (
            label,
            str(len(rows)),
            share(len(found), len(rows)) if rows[0]["strategy"] != CONSTANTS else "0: cannot",
            _spread(found, clock) if found else "–",
            f"{np.median([row['tried'] for row in rows]):,.0f}",
            _spread([row["steps"] / 1e6 for row in rows], "{:.1f}".format),
            _spread([row["best"] for row in rows], "{:+.3f}".format),
            _spread([_interval(row["winner"], "adamw").mean for row in rows], _gap),
        )
        lines.append(f"| {' | '.join(cells)} |")
    start = results[0]["start"]
    return "\n".join([*lines, f"| the start program | | | | 1 | | {start:+.3f} | |", ""])


def grouped(results: Rows) -> dict[str, list[dict[str, Any]]]:
    """By strategy and budget."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault(f"{row['strategy']}, {row['minutes']:g} minutes", []).append(row)
    return groups


def _spread(values: Sequence[float], said: Callable[[float], str]) -> str:
    median = said(float(np.median(values)))
    return median if len(values) == 1 else f"{median} ({said(min(values))} to {said(max(values))})"


def share(found: int, seeds: int) -> str:
    """With its 95 % interval (Clopper and Pearson)."""
    low, high = binomtest(found, seeds).proportion_ci()
    return f"{found} ({100 * low:.0f}–{100 * high:.0f} %)"


def finds(results: Rows) -> str:
    """Markdown: what was found, and how it does on held-out tasks."""
    lines = [
        "| seed | found | candidate | judged | after | held-out log loss against AdamW | Lion |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results:
        if found := row["found"]:
            number, time = f"{found['candidate']:,}", clock(row["seconds"])
            judged = str(len(row["judged"])) if "judged" in row else "?"  # not kept in older files
            cells = (found["kind"], number, judged, time, *_held_out(found))
            lines.append(f"| {row['strategy']} {row['seed']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""]) if len(lines) > 2 else ""


def endings(results: Rows) -> str:
    """Markdown: what won each seed, and the kinds on its front of score against statements."""
    lines = [
        "| seed | winner | held-out log loss against AdamW | Lion | front |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results:
        if won := row.get("winner"):
            kinds = (f"{r['length']}: {r['kind']} ({r['score']:+.3f})" for r in row["front"])
            cells = (won["kind"], *_held_out(won), "; ".join(kinds))
            lines.append(f"| {row['strategy']} {row['seed']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""]) if len(lines) > 2 else ""


def _held_out(rule: dict[str, Any]) -> tuple[str, str]:
    return str(_interval(rule, "adamw")), str(_interval(rule, "lion"))


def _interval(rule: dict[str, Any], baseline: str) -> Interval:
    noted = rule["held_out"][baseline]
    return Interval._make(math.inf if x is None else x for x in noted.values())


def _gap(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "diverged"


def figure(results: Rows, kind: str) -> Figure:
    """Share of seeds that have found what was looked for, against time."""
    plot = Figure(figsize=(6, 4), layout="constrained")
    axes = plot.subplots()
    for label, rows in grouped(results).items():
        times = sorted(row["seconds"] for row in rows if row["found"])
        shares = [k / len(rows) for k in range(len(times) + 1)]
        end = max(60 * rows[0]["minutes"], *times, 0)  # the last may be judged when time is up
        axes.step([0, *times, end], [*shares, shares[-1]], where="post", label=label)
    axes.set(xlabel="seconds", ylabel=f"share of seeds with {kind}", ylim=(-0.02, 1.02))
    axes.legend()
    return plot


def curves(results: Rows) -> Figure:
    """The best score so far, a thin line a seed; the start program is at its own score."""
    plot = Figure(figsize=(8, 4), layout="constrained")
    left, right = plot.subplots(1, 2, sharey=True)
    for number, (group, rows) in enumerate(grouped(results).items()):
        for k, row in enumerate(rows):
            label = f"{group}, seeds: {len(rows)}" if k == 0 else None
            style = {"color": f"C{number}", "alpha": 0.6, "linewidth": 1, "label": label}
            left.step(row["curve"]["tried"], row["curve"]["best"], where="post", **style)
            right.step(row["curve"]["seconds"], row["curve"]["best"], where="post", **style)
    for axes, unit in ((left, "candidates tried"), (right, "seconds")):
        axes.set(xlabel=unit, xscale="log")
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    left.set_ylabel("best score: mean log loss against tuned AdamW")
    handles, _ = left.get_legend_handles_labels()
    plot.legend(handles=handles, loc="outside upper center", ncols=3, fontsize="x-small")
    return plot
