"""In which transformer setting is the Lion form the best rule there is?

A search can only prefer Lion where Lion is preferable. The rule by which the setting is chosen,
stated before anything is run: of ``REGIMES``, from the cheapest on, the first in which the Lion
form beats every other rule of the zoo, the 95 % interval of its log loss against each of them
lying below zero on fresh seeds. Lion and every other rule get the same trials: ``RATES`` learning
rates at the decays of their papers, then ``DRAWS`` random pairs of (learning rate near the best,
decays), each decay's half-life log-uniform; tuned on one seed, on the validation loss.

A rule's decays are the numbers in its text between 0.8 and 1; where a number stands twice, it is
one decay. Rules far behind the leader (``HOPELESS``) are dropped on the way, save Lion. Half-way
through the draws, those left are measured on the fresh seeds: a setting in which one of them beats
Lion by then, its whole interval above zero, is not searched any further.

    python scripts/choose_regime.py --out results/regime

Everything that was run is kept in ``results.json``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from search.kind import classify
from search.program import Program, Statement, to_text
from search.vm import Population
from search.zoo import ZOO
from tasks.datasets import python_source
from tasks.environment import environment, prepare
from tasks.files import save_text
from tasks.results import digest
from tasks.scoring import FRESH_SEEDS, TUNING_SEED, finite, interval
from tasks.transformer import Transformer
from tasks.unroll import cosine, unroll

RATES = np.geomspace(1e-4, 1.0, 14)
DRAWS = 50
SPREAD = 4.0
"""Learning rates are drawn between the best of ``RATES`` over this and times this."""
HALF_LIVES = (0.5, 400.0)
HOPELESS = {"papers": 0.1, "half": 0.05}
"""The log loss behind the best rule at which a rule gets no more trials, after these stages."""
SEEDS = 8
BATCH = 64
"""Runs side by side."""


Found = dict[str, list[float]]
"""Final validation losses of each rule's trials."""


class Regime(NamedTuple):
    width: int
    depth: int
    context: int
    batch: int
    steps: int

    def task(self) -> Transformer:
        data = python_source(self.context)
        return Transformer(self.width, self.depth, 2, data=data, batch_size=self.batch)


REGIMES = [
    Regime(16, 1, 16, 8, 500),
    Regime(16, 1, 16, 8, 1000),
    Regime(16, 1, 16, 8, 2000),
    Regime(16, 1, 16, 32, 500),
    Regime(16, 1, 16, 8, 4000),
    Regime(16, 1, 16, 32, 1000),
    Regime(16, 1, 16, 32, 2000),
    Regime(16, 1, 16, 32, 4000),
    Regime(24, 2, 16, 32, 4000),
]
"""By rising cost: characters seen, then what a character costs."""


@dataclass(frozen=True)
class Trial:
    """A rule at some decays and a learning rate."""

    program: Program
    lr: float
    decays: tuple[float, ...]


def decays(program: Program) -> tuple[float, ...]:
    """The numbers of a program that say how fast it forgets, each once."""
    numbers = [a for s in program.statements for a in s.args if isinstance(a, float)]
    return tuple(dict.fromkeys(number for number in numbers if 0.8 <= number < 1))


def with_decays(program: Program, values: Sequence[float]) -> Program:
    """The program with its ``decays`` replaced, in their order."""
    new = dict(zip(decays(program), values, strict=True))

    def changed(statement: Statement) -> Statement:
        args = (new.get(a, a) if isinstance(a, float) else a for a in statement.args)
        return replace(statement, args=tuple(args))

    return replace(program, statements=tuple(changed(s) for s in program.statements))


def at_papers_decays(program: Program) -> list[Trial]:
    return [Trial(program, float(lr), decays(program)) for lr in RATES]


def drawn(program: Program, lr: float, count: int, rng: np.random.Generator) -> list[Trial]:
    """Random trials around a learning rate."""
    trials = []
    for _ in range(count):
        rate = lr * SPREAD ** rng.uniform(-1, 1)
        half_lives = np.exp(rng.uniform(*np.log(HALF_LIVES), size=len(decays(program))))
        values = tuple(float(0.5 ** (1 / h)) for h in half_lives)
        trials.append(Trial(with_decays(program, values), rate, values))
    return trials


def losses(regime: Regime, trials: Sequence[Trial], seed: int) -> list[float]:
    """Final validation loss of each, all on the same weights and minibatches."""
    found: list[float] = []
    for first in range(0, len(trials), BATCH):
        some = trials[first : first + BATCH]
        trajectory = unroll(
            regime.task(),
            Population.of([t.program for t in some], torch.arange(len(some))),
            instances=len(some),
            steps=regime.steps,
            lr=torch.tensor([t.lr for t in some]),
            schedule=cosine,
            seed=seed,
        )
        found += finite(trajectory.validation[-1]).tolist()
    return found


Champions = dict[str, Trial]
"""The best trial of each rule."""


