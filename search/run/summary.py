"""What a run has found, as plain data and as text.

``summary`` and ``lineage`` make dictionaries that ``json`` can print; ``render`` prints them for
people. Both work on a run that is still going on: what is not there yet is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from rich import box
from rich.syntax import Syntax
from rich.table import Table

from search.behaviour.kind import kind_of
from search.evolution.settings import Settings, renewed
from search.fitness.verdict import as_data
from search.language.program import parse, to_text
from search.language.validity import live
from search.record.archive import Archive
from search.record.schema import Record
from search.run.config import BASELINES
from search.run.history import History, found, history, meta_validation
from search.run.judged import Row, own_suite, ruling, table, titles
from search.run.loop import fates
from search.run.view import clock
from tasks.display.plain import Console
from tasks.evaluation.intervals import REFERENCE_DIVERGED
from tasks.evaluation.wording import LARGE, as_factor

CHOSE = " The winner is the best of the rules in this table, which flatters what it says of it."
STAGES = ("proxy", "held_out")
TITLES = {"adamw": "AdamW", "lion": "Lion", "momentum": "momentum"}


def summary(archive: Archive, top: int = 10) -> dict[str, Any]:
    """The best programs, how they compare, and what became of all candidates."""
    facts, finals = archive.run(), archive.finals()
    winner = facts.get("winner")
    best = [archive.record(winner)] if winner is not None else archive.best(1)
    wall, past, word = archive.timings()[0], history(archive), ruling(archive)
    return {
        "run": str(archive.run_dir),
        "finished": "winner" in facts,
        "seconds": wall,
        "budget": facts["config"]["budget"] if "config" in facts else None,
        "strategy": strategy(facts),
        "fates": fates(archive),
        "best": _entry(best[0], past) | {"kind": kind(best[0])} if best else None,
        "discovery": None if word is None else word.discovery,
        "verdict": None if word is None else word.text,
        "stages": {stage: [_row(row) for row in table(archive, stage)] for stage in STAGES},
        "dropped": facts.get("dropped", {}),
        "tasks": titles(facts),
        "suite": own_suite(facts),
        "meta_validation": [
            {"id": record.id, "score": record.score, "against": as_data(gap)}
            for record, gap in meta_validation(archive)
        ],
        "seeds": len({row.seed for row in finals}),
        "top": [_entry(record, past) for record in archive.best(top)],
    }


def lineage(archive: Archive, candidate: int) -> list[dict[str, Any]]:
    """From the founder to ``candidate``: the mutation that made each, and what it gained.

    A candidate without a score of its own (a duplicate of one that was stopped) gains None. The
    last entry says what kind of rule ``candidate`` is."""
    steps, before, records = [], None, archive.lineage(candidate)
    past = history(archive)
    for record in records:
        gain = None if before is None or record.score is None else record.score - before
        steps.append(_entry(record, past) | {"mutation": record.mutation, "gain": gain})
        before = record.score if record.score is not None else before
    steps[-1]["kind"] = kind(records[-1])
    return steps


def strategy(facts: Mapping[str, Any]) -> str:
    """Who was born and who lived, as it was asked for."""
    return renewed(facts.get("config", {}).get("evolution", {})).get("strategy", Settings.strategy)


def kind(record: Record) -> str:
    """What kind of rule it is, by experiment (``search.behaviour.kind``), for people."""
    return "" if record.text is None else str(kind_of(record.text))


def _entry(record: Record, past: History) -> dict[str, Any]:
    program = None if record.text is None else live(parse(record.text))
    when = found(past, record)
    return {
        "id": record.id,
        "score": record.score,
        "lr": record.lr,
        "length": None if program is None else program.length,
        "program": None if program is None else to_text(program),
        "found": None if when is None else when._asdict(),
    }


def _row(row: Row) -> dict[str, Any]:
    against = {name: as_data(interval) for name, interval in row.against.items()}
    return {"rule": row.rule, "same": list(row.same), "against": against}


# -- for people -------------------------------------------------------------------------------


def render(content: Mapping[str, Any], console: Console) -> None:
    """Print what ``summary`` returned, or ``{"lineage": what lineage returned}``."""
    if "lineage" in content:
        console.print(_lineage_table(content["lineage"]))
        _rule(content["lineage"][-1], console)
        return
    best = content["best"]
    if best is None:
        finished = content["finished"]
        console.print(
            "nothing was evaluated in full" if finished else "nothing has been evaluated yet"
        )
        return
    console.print(
        f"\nThe best program, candidate {best['id']}, learning rate {best['lr']:.3g}"
        f"{_when(best['found'])}:\n",
        highlight=False,
        soft_wrap=True,
    )
    _rule(best, console)
    for stage in STAGES:
        if content["stages"][stage]:
            console.print(_stage_table(content, stage))
    if content["meta_validation"]:
        console.print(_meta_validation(content), highlight=False, soft_wrap=True)
    if content["top"]:
        said = "" if content["finished"] else "Not judged yet. "
        console.print(f"{said}Best on the proxies, as the search scored them (against AdamW):")
        console.print(_top_table(content["top"]))
    console.print(content["verdict"] or "", highlight=False, soft_wrap=True)
    console.print(_counts(content), highlight=False, soft_wrap=True)
    console.print(_next(content), highlight=False, soft_wrap=True, markup=False)


def _when(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return (
        f", found in batch {found['batch']}, after {found['tried']:,} candidates "
        f"and {clock(found['seconds'])}"
    )


def _rule(entry: Mapping[str, Any], console: Console) -> None:
    code = Syntax((entry["program"] or "").rstrip(), "python", background_color="default")
    console.print(code, "")
    if entry["kind"]:
        console.print(f"By experiment: {entry['kind']}.\n", highlight=False, soft_wrap=True)


def _stage_table(content: Mapping[str, Any], stage: str) -> Table:
    tasks = content["tasks"][stage]
    table = Table(
        title=f"Change of loss in % on {tasks}, {content['seeds']} fresh seeds, 95 % interval",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=CHOSE.strip() if stage == "proxy" else None,
        caption_justify="left",
    )
    table.add_column("rule", no_wrap=True)
    for name in BASELINES:
        table.add_column(f"vs {TITLES[name]}", justify="right")
    for row in content["stages"][stage]:
        cells = [_percent(row["against"].get(name), row["rule"] == name) for name in BASELINES]
        table.add_row(named(row["rule"], row["same"]), *cells)
    return table


def named(rule: str, same: Sequence[str]) -> str:
    """A row's rule, with the finalists that are the same one."""
    return TITLES.get(rule, rule) + (f" (the same rule: {', '.join(same)})" if same else "")


