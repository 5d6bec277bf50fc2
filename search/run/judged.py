"""What may be said of a winner, and which finalists are one rule.

*A discovery* is ahead of tuned AdamW, the whole 95 % interval below zero, on fresh seeds of the
tasks that it was searched on and on held-out tasks, judged with at least ``SEEDS`` seeds,
``TRIALS`` trials and ``TASKS`` held-out tasks. Both stages count: a rule that is better on tasks
that the search never saw, and not on its own, was not found by the search but met by chance. A
verdict with less says what it shows, and why that is not called a discovery.

Finalists are often one rule: with a statement that never matters on these tasks, or at another
scale, which the learning rate makes up for. Such rules are one row, or a table of eight rows
would show one find eight times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from search.behaviour.probe import respond
from search.behaviour.signature import GRADIENTS, LAYOUT, PARAMETERS, RATES, TIMES
from search.fitness.verdict import Standing, losses, standings
from search.language.program import Program, parse
from search.record.archive import Archive
from search.record.schema import Final
from search.run.config import BASELINES
from tasks.evaluation.intervals import LEAST, Interval
from tasks.evaluation.wording import change, count
from tasks.suites import SUITES

SEEDS, TRIALS, TASKS = 5, 8, 3
"""What the word asks for, at least."""
REFERENCE = BASELINES[0]
SAME = 1e-4
"""Two rules are one if their updates, scaled, differ by less everywhere."""
NOTHING = 1e-6
"""Log ratio of losses that is no difference."""


class Ruling(NamedTuple):
    """``discovery``: whether the word may be used; ``word``: a sentence that says so, and why;
    ``shown``: what a verdict on a user's suites says of each, theirs first; else empty."""

    discovery: bool
    word: str
    shown: str = ""

    @property
    def text(self) -> str:
        return f"{self.shown} {self.word}".strip()


def titles(facts: Mapping[str, Any]) -> dict[str, str]:
    """What the tasks of each stage are called; a user's suites by their names."""
    config = facts.get("config", {})
    own = str(config.get("funnel", {}).get("suite", "proxy"))
    verdict = config.get("verdict", {})
    held_out = str(verdict.get("held_out", "held_out"))
    larger = str(verdict.get("meta_validation", "meta_validation"))
    built_in = "" if own in SUITES else "the built-in "
    return {
        "proxy": "proxy tasks" if own in SUITES else f"the tasks of {own}",
        "held_out": f"{built_in}held-out tasks"
        if held_out in SUITES
        else f"the held-out tasks of {held_out}",
        "meta_validation": f"{built_in}larger tasks"
        if larger in SUITES
        else f"the tasks of {larger}",
    }


def own_suite(facts: Mapping[str, Any]) -> str:
    """The suite to judge a winner on next: a user's where there is one."""
    config = facts.get("config", {})
    names = (
        config.get("funnel", {}).get("suite", "proxy"),
        config.get("verdict", {}).get("held_out", "held_out"),
    )
    return next((str(name) for name in names if name not in SUITES), str(names[1]))


def ruling(archive: Archive) -> Ruling | None:
    """What may be said of the winner; None if there is none yet, or it met no held-out task."""
    facts, finals = archive.run(), archive.finals()
    gaps = {stage: gap(finals, stage, facts.get("winner")) for stage in ("proxy", "held_out")}
    held_out = gaps["held_out"]
    if held_out is None:
        dropped = facts.get("dropped", {}).get("held_out")
        why = f"Not judged on {titles(facts)['held_out']}: the limit on the whole left no time."
        return Ruling(False, why) if dropped and facts.get("winner") is not None else None
    called, users = titles(facts), own_suite(facts) != "held_out"
    said = [f"on {called[stage]} {_shown(gap)}" for stage, gap in gaps.items() if gap and users]
    shown = f"Against AdamW, fresh seeds: {'; '.join(said)}." if said else ""
    against = [
        why for stage in ("held_out", "proxy") if (why := _against(gaps[stage], called[stage]))
    ]
    if against:
        return Ruling(False, f"No discovery: {'; '.join(against)}.", shown)
    if lacking := _lacking(facts, finals):
        return Ruling(
            False,
            f"Ahead of AdamW on {called['held_out']}, the whole interval below zero, but not "
            f"called a discovery: that takes at least {', '.join(lacking)}.",
            shown,
        )
    ahead = "the whole interval against AdamW is below zero"
    return Ruling(True, f"A discovery: on {called['held_out']}, too, {ahead}.", shown)


