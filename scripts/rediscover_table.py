"""What ``rediscover_lion.py`` found, in words and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from search.view import clock

Rows = Sequence[dict[str, Any]]


def table(results: Rows, strategies: Sequence[str], minutes: float) -> str:
    """Markdown: how many seeds got there, and the spread of time and candidates."""
    lines = [
        "| strategy | seeds | found (95 % interval) | time to discovery, median (range) |"
        " candidates, median | best score, median (range) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for strategy in strategies:
        rows = [row for row in results if row["strategy"] == strategy]
        if not rows:
            continue
        found = [row for row in rows if row["found"]]
        seconds = [row["seconds"] for row in found]
        spread = (
            f"{clock(float(np.median(seconds)))} ({clock(min(seconds))}–{clock(max(seconds))})"
            if found
            else "–"
        )
        tried = f"{np.median([row['tried'] for row in found]):,.0f}" if found else "–"
        best = [row["best"] for row in rows]
        lines.append(
            f"| {strategy} | {len(rows)} | {_share(len(found), len(rows))} | {spread} | {tried} | "
            f"{np.median(best):+.3f} ({min(best):+.3f} to {max(best):+.3f}) |"
        )
    return "\n".join([*lines, "", f"Budget: {minutes:g} minutes a seed.", ""])


def _share(found: int, seeds: int) -> str:
    """With its 95 % interval (Clopper and Pearson)."""
    low, high = binomtest(found, seeds).proportion_ci()
    return f"{found} ({100 * low:.0f}–{100 * high:.0f} %)"


def finds(results: Rows) -> str:
    """Markdown: what was found, and how it does on held-out tasks."""
    lines = [
        "| seed | found | after | held-out log loss against AdamW | Lion |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results:
        if found := row["found"]:
            cells = (found["kind"], clock(row["seconds"]), *_held_out(found))
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
    return _interval(rule["held_out"]["adamw"]), _interval(rule["held_out"]["lion"])


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def figure(results: Rows, strategies: Sequence[str], minutes: float, kind: str) -> Figure:
    """Share of seeds that have found what was looked for, against time."""
    plot = Figure(figsize=(6, 4), layout="constrained")
    axes = plot.subplots()
    for strategy in strategies:
        rows = [row for row in results if row["strategy"] == strategy]
        times = sorted(row["seconds"] for row in rows if row["found"])
        if rows:
            shares = [k / len(rows) for k in range(len(times) + 1)]
            axes.step(
                [0, *times, 60 * minutes], [*shares, shares[-1]], where="post", label=strategy
            )
    axes.set(xlabel="seconds", ylabel=f"share of seeds with {kind}", ylim=(-0.02, 1.02))
    axes.legend()
    return plot


def curves(results: Rows, strategies: Sequence[str]) -> Figure:
    """The best score so far, a thin line a seed; the start program is at its own score."""
    plot = Figure(figsize=(8, 4), layout="constrained")
    left, right = plot.subplots(1, 2, sharey=True)
    for number, strategy in enumerate(strategies):
        rows = [row for row in results if row["strategy"] == strategy]
        for k, row in enumerate(rows):
            label = f"{strategy}, seeds: {len(rows)}" if k == 0 else None
            style = {"color": f"C{number}", "alpha": 0.6, "linewidth": 1, "label": label}
            left.step(row["curve"]["tried"], row["curve"]["best"], where="post", **style)
            right.step(row["curve"]["seconds"], row["curve"]["best"], where="post", **style)
    for axes, unit in ((left, "candidates tried"), (right, "seconds")):
        axes.set(xlabel=unit, xscale="log")
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    left.set_ylabel("best score: mean log loss against tuned AdamW")
    plot.legend(handles=left.get_legend_handles_labels()[0], loc="outside upper center", ncols=3)
    return plot
