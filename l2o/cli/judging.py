"""What ``l2o evaluate`` does and shows, once its arguments are read.

Beside the results lie a summary, ``.json``, and all fields as a configuration file, ``.yaml``, from
which the same evaluation can be made again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich import box
from rich.table import Table

from l2o.cli.entrants import called, entrants
from tasks.display.plain import Console
from tasks.evaluation import evaluate as evaluation
from tasks.evaluation import metric_tables, statistics
from tasks.evaluation.plan import Plan
from tasks.evaluation.results import Results
from tasks.evaluation.statistics import Measured, Standing
from tasks.evaluation.time_to_target import FACTORS
from tasks.evaluation.wording import OF_SETTINGS, change, times, too_few
from tasks.executors.named import cores, executor, known
from tasks.runs.environment import environment, prepare
from tasks.runs.files import save_text

KEPT = "configuration"
"""The fact that says which file of fields lies beside results."""


def judge(
    options: Any, kept: str, command: Sequence[str], console: Console, told: Callable[[str], object]
) -> int:
    """Run an evaluation, and show it; the exit status. ``kept``: the ``options`` as YAML."""
    asked = _asked(options.reference, options.rules)
    try:
        plan = Plan(*(getattr(options, name) for name in Plan.__dataclass_fields__))
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    known(where := options.executor)
    document, fields = _beside(options.out)
    prepare(options.device)
    rules = entrants(asked, options.trust)
    evaluation.check(plan, rules, options.device)
    torch.set_num_threads(_positive(options.threads))

    def say(line: str) -> None:
        console.print(line)
        told(line)

    workers = _workers(options.workers, plan, asked, options.device, options.threads)
    context = (plan, asked, options.device, options.threads)
    with Results(options.out) as results, executor(worker, context, workers, name=where) as jobs:
        facts = results.facts()
        before = facts.get("plan")
        if fields.exists() and KEPT not in facts:  # results of before there were such files
            raise ValueError(_taken("configuration", fields))
        made_in = environment(options.device)
        results.set_fact("command", [*command])
        results.set_fact("reference", rules[0].name)
        results.set_fact(KEPT, kept)
        save_text(fields, kept)
        try:
            evaluation.evaluate(plan, rules, results, options.device, say, made_in, jobs)
        except KeyboardInterrupt:
            console.print("stopped; what was finished is kept, and the same command goes on")
            return 130
        measured = evaluation.measured(results)
        failed, base = results.facts()["failed"], evaluation.reference(results, measured)
        table = statistics.standings(measured, base)
        save_text(document, json.dumps(summary(results, measured, table), indent=2) + "\n")
        rows = metric_tables.found(results, measured)
    console.print(ranking(table, measured, base, failed))
    if rows:
        console.print(metrics(metric_tables.lines(rows)))
    if before and (before["suite"] != plan.suite or not {*before["rules"]} <= {*measured.rules}):
        console.print(
            f"{options.out} has runs of {', '.join(before['rules'])} on {before['suite']}, too: "
            "they are kept, but its summary and reports are of what was asked for last"
        )
    console.print(f"wrote {options.out} and {document}; a report: l2o report {options.out}")
    console.print(f"the same again: l2o evaluate --config {fields}")
    return 0


def worker(context: tuple[Plan, Sequence[str], str, int]) -> Callable[[Any], Any]:
    """What a worker process does with a rule on a task. Rules are known to it by their words."""
    plan, words, device, threads = context
    torch.set_num_threads(threads)
    return evaluation.measurer(plan, entrants(words, trusted=None), device)


def _workers(given: int | None, plan: Plan, rules: Sequence[str], device: str, threads: int) -> int:
    """How many: no more than there is to do. What was defined in ``__main__``, such as a notebook,
    is not found by another process: ValueError where some were asked for."""
    own = next((name for name in (plan.suite, *rules) if "__main__:" in name), None)
    if own and given:
        raise ValueError(
            f"--workers: got {given}, which do not find {own}; expected 0, or one in a module"
        )
    if given is not None and given < 0:
        raise ValueError(f"--workers: got {given}, expected at least 0")
    if given is None:
        usual = cores() // threads
        given = 0 if own or device.startswith("cuda") or usual < 2 else usual
    return min(given, len(rules) * len(plan.entries))


def _asked(reference: str, words: Sequence[str]) -> list[str]:
    """All rules, first the one that others are compared with: a rule of its own, or by its name
    one of those to be judged."""
    first = {called(word): word for word in words}.get(reference, reference)
    return list(dict.fromkeys([first, *words]))


def _beside(out: Path) -> list[Path]:
    """Where the summary and the configuration go. Raises ValueError where one of them, or the
    results, cannot be."""
    if out.is_dir():
        raise ValueError(f"--out: got {out}, a directory; expected a file, new or not")
    places = {"summary": out.with_suffix(".json"), "configuration": out.with_suffix(".yaml")}
    for what, place in places.items():
        if place == out:
            raise ValueError(f"--out: {place} is where the {what} goes; choose another name")
        if place.exists() and not out.exists():
            raise ValueError(_taken(what, place))
    return [*places.values()]


def _taken(what: str, place: Path) -> str:
    return (
        f"--out: the {what} would go to {place}, which is there already, of something else; choose "
        "another name"
    )


def _positive(threads: int) -> int:
    if threads < 1:
        raise ValueError(f"--threads: got {threads}, expected at least 1")
    return threads


def ranking(
    table: Sequence[Standing],
    measured: Measured,
    reference: str,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    """What the terminal shows; ``failed``: rules that were left out, and why."""
    tasks, seeds, trials = len(measured.tasks), len(measured.seeds), measured.trials.shape[2]
    schedules = dict(zip(measured.rules, measured.schedules, strict=True))
    several = len({*schedules.values()}) > 1
    shown = Table(
        title=f"against {reference}: {tasks} tasks, {seeds} fresh seeds, {trials} trials each"
        f"{'' if several else f', {measured.schedules[0]} schedule'}",
        caption=f"Loss: final, on validation, interquartile mean of n = {tasks * seeds} runs with "
        "its 95 % bootstrap interval over seeds. Verdict: by the paired test, not by the "
        "interval; tie: it finds nothing (q >= 0.05). Rank: 1 + the rules that are better."
        f"{too_few(tasks * seeds)} {OF_SETTINGS} Speed: the steps that the reference takes to its "
        "final loss / those that the rule takes, median over tasks. Diverged: share of the trials, "
        "and of the fresh runs.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("rank", justify="right", no_wrap=True)
    shown.add_column("rule", overflow="fold", min_width=10)
    if several:
        shown.add_column("schedule", overflow="fold", min_width=8)
    shown.add_column("loss")
    shown.add_column("verdict", no_wrap=True)
    for name in ("q", "speed", "diverged"):
        shown.add_column(name, justify="right", no_wrap=True)
    for s in table:
        known = s.verdict != "reference"
        shown.add_row(
            str(s.rank),
            s.rule,
            *([schedules[s.rule]] if several else []),
            change(s.gap) if known else "–",
            s.verdict,
            f"{s.q:.2g}" if known else "",
            times([x.faster.mean for x in s.reached]),
            f"{100 * s.tuning.diverged.mean:.0f} %, {100 * s.diverged.mean:.0f} %",
        )
    for rule, why in failed.items():
        shown.add_row("–", rule, *([""] if several else []), why, "failed", "", "", "")
    return shown


def metrics(lines: Sequence[Sequence[str]]) -> Table:
    """What the tasks are measured in besides their losses."""
    shown = Table(caption=metric_tables.CAPTION, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in metric_tables.HEAD:
        shown.add_column(name, overflow="fold")
    for line in lines:
        shown.add_row(*line)
    return shown


def summary(results: Results, measured: Measured, table: Sequence[Standing]) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it; what is not finite is null."""
    facts = results.facts()
    reference = evaluation.reference(results, measured)
    base = measured.rules.index(reference)
    sources, cards = results.rules(), results.tasks()
    return _plain(
        {
            "plan": facts["plan"],
            "command": facts.get("command"),
            "environments": facts.get("environments", []),
            "reference": reference,
            "schedules": dict(zip(measured.rules, measured.schedules, strict=True)),
            "failed": facts.get("failed", {}),
            "rules": {name: sources[name][1] for name in measured.rules},
            "tasks": {name: cards[name][1] for name in measured.tasks},
            "seeds": list(measured.seeds),
            "standings": [_standing(s, measured.tasks) for s in table],
            "targets": dict(zip(measured.tasks, statistics.targets(measured, base), strict=True)),
            "profiles": {
                "times slower": FACTORS.tolist(),
                "share of tasks": dict(
                    zip(
                        measured.rules,
                        statistics.profiles(measured, reference).tolist(),
                        strict=True,
                    )
                ),
            },
            "metrics": [_named(row) for row in metric_tables.found(results, measured)],
            "losses": {
                rule: dict(zip(measured.tasks, measured.final[r].tolist(), strict=True))
                for r, rule in enumerate(measured.rules)
            },
            "chosen": {
                rule: {
                    task: dict(zip(("lr", "weight_decay"), measured.best(r, t), strict=True))
                    for t, task in enumerate(measured.tasks)
                }
                for r, rule in enumerate(measured.rules)
            },
        }
    )


def _standing(standing: Standing, tasks: Sequence[str]) -> dict[str, Any]:
    found = _named(standing)
    return found | {"reached": dict(zip(tasks, found["reached"], strict=True))}


def _named(value: Any) -> Any:
    """Named tuples, nested, as dictionaries."""
    if hasattr(value, "_asdict"):
        return {name: _named(part) for name, part in value._asdict().items()}
    return [_named(part) for part in value] if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
