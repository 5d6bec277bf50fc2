"""The books of a search, and what a strategy writes to be one.

A *batch* is the unit of everything: ``ask`` makes one of a strategy's proposals (check, compare
with all that is known), somebody evaluates its new programs, ``tell`` lets the strategy accept what
has a score. A child that behaves like a known program shares its score without being run; the
strategy is given it all the same, since statements that do nothing yet are what later mutations
build on.

Batches are made ahead of their results: batch ``k`` is asked after batch ``k - ahead`` was told,
however many workers there are and whatever order they finish in. With randomness drawn from
(seed, batch) this makes the whole search a function of its configuration. Nothing here reads a
clock, a file or a global generator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from deap import tools

from search.behaviour.signature import signatures
from search.evolution.candidates import Batch, Candidate, _alike
from search.evolution.mutate import mutate
from search.evolution.settings import FORM, ROOM, Settings, own, strategies
from search.fitness.funnel import Outcome
from search.language.canonical import canonical
from search.language.functions import ProgramError
from search.language.program import Program, to_text
from search.language.validity import check
from tasks.checks import inside
from tasks.user_code.imports import yours
from tasks.user_code.rooms import inhabitant

Population = list[Candidate]
BEST = 50
"""Candidates that ``Strategy.best`` holds."""


class Founder(NamedTuple):
    """A program that the search starts from; ``lr``: where its evaluation is centred."""

    program: Program
    lr: float


class Proposal(NamedTuple):
    """A child before anybody has looked at it.

    ``lr``: where its evaluation is centred; ``parent``: a candidate's number; ``mutation``: what
    was changed, for people; ``rejected``: invalid programs that were drawn on the way.
    """

    program: Program
    lr: float
    parent: int | None = None
    mutation: str = ""
    rejected: int = 0


class Strategy(ABC):
    """Who is born and who lives: ``propose`` and ``accept``, a function of what is here.

    ``groups`` are those who live, in one or more populations: batch ``k`` has to keep up with the
    median of ``groups[k % len(groups)]``. ``state`` is whatever else has to last, as JSON. Both are
    written down after each batch, and put back when a search goes on; nothing else is. ``best`` are
    the best so far, the living and the dead, and ``founders`` what the search starts from.
    """

    def __init__(self, settings: Settings, founders: Sequence[Founder]) -> None:
        self.settings, self.founders = settings, founders
        self.groups: list[Population] = [[]]
        self.state: dict[str, Any] = {}
        self.best = tools.HallOfFame(BEST, similar=_alike)

    @abstractmethod
    def propose(self, batch: int, rng: np.random.Generator) -> Proposal:
        """A child for ``batch``, all its randomness drawn from ``rng``."""

    @abstractmethod
    def accept(self, batch: int, scored: Sequence[Candidate], asked: int) -> None:
        """Let candidates of ``batch`` into the groups, which may be none of them; batches come in
        order. All have a score, a learning rate and a fitness. ``asked``: batches that have been
        asked by now, this one included."""

    def child(self, parent: Candidate | None, rng: np.random.Generator) -> Proposal:
        """One mutation away from ``parent``; from a founder if there is none, or if nothing in it
        may change."""
        settings = self.settings.mutation
        if parent is not None and parent.program is not None:
            try:
                child = mutate(parent.program, rng, settings)
                return Proposal(child.program, parent.lr, parent.id, str(child), child.rejected)
            except ValueError:
                pass
        number = int(rng.integers(len(self.founders)))
        program, lr = self.founders[number]
        child = mutate(program, rng, settings)
        return Proposal(child.program, lr, number, str(child), child.rejected)


def strategy(settings: Settings, founders: Sequence[Founder]) -> Strategy:
    """The one that ``settings.strategy`` names, from ``founders``. Runs a user's own module.

    Raises ValueError for a name of none, and for arguments that it does not take.
    """
    name, arguments = own(settings.strategy)
    kind = inhabitant("strategy", name, ROOM, strategies(), Strategy, FORM)
    try:
        return kind(settings, founders, **arguments)
    except TypeError as error:
        raise ValueError(f"strategy: got {settings.strategy!r}: {error}") from None


def check_start(settings: Settings, program: Program) -> None:
    """Raise ValueError for a strategy that is none, or that has no child for a start program."""
    with inside("evolution"):
        tried = strategy(settings, [Founder(program, 1.0)])
    name, _ = own(settings.strategy)
    try:
        with yours("evolution.strategy", name) if ":" in name else nullcontext():
            tried.propose(1, np.random.default_rng(0))
    except ValueError as error:
        raise ValueError(f"start: got a program that cannot change: {error}") from None


class Evolution:
    """The state of a search between batches.

    ``lrs``: where the evaluation of each program of ``start`` is centred; ``rungs``: how many the
    funnel has.
    """

    def __init__(
        self,
        settings: Settings,
        start: Sequence[Program],
        lrs: Sequence[float],
        seed: int,
        rungs: int,
    ) -> None:
        self.settings, self.seed, self.rungs = settings, seed, rungs
        founders = [Founder(*each) for each in zip(start, lrs, strict=True)]
        self.strategy = strategy(settings, founders)
        self.tried = self.born = 0  # children drawn, and those that got an id
        self.asked = self.told = 0  # batches
        self.known: dict[str, Candidate] = {}  # by signature
        self.texts: dict[str, str] = {}  # canonical text -> signature

    @property
    def population(self) -> Population:
        """Everybody who lives, in all groups."""
        return [candidate for group in self.strategy.groups for candidate in group]

    @property
    def best(self) -> tools.HallOfFame:
        return self.strategy.best

    # -- ask ---------------------------------------------------------------------------------

    def ask(self) -> Batch:
        """The next batch: children until ``settings.batch`` of them are new programs."""
        number, self.asked = self.asked, self.asked + 1
        rng = np.random.default_rng([self.seed, number])
        candidates: list[Candidate] = []
        rejected, wanted = 0, self.settings.batch
        if number == 0:
            founders = [Proposal(f.program, f.lr, None, "start") for f in self.strategy.founders]
            self._admit(candidates, [self._birth(0, founder) for founder in founders])
            wanted = 0
        while wanted > 0 and len(candidates) < 30 * self.settings.batch:
            proposals = [self.strategy.propose(number, rng) for _ in range(wanted)]
            rejected += sum(proposal.rejected for proposal in proposals)
            wanted -= self._admit(candidates, [self._birth(number, each) for each in proposals])
        self.tried += len(candidates) + rejected
        return Batch(number, candidates, self._hurdles(number), rejected)

    def withdraw(self, batch: Batch) -> None:
        """Take back the newest batch, as if it had never been asked."""
        if batch.number != self.asked - 1 or batch.number < self.told:
            raise ValueError(f"batch: got {batch.number}, expected {self.asked - 1}, the newest")
        self.asked -= 1
        self.born -= len(batch.candidates)
        self.tried -= len(batch.candidates) + batch.rejected
        for candidate in batch.fresh:
            del self.known[candidate.signature]

    def _birth(self, batch: int, proposal: Proposal) -> Candidate:
        """What is not valid, which a strategy of a user's may propose, has no program."""
        self.born += 1
        program, lr, parent, mutation, _ = proposal
        candidate = Candidate(self.born - 1, batch, parent, mutation, program, lr)
        try:
            check(program)
        except ProgramError:
            candidate.fate, candidate.program = "invalid", None
        return candidate

    def _admit(self, candidates: list[Candidate], children: list[Candidate]) -> int:
        """Compare children with all that is known, append them; how many are new."""
        valid = [child for child in children if child.program is not None]
        forms = [canonical(child.program) for child in valid if child.program is not None]
        for child, form in zip(valid, forms, strict=True):
            child.canonical = to_text(form)
        new = {
            child.canonical: form
            for child, form in zip(valid, forms, strict=True)
            if child.canonical not in self.texts
        }
        self.texts.update(zip(new, signatures(list(new.values())), strict=True))
        candidates.extend(children)
        return sum(self._place(child) for child in valid)

    def _place(self, child: Candidate) -> bool:
        child.signature = self.texts[child.canonical]
        if not child.signature:
            child.fate, child.program = "invalid", None
            return False
        original = self.known.setdefault(child.signature, child)
        if original is child:
            return True
        child.fate, child.original = "duplicate", original.id
        return False

    def _hurdles(self, batch: int) -> tuple[float, ...]:
        """The log ratio at each rung above which a candidate is out: median plus slack."""
        groups = self.strategy.groups
        ladders = [c.ladder for c in groups[batch % len(groups)] if len(c.ladder) == self.rungs]
        if not ladders:
            return (math.inf,) * self.rungs
        return tuple(float(x) + self.settings.slack for x in np.median(ladders, axis=0))

    # -- tell --------------------------------------------------------------------------------

    def tell(self, batch: Batch, outcomes: Iterable[Outcome]) -> None:
        """Results of a batch, in the order of ``batch.fresh``; batches come in order. What failed,
        which may be the machine's fault, is known no more: its like will be evaluated."""
        if batch.number != self.told:
            raise ValueError(f"batch: got {batch.number}, expected {self.told}: results in order")
        fresh = batch.fresh
        for candidate, outcome in zip(fresh, outcomes, strict=True):
            candidate.fate, candidate.score = outcome.fate, outcome.score
            candidate.ladder = outcome.ladder
            if outcome.lr is not None:
                candidate.lr = outcome.lr
        scored = [candidate for candidate in batch.candidates if self._scored(candidate)]
        for candidate in scored:
            self._remember(candidate)
        self.strategy.accept(batch.number, scored, self.asked)
        for candidate in fresh:
            if candidate.fate == "failed":
                del self.known[candidate.signature]
        self.told += 1

    def _scored(self, candidate: Candidate) -> bool:
        """Whether it may live; a duplicate has what its original has, unless that failed."""
        if candidate.fate == "duplicate":
            original = self.known.get(candidate.signature)
            if original is None:
                return False
            candidate.score, candidate.ladder = original.score, original.ladder
            candidate.lr = original.lr
        return candidate.score is not None and candidate.program is not None

    def _remember(self, candidate: Candidate) -> None:
        """Give a scored candidate its fitness, and a place among the best if it earned one."""
        assert candidate.program is not None
        candidate.fitness.values = (candidate.score, candidate.program.length)
        if candidate.fate == "evaluated":
            self.best.update([candidate])

    # -- going on ----------------------------------------------------------------------------

    def recall(self, candidate: Candidate) -> None:
        """Know a candidate again that was written down; in the order of their births."""
        if candidate.canonical:
            self.texts[candidate.canonical] = candidate.signature
            if candidate.fate not in ("failed", "duplicate", "invalid"):
                self.known.setdefault(candidate.signature, candidate)
        self.born, self.asked = candidate.id + 1, candidate.batch + 1

    def go_on(
        self,
        told: int,
        rejected: int,
        groups: Sequence[Sequence[Candidate]],
        state: dict[str, Any] | None,
        best: Iterable[Candidate],
    ) -> None:
        """Be as after ``told`` batches, when all candidates are recalled. ``groups`` and ``state``
        are what the strategy had then, if it had been told any."""
        self.told, self.tried = told, self.born + rejected
        for candidate in best:
            self._remember(candidate)
        for candidate in sorted((c for group in groups for c in group), key=lambda c: c.id):
            self._remember(candidate)
        if state is not None:
            self.strategy.groups = [[*group] for group in groups]
            self.strategy.state = state
