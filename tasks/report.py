"""The report of an evaluation: who won, how sure that is, and how it came about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks import figures, statistics
from tasks.evaluation import measured as measured_in
from tasks.page import Page, Part, Program, Section, Table, Tiles
from tasks.results import Results
from tasks.scoring import Interval
from tasks.statistics import Measured, Standing
from tasks.wording import distance, interval, per_cent, times


def page(results: Results, remade_by: str) -> Page:
    """The report of the last plan in ``results``; of its finished tasks if it still goes on."""
    facts, measured = results.facts(), measured_in(results)
    reference = facts.get("reference", measured.rules[0])
    table = statistics.standings(measured, reference)
    names = figures.short(measured.rules)
    left = len(facts["plan"]["tasks"]) - len(measured.tasks)
    lead = f"{_sentence(table, reference)} {f'{left} tasks are not finished yet.' if left else ''}"
    return Page(
        title=f"Update rules on {facts['plan']['suite']}",
        lead=lead.strip(),
        remade_by=remade_by,
        sections=(
            Section("Ranking", _ranking(measured, table, names, reference)),
            Section("How fast", _speed(measured, table, names, reference)),
            Section("Learning curves", _curves(measured, names)),
            Section("Tuning", _tuning(measured, table, names)),
            *_transfer(results, measured, names),
            Section("Task by task", [_tasks(measured)]),
            Section("What was compared", _facts(results, measured, facts)),
        ),
    )


def _sentence(table: Sequence[Standing], reference: str) -> str:
    best = [s.rule for s in table if s.rank == 1]
    better = [s for s in table if s.verdict == "better"]
    if not better:
        return f"No rule beats tuned {reference}: every difference in its favour is inside noise."
    first = better[0]
    tied = [rule for rule in best if rule != first.rule]
    return (
        f"{first.rule} ends {distance(first.gap.mean)} tuned {reference} (95 % interval over seeds "
        f"{interval(first.gap)} %){'; it ties with ' + ', '.join(tied) if tied else ''}."
    )


# --------------------------------------------------------------------------------------- ranking


def _ranking(
    measured: Measured, table: Sequence[Standing], names: dict[str, str], reference: str
) -> list[Part]:
    tasks, seeds, trials = len(measured.tasks), len(measured.seeds), len(measured.settings)
    tiles = [(str(tasks), "tasks"), (str(seeds), "fresh seeds"), (str(trials), "trials a rule")]
    columns = (
        "rank",
        "rule",
        "loss",
        "interval, seeds",
        "verdict",
        "q",
        "interval, seeds and tasks",
        "test loss",
        "over the run",
    )
    rows = [
        (
            str(s.rank),
            s.rule,
            per_cent(s.gap.mean),
            interval(s.gap),
            s.verdict,
            "" if s.verdict == "reference" else f"{s.q:.2g}",
            interval(s.gap_tasks),
            per_cent(s.test.mean),
            per_cent(s.area.mean),
        )
        for s in table
    ]
    return [
        Tiles(tiles),
        Table(columns, rows),
        f"Final loss against tuned {reference}, paired by task and seed: interquartile mean of "
        f"n = {tasks * seeds} log ratios with its 95 % bootstrap interval. The interval over seeds "
        "asks whether other seeds would tell the same on these tasks; the one over seeds and "
        "tasks, whether other tasks would. Rules tie unless a paired Wilcoxon test tells them "
        "apart, false discoveries over all pairs controlled at 5 %; the rank is one more than the "
        "number of rules that are better.",
        figures.ranking(measured, table, names, reference),
    ]


# ----------------------------------------------------------------------------------------- speed


def _speed(
    measured: Measured, table: Sequence[Standing], names: dict[str, str], reference: str
) -> list[Part]:
    head = ("rule", *measured.tasks, "median", "time a step")
    rows = [
        (
            s.rule,
            *(_factor(x) for x in s.speed_ups),
            times([x.mean for x in s.speed_ups]),
            f"{s.seconds:.2f}x",
        )
        for s in table
    ]
    return [
        Table(head, rows),
        f"How many times fewer steps than {reference} needs to reach its own final loss, with the "
        f"95 % interval over {len(measured.seeds)} seeds. Time a step is relative to {reference}, "
        "measured over the batch of trials; rules of torch.optim run one model at a time.",
        figures.profile(measured, names, reference),
    ]


def _factor(x: Interval) -> str:
    if not x.mean > 0:
        return "never"
    return f"{x.mean:.2f}x" + (f" ({x.low:.2f}–{x.high:.2f})" if math.isfinite(x.low) else "")


# ---------------------------------------------------------------------------------------- curves


def _curves(measured: Measured, names: dict[str, str]) -> list[Part]:
    return [figures.curve(measured, t, names) for t in range(len(measured.tasks))]


# ---------------------------------------------------------------------------------------- tuning


def _tuning(measured: Measured, table: Sequence[Standing], names: dict[str, str]) -> list[Part]:
    trials = len(measured.settings)
    rows = [
        (
            s.rule,
            per_cent(s.tuning.budget[max(1, trials // 4) - 1]),
            per_cent(s.tuning.budget[max(1, trials // 2) - 1]),
            f"{100 * s.tuning.good:.0f} %",
            f"{100 * s.tuning.diverged:.0f} %",
            f"{100 * s.diverged:.0f} %",
        )
        for s in table
    ]
    quarter, half = max(1, trials // 4), max(1, trials // 2)
    head = (
        "rule",
        f"with {quarter} trials",
        f"with {half} trials",
        "good trials",
        "trials diverged",
        "fresh runs diverged",
    )
    return [
        Table(head, rows),
        f"What a smaller budget costs: the expected loss of the best of so many of the {trials} "
        "trials, against the best of all, on the tuning seed. Good trials end within 10 % of the "
        "rule's best.",
        figures.budget(measured, table, names),
        *(figures.sensitivity(measured, t, names) for t in range(len(measured.tasks))),
    ]


# -------------------------------------------------------------------------------------- transfer


def _transfer(results: Results, measured: Measured, names: dict[str, str]) -> list[Section]:
    """Where tasks differ in nothing but one size: does the best learning rate carry over?"""
    cards = [results.tasks()[task][1] for task in measured.tasks]
    found = []
    for size in ("width", "depth", "steps"):
        families: dict[str, list[int]] = {}
        for t, card in enumerate(cards):
            if size in card:
                ignored = {size, "parameters", "flops_a_step", "reference"}
                rest = {key: value for key, value in card.items() if key not in ignored}
                families.setdefault(repr(rest), []).append(t)
        for members in families.values():
            if len({cards[t][size] for t in members}) >= 2:
                found.append(figures.transfer(measured, cards, members, size, names))
    return [Section("Transfer", found)] if found else []


# ----------------------------------------------------------------------------------------- facts


def _tasks(measured: Measured) -> Table:
    rows = []
    for t, task in enumerate(measured.tasks):
        for r, rule in enumerate(measured.rules):
            losses = measured.final[r, t]
            lr, decay = measured.settings[measured.chosen[r, t]]
            rows.append(
                (
                    task if r == 0 else "",
                    rule,
                    _number(np.median(losses)),
                    f"{_number(losses.min())} to {_number(losses.max())}",
                    _number(np.median(measured.test[r, t])),
                    f"{lr:.2g}",
                    f"{decay:.2g}",
                    f"{1e6 * measured.seconds[r, t]:.0f} µs",
                )
            )
    seeds = len(measured.seeds)
    head = (
        "task",
        "rule",
        f"median of {seeds}",
        "range",
        "test",
        "learning rate",
        "weight decay",
        "a step",
    )
    return Table(head, rows)


def _number(x: float) -> str:
    return f"{x:.4g}" if math.isfinite(x) else "diverged"


def _facts(results: Results, measured: Measured, facts: dict[str, Any]) -> list[Part]:
    cards, sources = results.tasks(), results.rules()
    tasks = [
        (
            task,
            cards[task][1]["data"],
            " / ".join(f"{size:,}" for size in cards[task][1]["examples"].values()),
            f"{cards[task][1]['parameters']:,}",
            str(cards[task][1]["batch_size"]),
            f"{cards[task][1]['steps']:,}",
            f"{cards[task][1]['flops_a_step']:,}",
        )
        for task in measured.tasks
    ]
    head = ("task", "data", "train / validation / test", "parameters", "batch", "steps", "flops")
    rules = [(rule, Program(sources[rule][1], "show")) for rule in measured.rules]
    environment = [(k, str(v)) for k, v in facts.get("environment", {}).items() if v is not None]
    return [
        Table(head, tasks),
        "flops: of one gradient over a minibatch, matrix products and convolutions.",
        Table(("rule", "source"), rules),
        f"Every rule was tuned with the same {len(measured.settings)} settings of learning rate "
        f"and weight decay (a Halton sequence) on seed 0, {facts['plan']['schedule']} schedule, "
        f"and measured on the seeds {measured.seeds[0]} to {measured.seeds[-1]}. Made by:",
        Program(" ".join(facts.get("command", []))),
        Table(("environment", ""), environment),
    ]
