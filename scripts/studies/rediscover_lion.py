"""How often, and how soon, does a search find what the Lion paper found?

    python scripts/studies/rediscover_lion.py sign --seeds 10
    python scripts/studies/rediscover_lion.py lion --seeds 5
    python scripts/studies/rediscover_lion.py lion-4000 --seeds 5
    python scripts/studies/rediscover_lion.py lion-swap --seeds 5
    python scripts/studies/rediscover_lion.py lion-warmup --seeds 5

runs, one seed after another on all cores, the search from AdamW (without bias correction, as in
the Lion paper) and its two ablations with the same budget: random programs, and constants alone.
There are five goals, ``GOALS``: the sign of a momentum, and the Lion form in runs of 2,000 steps,
of 4,000, of 2,000 again with one more mutation (``Mutation.swap``), and then with a learning rate
that warms up, too. A seed has reached its goal when a candidate
(1) is of the kind that is looked for, by experiment and not by its text
(``search.behaviour.kind``), (2) scores better on the proxies than AdamW, tuned, and by 0.01 than
the last one that was judged (when time is up, the best of the kind is judged by any margin), and
(3) is ahead of AdamW on held-out tasks, tuned alike, the 95 % interval over fresh seeds excluding
zero; the Lion form must also be as good as Lion there. The search goes on while a candidate is
judged. Seeds that never get there count as such. AdamW, Lion and momentum are tuned and measured on
the held-out tasks once, before the first seed.

Everything lands in ``--out``: a run directory and a JSON file a seed, ``judged/`` with every
candidate that was judged, ``baselines.json``, ``table.md``, ``time.png`` and ``curves.png`` of all
that is there; what is there already is not run again, and what was stopped goes on.

On short proxies a rule that divides by a short average of squares wins, by a little, over any
sign. A search that drops whatever falls 0.1 behind its median therefore drops the signs before
their decay is tuned; ``SLACK`` lets them be measured to the end. A population that has not become
better for ``PATIENCE`` batches descends from one program; where it then starts again from AdamW,
an hour holds several searches, more of them if gains below ``PROGRESS`` do not count. And
the longer programs get, the less likely it is that a swap leaves a clean sign: ``LENGTH``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rediscover_judge import Hunter, baselines, noted
from rediscover_table import curves, endings, figure, finds, table

from search.behaviour.kind import kind_of
from search.evolution.settings import Mutation, Settings
from search.fitness.settings import Funnel, Verdict
from search.fitness.verdict import standings
from search.language.program import parse, to_text
from search.language.validity import live
from search.record.archive import Archive, open_existing
from search.run.config import BASELINES, Budget, Config
from search.run.history import front, history
from search.run.stages import begin, proceed
from search.run.view import View, clock
from search.simplify.chain import simplify
from search.zoo import lookup
from tasks.display.plain import Console
from tasks.runs.environment import environment
from tasks.runs.files import save_text
from tasks.runs.interrupt import Interrupted

SLACK = 0.5
PATIENCE = 40
PROGRESS = 0.002
LENGTH = 10
POINTS = 100
"""Of a stored curve."""
FRONT = 1000
"""Best programs that are looked at for the front of score against length."""


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


LION = Goal(
    kind="Lion form",
    settings=Settings(
        population=100, tournament=8, batch=16, slack=0.08, mutation=Mutation(copy=1.0)
    ),
    funnel=Funnel(suite="characters", rungs=(1 / 16, 1 / 4, 1.0)),
    verdict=Verdict(finalists=5, seeds=5, held_out="held_out_characters", meta_validation=None),
    minutes=60.0,
    seeds=5,
    rival="lion",
)

RESTARTING = replace(LION, settings=replace(LION.settings, patience=PATIENCE, restart="start"))

SWAPPING = replace(
    RESTARTING,
    settings=replace(
        RESTARTING.settings,
        gain=PROGRESS,
        mutation=Mutation(copy=1.0, swap=1.0, max_length=LENGTH),
    ),
)

GOALS = {
    "sign": Goal(
        kind="sign momentum",
        settings=Settings(population=100, tournament=8, batch=48, slack=SLACK),
        funnel=Funnel(),
        verdict=Verdict(finalists=1, seeds=5, meta_validation=None),
        minutes=10.0,
    ),
    "lion": LION,
    "lion-4000": replace(RESTARTING, funnel=replace(LION.funnel, length=2.0)),
    "lion-swap": SWAPPING,
    "lion-warmup": replace(SWAPPING, funnel=replace(LION.funnel, schedule="warmup_cosine")),
}


def strategies(goal: Goal) -> dict[str, Settings]:
    settings = goal.settings
    return {
        "evolution": settings,
        "random programs": replace(settings, strategy="random_search(length=8)"),
        "constants alone": replace(settings, mutation=Mutation(constants_only=True)),
    }


def config_of(goal: Goal, strategy: str, seed: int, minutes: float) -> Config:
    return Config(
        start=(to_text(lookup("adam_no_correction").program),),
        seed=seed,
        budget=Budget(candidates=10**9, minutes=minutes),
        funnel=goal.funnel,
        evolution=strategies(goal)[strategy],
        verdict=goal.verdict,
    )


def run_seed(
    goal: Goal, strategy: str, seed: int, minutes: float, out: Path, workers: int
) -> dict[str, Any]:
    """One search, or what is known of it."""
    name = f"{strategy.replace(' ', '-')}-{seed}"
    record, folder = out / f"{name}.json", out / "runs" / name
    judged = out / "judged" / f"{name}.json"
    kept = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    began = _began(folder) if folder.exists() else None
    config = config_of(goal, strategy, seed, minutes)
    budget = kept.get("minutes") or (began or config).budget.minutes
    if budget != minutes:
        raise ValueError(
            f"--minutes: got {minutes:g}, but {name} in {out} has {budget:g}; expected the "
            "same, or another --out"
        )
    if began not in (None, config):
        raise ValueError(
            f"--out: got {out}, in which {name} has other settings than this goal; expected "
            "another --out"
        )
    if kept:
        return kept
    known = baselines(config, out, workers)
    if not folder.exists():
        begin(folder, config).close()
    with (
        open_existing(folder) as archive,
        View(Console(stderr=True)) as view,
        Hunter(archive, config, goal.kind, goal.rival, known, judged) as hunter,
    ):
        proceed(archive, workers, view, enough=hunter)
        hunter.finish(archive)
        counts = archive.counts()
        facts = {
            "strategy": strategy,
            "seed": seed,
            "minutes": minutes,
            "found": hunter.found,
            "judged": [{k: v for k, v in x.items() if k != "rows"} for x in hunter.judged],
            "seconds": archive.timings()[0] + hunter.waited,
            "tried": sum(counts.values()) + archive.rejected(),
            "evaluated": counts["evaluated"],
            "steps": inner_steps(archive),
            "start": archive.record(0).score,
            "best": archive.best(1)[0].score,
            "best_kind": str(kind_of(archive.best(1)[0].text or "")),
            "winner": winner(archive),
            "front": simplest(archive),
            "curve": curve(archive),
            "workers": workers,
            "environment": environment(),
        }
    save_text(record, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    return facts


def _began(folder: Path) -> Config:
    """What a run began with."""
    with open_existing(folder, readonly=True) as archive:
        return Config.from_dict(archive.run()["config"])


def inner_steps(archive: Archive) -> int:
    """What the search has spent, whatever else the machine had to do: steps of candidates' runs."""
    longest: dict[tuple[int, str, int, float], int] = {}  # a run is looked at on every rung
    for record in archive.records():
        for e in archive.evaluations(record.id):
            run = e.candidate, e.task, e.seed, e.lr
            longest[run] = max(e.steps, longest.get(run, 0))
    return sum(longest.values())