def _percent(interval: Mapping[str, Any] | None, itself: bool) -> str:
    """A mean log ratio and its interval as changes of the loss in per cent."""
    if itself:
        return "–"
    if interval is None:
        return "diverged"
    if interval["mean"] is None:
        return REFERENCE_DIVERGED
    mean = _change(interval["mean"])
    if interval["low"] is None or interval["high"] is None:
        return f"{mean} (n = {interval['n']})"
    return f"{mean} [{_change(interval['low'])}, {_change(interval['high'])}]"


def _change(ratio: float) -> str:
    return f"×{as_factor(ratio)}" if ratio > LARGE else f"{100 * math.expm1(ratio):+.1f}"


def _top_table(top: Sequence[Mapping[str, Any]]) -> Table:
    head = ("candidate", "score", "learning rate", "statements", "found after")
    table = Table(*head, box=box.SIMPLE_HEAD)
    for entry in top:
        when = entry["found"]
        table.add_row(
            str(entry["id"]),
            f"{entry['score']:+.4f}",
            f"{entry['lr']:.3g}",
            str(entry["length"]),
            f"{when['tried']:,} candidates, {clock(when['seconds'])}" if when else "",
        )
    return table


def _lineage_table(steps: Sequence[Mapping[str, Any]]) -> Table:
    """One row a step that changed the score; runs of neutral steps are told by their number."""
    table = Table("candidate", "score", "gain", "mutation", box=box.SIMPLE_HEAD)
    neutral = 0
    for step in steps:
        if step["gain"] == 0 and step is not steps[-1]:
            neutral += 1
            continue
        if neutral:
            table.add_row("", "", "", f"({neutral} without effect)", style="dim")
            neutral = 0
        gain = "" if step["gain"] is None else f"{step['gain']:+.4f}"
        score = "–" if step["score"] is None else f"{step['score']:+.4f}"
        table.add_row(str(step["id"]), score, gain, step["mutation"])
    return table


def _meta_validation(content: Mapping[str, Any]) -> str:
    """One line: whether progress on the proxies was progress."""
    steps = [
        f"{step['id']}: {_percent(step['against'], itself=False)}"
        for step in content["meta_validation"]
    ]
    return (
        f"Those that led the search, on {content['tasks']['meta_validation']}, against AdamW, "
        f"{content['seeds']} fresh seeds:\n  {'  '.join(steps)}\n"
    )


def _counts(content: Mapping[str, Any]) -> str:
    counts = content["fates"]
    tried = sum(counts.values())
    words = {
        "invalid": "invalid",
        "duplicate": "duplicates of known programs",
        "stopped": "stopped early",
        "diverged": "diverged",
        "evaluated": "evaluated in full",
        "failed": "failed",
        "pending": "pending",
    }
    parts = [f"{counts[fate]:,} {word}" for fate, word in words.items() if counts.get(fate)]
    text = f"{tried:,} candidates tried in {clock(content['seconds'])}: {', '.join(parts)}."
    budget = content["budget"]
    if content["finished"] and budget and content["seconds"] >= 60 * budget["minutes"]:
        text += (
            f" Time was up, {budget['minutes']:g} minutes, before the {budget['candidates']:,} "
            "candidates of its budget."
        )
    for stage, what in content["dropped"].items():
        tasks = what if isinstance(what, int) else f"{content['tasks'][stage]}: {', '.join(what)}"
        text += f"\nDropped to meet the limit on the whole: {tasks}" + (
            " finalists." if isinstance(what, int) else "."
        )
    return text


def _next(content: Mapping[str, Any]) -> str:
    run, suite = quote(content["run"]), quote(content["suite"])
    commands = {
        f"l2o show {run} --id {content['best']['id']}": "how it came about",
        f"l2o export {run} --id best --out my_rule.py": "as torch.optim.Optimizer, one file",
        f"l2o evaluate {run} adamw lion --suite {suite}": "a fair comparison of any size",
        f"tensorboard --logdir {run}": "curves",
    }
    width = max(map(len, commands))
    return "\nNext:\n" + "\n".join(f"  {c:{width}}  {what}" for c, what in commands.items())
