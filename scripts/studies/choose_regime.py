"""In which transformer setting is the Lion form the best rule there is?

A search can only prefer Lion where Lion is preferable. The rule by which the setting is chosen:
of ``REGIMES``, from the cheapest on, the first in which the Lion form beats every other rule of the
zoo, the 95 % interval of its log loss against each of them lying below zero on fresh seeds (a rule
that diverges on one is beaten); if there is none, the cheapest where it beats sign momentum, where
two memories are worth more than one. The first half was stated before anything was run; the second
some hours later, before anything was published; settings with a warm-up were added to ``REGIMES``
when the others were known. Intervals are not corrected for how many settings there are, and leave
out the luck of tuning. Every rule gets the same trials on the tuning seed, judged by validation
loss: ``RATES`` at the decays of its paper; then draws of learning rate and decays, half of them
anywhere (``HALF_LIVES``, log-uniform, and a learning rate near the best), half of them close to the
best of those. A rule's decays are the numbers in its text between 0.8 and 1; where a number stands
twice, it is one decay. Rules far behind the leader (``HOPELESS``) are dropped on the way, save
Lion.

    python scripts/studies/choose_regime.py --out results/regime

A setting is ruled out by a single rule that is ahead, so ``--rules lion radam ...`` runs a few
rivals alone, with the very trials they have among all; what is left standing needs the whole zoo.
Everything that was run is kept in ``results.json``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch

from search.behaviour.kind import classify
from search.interpreter.population import Population
from search.language.program import Program, Statement, parse, to_text
from search.zoo import ZOO
from tasks.cards import digest
from tasks.data.loaders import python_source
from tasks.evaluation.intervals import interval
from tasks.evaluation.plan import TUNING_SEED
from tasks.evaluation.statistics import log_ratios
from tasks.evaluation.tuning import FRESH_SEEDS, finite
from tasks.executors.base import Executor, Failure
from tasks.executors.named import executor
from tasks.families.transformer import Transformer
from tasks.inner.schedules import SCHEDULES
from tasks.inner.unroll import unroll
from tasks.runs.environment import environment, prepare
from tasks.runs.files import save_text

RATES = np.geomspace(1e-4, 1.0, 14)
DRAWS = 50
SPREAD = 4.0
"""Learning rates anywhere are between the best of ``RATES`` over this and times this."""
HALF_LIVES = (0.5, 100.0)
CLOSE = 0.5
"""Standard deviation, in powers of two, of learning rates and half-lives close to the best."""
HOPELESS = {"papers": 0.1, "anywhere": 0.05}
"""The log loss behind the best rule at which a rule gets no more trials, after these stages."""
SEEDS = 8
BATCH = 64
"""Runs side by side."""
RECORDED = (
    *("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adam_no_correction"),
    *("adabelief_no_correction", "sign_sgd", "sign_momentum", "lion", "adabelief", "amsgrad"),
    *("optimistic_amsgrad", "nadam", "radam", "diffgrad", "adan", "exadam", "grams"),
    *("cautious_adamw", "adafactor_unfactored", "lion_l2", "lion_group", "lion_huber"),
    *("cautious_lion", "tiger", "muon"),
)
"""Rules whose trials are drawn by their places here, as those of docs/results/regimes.md were."""


Found = dict[str, list[float]]
"""Final validation losses of each rule's trials."""


class Regime(NamedTuple):
    width: int
    depth: int
    context: int
    batch: int
    steps: int
    schedule: str = "cosine"


@cache  # what replay knows of a task, it knows of this object
def task(regime: Regime) -> Transformer:
    data = python_source(regime.context)
    return Transformer(regime.width, regime.depth, 2, data=data, batch_size=regime.batch)


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
    *(Regime(16, 1, 16, 8, steps, "warmup_cosine") for steps in (500, 1000, 2000, 4000, 8000)),
    *(Regime(16, 1, 16, 32, steps, "warmup_cosine") for steps in (1000, 2000, 4000)),
]
"""By rising cost, without a warm-up of the learning rate: characters seen, then what a character
costs. Then with one, which all trainings of the Lion paper have."""


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


def anywhere(program: Program, best: Trial, rng: np.random.Generator) -> Trial:
    rate = best.lr * SPREAD ** rng.uniform(-1, 1)
    half_lives = np.exp(rng.uniform(*np.log(HALF_LIVES), size=len(best.decays)))
    return forgetting(program, rate, half_lives)


