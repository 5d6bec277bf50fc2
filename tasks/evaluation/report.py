"""The report of an evaluation: who won, how sure that is, and how it came about."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.display.page import Page, Part, Program, Section, Table, Tiles
from tasks.display.page import table as rows_of
from tasks.evaluation import figures, metric_tables, statistics
from tasks.evaluation.bench import TIMED
from tasks.evaluation.evaluate import measured as measured_in
from tasks.evaluation.evaluate import reference as compared_with
from tasks.evaluation.intervals import LEAST, Interval
from tasks.evaluation.plan import TUNING_SEED
from tasks.evaluation.results import Results
from tasks.evaluation.sensitivity import NEAR
from tasks.evaluation.statistics import Measured, Standing
from tasks.evaluation.wording import (
    OF_SETTINGS,
    change,
    distance,
    factor,
    interval,
    none_of,
    portion,
    times,
    too_few,
)

SPLITS = ("train", "validation", "test")


def page(results: Results, remade_by: str) -> Page:
    """The report of the last plan in ``results``; of its finished tasks if it still goes on."""
    facts, measured = results.facts(), measured_in(results)
    reference = compared_with(results, measured)
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
            *_failed(facts.get("failed", {})),
            Section("How fast", _speed(measured, table, names, reference)),
            Section("Learning curves", _curves(measured, names)),
            Section("Tuning", _tuning(measured, table, names)),
            *_transfer(results, measured, names),
            Section("Task by task", [_tasks(measured), *_metrics(results, measured)]),
            Section("What was compared", _facts(results, measured, facts)),
        ),
    )


def joined(files: Mapping[str, Results], remade_by: str) -> Page:
    """One table of several results files, a row for each rule of each; each has its own plan."""
    rows = []
    for name, results in files.items():
        facts, measured = results.facts(), measured_in(results)
        reference = compared_with(results, measured)
        for s in statistics.standings(measured, reference):
            known = s.verdict != "reference"
            gaps = (change(s.gap), interval(s.gap_tasks)) if known else ("–", "–")
            size = f"{len(measured.tasks)} / {len(measured.seeds)} / {len(measured.settings)}"
            plan = (facts["plan"]["suite"], size, reference)
            rows.append((name, s.rule, str(s.rank), s.verdict, *gaps, *plan))
    head = ("results", "rule", "rank", "verdict", "final loss", "interval, seeds and tasks")
    note = "Rows of one file share its tasks and seeds; those of two files may not be compared."
    table = Table((*head, "suite", "tasks / seeds / trials", "against"), rows)
    lead = f"{len(files)} evaluations, each against its own tuned reference."
    return Page(f"{len(files)} evaluations", lead, [Section("Rankings", [table, note])], remade_by)


def _sentence(table: Sequence[Standing], reference: str) -> str:
    best = [s.rule for s in table if s.rank == 1]
    better = [s for s in table if s.verdict == "better"]
    if not better:
        return f"No rule is found to be better than tuned {reference}."
    first = better[0]
    if not math.isfinite(first.gap.mean):
        return f"{first.rule} is better than tuned {reference}, too many of whose runs diverged."
    tied = [rule for rule in best if rule != first.rule]
    lost = round(first.diverged.mean * first.diverged.n)
    return (
        f"{first.rule} ends {distance(first.gap.mean)} tuned {reference} (n = {first.gap.n} runs; "
        f"95 % interval over seeds {interval(first.gap, ' %')})"
        f"{'; it ties with ' + ', '.join(tied) if tied else ''}."
        f"{f' {lost} of its {first.diverged.n} fresh runs diverged.' if lost else ''}"
    )


# --------------------------------------------------------------------------------------- ranking


def _failed(failed: dict[str, str]) -> list[Section]:
    rows = list(failed.items())
    return [Section("Left out", [Table(("rule", "why"), rows)])] if rows else []


def _ranking(
    measured: Measured, table: Sequence[Standing], names: dict[str, str], reference: str
) -> list[Part]:
    tasks, seeds, trials = len(measured.tasks), len(measured.seeds), measured.trials.shape[2]
    tiles = [(str(tasks), "tasks"), (str(seeds), "fresh seeds"), (str(trials), "trials a rule")]
    columns = (
        "rank",
        "rule",
        "schedule",
        "verdict",
        "q",
        "final loss",
        "interval, seeds and tasks",
        "test loss",
        "over the run",
    )
    rows = [
        (
            str(s.rank),
            s.rule,
            measured.schedules[measured.rules.index(s.rule)],
            s.verdict,
            "" if s.verdict == "reference" else f"{s.q:.2g}",
            *(
                "–" if s.verdict == "reference" else said
                for said in (change(s.gap), interval(s.gap_tasks), change(s.test), change(s.area))
            ),
        )
        for s in table
    ]
    pairs = tasks * seeds
    return [
        Tiles(tiles),
        Table(columns, rows),
        f"Against tuned {reference}, paired by task and seed: interquartile mean of n = {pairs} "
        "log ratios, in brackets its 95 % bootstrap interval over seeds: would other seeds tell "
        "the same on these tasks? The one over seeds and tasks asks whether other tasks would, and "
        "is too narrow where tasks are few (of four it holds the truth 87 times of 100). "
        "Over the run: the mean log validation loss along the learning curve. Rules tie unless a "
        "paired Wilcoxon test tells them apart, false discoveries over all pairs of rules "
        "controlled at 5 % (q); the rank is one more than the number of rules that are better."
        f" {OF_SETTINGS}" + too_few(pairs),
        figures.ranking(measured, table, names, reference),
    ]


# ----------------------------------------------------------------------------------------- speed


def _speed(
    measured: Measured, table: Sequence[Standing], names: dict[str, str], reference: str
) -> list[Part]:
    head = ("rule", "AlgoPerf score", "fewer steps", "less time", "time a step")
    rows = [
        (
            s.rule,
            portion(s.profile),
            times([x.faster.mean for x in s.reached]),
            times([x.quicker for x in s.reached]),
            factor(s.seconds),
        )
        for s in table
    ]
    tasks, seeds = len(measured.tasks), len(measured.seeds)
    return [
        Table(head, rows),
        f"How fast a rule gets to the final loss of tuned {reference}. The AlgoPerf score is the "
        f"mean height of the profile below, with its 95 % interval over n = {seeds} seeds; "
        f"{reference} gets there by construction, a rule just as good on about half of the tasks. "
        f"Steps and time: how many times fewer than {reference} needs, median of {tasks} tasks; "
        f"time a step is relative to {reference}, geometric mean, 95 % interval over tasks "
        f"(of {LEAST} at least), "
        f"measured on {TIMED} models side by side (rules of torch.optim run one model at a time).",
        figures.profile(measured, names, reference),
        Table(
            ("task", "rule", "target", "steps", "fewer steps", "time", "less time"),
            _targets(measured, table, reference),
        ),
        f"Steps and seconds of one model to the target, with the 95 % interval over {seeds} seeds; "
        "never: not within the steps of the task.",
    ]


def _targets(
    measured: Measured, table: Sequence[Standing], reference: str
) -> list[tuple[str, ...]]:
    goals = statistics.targets(measured, measured.rules.index(reference))
    return [
        (
            task if k == 0 else "",
            s.rule,
            f"{goals[t]:.4g}" if k == 0 else "",
            _steps(s.reached[t].steps),
            factor(s.reached[t].faster),
            _seconds(s.reached[t].seconds),
            times([s.reached[t].quicker]),
        )
        for t, task in enumerate(measured.tasks)
        for k, s in enumerate(table)
    ]


def _steps(x: Interval) -> str:
    if not math.isfinite(x.mean):
        return "never"
    ends = [f"{end:,.0f}" if math.isfinite(end) else "never" for end in (x.low, x.high)]
    return f"{x.mean:,.0f} ({' to '.join(ends) if x.low > 0 else none_of(x)})"


def _seconds(x: float) -> str:
    if not math.isfinite(x):
        return "never"
    return f"{1000 * x:.3g} ms" if x < 1 else f"{x:.3g} s"


# ---------------------------------------------------------------------------------------- curves


def _curves(measured: Measured, names: dict[str, str]) -> list[Part]:
    return [figures.curve(measured, t, names) for t in range(len(measured.tasks))]


# ---------------------------------------------------------------------------------------- tuning


def _tuning(measured: Measured, table: Sequence[Standing], names: dict[str, str]) -> list[Part]:
    trials, tasks = measured.trials.shape[2], len(measured.tasks)
    fewer = sorted({max(1, trials // 4), max(1, trials // 2)})
    rows = [
        (
            s.rule,
            *(change(s.tuning.budget[k - 1]) for k in fewer),
            change(s.tuning.near),
            portion(s.tuning.good),
            portion(s.tuning.diverged),
            portion(s.diverged),
        )
        for s in table
    ]
    head = (
        "rule",
        *(f"with {k} trial{'s' if k > 1 else ''}" for k in fewer),
        "near the best rate",
        "good trials",
        "trials diverged",
        "fresh runs diverged",
    )
    return [
        Table(head, rows),
        f"What a smaller budget costs: the expected loss of the best of so many of the {trials} "
        f"trials, against the best of all, on the tuning seed ({TUNING_SEED}). Near the best rate: "
        f"the mean loss, against the best, of the trials whose learning rate is within a factor of "
        f"{NEAR:g} of the best one's (–: there is none). Good trials end within 10 % of the rule's "
        f"best. Means of n = {tasks} tasks with their 95 % intervals over tasks (of {LEAST} at "
        "least); shares "
        f"that diverged (of {trials * tasks} trials, of {tasks * len(measured.seeds)} fresh runs) "
        "with exact binomial ones.",
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
            lr, decay = measured.best(r, t)
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


def _metrics(results: Results, measured: Measured) -> list[Part]:
    rows = metric_tables.lines(metric_tables.found(results, measured))
    return [Table(metric_tables.HEAD, rows), metric_tables.CAPTION] if rows else []


def _number(x: float) -> str:
    return f"{x:.4g}" if math.isfinite(x) else "diverged"


def _facts(results: Results, measured: Measured, facts: dict[str, Any]) -> list[Part]:
    cards, sources = results.tasks(), results.rules()
    tasks = [
        (
            task,
            cards[task][1]["data"],
            " / ".join(f"{cards[task][1]['examples'][split]:,}" for split in SPLITS),
            f"{cards[task][1]['parameters']:,}",
            str(cards[task][1]["batch_size"]),
            f"{cards[task][1]['steps']:,}",
            f"{cards[task][1]['flops_a_step']:,}",
        )
        for task in measured.tasks
    ]
    head = ("task", "data", "train / validation / test", "parameters", "batch", "steps", "flops")
    rules = [(rule, Program(sources[rule][1], "show")) for rule in measured.rules]
    return [
        Table(head, tasks),
        "flops: of one gradient over a minibatch, matrix products and convolutions.",
        Table(("rule", "source"), rules),
        f"Every rule was tuned with {measured.trials.shape[2]} settings of learning rate and "
        "weight decay (a Halton sequence: one for all rules that are written down, one around a "
        "learning rate of 1 for what was meta-trained) on seed 0, with the schedule that the "
        "ranking names, "
        f"and measured on the seeds {measured.seeds[0]} to {measured.seeds[-1]}. Made by:",
        Program(shlex.join(facts.get("command", []))),
        rows_of(facts.get("environments", [])),
    ]
