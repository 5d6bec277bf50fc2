"""Run a search again from its recorded configuration, and compare the archives row by row.

Two archives of one configuration hold the same rows, whatever the workers and interruptions
(``Archive.dump`` leaves the times out). A budget in minutes is the one thing that cannot be
repeated, so the second run gets the number of candidates that the first one came to. The machine
may matter: another processor may round otherwise, which is then what is found.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from search.record.archive import Archive, open_existing
from search.record.schema import CLOCK
from search.run import stages
from search.run.config import Budget, Config
from search.run.loop import fates
from search.run.timetable import DROPPED
from search.run.view import View
from tasks.executors.named import PROCESSES
from tasks.runs.environment import changes
from tasks.runs.files import resuming
from tasks.user_code.imports import Trusted, agreed

Row = tuple[Any, ...]
NO_LIMIT = 1e9
"""Minutes."""
SHOWN = 300
"""Characters of a row that differs."""


class Difference(NamedTuple):
    """The first rows that are not the same, each with its table first; None where one ended."""

    number: int
    before: Row | None
    after: Row | None


def reproduce(
    run_dir: Path, workers: int = 1, trusted: Trusted = False, where: str = PROCESSES
) -> int:
    """Repeat a finished search; see ``l2o.cli.runs.reproduce``.

    Raises ValueError for one that names code, unless that is ``trusted``.
    """
    if workers < 0:
        raise ValueError(f"--workers: got {workers}, expected at least 0")
    with open_existing(run_dir, readonly=True) as old, View() as view:
        facts = old.run()
        if "winner" not in facts:
            raise ValueError(f"{old.run_dir}: not finished; go on with: {resuming(old.run_dir)}")
        agreed(Config.from_dict(facts["config"]).imports(), trusted, run_dir)
        device = facts["config"]["funnel"].get("device", "cpu")
        for change in changes(facts.get("environment", {}), device):
            view.say(change)
        count, difference = again(old, workers, view, where)
        if difference is None:
            view.say(f"identical: {count:,} rows, times left out")
            return 0
        view.say(f"different from row {difference.number:,} on; the first {count:,} are identical")
        view.say(f"then: {_said(difference.before, difference.after)}")
        view.say(f"now:  {_said(difference.after, difference.before)}")
    return 1


def again(
    old: Archive, workers: int, view: View, where: str = PROCESSES
) -> tuple[int, Difference | None]:
    """Repeat ``old`` and compare: how many rows are the same, and the first that is not."""
    config = Config.from_dict(old.run()["config"])
    tried = sum(fates(old).values())
    if not tried:
        raise ValueError(f"{old.run_dir}: no candidate was tried, so there is nothing to compare")
    dropped = old.run().get(DROPPED, {})
    few = max(1, config.verdict.finalists - dropped.get("finalists", 0))
    config = replace(
        config,
        budget=Budget(candidates=tried, minutes=NO_LIMIT),
        verdict=replace(config.verdict, finalists=few),
    )
    with tempfile.TemporaryDirectory() as place, stages.begin(Path(place) / "run", config) as new:
        with new.transaction():
            new.set_run(DROPPED, dropped)
        stages.proceed(new, workers, view, where=where)
        return compare(old, new)


def compare(old: Archive, new: Archive) -> tuple[int, Difference | None]:
    """How many rows two archives share from the start on, and the first that differs."""
    number = 0
    for before, after in zip_longest(_rows(old), _rows(new)):
        if before != after:
            return number, Difference(number + 1, before, after)
        number += 1
    return number, None


def _rows(archive: Archive) -> Iterator[Row]:
    """What is compared: all rows, but neither the environment nor the budget, nor what older
    versions did not write down: new settings, at their defaults, when an island began, what is in
    TensorBoard."""
    for row in archive.dump():
        if row[0] == "snapshot":
            *rest, counters = row
            state = json.loads(counters)
            for island in state.get("islands", []):
                island.pop("since", None)
            yield *rest, state
        elif row[0] != "run":
            yield row
    facts = archive.run()
    for name in ("environment", stages.DRAWN, CLOCK, DROPPED):
        facts.pop(name, None)
    config = Config.from_dict(facts["config"])
    verdict = replace(config.verdict, finalists=1)  # how many there were is compared
    config = replace(config, budget=Budget(), verdict=verdict)
    facts["config"] = asdict(config)
    for name in sorted(facts):
        yield "run", name, facts[name]


def _said(row: Row | None, other: Row | None) -> str:
    """A row, a long one from shortly before the place where the ``other`` is different."""
    if row is None:
        return "no more rows"
    text = _text(row)
    pairs = zip(text, _text(other), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = max(0, same - SHOWN // 3) if len(text) > SHOWN else 0
    end = start + SHOWN
    return f"{row[0]}: {'… ' * (start > 0)}{text[start:end]}{' …' * (end < len(text))}"


def _text(row: Row | None) -> str:
    return ", ".join(str(value) for value in row[1:]) if row else ""
