"""A meta-training run on disk: begun, continued, finished.

    run.json             configuration, command, environment; never changes
    start/               the optimizer as it began (a checkpoint)
    state.safetensors    the training at its last save, in one file that is replaced atomically
    best/                the optimizer that did best on held-out tasks (a checkpoint, with a card)
    tensorboard/         the same numbers as curves

A run that is killed anywhere goes on from ``state.safetensors`` and ends with the very numbers it
would have had.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from l2o import checkpoint
from l2o.base import LearnedOptimizer
from l2o.meta.config import Config
from l2o.meta.distribution import lessons
from l2o.meta.held_out import HeldOut
from l2o.meta.loop import Training, learning_rate
from l2o.meta.ranks import Ranks
from l2o.meta.record import FACTS, STATE, STATE_VERSION, VERSION, facts, saved
from l2o.meta.record import Saved as Saved
from l2o.meta.record import is_run as is_run
from l2o.meta.view import Curves, Progress, View
from tasks.checks import inside
from tasks.runs import files, tensors
from tasks.runs.environment import environment, prepare
from tasks.runs.files import RunError
from tasks.runs.interrupt import Interrupted, polite
from tasks.runs.nesting import with_digest
from tasks.types import HOST

START, BEST = "start", checkpoint.BEST


def begin(
    run_dir: Path, config: Config, optimizer: LearnedOptimizer, theta: Tensor, command: list[str]
) -> None:
    """A new run directory. Raises RunExists if it is there, ValueError for what cannot be run."""
    prepare(config.device)
    with inside("train"):
        train = config.train.tasks()
    with inside("held_out"):
        held_out = config.held_out.tasks()
    for name, times in Counter(task.name for task in held_out).items():
        if times > 1:  # results are kept by name
            raise ValueError(f"held_out: got {name} {times} times, expected tasks of unlike names")
    for lesson in lessons([*train, *held_out], config.mup):
        lesson.rule(optimizer, theta)
    facts = {
        "format_version": VERSION,
        "command": command,
        "config": config.to_dict(),
        "environment": environment(config.device),
    }
    with files.new_directory(run_dir) as staging:
        files.save_text(staging / FACTS, json.dumps(with_digest(facts), indent=2) + "\n")
        checkpoint.save(staging / START, optimizer, theta, {"command": command, "mup": config.mup})


def imports(run_dir: Path) -> list[str]:
    """The import paths of other people's code that a run names: its tasks, its architecture."""
    tasks = Config.from_dict(facts(run_dir)["config"]).imports()
    return [*tasks, *checkpoint.imports(run_dir / START)]


def _tidied(run_dir: Path) -> None:
    """Without what an earlier process was writing when it was killed."""
    best = run_dir / BEST
    for path in (run_dir / STATE, best / checkpoint.TENSORS, best / checkpoint.CARD):
        files.abandoned(path)


@contextmanager
def _locked(run_dir: Path, ranks: Ranks) -> Iterator[None]:
    """The first process holds the run; RunBusy if somebody else does."""
    descriptor = ranks.once(lambda: files.lock(run_dir / "writer.lock"))
    try:
        ranks.once(lambda: _tidied(run_dir))
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def proceed(run_dir: Path, ranks: Ranks, view: View) -> None:
    """Take a run from wherever it is to its end; code that it names is run. Raises Interrupted
    after Ctrl-C."""
    with _locked(run_dir, ranks), polite() as stop:
        run = Run(run_dir, ranks, view)
        try:
            run.to_the_end(stop)
        finally:
            run.close()


