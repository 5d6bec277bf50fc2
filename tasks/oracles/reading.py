"""Which oracle a rule reads: the one it declares, else the gradient.

    class Mine:
        oracle = TwoPoint(eps=1e-3)

``Reading`` declares one for any rule, as does ``RULE@two_point`` on the command line. An oracle of
this room goes by the name of its module: a new file is found by being there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeGuard

from torch import Tensor

from tasks.checks import meant
from tasks.oracles.base import Oracle
from tasks.oracles.gradient import Gradient
from tasks.oracles.hutchinson import Hutchinson, hessian_every
from tasks.types import Params, State, StepInfo, Unusable, UpdateRule
from tasks.user_code.calls import call
from tasks.user_code.imports import imported
from tasks.user_code.rooms import inhabitants


def reads(rule: UpdateRule, oracle: Oracle | str | None = None) -> Oracle:
    """What tells ``rule`` of the loss: ``oracle`` where it is given, else as the rule declares.

    Raises Unusable where the rule reads a Hessian that the oracle does not tell, and ValueError
    for a name of none.
    """
    found = getattr(rule, "oracle", None) if oracle is None else oracle
    every = hessian_every(rule)
    if found is None:
        return Hutchinson(every) if every else Gradient()
    found = named(found) if isinstance(found, str) else found
    if every and not found.curvature:
        raise Unusable(
            f"oracle: got {_name(found)}, which tells no Hessian, expected one that does: "
            "the rule reads it"
        )
    return found


def read_elsewhere(rule: UpdateRule) -> str | None:
    """The name of the oracle that ``rule`` reads, if it is neither of those that an optimizer in
    somebody's own training loop can be given: a gradient, and a Hessian's diagonal."""
    found = reads(rule)
    return None if isinstance(found, Gradient | Hutchinson) else _name(found)


@dataclass(frozen=True)
class Reading:
    """``rule``, told of the loss by ``oracle``; else as it was."""

    rule: UpdateRule
    oracle: Oracle

    def init(self, params: Params) -> State:
        return self.rule.init(params)

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        return self.rule.update(grads, state, params, info)

    def select(self, index: Tensor) -> Reading:
        return replace(self, rule=self.rule.select(index))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "rule":  # asked for by copies that are not filled yet
            raise AttributeError(name)
        return getattr(self.rule, name)


FORM = "NAME or NAME(a=1) of an oracle, or package.module:Class(a=1), one of your own"


def named(text: str) -> Oracle:
    """The oracle that ``text`` says: one of this room by its module, ``perturbed(rho=0.1)``, or one
    of the user's own by its import path, whose module is run.

    Raises ValueError for what is no oracle, and for settings that it does not have.
    """
    name, settings = call(text, FORM)
    known = oracles()
    kind = imported("oracle", name, FORM) if ":" in name else known.get(name)
    if kind is None:
        likely = meant(name, known)
        raise ValueError(f"oracle: got {name!r}, expected one of {', '.join(known)}{likely}")
    if not _is_oracle(kind):
        raise ValueError(f"oracle: got {name!r}, expected a class of tasks.oracles.base.Oracle")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"oracle: got {text!r}: {error}") from None


@cache
def oracles() -> dict[str, type[Oracle]]:
    """All of this room, by the names of their modules: ``two_point`` has the class ``TwoPoint``."""
    return inhabitants("tasks.oracles", _is_oracle)


def _is_oracle(kind: object) -> TypeGuard[type[Oracle]]:
    return isinstance(kind, type) and Oracle in kind.__mro__[1:]


def _name(oracle: Oracle) -> str:
    return type(oracle).__name__