def gap(finals: Sequence[Final], stage: str, winner: int | None) -> Interval | None:
    """The winner's log loss ratio to the reference; None where there is none."""
    for standing in standings(finals, stage, BASELINES):
        if standing.rule == str(winner):
            return standing.against.get(REFERENCE)
    return None


def _shown(gap: Interval) -> str:
    return change(gap) if np.isfinite(gap.mean) else "a run of it or of AdamW diverged"


def _against(gap: Interval | None, tasks: str) -> str | None:
    """Why a stage speaks against a discovery; None if it does not."""
    if gap is None:
        return f"it was not judged on {tasks}"
    if not np.isfinite(gap.mean):
        return f"on {tasks} a run of it or of AdamW diverged"
    if gap.low > 0:
        return f"on {tasks} the whole interval against AdamW is above zero"
    if gap.n < LEAST:
        return f"on {tasks} {count(gap.n, 'seed')} cannot have an interval"
    if not gap.high < 0:
        return f"on {tasks} the interval against AdamW does not exclude zero"
    return None


def _lacking(facts: Mapping[str, Any], finals: Sequence[Final]) -> list[str]:
    """What the verdict has too little of for the word."""
    held_out = [row for row in finals if row.stage == "held_out"]
    trials = facts.get("config", {}).get("verdict", {}).get("trials", 0)
    asked = (
        (SEEDS, "seeds", len({row.seed for row in held_out})),
        (TRIALS, "trials", trials),
        (TASKS, "held-out tasks", len({row.task for row in held_out})),
    )
    return [f"{least} {what} (here {n})" for least, what, n in asked if n < least]


# One rule, one row ------------------------------------------------------------------------------


class Row(NamedTuple):
    """A rule of a stage, and the finalists that are the same rule."""

    standing: Standing
    same: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        return self.standing.rule

    @property
    def against(self) -> dict[str, Interval]:
        return self.standing.against


def table(archive: Archive, stage: str) -> list[Row]:
    """The rules of a stage, the best first, each once."""
    finals = [row for row in archive.finals() if row.stage == stage]
    found = standings(finals, stage, BASELINES)
    rules = [standing.rule for standing in found if standing.rule not in BASELINES]
    texts = {rule: archive.record(int(rule)).text for rule in rules}
    firsts = one_rule({rule: parse(text) for rule, text in texts.items() if text}, losses(finals))
    return [
        Row(standing, tuple(rule for rule in rules if firsts.get(rule) == standing.rule != rule))
        for standing in found
        if firsts.get(standing.rule, standing.rule) == standing.rule
    ]


def one_rule(programs: Mapping[str, Program], measured: Mapping[str, np.ndarray]) -> dict[str, str]:
    """For each program the first one that is the same rule, which may be itself.

    ``measured``: losses ``[tasks, seeds]`` of each. Rules are one if their losses do not differ
    anywhere, or if their updates are the same up to a factor.
    """
    updates = {name: _scaled(program) for name, program in programs.items()}

    def one(first: str, name: str) -> bool:
        alike = _equal(measured[first], measured[name]) or _same(updates[first], updates[name])
        return alike and programs[first].form == programs[name].form

    firsts: dict[str, str] = {}
    for name in programs:
        firsts[name] = next((f for f in dict.fromkeys(firsts.values()) if one(f, name)), name)
    return firsts


def _scaled(program: Program) -> np.ndarray:
    """Updates on made-up gradients, the size of the typical one 1."""
    rates = torch.tensor(RATES, dtype=torch.float64, device="cpu")
    updates = respond([program], GRADIENTS, PARAMETERS, rates, layout=LAYOUT, times=TIMES)
    values = updates[0, :, 0].numpy()
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return values / np.median(sizes) if sizes.size else values


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        size = np.maximum(np.maximum(np.abs(one), np.abs(other)), 1.0)
        close = (np.abs(one - other) <= SAME * size) | (np.isnan(one) & np.isnan(other))
    return bool((close | (one == other)).all())


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Losses of two rules that do not differ anywhere; what diverged says nothing."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return False
    return bool(np.allclose(one, other, rtol=NOTHING, atol=0))
