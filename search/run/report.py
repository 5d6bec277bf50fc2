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

from search.fitness.verdict import standings
from search.record.archive import Archive
from search.record.schema import Record
from search.run import judged
from search.run.config import BASELINES
from search.run.course import course, own_seeds, score, text
from search.run.history import History, found, front, history, trimmed
from search.run.judged import ruling, titles
from search.run.loop import fates
from search.run.summary import CHOSE, TITLES, kind, lineage, named, strategy
from tasks.display.page import Page, Part, Program, Section, Table, Tiles, table
from tasks.display.plots import COLOURS, GREY, Figure, drawing
from tasks.evaluation.wording import change, count, distance, duration, interval, per_cent
from tasks.suites import SUITES


def page(archive: Archive, remade_by: str) -> Page:
    """The report of a run, finished or not."""
    facts = archive.run()
    winner = facts.get("winner")
    best = [archive.record(winner)] if winner is not None else archive.best(1)
    past = history(archive)
    sections = [Section("In numbers", [_tiles(archive, past, best)])]
    if best:
        rule = [Program(text(best[0])), f"By experiment: {kind(best[0])}."]
        sections.insert(0, Section(f"The rule: candidate {best[0].id}", rule))
    sections += [
        Section(f"On {titles(facts)[stage]}", _stage(archive, stage))
        for stage in _stages(facts)
        if any(row.stage == stage for row in archive.finals())
    ]
    if best:
        evaluated = trimmed(archive.records("WHERE c.fate = 'evaluated'"))
        sections += [
            Section("How it went", course(archive, past, facts.get("calibration"))),
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
            f"Not judged yet: candidate {best[0].id} leads, its loss {distance(score(best[0]))} "
            f"tuned AdamW's on {own_seeds(archive)}."
        )
    first, second = (_against(archive, stage, winner) for stage in _stages(facts))
    found = ruling(archive)
    word = found.word if found else ""
    told = [first, word, second] if found and found.shown else [word, first, second]
    return " ".join(filter(None, told))


def _stages(facts: dict[str, Any]) -> tuple[str, ...]:
    """In the order that they are told in: a user's own tasks are what counts first."""
    own = facts["config"]["funnel"]["suite"] not in SUITES
    return ("proxy", "held_out") if own else ("held_out", "proxy")


def _against(archive: Archive, stage: str, winner: int) -> str:
    """A sentence on how the winner compares with AdamW on the tasks of a stage."""
    for standing in standings(archive.finals(), stage, BASELINES):
        gap = standing.against[BASELINES[0]]
        if standing.rule == str(winner) and math.isfinite(gap.mean):
            seeds, known = count(gap.n, "fresh seed"), math.isfinite(gap.low)
            sure = f"95 % interval {interval(gap, ' %')}, {seeds}" if known else f"n = {seeds}"
            return (
                f"On {titles(archive.run())[stage]} its loss is {distance(gap.mean)} tuned "
                f"AdamW's ({sure})."
            )
    return ""


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
            (per_cent(score(best[0])), f"loss against AdamW, proxies, {own_seeds(archive)}")
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
            named(s.rule, s.same),
            *(
                "–" if name == s.rule else change(s.against[name])
                for name in BASELINES
                if name in s.against
            ),
        )
        for s in judged.table(archive, stage)
    ]
    return [
        Table(("rule", *(f"against {TITLES[name]}" for name in BASELINES)), rows),
        f"Change of the final validation loss, mean over {len(tasks)} tasks ({', '.join(tasks)}) "
        f"and n = {len(seeds)} fresh seeds ({seeds[0]} to {seeds[-1]}), with its 95 % "
        f"interval over seeds; every rule tuned with the same {trials} trials on each task."
        + (CHOSE if stage == "proxy" else ""),
    ]


# ------------------------------------------------------------------------------ front and lineage


def _front(archive: Archive, evaluated: Sequence[Record]) -> list[Part]:
    best = front(evaluated)
    scores = np.array([score(record) for record in evaluated])
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
        gaps = [100 * math.expm1(score(record)) for record in best]
        steps = [record.length or 0 for record in best]
        axes.step(steps, gaps, where="post", color=COLOURS[1], linewidth=1.2, label="front")
        for record, x, y in zip(best, steps, gaps, strict=True):
            axes.plot(x, y, "o", color=COLOURS[1], ms=5, gid=f"program-{record.id}")
        low, high = min(gaps), max(100 * math.expm1(top), min(gaps) + 1)
        axes.set_ylim(low - 0.05 * (high - low), high)
        axes.set_xlabel("statements")
        axes.set_ylabel("loss against tuned AdamW, %")
        axes.legend(loc="upper right")
    hover = {f"program-{r.id}": f"{r.id}: {per_cent(score(r))}\n{text(r)}" for r in best}
    caption = (
        f"{len(evaluated):,} programs on the proxy tasks, {own_seeds(archive)}; those far worse "
        "than AdamW are not shown. Point at a dot of the front for its program, or open it below."
    )
    rows = [
        (
            str(r.length),
            per_cent(score(r)),
            str(r.id),
            f"{r.lr or math.nan:.2g}",
            kind(r),
            Program(text(r), "program"),
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
        f"{own_seeds(archive)}."
    )
    head = ("candidate", "loss", "change", "mutation", "")
    return [Figure("lineage", figure, caption, hover), Table(head, rows)]


# ----------------------------------------------------------------------------------------- facts


def _facts(archive: Archive, facts: dict[str, Any]) -> list[Part]:
    config = json.dumps(facts["config"], indent=2)
    return [
        f"Strategy: {strategy(facts)}.",
        Program("\n".join(facts["config"]["start"]), "the programs it started from"),
        Program(config, f"all settings (seed {facts['config']['seed']})"),
        table([facts.get("environment", {})]),
        "To run it again and compare every row:",
        Program(f"l2o reproduce {quote(str(archive.run_dir))}"),
    ]
