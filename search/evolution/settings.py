"""How a search goes, field by field: what changes programs, who lives, what a candidate is measured
on, how the best are judged.

The command line makes its flags and its help of these classes. So nothing here imports torch
before a value has to be checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from search.language.functions import OPS, PAPER
from search.language.program import FIXED_INPUTS, MAX_STATEMENTS, OPTIONAL_INPUTS
from tasks.checks import inside, meant
from tasks.user_code.calls import call
from tasks.user_code.rooms import modules

Change = Literal["insert", "delete", "modify", "copy", "swap"]
INPUTS = (*FIXED_INPUTS, *OPTIONAL_INPUTS)
MOST = 10_000_000
"""Candidates in a population, and the like."""
ROOM = "search.evolution"
FORM = "package.module:Class, one of your own"


def strategies() -> list[str]:
    """The modules of this room that are one."""
    return modules(ROOM, others=("candidates", "mutate", "settings", "strategy"))


def own(strategy: str) -> tuple[str, dict[str, Any]]:
    """The name of a strategy and its own arguments. Raises ValueError for what is no such text."""
    with inside("strategy"):
        return call(strategy, f"NAME or NAME(a=1) of a strategy, or {FORM}")


def renewed(facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``Settings``, of what older versions wrote: random search was a number, that of
    the statements of a program at most, and no number but 0 was another strategy."""
    random = facts.get("random", 0)
    facts = {name: value for name, value in facts.items() if name != "random"}
    return facts | {"strategy": f"random_search(length={random})"} if random else facts


@dataclass(frozen=True)
class Mutation:
    """How programs change. Weights and probabilities are of proposals; invalid ones are redrawn.

    Attributes:
        insert: relative weight of inserting a statement
        delete: of deleting one
        modify: of changing an argument of one
        copy: of repeating one with another argument, to be read in place of the original
        swap: of calling another function in one
        max_length: nothing is inserted into a program as long as this
        fresh: probability that an inserted statement writes a new variable
        constant: probability that a drawn argument is a constant, where one fits
        scale: probability that a changed constant is multiplied by 2^a
        functions: what new and swapped statements may call; by default what the kernels have
        reads: inputs that new arguments may name
        constants_only: change constants and nothing else: a baseline
    """

    insert: float = 1.0
    delete: float = 1.0
    modify: float = 1.0
    copy: float = 0.0
    swap: float = 0.0
    max_length: int = 40
    fresh: float = 0.5
    constant: float = 0.2
    scale: float = 0.5
    functions: tuple[str, ...] = PAPER
    reads: tuple[str, ...] = INPUTS
    constants_only: bool = False

    @property
    def kinds(self) -> str:
        """For people: what may change."""
        if self.constants_only:
            return "changes of constants alone"
        weights = {name: getattr(self, name) for name in get_args(Change)}
        return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())

    def __post_init__(self) -> None:
        for name in ("functions", "reads"):  # lists, where settings come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        weights = {name: getattr(self, name) for name in get_args(Change)}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}: got {weight}, expected a weight of at least 0")
        if not any(weights.values()):
            raise ValueError(f"{', '.join(weights)}: got 0 for all, expected one above 0")
        for name in ("fresh", "constant", "scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a probability")
        if not 1 <= self.max_length <= MAX_STATEMENTS:
            raise ValueError(
                f"max_length: got {self.max_length}, expected 1 to {MAX_STATEMENTS} statements"
            )
        unknown = sorted(set(self.functions) - OPS.keys())
        if unknown or not self.functions:
            raise ValueError(
                f"functions: got {', '.join(unknown) or 'none'}, expected some of {', '.join(OPS)}"
                + meant((unknown or [""])[0], OPS)
            )
        if not set(self.reads) <= set(INPUTS):
            raise ValueError(
                f"reads: got {', '.join(self.reads)}, expected some of {', '.join(INPUTS)}"
            )


@dataclass(frozen=True)
class Settings:
    """The knobs of the search.

    Attributes:
        population: how many candidates live
        tournament: how many of them compete to be a parent
        batch: new programs an evaluation batch
        ahead: batches in flight, so the most workers that can be busy
        slack: how far behind the population's median, in log loss, a candidate may be at a rung
        mutation: how programs change
        islands: populations that evolve apart, batch by batch in turn
        migration: probability that a parent comes from any island, drawn with its own among them
        patience: batches of an island without a better best after which it starts again; 0: never
        gain: by how much a best must be better than the last to count for that
        restart: from what, then: the best of the run so far, or the start programs
        strategy: who is born and who lives: a module of this room, or package.module:Class
    """

    population: int = 200
    tournament: int = 8
    batch: int = 64
    ahead: int = 4
    slack: float = 0.1
    mutation: Mutation = field(default_factory=Mutation)
    islands: int = 1
    migration: float = 0.02
    patience: int = 0
    gain: float = 0.0
    restart: Literal["best", "start"] = "best"
    strategy: str = "regularized"

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "batch", "ahead", "islands"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 to {MOST:,}")
        if not 0 <= self.migration <= 1:
            raise ValueError(f"migration: got {self.migration}, expected a probability")
        if self.patience < 0:
            raise ValueError(f"patience: got {self.patience}, expected at least 0")
        if not 0 <= self.gain < math.inf:
            raise ValueError(f"gain: got {self.gain}, expected a number of at least 0")
        if self.restart not in ("best", "start"):
            raise ValueError(f"restart: got {self.restart!r}, expected 'best' or 'start'")
        own(self.strategy)
        m = self.mutation
        both = m.delete and m.insert + m.copy  # where one finds nothing to do the other does
        if not (m.constants_only or m.modify + m.swap or both):
            raise ValueError(
                f"mutation: got {m.kinds}, with which the longest programs, of max_length = "
                f"{m.max_length} statements, or the shortest have no children; expected modify or "
                "swap above 0, or delete and one of insert and copy"
            )
        if not 0 <= self.slack < math.inf:
            raise ValueError(f"slack: got {self.slack}, expected a number of at least 0")