def simplest(archive: Archive) -> list[dict[str, Any]]:
    """The front of score against length among the best that beat AdamW, tuned, on the proxies; a
    program is as long as exact algebra leaves it, for evolution's own have dead statements."""
    better = [r for r in archive.best(FRONT) if (r.score or 0.0) < 0]
    lengths = (simplify(parse(r.text or "")).end.program.length for r in better)
    ahead = front(r._replace(length=n) for r, n in zip(better, lengths, strict=True))
    return [
        {
            "length": r.length,
            "score": r.score,
            "kind": str(kind_of(r.text or "")),
            "program": r.text,
        }
        for r in ahead
    ]


def winner(archive: Archive) -> dict[str, Any]:
    """What the run's own verdict says of its best: ahead on fresh seeds of the proxies."""
    number = archive.run()["winner"]
    found = standings(archive.finals(), "held_out", BASELINES)
    standing = next(s for s in found if s.rule == str(number))
    record = archive.record(number)
    return {
        "candidate": number,
        "kind": str(kind_of(record.text or "")),
        "program": to_text(live(parse(record.text or ""))),
        "held_out": noted(standing),
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


def everything(out: Path, strategies: Sequence[str]) -> list[dict[str, Any]]:
    """The records in ``out``, whichever call made them, by strategy and seed."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in out.glob("*-[0-9]*.json")]
    return sorted(rows, key=lambda row: (strategies.index(row["strategy"]), row["seed"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = list(strategies(GOALS["sign"]))
    parser.add_argument("goal", choices=GOALS)
    parser.add_argument("--seeds", type=int, help="10 for sign, else 5")
    parser.add_argument("--minutes", type=float, help="at most, a seed: 10 for sign, else 60")
    parser.add_argument("--strategies", nargs="+", default=names, choices=names)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="results/GOAL")
    options = parser.parse_args()
    for name in ("seeds", "minutes", "workers"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name}: got {value}, expected more than 0")
    goal = GOALS[options.goal]
    minutes, out = options.minutes or goal.minutes, options.out or Path("results") / options.goal
    out.mkdir(parents=True, exist_ok=True)
    for strategy in options.strategies:
        for seed in range(options.seeds or goal.seeds):
            start = time.monotonic()
            try:
                row = run_seed(goal, strategy, seed, minutes, out, options.workers)
            except (Interrupted, KeyboardInterrupt):
                print("stopped, nothing is lost; the same command goes on")
                return
            except ValueError as error:
                parser.error(str(error))
            found = row["found"]
            answer = found["kind"] if found else f"not found; best: {row['best_kind']}"
            print(f"{strategy} {seed}: {answer} ({clock(time.monotonic() - start)})", flush=True)
    results = everything(out, names)
    text = "\n".join([table(results), finds(results), endings(results)])
    save_text(out / "table.md", text)
    figure(results, goal.kind).savefig(out / "time.png", dpi=150)
    curves(results).savefig(out / "curves.png", dpi=150)
    print(text)


if __name__ == "__main__":
    main()
