"""How a search went, in figures: the best so far, the same on larger tasks, fates and pace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from search.language.program import parse, to_text
from search.language.validity import live
from search.record.archive import Archive
from search.record.schema import Record
from search.run.config import BASELINES
from search.run.history import DECIDED, META_VALIDATION, History, meta_validation
from search.run.judged import titles
from search.run.summary import TITLES
from tasks.display.page import Part
from tasks.display.plots import COLOURS, GREY, Figure, drawing
from tasks.evaluation.intervals import Interval
from tasks.evaluation.wording import change, duration

FATE_COLOURS = {
    "evaluated": "#0072B2",
    "stopped": "#56B4E9",
    "duplicate": "#C9C9CE",
    "invalid": "#E3E3E6",
    "diverged": "#E69F00",
    "failed": "#D55E00",
}


def course(archive: Archive, past: History, calibration: dict[str, Any] | None) -> list[Part]:
    followed = meta_validation(archive)
    figures: list[Part] = [_best_figure(archive, past, calibration)]
    if followed:
        figures.append(_meta_validation_figure(archive, past, followed))
    return [*figures, _fates_figure(past), _rate_figure(past)]


def _best_figure(archive: Archive, past: History, calibration: dict[str, Any] | None) -> Figure:
    scores = dict(zip(BASELINES, calibration["scores"], strict=False)) if calibration else {}
    with drawing() as (figure, axes):
        for k, (name, score) in enumerate(scores.items()):
            label = f"{TITLES[name]}, one rate"
            colour = (GREY, *COLOURS[1:])[k]
            axes.axhline(100 * math.expm1(score), color=colour, linestyle="--", lw=1, label=label)
        axes.plot(past.tried, 100 * np.expm1(past.best), ".", color=COLOURS[0], ms=2, alpha=0.5)
        best = 100 * np.expm1(past.best_so_far)
        axes.step(past.tried, best, where="post", color=COLOURS[0], label="best so far")
        known = [*best[np.isfinite(best)], *(100 * math.expm1(s) for s in scores.values())]
        low, high = min(known), max(known)
        axes.set_ylim(low - 0.08 * (high - low) - 0.1, high + 0.25 * (high - low) + 0.1)
        axes.set_xlabel("candidates tried")
        axes.set_ylabel("loss against tuned AdamW, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper right")
    caption = (
        f"The best so far on the proxy tasks, on {own_seeds(archive)}, so optimistic: the tables "
        "above are on fresh seeds. Dots: the best of each batch. Dashed: known rules at the one "
        "learning rate that suits all tasks best, as candidates have one; 0 is AdamW with the best "
        "for each, which is what scores are against."
    )
    return Figure("best", figure, caption)


def _meta_validation_figure(
    archive: Archive, past: History, followed: Sequence[tuple[Record, Interval]]
) -> Figure:
    """What led the search, again, on tasks that it did not see."""
    finals = [row for row in archive.finals() if row.stage == META_VALIDATION]
    tasks, seeds = sorted({row.task for row in finals}), sorted({row.seed for row in finals})
    hover = {}
    with drawing() as (figure, axes):
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--", label="AdamW, tuned on each task")
        tried = [past.tried[record.batch] for record, _ in followed]
        best = 100 * np.expm1(past.best_so_far)
        label = "best so far on the proxies"
        axes.step(past.tried, best, where="post", color=GREY, lw=1.2, label=label)
        for x, (record, gap) in zip(tried, followed, strict=True):
            if gap.mean == -math.inf:  # the reference diverged
                continue
            low, mean, high = (100 * math.expm1(min(v, 3)) for v in (gap.low, gap.mean, gap.high))
            if math.isfinite(gap.low):
                axes.plot([x, x], [low, high], color=COLOURS[1], linewidth=1.2)
            axes.plot(x, mean, "o", color=COLOURS[1], ms=5, gid=f"leader-{record.id}")
            hover[f"leader-{record.id}"] = f"{record.id}: {change(gap)}\n{text(record)}"
        larger = titles(archive.run())["meta_validation"]
        axes.plot([], [], "o-", color=COLOURS[1], label=f"on {larger}, fresh seeds")
        axes.set_xlabel("candidates tried")
        axes.set_ylabel("loss against tuned AdamW, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="best")
    caption = (
        f"Meta-validation: those that led the search, tuned again on {larger}, which it does not "
        f"see ({', '.join(tasks)}), n = {len(seeds)} fresh seeds ({seeds[0]} to {seeds[-1]}), 95 % "
        "intervals over seeds. Where only the grey line falls, the search fits its proxies."
    )
    return Figure("meta-validation", figure, caption, hover)


def _fates_figure(past: History) -> Figure:
    total = past.fates.sum()
    with drawing() as (figure, axes):
        bottom = np.zeros(len(past.tried))
        each = np.maximum(past.fates.sum(1), 1)
        for fate, colour in FATE_COLOURS.items():
            count = past.fates[:, DECIDED.index(fate)]
            if count.any():
                top = bottom + 100 * count / each
                label = f"{fate} {100 * count.sum() / total:.0f} %"
                axes.fill_between(past.tried, bottom, top, color=colour, label=label, linewidth=0)
                bottom = top
        axes.set_ylim(0, 100)
        axes.set_xlim(past.tried[0], past.tried[-1] + 1e-9)
        axes.set_xlabel("candidates tried")
        axes.set_ylabel("share of each batch, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    caption = f"What became of {total:,.0f} candidates; the legend has the shares of the whole run."
    return Figure("fates", figure, caption)


def _rate_figure(past: History) -> Figure:
    tried, seconds = (np.concatenate([[0.0], x]) for x in (past.tried, past.seconds))
    # By the clock: the last batches of a run, waited for, come back within a moment.
    window = max(seconds[-1] / 20, 1e-9)
    ends = np.linspace(window, max(seconds[-1], window), 200)
    rate = np.interp(ends, seconds, tried) - np.interp(ends - window, seconds, tried)
    with drawing() as (figure, axes):
        axes.plot(ends / 60, rate / window, color=COLOURS[0])
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("minutes")
        axes.set_ylabel("candidates a second")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    caption = (
        f"Candidates tried a second, over the last {duration(window)} at a time, duplicates "
        "included."
    )
    return Figure("rate", figure, caption)


def own_seeds(archive: Archive) -> str:
    """Those that candidates were scored on."""
    n = archive.run()["config"]["funnel"].get("seeds", 1)  # older runs do not say
    return f"the search's own seed{'s' if n > 1 else ''} (n = {n})"


def score(record: Record) -> float:
    return math.nan if record.score is None else record.score


def text(record: Record) -> str:
    """The program without statements that have no effect."""
    return to_text(live(parse(record.text))) if record.text else ""