class Run:
    """A run in progress. What only the first process needs is only there: ``held_out``."""

    def __init__(self, run_dir: Path, ranks: Ranks, view: View) -> None:
        self.run_dir, self.ranks, self.view = run_dir, ranks, view
        self.facts = facts(run_dir)
        self.config = Config.from_dict(self.facts["config"])
        prepare(self.config.device)
        self.optimizer, self.start, _ = checkpoint.load(run_dir / START, trusted=None)
        self.training = Training(self.config, self.optimizer, self.start, ranks)
        self.best = self.start
        self.history: list[dict[str, Any]] = []  # held-out evaluations
        self.held_out: HeldOut | None = None
        self.seconds = 0.0
        adam = self._restore()
        self.before = self.seconds
        self.since = time.monotonic() - self.seconds
        self.saved = self.training.step if adam else -1
        self.curves = None
        if ranks.first:
            self.held_out = HeldOut.of(
                self.config.held_out.tasks(),
                self.config.mup,
                self.config.evaluation,
                adam,
                self.config.device,
            )
            self.curves = Curves(run_dir / "tensorboard", self.training.step)

    def to_the_end(self, stop: Any) -> None:
        training, outer = self.training, self.config.outer
        if self.saved == training.step:
            self._keep()
        if training.step == 0:
            self._evaluate()
        elif training.step < outer.steps:
            self.view.say(f"going on after outer step {training.step}")
        while training.step < outer.steps:
            training.advance()
            last = training.step == outer.steps
            if last or training.step % self.config.evaluation.every == 0:
                self._evaluate()
            self._show()
            if last or training.step % outer.save_every == 0:
                self._save()
            pressed, late = (self.ranks.any(x) for x in (stop(), self._is_late()))
            if (pressed or late) and not last:
                self._save()
                if pressed:
                    raise Interrupted
                again = files.resuming(self.run_dir, bool(imports(self.run_dir)))
                self.view.say(f"time was up at outer step {training.step}; go on with: {again}")
                return

    def _is_late(self) -> bool:
        """Whether this process has had its minutes."""
        minutes = self.config.budget.minutes
        gone = time.monotonic() - self.since - self.before
        return minutes is not None and gone >= 60 * minutes

    def close(self) -> None:
        if self.curves:
            self.curves.close()

    def _evaluate(self) -> None:
        """Measure theta on the held-out tasks; keep it if it is the best so far."""
        if self.held_out is None:
            return
        objectives = self.held_out.objectives(self.optimizer, self.training.theta)
        score = self.held_out.score(objectives)
        if not self.history or score < min(past["score"] for past in self.history):
            self.best = self.training.theta.detach().cpu().clone()
        by_task = dict(zip(self.held_out.names, objectives, strict=True))
        self.history.append({"step": self.training.step, "score": score, "objectives": by_task})
        assert self.curves
        self.curves.evaluation(self.training.step, score, _means(by_task))
        self.view.evaluated(self.training.step, score, self.config.evaluation.adam_lr)

    def _show(self) -> None:
        training = self.training
        if self.curves is None:
            return
        progress = Progress(
            step=training.step,
            steps=self.config.outer.steps,
            loss=training.losses[-1],
            recent=training.losses[-50:],
            norm=training.norm,
            lr=learning_rate(self.config.outer, training.step - 1),
            skipped=training.skipped,
            seconds=time.monotonic() - self.since,
            by_task=dict(zip(self._names(), training.by_lesson[-1], strict=True)),
        )
        self.view.show(progress)
        self.curves.show(progress)

    def _names(self) -> list[str]:
        return [lesson.task.name for lesson in self.training.lessons]

    def _save(self) -> None:
        """Everything so far, in one file; then the best optimizer, which follows from it."""
        if self.saved == self.training.step:
            return
        state = self.training.tensors()
        self.saved = self.training.step
        self.ranks.once(lambda: self._write(state))

    def _write(self, state: dict[str, Tensor]) -> None:
        assert self.held_out
        record = {"history": self.history, "adam": self.held_out.adam}
        header = {
            "format_version": STATE_VERSION,
            "config": self.facts["config"],
            "record": record,
            "seconds": time.monotonic() - self.since,
        }
        content = tensors.to_bytes(state | {"best": self.best}, header)
        files.save_bytes(self.run_dir / STATE, content)
        self._keep()

    def _keep(self) -> None:
        """Write the best optimizer, unless it is there: a kill may have come after the save, and
        files get damaged."""
        if self.held_out is None:
            return
        card = self.card()
        try:
            there = checkpoint.load(self.run_dir / BEST, trusted=None)
            right = torch.equal(there.theta, self.best) and there.card | card == there.card
        except checkpoint.CheckpointError:
            right = False
        if not right:
            checkpoint.save(self.run_dir / BEST, self.optimizer, self.best, card)

    def card(self) -> dict[str, Any]:
        """What a user of the best optimizer wants to know of where it comes from."""
        assert self.held_out
        best = min(self.history, key=lambda past: past["score"])
        adam = dict(zip(self.held_out.names, self.held_out.adam, strict=True))
        return {
            "command": self.facts["command"],
            "environment": self.facts["environment"],
            "config": self.facts["config"],
            "seed": self.config.seed,
            "mup": self.config.mup,
            "schedule": "constant",  # steps of meta-training all have lr 1
            "trained_on": self._names(),
            "outer_steps": best["step"],
            "held_out": {
                "kept": _means(best["objectives"]),
                "untrained": _means(self.history[0]["objectives"]),
                f"adam at {self.config.evaluation.adam_lr:g}": _means(adam),
            },
            "meta_loss": dict(zip(("first", "last"), _ends(self.training.losses), strict=True)),
            "skipped_meta_gradients": self.training.skipped,
            "licence": "Apache-2.0",
        }

    def _restore(self) -> list[list[float]]:
        """Go back to the last save, if there is one; Adam's objectives, which are known then.

        Raises RunError if it was made with another configuration than ``run.json`` has, or is not
        complete.
        """
        found = saved(self.run_dir)
        if found is None:
            return []
        now = _fields(self.facts["config"])
        before = _fields(found.config)
        for name, value in now.items():
            if value != before.get(name):
                raise RunError(
                    f"{self.run_dir / FACTS}: {name}: got {value}, but {STATE} was made with "
                    f"{before.get(name)}; expected what the run began with"
                )
        fresh = self.training.tensors()
        self.ranks.once(lambda: self._check(found.tensors, fresh))
        self.training.restore(found.tensors)
        self.best = found.tensors["best"]
        self.history, self.seconds = found.history, found.seconds
        return found.adam

    def _check(self, found: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> None:
        """Raise RunError unless a save has the tensors of this run, of their shapes."""
        path = self.run_dir / STATE
        expected = {n: _kind(x) for n, x in self.training.grown(found, fresh).items()}
        expected["best"] = _kind(self.start)
        for name in sorted(expected.keys() | found.keys(), key=lambda name: (name in found, name)):
            got = _kind(found[name]) if name in found else "nothing"
            if got != expected.get(name, "nothing"):
                wanted = expected.get(name, "nothing")
                raise RunError(f"{path}: damaged: {name} is {got}, expected {wanted}")


def _kind(x: Tensor) -> str:
    return f"{x.dtype} of shape {list(x.shape)}"


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Its values by dotted name, as the command line calls them."""
    named: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        named |= _fields(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return named


def _means(objectives: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Over the seeds of each task."""
    return {task: fmean(seeds) for task, seeds in objectives.items()}


def _ends(losses: list[float]) -> list[float]:
    """The mean over the first tenth and over the last."""
    tenth = max(1, len(losses) // 10)
    parts = torch.tensor(losses[:tenth], **HOST), torch.tensor(losses[-tenth:], **HOST)
    return [round(float(part.mean()), 5) for part in parts]
