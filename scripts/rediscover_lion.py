"""How often, and how soon, does a search find sign momentum?

    python scripts/rediscover_lion.py --seeds 10 --minutes 10 --out results/rediscover

runs, one seed after another on all cores, the search from AdamW (without bias correction, as in
the Lion paper) and its two ablations with the same budget: random programs, and constants alone.
A seed is done when a candidate is (1) the sign of an average of gradients, by experiment and not
by its text (``search.kind``), (2) ahead of tuned AdamW on the proxies, and (3) ahead of it on the
held-out suite, tuned alike, the 95 % interval over fresh seeds excluding zero. Seeds that never
get there count as such. Everything lands in ``--out``: a run directory and a JSON file a seed,
``table.md``, ``time.png`` and ``curves.png``; what is there already is not run again.

On short proxies a rule that divides by a short average of squares wins, by a little, over any
sign. A search that drops whatever falls 0.1 behind its median therefore drops the signs before
their decay is tuned; ``SLACK`` lets them be measured to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from scipy.stats import binomtest

from search.analyze import live
from search.archive import Archive, open_existing
from search.config import BASELINES, Budget, Config
from search.evolve import Candidate, Settings
from search.history import history
from search.kind import classify
from search.mutate import Mutation
from search.program import parse, to_text
from search.run import begin, proceed
from search.verdict import Trial, Verdict, is_discovery, judge, standings
from search.view import View, clock
from search.zoo import lookup
from tasks.environment import environment
from tasks.files import save_text
from tasks.interrupt import Interrupted
from tasks.suites import resolve

SLACK = 0.5
SETTINGS = Settings(population=100, tournament=8, batch=48, slack=SLACK)
STRATEGIES = {
    "evolution": SETTINGS,
    "random programs": replace(SETTINGS, random=8),
    "constants alone": replace(SETTINGS, mutation=Mutation(constants_only=True)),
}
TRIALS, SEEDS = 16, 10
POINTS = 100
"""Of a stored curve."""


class Hunter:
    """Looks at what was evaluated until a sign momentum is confirmed."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.tried = 0.0  # the best score of a sign momentum that was put to the test
        self.found: dict[str, Any] | None = None

    def __call__(self, candidates: list[Candidate]) -> bool:
        for candidate in sorted(candidates, key=lambda c: c.score or 0.0):
            if candidate.program is None or (candidate.score or 0.0) > self.tried - 0.01:
                return False
            program = live(candidate.program)
            kind = classify(program)
            if kind.name == "sign momentum" and not kind.climbs:
                self.tried = candidate.score or 0.0
                text = to_text(program)
                standing = confirm(text, self.config)
                if is_discovery(standing, BASELINES[0]):
                    interval = standing.against[BASELINES[0]]
                    self.found = {
                        "candidate": candidate.id,
                        "score": candidate.score,
                        "kind": str(kind),
                        "program": text,
                        "held_out": interval._asdict(),
                    }
                    return True
        return False


def confirm(text: str, config: Config) -> Any:
    """The program's standing on the held-out suite, tuned like AdamW, on fresh seeds."""
    rules = (("adamw", to_text(lookup("adamw").program)), ("candidate", text))
    rows = []
    for entry in range(len(resolve(config.verdict.held_out))):
        rows += judge(
            Trial(
                stage="held_out",
                suite=config.verdict.held_out,
                entry=entry,
                length=config.funnel.length,
                schedule=config.funnel.schedule,
                rules=rules,
                trials=TRIALS,
                seeds=SEEDS,
            )
        )
    return next(s for s in standings(rows, "held_out", BASELINES) if s.rule == "candidate")


def run_seed(strategy: str, seed: int, minutes: float, out: Path, workers: int) -> dict[str, Any]:
    """One search, or what is known of it."""
    name = f"{strategy.replace(' ', '-')}-{seed}"
    record = out / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    config = Config(
        start=(to_text(lookup("adam_no_correction").program),),
        seed=seed,
        budget=Budget(candidates=10**9, minutes=minutes),
        evolution=STRATEGIES[strategy],
        verdict=Verdict(finalists=1, trials=TRIALS, seeds=5, meta_validation=None),
    )
    folder = out / "runs" / name
    if not folder.exists():
        begin(folder, config).close()
    hunter = Hunter(folder, config)
    with open_existing(folder) as archive, View(Console(stderr=True)) as view:
        proceed(archive, workers, view, enough=hunter)
        counts = archive.counts()
        facts = {
            "strategy": strategy,
            "seed": seed,
            "found": hunter.found,
            "seconds": archive.timings()[0],
            "tried": sum(counts.values()) + archive.rejected(),
            "evaluated": counts["evaluated"],
            "best": archive.best(1)[0].score,
            "best_kind": str(classify(live(parse(archive.best(1)[0].text or "")))),
            "curve": curve(archive),
            "workers": workers,
            "environment": environment(),
        }
    save_text(record, json.dumps(facts, indent=2) + "\n")
    return facts


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


