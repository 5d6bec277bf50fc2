"""The report of a search: what it found, how sure that is, and how it got there.

Works on a run that is still going on; what is not there yet is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from shlex import quote
from typing import Any

import numpy as np

from search.analyze import live
from search.archive import Archive
from search.config import BASELINES
from search.history import (
    DECIDED,
    META_VALIDATION,
    History,
    found,
    front,
    history,
    meta_validation,
    trimmed,
)
from search.loop import fates
from search.program import parse, to_text
from search.show import CHOSE, STAGES, TITLES, kind, lineage
from search.tables import Record
from search.verdict import is_discovery, standings
from tasks import environment
from tasks.page import COLOURS, GREY, Figure, Page, Part, Program, Section, Table, Tiles, drawing
from tasks.scoring import Interval
from tasks.wording import change, distance, duration, interval, per_cent

FATE_COLOURS = {
    "evaluated": "#0072B2",
    "stopped": "#56B4E9",
    "duplicate": "#C9C9CE",
    "invalid": "#E3E3E6",
    "diverged": "#E69F00",
    "failed": "#D55E00",
}


def page(archive: Archive, remade_by: str) -> Page:
    """The report of a run, finished or not."""
    facts = archive.run()
    winner = facts.get("winner")
    best = [archive.record(winner)] if winner is not None else archive.best(1)
    past = history(archive)
    sections = [Section("In numbers", [_tiles(archive, past, best)])]
    if best:
        rule = [Program(_text(best[0])), f"By experiment: {kind(best[0])}."]
        sections.insert(0, Section(f"The rule: candidate {best[0].id}", rule))
    sections += [
        Section(f"On {STAGES[stage]}", _stage(archive, stage))
        for stage in ("held_out", "proxy")
        if any(row.stage == stage for row in archive.finals())
    ]
    if best:
        evaluated = trimmed(archive.records("WHERE c.fate = 'evaluated'"))
        sections += [
            Section("How it went", _course(archive, past, facts.get("calibration"))),
            Section("Short and good", _front(archive, evaluated)),
            Section("How the rule came about", _lineage(archive, best[0])),
        ]
    sections.append(Section("What was asked for", _facts(archive, facts)))
    return Page(
        title=f"Search {archive.run_dir.name}",
        lead=_lead(archive, facts, best),
        sections=sections,
        remade_by=remade_by,
    )


def _lead(archive: Archive, facts: dict[str, Any], best: Sequence[Record]) -> str:
    if not best:
        finished = "winner" in facts
        return "Nothing was evaluated in full." if finished else "Nothing has been evaluated yet."
    winner = facts.get("winner")
    if winner is None:
        return (
            f"Not judged yet: candidate {best[0].id} leads, its loss {distance(_score(best[0]))} "
            f"tuned AdamW's on {_own_seeds(archive)}."
        )
    for standing in standings(archive.finals(), "held_out", BASELINES):
        if standing.rule == str(winner):
            gap = standing.against[BASELINES[0]]
            sure = f"95 % interval {interval(gap, ' %')}, {gap.n} fresh seeds"
            found = "A discovery" if is_discovery(standing, BASELINES[0]) else "No discovery"
            if not math.isfinite(gap.mean):
                return f"{found}: on tasks the search never saw, a run of it or of AdamW diverged."
            return (
                f"{found}: on tasks the search never saw, its loss is {distance(gap.mean)} "
                f"tuned AdamW's ({sure if gap.n > 1 else 'n = 1 fresh seed'})."
            )
    return ""


def _own_seeds(archive: Archive) -> str:
    """Those that candidates were scored on."""
    n = archive.run()["config"]["funnel"].get("seeds", 1)  # older runs do not say
    return f"the search's own seed{'s' if n > 1 else ''} (n = {n})"


def _score(record: Record) -> float:
    return math.nan if record.score is None else record.score


def _text(record: Record) -> str:
    """The program without statements that have no effect."""
    return to_text(live(parse(record.text))) if record.text else ""


def _tiles(archive: Archive, past: History, best: Sequence[Record]) -> Tiles:
    counts = fates(archive)
    tried, wall = sum(counts.values()), archive.timings()[0]
    tiles = [
        (f"{tried:,}", "candidates tried"),
        (f"{counts.get('evaluated', 0):,}", "evaluated in full"),
        (f"{100 * counts.get('duplicate', 0) / max(1, tried):.0f} %", "duplicates, never run"),
        (duration(wall), "of search"),
        (f"{tried / max(wall, 1e-9):,.0f}", "candidates a second"),
    ]
    if best:
        tiles.append(
            (per_cent(_score(best[0])), f"loss against AdamW, proxies, {_own_seeds(archive)}")
        )
        tiles.append((f"{best[0].lr or math.nan:.2g}", "its learning rate there"))
        if when := found(past, best[0]):
            after = f"candidates tried when it was found, after {duration(when.seconds)}"
            tiles.append((f"{when.tried:,}", f"{after} (batch {when.batch})"))
    return Tiles(tiles)


def _stage(archive: Archive, stage: str) -> list[Part]:
    finals = [row for row in archive.finals() if row.stage == stage]
    tasks, seeds = sorted({row.task for row in finals}), sorted({row.seed for row in finals})
    trials = archive.run()["config"]["verdict"]["trials"]
    rows = [
        (
            TITLES.get(s.rule, s.rule),
            *(
                "–" if name == s.rule else change(s.against[name])
                for name in BASELINES
                if name in s.against
            ),
        )
        for s in standings(finals, stage, BASELINES)
    ]
    return [
        Table(("rule", *(f"against {TITLES[name]}" for name in BASELINES)), rows),
        f"Change of the final validation loss, mean over {len(tasks)} tasks ({', '.join(tasks)}) "
        f"and n = {len(seeds)} fresh seeds ({seeds[0]} to {seeds[-1]}), with its 95 % "
        f"interval over seeds; every rule tuned with the same {trials} trials on each task."
        + (CHOSE if stage == "proxy" else ""),
    ]


# ------------------------------------------------------------------------------------ the course


def _course(archive: Archive, past: History, calibration: dict[str, Any] | None) -> list[Part]:
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
        f"The best so far on the proxy tasks, on {_own_seeds(archive)}, so optimistic: the tables "
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
            hover[f"leader-{record.id}"] = f"{record.id}: {change(gap)}\n{_text(record)}"
        axes.plot([], [], "o-", color=COLOURS[1], label="on larger tasks, fresh seeds")
        axes.set_xlabel("candidates tried")
        axes.set_ylabel("loss against tuned AdamW, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="best")
    caption = (
        f"Meta-validation: those that led the search, tuned again on larger tasks that it does not "
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


# ------------------------------------------------------------------------------ front and lineage


def _front(archive: Archive, evaluated: Sequence[Record]) -> list[Part]:
    best = front(evaluated)
    scores = np.array([_score(record) for record in evaluated])
    lengths = np.array([record.length or 0 for record in evaluated])
    aside = 0.5 * (np.arange(len(scores)) * 0.618 % 1 - 0.5)  # so that dots do not cover each other
    with drawing() as (figure, axes):
        # Most programs are worse than useless; the interesting ones lie near the front.
        top = min(max(0.05, float(np.quantile(scores, 0.5))), 0.2)
        shown = scores <= top
        axes.scatter(
            (lengths + aside)[shown],
            100 * np.expm1(scores[shown]),
            s=5,
            color=GREY,
            alpha=0.4,
            linewidths=0,
            rasterized=True,
        )
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--", label="AdamW, tuned on each task")
        gaps = [100 * math.expm1(_score(record)) for record in best]
        steps = [record.length or 0 for record in best]
        axes.step(steps, gaps, where="post", color=COLOURS[1], linewidth=1.2, label="front")
        for record, x, y in zip(best, steps, gaps, strict=True):
            axes.plot(x, y, "o", color=COLOURS[1], ms=5, gid=f"program-{record.id}")
        low, high = min(gaps), max(100 * math.expm1(top), min(gaps) + 1)
        axes.set_ylim(low - 0.05 * (high - low), high)
        axes.set_xlabel("statements")
        axes.set_ylabel("loss against tuned AdamW, %")
        axes.legend(loc="upper right")
    hover = {f"program-{r.id}": f"{r.id}: {per_cent(_score(r))}\n{_text(r)}" for r in best}
    caption = (
        f"{len(evaluated):,} programs on the proxy tasks, {_own_seeds(archive)}; those far worse "
        "than AdamW are not shown. Point at a dot of the front for its program, or open it below."
    )
    rows = [
        (
            str(r.length),
            per_cent(_score(r)),
            str(r.id),
            f"{r.lr or math.nan:.2g}",
            kind(r),
            Program(_text(r), "program"),
        )
        for r in best
    ]
    head = ("statements", "loss", "candidate", "learning rate", "kind, by experiment", "")
    return [Figure("front", figure, caption, hover), Table(head, rows)]


def _lineage(archive: Archive, record: Record) -> list[Part]:
    steps = lineage(archive, record.id)
    with drawing() as (figure, axes):
        known = [(k, step) for k, step in enumerate(steps) if step["score"] is not None]
        xs = [k for k, _ in known]
        ys = [100 * math.expm1(step["score"]) for _, step in known]
        axes.step(xs, ys, where="post", color=COLOURS[0], linewidth=1.2)
        for k, y, (_, step) in zip(xs, ys, known, strict=True):
            axes.plot(k, y, "o", color=COLOURS[0], ms=4, gid=f"step-{step['id']}")
        axes.set_xlabel("ancestor")
        axes.set_ylabel("loss against tuned AdamW, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
    hover = {f"step-{s['id']}": f"{s['id']}: {s['mutation']}\n{s['program']}" for s in steps}
    rows = []
    for step in steps:
        gain = "" if step["gain"] is None else per_cent(step["gain"], 2)
        loss = "–" if step["score"] is None else per_cent(step["score"])
        shown = Program(step["program"] or "", "program")
        rows.append((str(step["id"]), loss, gain, step["mutation"], shown))
    caption = (
        f"The {len(steps)} ancestors of candidate {record.id}, the founder first; losses on "
        f"{_own_seeds(archive)}."
    )
    head = ("candidate", "loss", "change", "mutation", "")
    return [Figure("lineage", figure, caption, hover), Table(head, rows)]


# ----------------------------------------------------------------------------------------- facts


def _facts(archive: Archive, facts: dict[str, Any]) -> list[Part]:
    config = json.dumps(facts["config"], indent=2)
    return [
        Program("\n".join(facts["config"]["start"]), "the programs it started from"),
        Program(config, f"all settings (seed {facts['config']['seed']})"),
        environment.table([facts.get("environment", {})]),
        "To run it again and compare every row:",
        Program(f"l2o reproduce {quote(str(archive.run_dir))}"),
    ]
