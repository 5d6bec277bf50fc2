"""In which transformer setting is the Lion form the best rule there is?

A search can only prefer Lion where Lion is preferable. The rule by which the setting is chosen,
stated before anything is run: of ``REGIMES``, from the cheapest on, the first in which the Lion
form beats every other rule of the zoo, the 95 % interval of its log loss against each of them
lying below zero on fresh seeds. Lion and every other rule get the same trials: ``RATES`` learning
rates at the decays of their papers, then ``DRAWS`` random pairs of (learning rate near the best,
decays), each decay's half-life log-uniform; tuned on one seed, on the validation loss.

A rule's decays are the numbers in its text between 0.8 and 1; where a number stands twice, it is
one decay. Half-way through the draws, rules more than ``HOPELESS`` behind the leader are dropped,
save Lion.

    python scripts/choose_regime.py --regimes 2 --out results/regime

Everything that was run is kept in ``results.json``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
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
HOPELESS = 0.05
SEEDS = 8
BATCH = 64
"""Runs side by side."""


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
    Regime(16, 1, 16, 32, 500),
    Regime(16, 1, 16, 32, 1000),
    Regime(16, 1, 16, 32, 2000),
    Regime(16, 1, 16, 32, 4000),
    Regime(24, 2, 16, 32, 4000),
]
"""By rising cost."""


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


class Study:
    """One regime. ``kept``: losses by rule and stage, in a file that only grows."""

    def __init__(self, regime: Regime, file: Path) -> None:
        self.regime, self.file = regime, file
        self.kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def losses(self, stage: str, name: str, trials: Sequence[Trial], seed: int) -> list[float]:
        said = repr([(to_text(t.program), t.lr) for t in trials])
        key = f"{tuple(self.regime)} {stage} {name} {digest(said)}"
        if key not in self.kept:
            found = losses(self.regime, trials, seed)
            self.kept[key] = [x if math.isfinite(x) else None for x in found]
            save_text(self.file, json.dumps(self.kept, indent=1) + "\n")
            print(f"{stage}: {name}: {min(found):.4f}", flush=True)
        return [math.inf if x is None else x for x in self.kept[key]]

    def best(self, rules: Mapping[str, Program]) -> dict[str, tuple[Trial, float]]:
        """The best trial of each rule that was not dropped, and its loss."""
        champion: dict[str, tuple[Trial, float]] = {}
        half = DRAWS // 2
        for stage, count in (("papers", 0), ("half", half), ("rest", DRAWS - half)):
            for name, program in rules.items():
                if stage == "papers":
                    trials = at_papers_decays(program)
                elif name not in champion:
                    continue
                else:
                    rng = np.random.default_rng([list(rules).index(name), count, len(stage)])
                    trials = drawn(program, champion[name][0].lr, count, rng)
                found = self.losses(stage, name, trials, TUNING_SEED)
                k = int(np.argmin(found))
                if name not in champion or found[k] < champion[name][1]:
                    champion[name] = trials[k], found[k]
            if stage == "half":
                limit = min(loss for _, loss in champion.values()) * math.exp(HOPELESS)
                champion = {n: c for n, c in champion.items() if c[1] <= limit or n == "lion"}
        return champion

    def fresh(self, champion: Mapping[str, tuple[Trial, float]]) -> dict[str, np.ndarray]:
        """Losses ``[SEEDS]`` of the chosen trials on seeds that tuning never saw."""
        trials = [trial for trial, _ in champion.values()]
        names = " ".join(champion)
        columns = [self.losses(f"seed {seed}", names, trials, seed) for seed in FRESH_SEEDS[:SEEDS]]
        return dict(zip(champion, np.array(columns).T, strict=True))


def zoo() -> dict[str, Program]:
    """The rules of the zoo whose learning rate is the harness's, each text once."""
    named: dict[str, Program] = {}
    for entry in ZOO.values():
        if entry.program.form == "direction" and entry.program not in named.values():
            named[entry.name] = entry.program
    return named


def table(study: Study, champion: Mapping[str, tuple[Trial, float]]) -> tuple[str, bool]:
    """Markdown, and whether the Lion form beats every other rule."""
    found = study.fresh(champion)
    lion = found["lion"]
    lines = ["| rule | decays | lr | loss | Lion's log loss against it |", "|---|---|---|---|---|"]
    wins = True
    for name in sorted(found, key=lambda n: float(found[n].mean())):
        trial, _ = champion[name]
        gap = interval(np.log(lion / found[name]))
        own = classify(trial.program).name == "Lion form"
        wins &= own or gap.high < 0
        values = ", ".join(f"{value:.3g}" for value in trial.decays)
        against = "its own form" if own else str(gap)
        lines.append(
            f"| {name} | {values} | {trial.lr:.2g} | {found[name].mean():.4f} | {against} |"
        )
    return "\n".join(lines), wins


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--regimes", type=int, default=len(REGIMES), help="at most so many")
    parser.add_argument("--out", type=Path, default=Path("results/regime"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare("cpu")
    rules = zoo()
    for regime in REGIMES[: options.regimes]:
        study = Study(regime, options.out / "results.json")
        champion = study.best(rules)
        text, wins = table(study, champion)
        verdict = "the Lion form beats every other rule" if wins else "the Lion form does not win"
        made = ", ".join(f"{k} {v}" for k, v in environment().items())
        shape = ", ".join(f"{k} {v}" for k, v in regime._asdict().items())
        page = f"{shape}: {verdict} (n = {SEEDS} seeds)\n\n{text}\n\n{made}\n"
        save_text(options.out / f"{'-'.join(map(str, regime))}.md", page)
        print(page, flush=True)
        if wins:
            return


if __name__ == "__main__":
    main()
