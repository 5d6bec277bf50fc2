"""What is tortured: a search, a meta-training and an evaluation that take a second or two.

Each knows the command that begins or continues it, and what it has come to: everything that must
not depend on what happened on the way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from l2o import checkpoint
from l2o.meta import run as meta_run
from search.record.archive import FILE, open_existing
from tasks.data.loaders import breast_cancer, digits
from tasks.evaluation import evaluate
from tasks.evaluation.results import Results
from tasks.families.linear import Logistic
from tasks.families.mlp import MLP
from tasks.suites import Entry

SUITE = "torture_subjects:"
"""Where the suites below are imported from; this folder has to be on ``sys.path``."""


def proxy() -> tuple[Entry, ...]:
    return (
        Entry(Logistic(data=digits(), batch_size=16), steps=12),
        Entry(MLP(width=4, depth=1, batch_size=16), steps=12),
    )


def larger() -> tuple[Entry, ...]:
    return (Entry(MLP(width=6, depth=1, batch_size=16), steps=12),)


def held_out() -> tuple[Entry, ...]:
    return (Entry(Logistic(data=breast_cancer(), batch_size=16), steps=12),)


class Subject(Protocol):
    """A job in a folder of its own, ``place / "run"``."""

    @property
    def name(self) -> str: ...

    @property
    def workers(self) -> int: ...

    def commands(self, place: Path) -> list[str]:
        """The arguments that begin it, or go on with it."""
        ...

    def contents(self, place: Path) -> Any:
        """What it has come to, of what must always be the same. Raises ValueError for damage."""
        ...

    def files(self, place: Path) -> list[Path]:
        """Those that ``contents`` reads."""
        ...


class Search(NamedTuple):
    workers: int = 0
    name: str = "search"

    def commands(self, place: Path) -> list[str]:
        run = place / "run"
        if (run / FILE).exists():
            return ["resume", str(run), "--workers", str(self.workers), "--trust"]
        fields = {
            "seed": 3,
            "workers": self.workers,
            "start": "adam_no_correction",
            "budget.candidates": 120,
            "budget.minutes": 60,
            "funnel.suite": f"{SUITE}proxy",
            "evolution.population": 20,
            "evolution.tournament": 4,
            "evolution.batch": 8,
            "evolution.ahead": 3,
            "verdict.finalists": 2,
            "verdict.trials": 4,
            "verdict.seeds": 2,
            "verdict.held_out": f"{SUITE}held_out",
            "verdict.meta_validation": f"{SUITE}larger",
        }
        return ["search", "--run-dir", str(run), *_options(fields)]

    def contents(self, place: Path) -> Any:
        with open_existing(place / "run", readonly=True) as archive:
            rows = [row for row in archive.dump() if row[:2] != ("run", "environment")]
            for record in archive.records():
                archive.evaluations(record.id)
            return rows

    def files(self, place: Path) -> list[Path]:
        return [place / "run" / FILE]


class MetaTraining(NamedTuple):
    workers: int = 0
    name: str = "meta-train"

    def commands(self, place: Path) -> list[str]:
        run = place / "run"
        if (run / meta_run.FACTS).exists():
            return ["resume", str(run), "--trust"]
        fields = {
            "seed": 3,
            "train.widths": "[4,6]",
            "train.depths": "[1]",
            "train.data": "[digits]",
            "train.batch_size": 8,
            "held_out.widths": "[8]",
            "held_out.depths": "[1]",
            "held_out.data": "[digits]",
            "held_out.batch_size": 8,
            "optimizer": "TunedAdam",
            "optimizer.lr": 0.01,
            "estimation.particles": 4,
            "estimation.truncation": 2,
            "estimation.horizon": "[4,10]",
            "outer.steps": 40,
            "outer.warmup": 3,
            "outer.save_every": 3,
            "evaluation.every": 10,
            "evaluation.steps": 6,
            "evaluation.seeds": 2,
        }
        return ["meta-train", "--run-dir", str(run), *_options(fields)]

    def contents(self, place: Path) -> Any:
        run = place / "run"
        facts, found = meta_run.facts(run), meta_run.saved(run)
        best, start = (checkpoint.load(run / name) for name in (meta_run.BEST, meta_run.START))
        tensors = {} if found is None else found.tensors
        card = {name: best.card[name] for name in ("outer_steps", "held_out", "meta_loss")}
        return (
            facts["config"],
            [] if found is None else found.history,
            {name: value.tolist() for name, value in tensors.items()},
            (best.theta.tolist(), start.theta.tolist(), card),
        )

    def files(self, place: Path) -> list[Path]:
        run, tensors = place / "run", checkpoint.TENSORS
        best = (run / meta_run.BEST / name for name in (tensors, checkpoint.CARD))
        return [run / meta_run.STATE, run / meta_run.FACTS, *best, run / meta_run.START / tensors]


class Evaluation(NamedTuple):
    workers: int = 0
    name: str = "evaluate"

    def commands(self, place: Path) -> list[str]:
        fields = {
            "suite": f"{SUITE}proxy",
            "trials": 4,
            "seeds": 3,
            "out": place / "run" / "results.sqlite",
        }
        (place / "run").mkdir(exist_ok=True)
        return ["evaluate", "lion", "momentum", *_options(fields)]

    def contents(self, place: Path) -> Any:
        """All but the seconds of a step."""
        with Results(self.files(place)[0], readonly=True) as results:
            found = evaluate.measured(results)
            facts = results.facts()
            runs = {
                f"{rule} {task}": found.final[r, t].tolist()
                for r, rule in enumerate(found.rules)
                for t, task in enumerate(found.tasks)
            }
            return facts["plan"], facts["reference"], runs, results.rules(), results.count()

    def files(self, place: Path) -> list[Path]:
        return [place / "run" / "results.sqlite"]


def _options(fields: dict[str, Any]) -> list[str]:
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


SUBJECTS: Sequence[Subject] = (Search(), Search(workers=1), MetaTraining(), Evaluation())


def same(one: Any, other: Any) -> bool:
    """Numbers that are none are like each other."""
    return json.dumps(one, default=str) == json.dumps(other, default=str)
