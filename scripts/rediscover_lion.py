"""How often, and how soon, does a search find what the Lion paper found?

    python scripts/rediscover_lion.py sign --seeds 10
    python scripts/rediscover_lion.py lion --seeds 5

runs, one seed after another on all cores, the search from AdamW (without bias correction, as in
the Lion paper) and its two ablations with the same budget: random programs, and constants alone.
There are two goals, ``GOALS``. A seed has reached its goal when a candidate (1) is of the kind
that is looked for, by experiment and not by its text (``search.kind``), (2) scores better on the
proxies than AdamW, tuned, and (3) is ahead of it on held-out tasks, tuned alike, the 95 % interval
over fresh seeds excluding zero; the Lion form must also be as good as Lion there. The search goes
on while a candidate is judged. Seeds that never get there count as such. AdamW, Lion and momentum
are tuned and measured on the held-out tasks once, by the first seed that needs them.

Everything lands in ``--out``: a run directory and a JSON file a seed, ``baselines.json``,
``table.md``, ``time.png`` and ``curves.png``; what is there already is not run again, and what was
stopped goes on.

On short proxies a rule that divides by a short average of squares wins, by a little, over any
sign. A search that drops whatever falls 0.1 behind its median therefore drops the signs before
their decay is tuned; ``SLACK`` lets them be measured to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from rediscover_table import curves, endings, figure, finds, table
from rich.console import Console

from search.analyze import live
from search.archive import Archive, Final, open_existing
from search.config import BASELINES, Budget, Config
from search.evaluate import Funnel
from search.evolve import Candidate, Settings
from search.history import front, history
from search.kind import classify
from search.mutate import Mutation
from search.program import parse, to_text
from search.run import begin, proceed, trials
from search.simplify import simplify
from search.tables import Record
from search.verdict import Standing, Verdict, is_discovery, judge, standings
from search.view import View, clock
from search.workers import Failure, executor
from search.zoo import lookup
from tasks.environment import environment
from tasks.files import save_text
from tasks.interrupt import Interrupted
from tasks.suites import resolve

SLACK = 0.5
POINTS = 100
"""Of a stored curve."""
SEEDS = 10
"""Fresh ones that a find is judged on."""
GAIN = 0.01
"""By how much a candidate must be better on the proxies than the last one that was judged."""


@dataclass(frozen=True)
class Goal:
    """What is looked for, and how. ``rival``: what a find must be at least as good as."""

    kind: str
    settings: Settings
    funnel: Funnel
    verdict: Verdict
    minutes: float
    seeds: int = 10
    rival: str | None = None


GOALS = {
    "sign": Goal(
        kind="sign momentum",
        settings=Settings(population=100, tournament=8, batch=48, slack=SLACK),
        funnel=Funnel(),
        verdict=Verdict(finalists=1, seeds=5, meta_validation=None),
        minutes=10.0,
    ),
    "lion": Goal(
        kind="Lion form",
        settings=Settings(
            population=100, tournament=8, batch=16, slack=0.08, mutation=Mutation(copy=1.0)
        ),
        funnel=Funnel(suite="characters", rungs=(1 / 16, 1 / 4, 1.0)),
        verdict=Verdict(finalists=5, seeds=5, held_out="held_out_characters", meta_validation=None),
        minutes=60.0,
        seeds=5,
        rival="lion",
    ),
}


def strategies(goal: Goal) -> dict[str, Settings]:
    settings = goal.settings
    return {
        "evolution": settings,
        "random programs": replace(settings, random=8),
        "constants alone": replace(settings, mutation=Mutation(constants_only=True)),
    }


class Hunter:
    """Looks at what was evaluated and has the best of the wanted kind judged, one at a time, in a
    process of its own, until one is confirmed. ``baselines``: where their losses are kept."""

    def __init__(self, archive: Archive, config: Config, goal: Goal, baselines: Path) -> None:
        self.config, self.goal, self.baselines = config, goal, baselines
        self.jobs = executor(f"{__file__}:judging", None, 1)
        self.tried = 0.0  # the best score that was put to the test
        self.waiting: tuple[float, int, str] | None = None  # score, id, text
        self.tested: tuple[float, int, str] | None = None
        self.known: list[Final] = []
        if baselines.exists():
            rows = json.loads(baselines.read_text(encoding="utf-8"))
            self.known = [Final(*row) for row in rows]
        self.rows: list[Final] = []
        self.found: dict[str, Any] | None = None
        self._look((r.score or 0.0, r.id, r.text or "") for r in archive.best(100))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.jobs.close()

    def __call__(self, candidates: list[Candidate]) -> bool:
        self._look((c.score or 0.0, c.id, to_text(c.program)) for c in candidates if c.program)
        self._collect(0.0)
        return self.found is not None

    def finish(self) -> None:
        """Wait for what is being judged, and for what came up meanwhile."""
        while self.found is None and (self.tested or self.waiting):
            self._collect(None)

    def _look(self, candidates: Iterable[tuple[float, int, str]]) -> None:
        for score, number, text in sorted(candidates):
            if score > self.tried - GAIN or (self.waiting and score >= self.waiting[0]):
                return
            program = live(parse(text))
            kind = classify(program)
            if kind.name == self.goal.kind and not kind.climbs:
                self.waiting = score, number, to_text(program)
                return

    def _collect(self, timeout: float | None) -> None:
        for _, rows in self.jobs.completed(timeout):
            if isinstance(rows, Failure):
                raise RuntimeError(f"judging: {rows.reason}\n{rows.detail}")
            self.rows += rows
            if len({row.task for row in self.rows}) == len(resolve(self.config.verdict.held_out)):
                self._conclude()
        if self.tested is None and self.waiting and self.found is None:
            self.tested, self.waiting = self.waiting, None
            self.tried = self.tested[0]
            rules = {"candidate": self.tested[2]}
            if not self.known:
                rules |= {name: to_text(lookup(name).program) for name in BASELINES}
            suite = self.config.verdict.held_out
            for trial in trials(self.config, "held_out", suite, rules).values():
                self.jobs.submit(trial._replace(seeds=SEEDS))

    def _conclude(self) -> None:
        assert self.tested is not None
        score, number, text = self.tested
        if not self.known:
            self.known = [row for row in self.rows if row.rule != "candidate"]
            save_text(self.baselines, json.dumps(self.known) + "\n")
        rows = self.known + [row for row in self.rows if row.rule == "candidate"]
        found = standings(rows, "held_out", BASELINES)
        standing = next(s for s in found if s.rule == "candidate")
        if is_discovery(standing, BASELINES[0]) and equals(standing, self.goal.rival):
            self.found = {
                "candidate": number,
                "score": score,
                "kind": str(classify(parse(text))),
                "program": text,
                "held_out": {name: x._asdict() for name, x in standing.against.items()},
            }
        self.tested, self.rows = None, []


def judging(_: None) -> Any:
    """What the judging process does with a job."""
    return judge


def equals(standing: Standing, rival: str | None) -> bool:
    """Whether it does at least as well on average."""
    return rival is None or standing.against[rival].mean <= 0


def run_seed(
    goal: Goal, strategy: str, seed: int, minutes: float, out: Path, workers: int
) -> dict[str, Any]:
    """One search, or what is known of it."""
    name = f"{strategy.replace(' ', '-')}-{seed}"
    record = out / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    config = Config(
        start=(to_text(lookup("adam_no_correction").program),),
        seed=seed,
        budget=Budget(candidates=10**9, minutes=minutes),
        funnel=goal.funnel,
        evolution=strategies(goal)[strategy],
        verdict=goal.verdict,
    )
    folder = out / "runs" / name
    if not folder.exists():
        begin(folder, config).close()
    with (
        open_existing(folder) as archive,
        View(Console(stderr=True)) as view,
        Hunter(archive, config, goal, out / "baselines.json") as hunter,
    ):
        proceed(archive, workers, view, enough=hunter)
        searched = time.monotonic()
        hunter.finish()
        waited = time.monotonic() - searched
        counts = archive.counts()
        facts = {
            "strategy": strategy,
            "seed": seed,
            "found": hunter.found,
            "seconds": archive.timings()[0] + waited,
            "tried": sum(counts.values()) + archive.rejected(),
            "evaluated": counts["evaluated"],
            "best": archive.best(1)[0].score,
            "best_kind": kind_of(archive.best(1)[0]),
            "winner": winner(archive),
            "front": simplest(archive),
            "curve": curve(archive),
            "workers": workers,
            "environment": environment(),
        }
    save_text(record, json.dumps(facts, indent=2) + "\n")
    return facts


def kind_of(record: Record) -> str:
    return str(classify(live(parse(record.text or ""))))


def simplest(archive: Archive) -> list[dict[str, Any]]:
    """The front of score against length among what beats AdamW, tuned, on the proxies; a program
    is as long as exact algebra leaves it, for evolution's own are full of dead statements."""
    better = [*archive.records("WHERE c.fate = 'evaluated' AND c.score < 0")]
    short = {r.id: simplify(parse(r.text or "")).end.program for r in better}
    ahead = front(r._replace(length=short[r.id].length) for r in better)
    return [
        {"length": r.length, "score": r.score, "kind": kind_of(r), "program": to_text(short[r.id])}
        for r in ahead
    ]


