"""From a program that search wrote to one that a person would: the chain, and its report.

First what is exact (``algebra``): dead statements, algebra, linear recurrences, learning rate and
weight decay. Then what tasks cannot tell (``ablate``): statements first, then digits of constants.
Whatever an ablation leaves is simplified exactly again. Each step says why it is right: how it
was checked, or what it costs with its interval.

A long program has many steps, each to be checked by running it, so the chain has a clock: when it
strikes, the chain ends with the best so far, and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from search.behaviour.kind import classify
from search.fitness.verdict import as_data
from search.language.program import Program
from search.language.validity import check
from search.simplify import ablate, algebra
from search.simplify.ablate import Ablation, Effect
from search.simplify.agreement import Setting
from search.simplify.clock import Clock, OutOfTime
from tasks.evaluation.intervals import Interval

Reason = Literal["exact", "empirical"]


class Step(NamedTuple):
    """What was done, why that is right, and what it led to."""

    what: str
    reason: Reason
    evidence: str
    after: Setting
    cost: Interval | None = None  # of an empirical step


@dataclass(frozen=True)
class Report:
    """A chain of steps. ``kept``: edits that were measured last and change the rule;
    ``stopped``: the seconds after which the chain was cut short, None if it came to its end."""

    start: Program
    steps: list[Step] = field(default_factory=list)
    kept: list[Effect] = field(default_factory=list)
    stopped: float | None = None

    @property
    def end(self) -> Setting:
        return self.steps[-1].after if self.steps else Setting(self.start)


def simplify(
    program: Program,
    settings: Ablation | None = None,
    tell: Callable[[Step], None] | None = None,
    seconds: float = math.inf,
) -> Report:
    """The shortest program found within ``seconds``; exact steps only if ``settings`` is None.

    ``tell`` hears of each step when it is taken. Raises ProgramError for a program that is no
    rule, ValueError where it diverges on a task at every learning rate, or for ``seconds`` of 0.
    """
    check(program)
    clock, steps, kept = Clock(seconds), list[Step](), list[Effect]()
    with suppress(OutOfTime):
        for step in _chain(program, settings, kept, clock):
            steps.append(step)
            if tell is not None:
                tell(step)
    return Report(program, steps, kept, seconds if clock.struck else None)


def _chain(
    program: Program, settings: Ablation | None, kept: list[Effect], clock: Clock
) -> Iterator[Step]:
    now = Setting(program)
    for step in _exact(now, clock):
        now = step.after
        yield step
    if settings is None or clock.struck:
        return
    start = now
    for edits in (ablate.skips, ablate.roundings):
        while True:
            changed = edits(now.program, clock)
            effects = ablate.measure(changed, start, settings, now.weight_decay, clock)
            if not effects or not effects[0].harmless:
                break
            for step in _empirical(now, effects[0], settings, clock):
                now = step.after
                yield step
        kept += effects


def _exact(now: Setting, clock: Clock) -> Iterator[Step]:
    for rule, after, agreement in algebra.simplify(now, clock):
        yield Step(rule, "exact", str(agreement), after)


def _empirical(now: Setting, effect: Effect, settings: Ablation, clock: Clock) -> Iterator[Step]:
    """The edit, and what becomes possible by it."""
    (what, program), cost, _ = effect
    after = Setting(program, now.lr, now.weight_decay)
    evidence = f"log loss ratio {cost}, {cost.n} fresh seeds of {settings.suite}"
    yield Step(what, "empirical", evidence, after, cost)
    yield from _exact(after, clock)


# The report ---------------------------------------------------------------------------------------


def to_text(report: Report) -> str:
    """For people."""
    lines = [f"{_size(report.start)}: {classify(report.start)}", ""]
    for number, step in enumerate(report.steps, 1):
        lines.append(f"{number:3}. {step.what}")
        lines.append(f"     {step.reason}: {step.evidence}; {_size(step.after.program)}")
    end = report.end
    if report.stopped is not None:
        lines.append(
            f"     stopped after {report.stopped:g} s: the best so far; a longer --seconds may "
            "find a shorter one"
        )
    lines += ["", f"{_size(end.program)}: {classify(end.program)}"]
    if end.lr != 1:
        lines.append(f"at {end.lr:.6g} times the learning rate")
    if end.weight_decay:
        lines.append(f"with weight decay {end.weight_decay:.6g}")
    lines += ["", str(end.program)]
    if report.kept:
        lines.append("Not done, for these change the losses:")
        lines += [f"  {effect.cost}  {effect.edit.what}" for effect in report.kept]
    return "\n".join(lines)


def _size(program: Program) -> str:
    length, states = program.length, len(program.states)
    return f"{length} statement{'s' * (length != 1)}, {states} state{'s' * (states != 1)}"


def to_json(report: Report) -> dict[str, Any]:
    """The same as data."""

    def setting(of: Setting) -> dict[str, Any]:
        return {"program": str(of.program), "lr": of.lr, "weight_decay": of.weight_decay}

    def interval(cost: Interval | None) -> dict[str, Any] | None:
        return None if cost is None else as_data(cost)

    return {
        "start": setting(Setting(report.start)),
        "steps": [
            {
                "what": step.what,
                "reason": step.reason,
                "evidence": step.evidence,
                "cost": interval(step.cost),
                **setting(step.after),
            }
            for step in report.steps
        ],
        "end": {**setting(report.end), "kind": str(classify(report.end.program))},
        "stopped": report.stopped,
        "kept": [{"what": e.edit.what, "cost": interval(e.cost)} for e in report.kept],
    }