class Study:
    """One regime. ``kept``: losses by rule and stage, in a file that only grows."""

    def __init__(self, regime: Regime, file: Path, jobs: Executor) -> None:
        self.regime, self.file, self.jobs = regime, file, jobs
        self.kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def losses(self, stage: str, asked: Mapping[str, Sequence[Trial]], seed: int) -> Found:
        """Of every rule's trials."""
        keys = {name: self._key(stage, name, trials, seed) for name, trials in asked.items()}
        running = {
            name: self.jobs.submit(losses, self.regime, trials, seed)
            for name, trials in asked.items()
            if keys[name] not in self.kept
        }
        for name, job in running.items():
            found = job.result()
            self.kept[keys[name]] = [x if math.isfinite(x) else None for x in found]
            save_text(self.file, json.dumps(self.kept, indent=1) + "\n")
            print(f"{self.regime.steps} steps: {stage}: {name}: {min(found):.4f}", flush=True)
        return {
            n: [math.inf if x is None else x for x in self.kept[key]] for n, key in keys.items()
        }

    def _key(self, stage: str, name: str, trials: Sequence[Trial], seed: int) -> str:
        said = repr([(to_text(t.program), t.lr) for t in trials])
        return f"{tuple(self.regime)} {stage} {name} {seed} {digest(said)}"

    def champions(self, rules: Mapping[str, Program]) -> Iterator[Champions]:
        """The best trial of each rule that was not dropped, half-way and at the end."""
        champion: dict[str, tuple[Trial, float]] = {}
        half = DRAWS // 2
        for stage, count in (("papers", 0), ("half", half), ("rest", DRAWS - half)):
            if stage == "papers":
                asked = {name: at_papers_decays(program) for name, program in rules.items()}
            else:
                asked = {
                    name: drawn(rules[name], trial.lr, count, self._rng(list(rules), name, stage))
                    for name, (trial, _) in champion.items()
                }
            for name, found in self.losses(stage, asked, TUNING_SEED).items():
                k = int(np.argmin(found))
                if name not in champion or found[k] < champion[name][1]:
                    champion[name] = asked[name][k], found[k]
            best = min(loss for _, loss in champion.values())
            limit = best * math.exp(HOPELESS.get(stage, math.inf))
            champion = {n: c for n, c in champion.items() if c[1] <= limit or n == "lion"}
            if stage != "papers":
                yield {name: trial for name, (trial, _) in champion.items()}

    @staticmethod
    def _rng(names: list[str], name: str, stage: str) -> np.random.Generator:
        return np.random.default_rng([names.index(name), *stage.encode()])

    def fresh(self, champions: Champions) -> dict[str, np.ndarray]:
        """Losses ``[SEEDS]`` of the chosen trials on seeds that tuning never saw."""
        seeds = {f"seed {seed}": seed for seed in FRESH_SEEDS[:SEEDS]}
        columns = [
            self.losses("fresh", {name: [*champions.values()]}, seed)[name]
            for name, seed in seeds.items()
        ]
        return dict(zip(champions, np.array(columns).T, strict=True))


def zoo() -> dict[str, Program]:
    """The rules of the zoo whose learning rate is the harness's, each text once."""
    named: dict[str, Program] = {}
    for entry in ZOO.values():
        if entry.program.form == "direction" and entry.program not in named.values():
            named[entry.name] = entry.program
    return named


class Verdict(NamedTuple):
    table: str  # Markdown
    wins: bool  # the Lion form beats every other rule
    loses: bool  # one beats it


def judged(champions: Champions, found: Mapping[str, np.ndarray]) -> Verdict:
    lines = ["| rule | decays | lr | loss | Lion's log loss against it |", "|---|---|---|---|---|"]
    gaps = []
    for name in sorted(found, key=lambda n: float(found[n].mean())):
        trial = champions[name]
        against = "its own form"
        if classify(trial.program).name != "Lion form":
            gaps.append(interval(np.log(found["lion"] / found[name])))
            against = str(gaps[-1])
        values = ", ".join(f"{value:.3g}" for value in trial.decays)
        lines.append(
            f"| {name} | {values} | {trial.lr:.2g} | {found[name].mean():.4f} | {against} |"
        )
    wins, loses = all(gap.high < 0 for gap in gaps), any(gap.low > 0 for gap in gaps)
    return Verdict("\n".join(lines), wins, loses)


def decide(study: Study, rules: Mapping[str, Program]) -> Verdict:
    verdict = None
    for champions in study.champions(rules):
        verdict = judged(champions, study.fresh(champions))
        if verdict.loses:
            break
    assert verdict is not None
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    places = range(len(REGIMES))
    parser.add_argument(
        "--regimes", type=int, nargs="*", default=places, choices=places, help="from 0, by cost"
    )
    parser.add_argument("--out", type=Path, default=Path("results/regime"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rules = zoo()
    cores = os.cpu_count()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, context, initializer=prepare, initargs=("cpu",)) as jobs:
        for regime in (REGIMES[k] for k in options.regimes):
            verdict = decide(Study(regime, options.out / "results.json", jobs), rules)
            said = "the Lion form beats every other rule" if verdict.wins else "it does not"
            made = ", ".join(f"{k} {v}" for k, v in environment().items())
            shape = ", ".join(f"{k} {v}" for k, v in regime._asdict().items())
            page = f"{shape}: {said} (n = {SEEDS} seeds)\n\n{verdict.table}\n\n{made}\n"
            save_text(options.out / f"{'-'.join(map(str, regime))}.md", page)
            print(page, flush=True)
            if verdict.wins:
                return


if __name__ == "__main__":
    main()
