"""Exact simplification: the same rule in fewer statements.

Most of the work is a table of rules (``patterns``), applied wherever they match until none does;
``linear`` adds what needs numbers; here the learning rate and the weight decay are factored out.

"Exact" allows for two things: rounding, and the guard of division, ``x / (y + 1e-8)``, near zero:
``m / abs(m)`` becomes ``sign(m)``. So no step is taken on faith: each is checked by running both
programs (``search.simplify.agreement``), and one that fails is not taken.

Why not equality saturation: egglog (MIT, maintained) would hold all forms at once and pick the
smallest. But these rules all have a direction that is good, so the first form that is reached is
also the smallest; the steps that matter most, folding recurrences and factoring out the learning
rate, are arithmetic on constants and no rewriting; a chain of named steps is what a person wants
to read; and it would bring 34 packages with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from search.language.canonical import canonical
from search.language.flow import Expression, Flow, Reference, flow, insert, replace_row, to_program
from search.language.functions import Kind, ProgramError
from search.language.validity import live
from search.simplify import patterns, recurrences
from search.simplify.agreement import Agreement, Setting, agreement
from search.simplify.clock import Clock, OutOfTime

MOST_STEPS = 200
NORMAL_FORM = "normal form: names, order, repeated values, equal states"


class Rewriting(NamedTuple):
    """One step: the rule that was applied, what came out, and how it compares with before."""

    rule: str
    after: Setting
    agreement: Agreement


def simplify(start: Setting, clock: Clock | None = None) -> list[Rewriting]:
    """Steps to the shortest equivalent found, the first of them to normal form; [] for none.

    ``start.program`` passes ``analyze.check``. When the ``clock`` strikes, what was found by then.
    """
    steps: list[Rewriting] = []
    with suppress(OutOfTime):
        for step in _walk(start, clock or Clock()):
            steps.append(step)
    if not steps:
        return []
    if steps[-1].after.size == start.size and {step.rule for step in steps} == {NORMAL_FORM}:
        return []
    # Some rules lengthen a program for the sake of others; stop at the shortest.
    best = min(range(len(steps)), key=lambda k: (steps[k].after.size, -k))
    return steps[: best + 1] if steps[best].after.size <= start.size else []


def _walk(now: Setting, clock: Clock) -> Iterator[Rewriting]:
    """One step after the other, never to a program that was met before."""
    seen = {str(now.program)}
    for _ in range(MOST_STEPS):
        step = next((s for s in _steps(now, clock) if str(s.after.program) not in seen), None)
        if step is None:
            return
        yield step
        now = step.after
        seen.add(str(now.program))


def _steps(now: Setting, clock: Clock) -> Iterator[Rewriting]:
    """Everything that can be done next, in order of preference, checked."""
    for rule, propose in _proposals(now, clock):
        clock.check()
        try:
            after = propose()
        except ProgramError:
            continue
        if after is not None:
            agreed = agreement(now, after)
            if agreed.holds:
                yield Rewriting(rule, after, agreed)


Propose = Callable[[], Setting | None]


def _proposals(now: Setting, clock: Clock) -> Iterator[tuple[str, Propose]]:
    program = now.program
    dead = program.length - live(program).length
    if dead:
        yield (
            f"{dead} statements never reach an update",
            lambda: replace(now, program=live(program)),
        )
    yield NORMAL_FORM, lambda: replace(now, program=canonical(program))
    values = flow(program)
    known = recurrences.sums(values)
    for row in range(len(values.rows)):
        for rule, expression in _rewritings(values, row, known):
            yield rule, partial(_rewritten, now, values, row, expression)
    yield "learning rate and weight decay leave the program", partial(_factored, now, values)
    for state, total in recurrences.dependent_states(values):
        described = " + ".join(f"{w:.6g} * {name}" for name, w in total.items()) or "0"
        yield (
            f"state {state} is always {described}",
            partial(_shorter, now, recurrences.drop_state(values, state, total), clock),
        )
    for state, factor in recurrences.averaged_states(values):
        yield (
            f"state {state} divided by {factor:.6g} is an average",
            partial(_shorter, now, recurrences.scale_state(values, state, factor), clock),
        )


def _rewritten(now: Setting, values: Flow, row: int, expression: Expression) -> Setting:
    return replace(now, program=to_program(replace_row(values, row, expression)))


def _shorter(now: Setting, values: Flow, clock: Clock) -> Setting | None:
    """A change of state, with all that follows from it, if that makes the program shorter."""
    after = replace(now, program=to_program(values))
    seen = {str(after.program)}
    while (step := _local(after, seen, clock)) is not None:
        after = step
        seen.add(str(after.program))
    return after if after.size < now.size else None


def _local(now: Setting, seen: set[str], clock: Clock) -> Setting | None:
    """One rewriting that makes nothing longer."""
    values = flow(now.program)
    known = recurrences.sums(values)
    for row in range(len(values.rows)):
        for _, expression in _rewritings(values, row, known):
            clock.check()
            after = _rewritten(now, values, row, expression)
            if after.size <= now.size and str(after.program) not in seen:
                return after
    return None


def _rewritings(
    values: Flow, row: int, known: Sequence[recurrences.Sum]
) -> Iterator[tuple[str, Expression]]:
    yield from patterns.rewritings(values, row)
    for propose in (recurrences.collect, recurrences.sign_of_average):
        expression = propose(values, row, known)
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
    direction = recurrences.weighted(
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