def table(results: list[dict[str, Any]], minutes: float) -> str:
    """Markdown: how many seeds got there, and the spread of time and candidates."""
    lines = [
        "| strategy | seeds | found (95 % interval) | time to discovery, median (range) |"
        " candidates, median | best score, median (range) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for strategy in STRATEGIES:
        rows = [row for row in results if row["strategy"] == strategy]
        if not rows:
            continue
        found = [row for row in rows if row["found"]]
        seconds = [row["seconds"] for row in found]
        spread = (
            f"{clock(float(np.median(seconds)))} ({clock(min(seconds))}–{clock(max(seconds))})"
            if found
            else "–"
        )
        tried = f"{np.median([row['tried'] for row in found]):,.0f}" if found else "–"
        best = [row["best"] for row in rows]
        lines.append(
            f"| {strategy} | {len(rows)} | {_share(len(found), len(rows))} | {spread} | {tried} | "
            f"{np.median(best):+.3f} ({min(best):+.3f} to {max(best):+.3f}) |"
        )
    return "\n".join([*lines, "", f"Budget: {minutes:g} minutes a seed.", ""])


def _share(found: int, seeds: int) -> str:
    """With its 95 % interval (Clopper and Pearson)."""
    low, high = binomtest(found, seeds).proportion_ci()
    return f"{found} ({100 * low:.0f}–{100 * high:.0f} %)"


def figure(results: list[dict[str, Any]], minutes: float) -> Figure:
    """Share of seeds that have found sign momentum, against time."""
    plot = Figure(figsize=(6, 4), layout="constrained")
    axes = plot.subplots()
    for strategy in STRATEGIES:
        rows = [row for row in results if row["strategy"] == strategy]
        times = sorted(row["seconds"] for row in rows if row["found"])
        if rows:
            shares = [k / len(rows) for k in range(len(times) + 1)]
            axes.step(
                [0, *times, 60 * minutes], [*shares, shares[-1]], where="post", label=strategy
            )
    axes.set(xlabel="seconds", ylabel="share of seeds that found sign momentum", ylim=(-0.02, 1.02))
    axes.legend()
    return plot


def curves(results: list[dict[str, Any]]) -> Figure:
    """The best score so far, a thin line a seed; the start program is at its own score."""
    plot = Figure(figsize=(8, 4), layout="constrained")
    left, right = plot.subplots(1, 2, sharey=True)
    for number, strategy in enumerate(STRATEGIES):
        rows = [row for row in results if row["strategy"] == strategy]
        for k, row in enumerate(rows):
            label = f"{strategy}, {len(rows)} seeds" if k == 0 else None
            style = {"color": f"C{number}", "alpha": 0.6, "linewidth": 1, "label": label}
            left.step(row["curve"]["tried"], row["curve"]["best"], where="post", **style)
            right.step(row["curve"]["seconds"], row["curve"]["best"], where="post", **style)
    for axes, unit in ((left, "candidates tried"), (right, "seconds")):
        axes.set(xlabel=unit, xscale="log")
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    left.set_ylabel("best score: mean log loss against tuned AdamW")
    left.legend()
    return plot


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10.0, help="at most, for each seed")
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("results/rediscover"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for strategy in options.strategies:
        for seed in range(options.seeds):
            start = time.monotonic()
            try:
                row = run_seed(strategy, seed, options.minutes, options.out, options.workers)
            except Interrupted:
                print("stopped, nothing is lost; the same command goes on")
                return
            results.append(row)
            answer = (
                row["found"]["kind"] if row["found"] else f"not found; best: {row['best_kind']}"
            )
            print(f"{strategy} {seed}: {answer} ({clock(time.monotonic() - start)})", flush=True)
    save_text(options.out / "table.md", table(results, options.minutes))
    figure(results, options.minutes).savefig(options.out / "time.png", dpi=150)
    curves(results).savefig(options.out / "curves.png", dpi=150)
    print(table(results, options.minutes))


if __name__ == "__main__":
    main()