def winner(archive: Archive) -> dict[str, Any]:
    """What the run's own verdict says of its best: ahead on fresh seeds of the proxies."""
    number = archive.run()["winner"]
    found = standings(archive.finals(), "held_out", BASELINES)
    against = next(s.against for s in found if s.rule == str(number))
    record = archive.record(number)
    return {
        "candidate": number,
        "kind": kind_of(record),
        "program": to_text(live(parse(record.text or ""))),
        "held_out": {name: interval._asdict() for name, interval in against.items()},
    }


def curve(archive: Archive) -> dict[str, list[float]]:
    """The best score so far against candidates and seconds, at some of the batches."""
    past = history(archive)
    known = np.flatnonzero(np.isfinite(past.best_so_far))
    places = known[np.linspace(0, len(known) - 1, min(POINTS, len(known))).round().astype(int)]
    return {
        "tried": past.tried[places].tolist(),
        "seconds": past.seconds[places].round(1).tolist(),
        "best": past.best_so_far[places].round(5).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = list(strategies(GOALS["sign"]))
    parser.add_argument("goal", choices=GOALS)
    parser.add_argument("--seeds", type=int, help="10 for sign, 5 for lion")
    parser.add_argument("--minutes", type=float, help="at most, a seed: 10 for sign, 60 for lion")
    parser.add_argument("--strategies", nargs="*", default=names, choices=names)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="results/GOAL")
    options = parser.parse_args()
    goal = GOALS[options.goal]
    minutes, out = options.minutes or goal.minutes, options.out or Path("results") / options.goal
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for strategy in options.strategies:
        for seed in range(options.seeds or goal.seeds):
            start = time.monotonic()
            try:
                row = run_seed(goal, strategy, seed, minutes, out, options.workers)
            except Interrupted:
                print("stopped, nothing is lost; the same command goes on")
                return
            results.append(row)
            found = row["found"]
            answer = found["kind"] if found else f"not found; best: {row['best_kind']}"
            print(f"{strategy} {seed}: {answer} ({clock(time.monotonic() - start)})", flush=True)
    text = "\n".join([table(results, names, minutes), finds(results), endings(results)])
    save_text(out / "table.md", text)
    figure(results, names, minutes, goal.kind).savefig(out / "time.png", dpi=150)
    curves(results, names).savefig(out / "curves.png", dpi=150)
    print(text)


if __name__ == "__main__":
    main()