def close(program: Program, best: Trial, rng: np.random.Generator) -> Trial:
    rate = best.lr * 2 ** (CLOSE * rng.standard_normal())
    half_lives = np.log(0.5) / np.log(best.decays) if best.decays else np.empty(0)
    return forgetting(
        program, rate, half_lives * 2 ** (CLOSE * rng.standard_normal(len(best.decays)))
    )


def forgetting(program: Program, lr: float, half_lives: np.ndarray) -> Trial:
    """``program`` with decays by which so many steps halve what was."""
    values = tuple(float(value) for value in 0.5 ** (1 / half_lives))
    return Trial(with_decays(program, values), lr, values)


Job = tuple[tuple[Any, ...], list[str], list[float], int]
"""A regime, program texts, their learning rates, a seed: what a process of its own can read."""


def worker(_: None) -> Callable[[Job], list[float]]:
    """What a worker process does with a job: the final validation loss of each run, all on the
    same weights and minibatches."""
    prepare("cpu")

    def losses(job: Job) -> list[float]:
        numbers, texts, lrs, seed = job
        regime = Regime(*numbers)
        found: list[float] = []
        for first in range(0, len(texts), BATCH):
            programs = [parse(text) for text in texts[first : first + BATCH]]
            trajectory = unroll(
                task(regime),
                Population.of(programs, torch.arange(len(programs))),
                instances=len(programs),
                steps=regime.steps,
                lr=torch.tensor(lrs[first : first + BATCH]),
                schedule=SCHEDULES[regime.schedule],
                seed=seed,
            )
            found += finite(trajectory.validation[-1]).tolist()
        return found

    return losses


Champions = dict[str, Trial]
"""The best trial of each rule."""


