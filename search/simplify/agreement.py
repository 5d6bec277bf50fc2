"""Whether two programs are the same rule: both are run, and their updates compared.

No step of a simplification is taken on faith. Gradients, weights and rates are made up, and float64
leaves room between rounding and a difference. ``x / (y + 1e-8)`` stands in every program for a
quotient; where that guard shows, the programs may differ and are still the same rule on paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from search.behaviour.probe import respond
from search.language.functions import EPSILON
from search.language.program import Program, Statement
from tasks.types import Layout, ParamSpec

LAYOUT = Layout((ParamSpec("a", (6, 8)), ParamSpec("b", (16,))))
STEPS, RUNS = 32, 32
RATES = (0.0, *np.linspace(1.0, 0.4, STEPS - 1).tolist())
"""A schedule may begin with 0. That update moves nothing, but may leave something in a state."""
USUAL, SMALL = (1.0, 1.0), (1e-3, 1e-3)
"""Sizes of gradients and of learning rates."""


class Agreement(NamedTuple):
    """Updates of two programs on the same gradients.

    ``largest``: relative difference of ``points`` components, division without its guard;
    ``guarded``: how many of them differ by more than 0.1 % as the programs are, with it, where
    gradients and rates are ``SMALL``: that is no reason to refuse a step, but one to say so.
    """

    points: int
    largest: float
    guarded: int

    @property
    def holds(self) -> bool:
        return self.points > 0 and self.largest < 1e-6

    def __str__(self) -> str:
        how = f"to {self.largest:.0e}" if self.largest else "exactly"
        text = f"{self.points} updates agree {how}"
        if self.guarded:
            gradients, rates = SMALL
            text += (
                f"; with the guard of division, of those at gradients of {gradients:g} and rates "
                f"of {rates:g}, {self.guarded} differ by more than 0.1 %"
            )
        return text


@dataclass(frozen=True)
class Setting:
    """A program and how to run it: at ``lr`` times the learning rate, with a weight decay."""

    program: Program
    lr: float = 1.0
    weight_decay: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        return self.program.length, len(self.program.states)


def agreement(one: Setting, other: Setting) -> Agreement:
    """How far the updates of two settings are apart, for the same schedule of the rate."""
    a, guarded_a = (_updates_before(one, guarded) for guarded in (False, True))
    b, guarded_b = _updates(other, _unguarded, *USUAL), _updates(other, _as_it_is, *SMALL)
    known = np.isfinite(a)
    if (known != np.isfinite(b)).any() or 2 * known.sum() < np.isfinite(guarded_a).sum():
        known[:] = False
    gaps = _gaps(a, b)[known]
    guarded = _gaps(guarded_a, guarded_b)[known]
    return Agreement(len(gaps), float(gaps.max(initial=0.0)), int((guarded > 1e-3).sum()))


@lru_cache(maxsize=2)  # the program that many rewritings are compared with, at both sizes
def _updates_before(setting: Setting, guarded: bool) -> np.ndarray:
    return (
        _updates(setting, _as_it_is, *SMALL) if guarded else _updates(setting, _unguarded, *USUAL)
    )


def _updates(
    setting: Setting, change: Callable[[Program], Program], size: float, rate: float
) -> np.ndarray:
    """Where the rate is not 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, RUNS, LAYOUT.n)
    gradients = size * torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu")
    weights = 2 * torch.rand(LAYOUT.n, dtype=torch.float64, generator=generator, device="cpu") - 1
    rates = setting.lr * rate * torch.tensor(RATES, dtype=torch.float64, device="cpu")
    program, decay = change(setting.program), setting.weight_decay
    return respond([program], gradients, weights, rates, decay, LAYOUT)[:, rates > 0].numpy()


def _gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Relative differences; what cancels to nearly nothing is seen beside what is typical."""
    size = np.maximum(np.abs(a), np.abs(b))
    typical = np.median(size[np.isfinite(size)]) if np.isfinite(size).any() else 0.0
    with np.errstate(all="ignore"):
        return np.where(a == b, 0.0, np.abs(a - b) / np.maximum(size, 1e-6 * typical))


def _as_it_is(program: Program) -> Program:
    return program


def _unguarded(program: Program) -> Program:
    """The same with ``x / (y - 1e-8 + 1e-8)`` for ``x / (y + 1e-8)``, if y is no constant."""
    statements: list[Statement] = []
    for place, statement in enumerate(program.statements):
        if statement.op in ("div", "reciprocal") and isinstance(statement.args[-1], str):
            name = f"{statement.args[-1]} {place}"  # of no variable that a text can have
            less = Statement(name, "sub", (statement.args[-1], EPSILON))
            statements.append(less)
            statement = replace(statement, args=(*statement.args[:-1], less.target))
        statements.append(statement)
    return replace(program, statements=tuple(statements))
