"""Exact simplification: the same rule in fewer statements.

Most of the work is a table of rules (``patterns``), applied wherever they match until none does;
``linear`` adds what needs numbers; here the learning rate and the weight decay are factored out.

"Exact" allows for two things: rounding, and the guard of division, ``x / (y + 1e-8)``, near zero:
``m / abs(m)`` becomes ``sign(m)``. So no step is taken on faith: each is checked by running both
programs (``agreement``), and one that fails is not taken.

Why not equality saturation: egglog (MIT, maintained) would hold all forms at once and pick the
smallest. But these rules all have a direction that is good, so the first form that is reached is
also the smallest; the steps that matter most, folding recurrences and factoring out the learning
rate, are arithmetic on constants and no rewriting; a chain of named steps is what a person wants
to read; and it would bring 34 packages with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from search import linear, patterns
from search.analyze import canonical, live
from search.flow import Expression, Flow, Reference, flow, insert, replace_row, to_program
from search.ops import EPSILON, Kind, ProgramError
from search.probe import respond
from search.program import Program, Statement
from tasks.types import Layout, ParamSpec

MOST_STEPS = 200
NORMAL_FORM = "normal form: names, order, repeated values, equal states"


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


class Rewriting(NamedTuple):
    """One step: the rule that was applied, what came out, and how it compares with before."""

    rule: str
    after: Setting
    agreement: Agreement


def simplify(start: Setting) -> list[Rewriting]:
    """Steps to the shortest equivalent found, the first of them to normal form; [] for none.

    ``start.program`` passes ``analyze.check``.
    """
    steps: list[Rewriting] = []
    now = start
    seen = {str(now.program)}
    while len(steps) < MOST_STEPS:
        step = next((s for s in _steps(now) if str(s.after.program) not in seen), None)
        if step is None:
            break
        steps.append(step)
        now = step.after
        seen.add(str(now.program))
    if not steps:
        return []
    if steps[-1].after.size == start.size and {step.rule for step in steps} == {NORMAL_FORM}:
        return []
    # Some rules lengthen a program for the sake of others; stop at the shortest.
    best = min(range(len(steps)), key=lambda k: (steps[k].after.size, -k))
    return steps[: best + 1] if steps[best].after.size <= start.size else []


def _steps(now: Setting) -> Iterator[Rewriting]:
    """Everything that can be done next, in order of preference, checked."""
    for rule, propose in _proposals(now):
        try:
            after = propose()
        except ProgramError:
            continue
        if after is not None:
            agreed = agreement(now, after)
            if agreed.holds:
                yield Rewriting(rule, after, agreed)


Propose = Callable[[], Setting | None]


def _proposals(now: Setting) -> Iterator[tuple[str, Propose]]:
    program = now.program
    dead = program.length - live(program).length
    if dead:
        yield (
            f"{dead} statements never reach an update",
            lambda: replace(now, program=live(program)),
        )
    yield NORMAL_FORM, lambda: replace(now, program=canonical(program))
    values = flow(program)
    for row in range(len(values.rows)):
        for rule, expression in _rewritings(values, row):
            yield rule, partial(_rewritten, now, values, row, expression)
    yield "learning rate and weight decay leave the program", partial(_factored, now, values)
    for state, total in linear.dependent_states(values):
        described = " + ".join(f"{w:.6g} * {name}" for name, w in total.items()) or "0"
        yield (
            f"state {state} is always {described}",
            partial(_shorter, now, linear.drop_state(values, state, total)),
        )
    for state, factor in linear.averaged_states(values):
        yield (
            f"state {state} divided by {factor:.6g} is an average",
            partial(_shorter, now, linear.scale_state(values, state, factor)),
        )


def _rewritten(now: Setting, values: Flow, row: int, expression: Expression) -> Setting:
    return replace(now, program=to_program(replace_row(values, row, expression)))


def _shorter(now: Setting, values: Flow) -> Setting | None:
    """A change of state, with all that follows from it, if that makes the program shorter."""
    after = replace(now, program=to_program(values))
    seen = {str(after.program)}
    while (step := _local(after, seen)) is not None:
        after = step
        seen.add(str(after.program))
    return after if after.size < now.size else None


def _local(now: Setting, seen: set[str]) -> Setting | None:
    """One rewriting that makes nothing longer."""
    values = flow(now.program)
    for row in range(len(values.rows)):
        for _, expression in _rewritings(values, row):
            after = _rewritten(now, values, row, expression)
            if after.size <= now.size and str(after.program) not in seen:
                return after
    return None


def _rewritings(values: Flow, row: int) -> Iterator[tuple[str, Expression]]:
    yield from patterns.rewritings(values, row)
    for propose in (linear.collect, linear.sign_of_average):
        expression = propose(values, row)
        if expression is not None:
            yield _folded(expression), expression


def _folded(expression: Expression) -> str:
    """What a step of linear algebra did, in words."""
    if not isinstance(expression, tuple):
        return "a sum is " + ("a constant" if isinstance(expression, float) else "one of its parts")
    op, *args = expression
    if op == "sign":
        return f"the sign of a sum is that of an average: sign({_folded(args[0]).split(': ')[1]})"
    letters = iter("xyz")
    names = [
        f"{arg:.6g}" if isinstance(arg, float) else arg if isinstance(arg, str) else next(letters)
        for arg in args
    ]
    return f"a sum folds into one statement: {op}({', '.join(map(str, names))})"


Term = tuple[float, int, Reference]
"""``(weight, power of lr, atom)``."""
Terms = dict[tuple[int, Reference], float]
"""The same, power and atom to weight."""


# Learning rate and weight decay -------------------------------------------------------------------


def _factored(now: Setting, values: Flow) -> Setting | None:
    """``update = c * lr * (d + k * w)`` as the direction d, at c times the rate, with decay k.

    A full program has to be proportional to lr; a direction must not depend on it, and is only
    worth changing if it gets shorter. Of several c that may be chosen, the shortest d decides.
    """
    terms = _terms(values)
    if any(power != (values.form == "full") for _, power, _ in terms):
        return None
    scales = dict.fromkeys(abs(weight) for weight, _, atom in terms if atom != "w" and weight)
    found = [_divided(now, values, terms, scale) for scale in scales]
    shortest = min(found, key=lambda setting: setting.size, default=None)
    if shortest is not None and values.form == "direction" and shortest.size >= now.size:
        return None
    return shortest


def _divided(now: Setting, values: Flow, terms: list[Term], scale: float) -> Setting:
    # The decay that the harness adds was relative to the old rate.
    decay, added = now.weight_decay / scale, sum(w for w, _, atom in terms if atom == "w") / scale
    leaves = decay + added >= 0  # no optimizer has a negative one
    values, moved = _rate_scaled(values, 1 / scale)
    direction = linear.weighted(
        (atom + moved if isinstance(atom, int) else atom, weight / scale)
        for weight, _, atom in terms
        if atom != "w" or not leaves
    )
    values, update = insert(values, len(values.rows), direction)
    program = to_program(replace(values, update=update, form="direction"))
    return Setting(program, now.lr * scale, decay + added if leaves else decay)


def _rate_scaled(values: Flow, factor: float) -> tuple[Flow, int]:
    """The same with ``factor * lr`` where lr was read, and by how many rows that is longer."""
    if "lr" not in values.inputs or factor == 1:
        return values, 0
    longer, rate = insert(values.instead("lr", ""), 0, ("mul", "lr", factor))
    return longer.instead("", rate), 1


def _terms(values: Flow) -> list[Term]:
    """The update as weighted atoms, each power of lr times an atom once."""
    scalars, sums = _monomials(values), list[Terms]()

    def terms_of(reference: Reference) -> Terms:
        return sums[reference] if isinstance(reference, int) else {(0, reference): 1.0}

    for row, (op, args) in enumerate(values.rows):
        total: Terms = {(0, row): 1.0}
        if op in ("add", "sub"):
            total = dict(terms_of(args[0]))
            for term, weight in terms_of(args[1]).items():
                total[term] = total.get(term, 0.0) + (weight if op == "add" else -weight)
        for x, s in (args, args[::-1]) if op == "mul" else ():
            scalar = scalars[s] if isinstance(s, int) else _monomial(s)
            if scalar is not None and values.kind(x) != Kind.SCALAR:
                factor, power = scalar
                total = {(k + power, a): w * factor for (k, a), w in terms_of(x).items()}
                break
        sums.append(total)
    return [(w, power, atom) for (power, atom), w in terms_of(values.update).items() if w]


Monomial = tuple[float, int] | None
"""A scalar as ``(c, k)``: c * lr^k. None: it is none."""


def _monomials(values: Flow) -> list[Monomial]:
    """What each row is."""
    found: list[Monomial] = []
    for op, args in values.rows:
        parts = [found[arg] if isinstance(arg, int) else _monomial(arg) for arg in args]
        product: Monomial = None
        if op == "mul" and parts[0] is not None and parts[1] is not None:
            product = parts[0][0] * parts[1][0], parts[0][1] + parts[1][1]
        found.append(product)
    return found


def _monomial(reference: float | str) -> Monomial:
    if isinstance(reference, float):
        return reference, 0
    return (1.0, 1) if reference == "lr" else None


# The check --------------------------------------------------------------------------------------

LAYOUT = Layout((ParamSpec("a", (6, 8)), ParamSpec("b", (16,))))
STEPS, RUNS = 32, 32
RATES = (0.0, *np.linspace(1.0, 0.4, STEPS - 1).tolist())
"""A schedule may begin with 0. That update moves nothing, but may leave something in a state."""
USUAL, SMALL = (1.0, 1.0), (1e-3, 1e-3)
"""Sizes of gradients and of learning rates."""


def agreement(one: Setting, other: Setting) -> Agreement:
    """How far the updates of two settings are apart, for the same schedule of the rate."""
    a, b = (_updates(setting, _unguarded, *USUAL) for setting in (one, other))
    guarded_a, guarded_b = (_updates(setting, _as_it_is, *SMALL) for setting in (one, other))
    known = np.isfinite(a)
    if (known != np.isfinite(b)).any() or 2 * known.sum() < np.isfinite(guarded_a).sum():
        known[:] = False
    gaps = _gaps(a, b)[known]
    guarded = _gaps(guarded_a, guarded_b)[known]
    return Agreement(len(gaps), float(gaps.max(initial=0.0)), int((guarded > 1e-3).sum()))


def _updates(
    setting: Setting, change: Callable[[Program], Program], size: float, rate: float
) -> np.ndarray:
    """Where the rate is not 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, RUNS, LAYOUT.n)
    gradients = size * torch.randn(shape, dtype=torch.float64, generator=generator)
    weights = 2 * torch.rand(LAYOUT.n, dtype=torch.float64, generator=generator) - 1
    rates = setting.lr * rate * torch.tensor(RATES, dtype=torch.float64)
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
