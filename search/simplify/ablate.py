"""Empirical simplification: leave out what makes no difference on tasks.

An *edit* skips one statement (its readers read one of its arguments instead) or rounds one
constant. All edits of a program are measured side by side with the program that the whole
ablation started from, so that small losses cannot add up: each is tuned on the same learning
rates and then run on the same fresh seeds (``tasks.evaluation.tuning``). The edit that leaves
the shortest program is taken among those that, with 95 % confidence, change the loss by less than a
stated tolerance, for worse *or for better*: a rule that does better without its momentum on some
short task is another rule, and finding those is the business of a search.

Decays are rounded by what they lack to 1: 0.99822 is 0.998 with one digit, and never 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from search.interpreter.population import Population
from search.language.flow import flow, to_program
from search.language.functions import ProgramError
from search.language.program import Program
from search.simplify.agreement import Setting
from search.simplify.clock import Clock
from tasks.checks import meant
from tasks.evaluation import intervals, tuning
from tasks.evaluation.intervals import Interval, floored
from tasks.inner.schedules import SCHEDULES
from tasks.runs.environment import prepare
from tasks.suites import LONGEST, resolve
from tasks.types import Task

AT_ONCE = 64
"""Programs that are tuned side by side, at most: more would keep the clock waiting."""


@dataclass(frozen=True)
class Ablation:
    """How edits are measured.

    Attributes:
        suite: the tasks: a suite, a family, mlp(width=64), or an import path
        tolerance: mean log loss ratio by which an edit may change the loss
        allow_better: take edits that change the loss by more, if they lower it
        trials: learning rates tried for each program on each task
        seeds: fresh seeds each program is measured on
        tuning_seeds: seeds that learning rates are chosen on
        length: multiplies the steps of the tasks
        schedule: of the learning rate
    """

    suite: str = "proxy"
    tolerance: float = 0.01
    allow_better: bool = False
    trials: int = 12
    seeds: int = 16
    tuning_seeds: int = 3
    length: float = 1.0
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("trials", "seeds", "tuning_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance: got {self.tolerance}, expected at least 0")
        if not 0 < self.length <= LONGEST:
            raise ValueError(f"length: got {self.length}, expected above 0, at most {LONGEST:,}")
        if self.schedule not in SCHEDULES:
            likely = meant(self.schedule, SCHEDULES)
            raise ValueError(
                f"schedule: got {self.schedule!r}, expected one of {[*SCHEDULES]}{likely}"
            )


class Edit(NamedTuple):
    """A change in words, and the program that it leads to."""

    what: str
    program: Program


class Effect(NamedTuple):
    """An edit and its cost: mean log loss ratio to the program that ablation started from."""

    edit: Edit
    cost: Interval
    harmless: bool


def measure(
    edits: Sequence[Edit],
    start: Setting,
    settings: Ablation,
    weight_decay: float = 0.0,
    clock: Clock | None = None,
) -> list[Effect]:
    """The effects of all edits, the best to take first: harmless, short, of little effect.

    ``weight_decay``: what edited programs run with, as ``start`` does with its own. Raises
    ValueError where ``start`` diverges on a task at every learning rate, OutOfTime when the
    ``clock`` strikes.
    """
    if not edits:
        return []
    rules = [Setting(edit.program, weight_decay=weight_decay) for edit in edits]
    low = -np.inf if settings.allow_better else -settings.tolerance
    effects = [
        Effect(edit, cost, low <= cost.low and cost.high <= settings.tolerance)
        for edit, cost in zip(edits, compare(rules, start, settings, clock), strict=True)
    ]
    return sorted(
        effects, key=lambda e: (not e.harmless, brevity(e.edit.program), abs(e.cost.mean))
    )


def compare(
    rules: Sequence[Setting], reference: Setting, settings: Ablation, clock: Clock | None = None
) -> list[Interval]:
    """The cost of each rule against ``reference``, paired by seed; learning rates are tuned."""
    prepare("cpu")
    everything, clock = [reference, *rules], clock or Clock()
    columns = []
    for entry in resolve(settings.suite):
        steps = max(1, round(entry.steps * settings.length))
        columns.append(_losses(everything, entry.task, steps, settings, clock))
    tables = np.stack(columns, axis=1)  # [rules, tasks, seeds]
    return [intervals.compare(table, tables[0]) for table in tables[1:]]


def _losses(
    rules: Sequence[Setting], task: Task, steps: int, settings: Ablation, clock: Clock
) -> np.ndarray:
    """``[rules, seeds]``. Side by side run those of one weight decay, nearly always all, so many
    that the clock is looked at often enough."""
    found = np.empty((len(rules), settings.seeds), np.float32)
    for decay in dict.fromkeys(rule.weight_decay for rule in rules):
        places = [k for k, rule in enumerate(rules) if rule.weight_decay == decay]
        for first in range(0, len(places), AT_ONCE):
            some = places[first : first + AT_ONCE]
            programs = [rules[k].program for k in some]
            found[some] = _tuned(programs, decay, task, steps, settings, clock)
    if not np.isfinite(found[0]).all():
        raise ValueError(f"ablation: the program diverges on {task.name}, before any edit")
    return found


def _tuned(
    programs: list[Program], decay: float, task: Task, steps: int, settings: Ablation, clock: Clock
) -> np.ndarray:
    """``[programs, seeds]`` losses at the learning rate that suits each best."""
    schedule, make = SCHEDULES[settings.schedule], partial(Population.of, programs)
    grid = [s._replace(weight_decay=decay) for s in tuning.grid(settings.trials)]
    tuned = []
    for seed in range(settings.tuning_seeds):
        clock.check()
        tuned.append(tuning.tune(task, make, len(programs), steps, grid, seed, schedule))
    clock.check()
    chosen = tuning.choose(floored(torch.stack(tuned)).log().mean(dim=0), grid)
    seeds = tuning.FRESH_SEEDS[: settings.seeds]
    return tuning.measure(task, make, chosen, steps, seeds, schedule=schedule).numpy()


# Edits ------------------------------------------------------------------------------------------


def brevity(program: Program) -> tuple[int, int, int]:
    """Statements, states, characters of all constants."""
    constants = [a for s in program.statements for a in s.args if isinstance(a, float)]
    return program.length, len(program.states), sum(len(repr(a)) for a in constants)


def skips(program: Program, clock: Clock | None = None) -> list[Edit]:
    """Valid programs with one statement, and what only it needs, left out. Raises OutOfTime when
    the ``clock`` strikes."""
    values, clock = flow(program), clock or Clock()
    found: dict[str, Edit] = {}
    for row, (_, args) in enumerate(values.rows):
        clock.check()
        alike = [arg for arg in dict.fromkeys(args) if values.kind(arg) == values.kinds[row]]
        for arg in alike:
            try:
                shorter = to_program(values.instead(row, arg))
            except ProgramError:
                continue
            what = f"without {program.statements[row]}"
            if len(alike) > 1:
                what += f", {program.statements[row].args[args.index(arg)]} in its place"
            # A state that is no longer written would be zero for ever.
            written = {statement.target for statement in shorter.statements}
            if shorter.length < program.length and written.issuperset(shorter.states):
                found.setdefault(str(shorter), Edit(what, shorter))
    return list(found.values())


def roundings(program: Program, clock: Clock | None = None) -> list[Edit]:
    """The program with one constant written shorter. Raises OutOfTime as ``skips`` does."""
    found, clock = dict[str, Edit](), clock or Clock()
    for place, statement in enumerate(program.statements):
        clock.check()
        for position, arg in enumerate(statement.args):
            for value in _rounded(arg) if isinstance(arg, float) else ():
                args = (*statement.args[:position], value, *statement.args[position + 1 :])
                after = replace(statement, args=args)
                rest = program.statements
                changed = replace(program, statements=(*rest[:place], after, *rest[place + 1 :]))
                what = f"{arg!r} rounded to {value!r} in {statement}"
                if brevity(changed) < brevity(program):
                    found.setdefault(str(changed), Edit(what, changed))
    return list(found.values())


def _rounded(constant: float) -> Iterator[float]:
    """To one, two and three digits."""
    for digits in (1, 2, 3):
        if 0.5 < constant < 1:
            yield float(f"{1 - float(f'{1 - constant:.{digits}g}'):.12g}")
        else:
            yield float(f"{constant:.{digits}g}")