class Study:
    """One regime. ``kept``: losses by rule and stage, in a file that only grows."""

    def __init__(self, regime: Regime, file: Path, jobs: Executor) -> None:
        self.regime, self.file, self.jobs = regime, file, jobs
        self.kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def losses(
        self, stage: str, asked: Mapping[str, Sequence[Trial]], seeds: Mapping[str, int]
    ) -> Found:
        """Of the trials that are asked for, by name, each on the seed of that name."""
        keys = {name: self._key(stage, name, asked[name], seeds[name]) for name in asked}
        tickets = {
            self.jobs.submit(self._job(trials, seeds[name])): name
            for name, trials in asked.items()
            if keys[name] not in self.kept
        }
        for ticket, found in self.jobs.completed():
            if isinstance(found, Failure):
                raise RuntimeError(f"{stage}: {tickets[ticket]}: {found}")
            name = tickets[ticket]
            self.kept[keys[name]] = [x if math.isfinite(x) else None for x in found]
            save_text(self.file, json.dumps(self.kept, indent=1) + "\n")
            print(f"{self.regime.steps} steps: {stage}: {name}: {min(found):.4f}", flush=True)
        return {
            n: [math.inf if x is None else x for x in self.kept[key]] for n, key in keys.items()
        }

    def _job(self, trials: Sequence[Trial], seed: int) -> Job:
        texts = [to_text(trial.program) for trial in trials]
        return tuple(self.regime), texts, [trial.lr for trial in trials], seed

    def _key(self, stage: str, name: str, trials: Sequence[Trial], seed: int) -> str:
        said = repr([(to_text(t.program), t.lr) for t in trials])
        return f"{tuple(self.regime)} {stage} {name} {seed} {digest(said)}"

    def champions(self, rules: Mapping[str, Program]) -> Champions:
        """The best trial of each rule that was not dropped."""
        asked = {name: at_papers_decays(program) for name, program in rules.items()}
        best = self._best("papers", asked, {})
        for stage, draw in (("anywhere", anywhere), ("close", close)):
            rngs = {name: self._rng(name, stage) for name in best}
            asked = {
                name: [draw(rules[name], trial, rngs[name]) for _ in range(DRAWS // 2)]
                for name, (trial, _) in best.items()
            }
            best = self._best(stage, asked, best)
        return {name: trial for name, (trial, _) in best.items()}

    def _best(
        self,
        stage: str,
        asked: Mapping[str, Sequence[Trial]],
        before: Mapping[str, tuple[Trial, float]],
    ) -> dict[str, tuple[Trial, float]]:
        """The best trial of each rule and its loss, without the rules that are hopeless now."""
        best, tuning = dict(before), dict.fromkeys(asked, TUNING_SEED)
        for name, found in self.losses(stage, asked, tuning).items():
            k = int(np.argmin(found))
            if name not in best or found[k] < best[name][1]:
                best[name] = asked[name][k], found[k]
        limit = min(loss for _, loss in best.values()) * math.exp(HOPELESS.get(stage, math.inf))
        return {name: one for name, one in best.items() if one[1] <= limit or name == "lion"}

    @staticmethod
    def _rng(name: str, stage: str) -> np.random.Generator:
        """The same, whichever rules are run beside it."""
        place = RECORDED.index(name) if name in RECORDED else crc32(name.encode())
        return np.random.default_rng([place, *stage.encode()])

    def fresh(self, champions: Champions) -> dict[str, np.ndarray]:
        """Losses ``[SEEDS]`` of the chosen trials on seeds that tuning never saw."""
        seeds = {f"seed {seed}": seed for seed in FRESH_SEEDS[:SEEDS]}
        found = self.losses("fresh", dict.fromkeys(seeds, tuple(champions.values())), seeds)
        columns = [found[name] for name in seeds]
        return dict(zip(champions, np.array(columns).T, strict=True))


def zoo() -> dict[str, Program]:
    """The rules of the zoo whose learning rate is the harness's, each text once."""
    named: dict[str, Program] = {}
    for entry in ZOO.values():
        if entry.program.form == "direction" and entry.program not in named.values():
            named[entry.name] = entry.program
    return named


def table(champions: Champions, found: Mapping[str, np.ndarray]) -> tuple[str, dict[str, bool]]:
    """Markdown, and for each rule of another form whether Lion beats it."""
    lines = ["| rule | decays | lr | loss | Lion's log loss against it |", "|---|---|---|---|---|"]
    beaten: dict[str, bool] = {}
    for name in sorted(found, key=lambda n: float(found[n].mean())):
        trial = champions[name]
        against = "its own form"
        if classify(trial.program).name != "Lion form":
            gaps = log_ratios(found["lion"], found[name])
            gap, diverged = interval(gaps), -math.inf in gaps and math.inf not in gaps
            against = "it diverged" if diverged else str(gap)
            beaten[name] = diverged or gap.high < 0
        values = ", ".join(f"{value:.3g}" for value in trial.decays)
        lines.append(
            f"| {name} | {values} | {trial.lr:.2g} | {found[name].mean():.4f} | {against} |"
        )
    return "\n".join(lines), beaten


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    places = range(len(REGIMES))
    parser.add_argument(
        "--regimes", type=int, nargs="*", default=places, choices=places, help="from 0, by cost"
    )
    parser.add_argument("--out", type=Path, default=Path("results/regime"))
    parser.add_argument(
        "--rules", nargs="+", default=list(zoo()), choices=zoo(), metavar="RULE", help="these alone"
    )
    options = parser.parse_args()
    rules = {name: program for name, program in zoo().items() if name in {"lion", *options.rules}}
    if all(classify(program).name == "Lion form" for program in rules.values()):
        parser.error(f"--rules: got {', '.join(rules)}, expected one of another form to compare")
    options.out.mkdir(parents=True, exist_ok=True)
    better: list[str] = []
    with executor(f"{__file__}:worker", None, os.cpu_count() or 1) as jobs:
        for regime in (REGIMES[k] for k in options.regimes):
            study = Study(regime, options.out / "results.json", jobs)
            champions = study.champions(rules)
            text, beaten = table(champions, study.fresh(champions))
            wins = all(beaten.values())
            said = "beats every other rule" if wins else "does not beat every other rule"
            said = f"among {len(rules)} rules, the Lion form {said}"
            made = ", ".join(f"{k} {v}" for k, v in environment().items())
            shape = ", ".join(f"{k} {v}" for k, v in regime._asdict().items())
            page = f"{shape}: {said} (n = {SEEDS} seeds)\n\n{text}\n\n{made}\n"
            save_text(options.out / f"{'-'.join(map(str, regime))}.md", page)
            print(page, flush=True)
            if wins:
                return
            if beaten.get("sign_momentum"):
                better.append(shape)
    print("The Lion form beats every other rule in none of these.")
    if "sign_momentum" in rules:
        print(f"It beats sign momentum at: {'; '.join(better) or 'none'}.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped, nothing is lost; the same command goes on")
