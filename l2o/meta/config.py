"""What a meta-training run is a function of, besides the optimizer it starts from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from l2o.estimators.backprop import Backprop
from l2o.estimators.episodes import Episodes
from l2o.estimators.es import ES, Noise
from l2o.meta.distribution import Distribution
from tasks.checks import above_zero, natural, one_of, plausible, positive
from tasks.runs.sqlite_errors import NONSENSE

NOISE: dict[str, Noise] = {
    "pes": "persistent",
    "es": "truncated",
    "reuse": "reuse",
    "full-es": "full",
}
METHODS = (*NOISE, "backprop")
LAST_SEED = 2**64 - 1
"""What a generator of torch's can be started from."""


@dataclass(frozen=True)
class Estimation:
    """How meta-gradients are estimated.

    Attributes:
        method: pes, es (truncated), reuse, full-es or backprop
        particles: antithetic pairs of inner runs (backprop: runs) for each task
        sigma: standard deviation of the perturbations of theta
        truncation: inner steps between two meta-gradients; null: whole episodes
        horizon: the shortest and the longest inner run; drawn log-uniformly
        stagger: cut first episodes short at random places, so that runs do not stay together
        chunk: most inner runs in flight; null: as many as fit into half a gigabyte
    """

    method: str = "pes"
    particles: int = 4
    sigma: float = 0.03
    truncation: int | None = 20
    horizon: tuple[int, int] = (100, 400)
    stagger: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        positive(particles=self.particles)
        if self.chunk is not None:
            positive(chunk=self.chunk)
        self.estimator(seed=0)

    def estimator(self, seed: int) -> ES | Backprop:
        """Raises ValueError for a truncation that does not suit the method or the horizon."""
        episodes = Episodes(self.horizon, self.truncation, self.stagger, seed)
        if self.method == "backprop":
            return Backprop(episodes)
        return ES(episodes, NOISE[self.method], self.sigma)


@dataclass(frozen=True)
class Outer:
    """The outer loop: AdamW on theta.

    Attributes:
        steps: meta-gradients, one from every task each
        lr: the highest learning rate
        final_lr: where half a cosine takes it
        warmup: outer steps over which it rises
        weight_decay: of theta, times the learning rate
        clip: largest norm of a meta-gradient; longer ones are shortened to it
        save_every: outer steps after which the run can be resumed
    """

    steps: int = 300
    lr: float = 1e-2
    final_lr: float = 1e-3
    warmup: int = 20
    weight_decay: float = 1e-4
    clip: float = 1.0
    save_every: int = 20

    def __post_init__(self) -> None:
        positive(steps=self.steps, save_every=self.save_every)
        natural(warmup=self.warmup)
        above_zero(lr=self.lr, final_lr=self.final_lr, clip=self.clip)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: got {self.weight_decay}, expected at least 0")


@dataclass(frozen=True)
class Evaluation:
    """The held-out evaluation that decides which theta is kept.

    Attributes:
        every: outer steps between two of them
        steps: of an inner run
        seeds: inner runs of each task
        adam_lr: of the Adam that is compared with
    """

    every: int = 50
    steps: int = 200
    seeds: int = 2
    adam_lr: float = 1e-3

    def __post_init__(self) -> None:
        positive(every=self.every, steps=self.steps, seeds=self.seeds)
        above_zero(adam_lr=self.adam_lr)


@dataclass(frozen=True)
class Budget:
    """When to stop before the last outer step.

    Attributes:
        minutes: of wall clock; what was done is saved, and l2o resume goes on for as many again;
            null: no limit
    """

    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes: got {self.minutes}, expected a number above 0, or null")


PARTS: dict[str, type] = {
    "train": Distribution,
    "held_out": Distribution,
    "estimation": Estimation,
    "outer": Outer,
    "evaluation": Evaluation,
    "budget": Budget,
}
"""Of a configuration, those that have fields of their own."""


def _wider() -> Distribution:
    return Distribution(widths=(64,), depths=(2,))


@dataclass(frozen=True)
class Config:
    """A whole run. ``mup``: all tasks in the maximal update parametrisation, or none."""

    seed: int = 0
    mup: bool = True
    device: str = "cpu"
    train: Distribution = field(default_factory=Distribution)
    held_out: Distribution = field(default_factory=_wider)
    estimation: Estimation = field(default_factory=Estimation)
    outer: Outer = field(default_factory=Outer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        natural(seed=self.seed)
        if self.seed > LAST_SEED:
            raise ValueError(f"seed: got {self.seed}, expected at most {LAST_SEED}")

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Config:
        """From what ``asdict`` made and JSON kept. Raises ValueError for anything else."""
        try:
            older = {"budget": {}} | facts
            parts = {name: _rebuilt(kind, older[name]) for name, kind in PARTS.items()}
            plausible(cls, facts)
            return cls(**{**facts, **parts})
        except NONSENSE as error:
            kind = type(error).__name__
            raise ValueError(f"config: not that of a meta-training: {kind}: {error}") from error

    def imports(self) -> list[str]:
        """The import paths of other people's code that the tasks are made by."""
        return [*self.train.imports(), *self.held_out.imports()]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _rebuilt(kind: type, facts: dict[str, Any]) -> Any:
    """JSON has lists where our fields are tuples."""
    names = {f.name for f in fields(kind)}
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in facts.items() if n in names}
    plausible(kind, given)
    return kind(**given)
