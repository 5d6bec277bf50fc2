import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from search.behaviour.signature import signatures
from search.evolution.mutate import mutate
from search.language.canonical import canonical
from search.language.program import Program, Statement, from_rows, parse, to_text
from search.language.validity import live
from search.zoo import ZOO, with_states

PAPER = json.loads(
    Path(__file__).with_name("data").joinpath("lion_paper_programs.json").read_text()
)["programs"]
LION_RAW = from_rows(PAPER["lion_raw"]["statements"], ("w", "g", "m", "v", "lr"), "full")


def program(body, states="m, v"):
    lines = "\n".join(f"    {line.strip()}" for line in body.strip().splitlines())
    return parse(f"def update(w, g, {states}, lr, t):\n{lines}\n    return update, {states}\n")


def adam(epsilon):
    """As in the zoo, with ``epsilon`` added to the one of division."""
    text = str(ZOO["adam"].program)
    return parse(
        text.replace("update = m_hat / root", f"r = root + {epsilon}\n    update = m_hat / r")
    )


def signature(one):
    return signatures([one])[0]


# What has to stay apart --------------------------------------------------------------------------

SAME_BUT_FOR_DECAY = {("adam", "adamw"), ("adam_no_correction", "adamw_no_correction")}
DISTINCT = {name: entry.program for name, entry in ZOO.items()} | {
    **{f"adam, epsilon {epsilon}": adam(epsilon) for epsilon in (1e-8, 1e-6, 1e-3)},
    "lion_raw": LION_RAW,
    "full lion": Program(ZOO["lion"].program.statements, ZOO["lion"].program.inputs, "full"),
}


def test_every_pair_of_rules_is_told_apart():
    found = dict(zip(DISTINCT, signatures(list(DISTINCT.values())), strict=True))
    assert "" not in found.values()
    equal = {pair for pair in combinations(DISTINCT, 2) if len({found[name] for name in pair}) == 1}
    assert equal == SAME_BUT_FOR_DECAY


BOUNDS = {
    "maximum(lr, 0.3)": "lr",
    "minimum(lr, 0.1)": "0.1",
    "minimum(t, 7.0)": "t",
    "maximum(t, 100.0)": "100.0",
}


@pytest.mark.parametrize(("one", "other"), BOUNDS.items())
def test_bounds_that_rates_and_times_reach_are_seen(one, other):
    assert signature(program(f"x = {one}\nupdate = x * g")) != signature(
        program(f"update = {other} * g")
    )


MOVING = {  # what fixed weights, or none that is zero, would not tell apart
    "weights that moved": ("s = w - v\nv = w + 0.0\ns = sign(s)\nx = s * m", "x = 0.0 * m"),
    "where gradients are zero": ("k = sign(g)\nk = square(k)\nx = w * k", "x = w * 1"),
    "where weights are zero": ("k = sign(w)\nk = square(k)\nx = m * k", "x = m * 1"),
    "a secant": ("s = w - v\nv = w + 0.0\nx = dot(s, g)", "x = 0.0 * lr"),
    "a rate and a time": ("x = reciprocal(t)\nx = maximum(x, lr)", "x = reciprocal(t)"),
    "a time and a rate": ("x = reciprocal(t)\nx = minimum(x, lr)", "x = lr * 1"),
}


@pytest.mark.parametrize(("one", "other"), MOVING.values(), ids=MOVING.keys())
def test_what_shows_in_training_alone_is_seen(one, other):
    a, b = (program(f"{x}\nm = interp(g, m, 0.9)\nupdate = m + x") for x in (one, other))
    assert signature(a) != signature(b)


CONSTANTS = {  # a constant, and others that a training run could tell from it
    "lion": {"0.9)": ("0.91)", "0.902)"), "0.99)": ("0.98)", "0.992)", "0.999)")},
    "sign_momentum": {"0.9)": ("0.91)", "0.902)", "0.95)")},
    "momentum": {"0.9 ": ("0.90001 ", "0.91 ")},
    "adam": {"(g, m, 0.9)": ("(g, m, 0.90001)",), "(g2, v, 0.999)": ("(g2, v, 0.99901)",)},
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_close_constants_are_told_apart(name):
    text = to_text(ZOO[name].program)
    for constant, others in CONSTANTS[name].items():
        assert constant in text
        for other in others:
            changed = parse(text.replace(constant, other))
            assert signature(changed) != signature(ZOO[name].program), other


SCOPES = {
    "norm of one tensor and of all": ("n = norm(g)", "n = global_norm(g)"),
    "sizes and norms": ("n = abs(g)", "n = norm(g)"),
    "rates and constants": ("n = 1 * lr", "n = 1 * 1"),
    "time and constants": ("n = 1 * t", "n = 1 * 1"),
    "clipping that only large gradients meet": ("n = maximum(g, -5)", "n = maximum(g, -9)"),
}


@pytest.mark.parametrize(("one", "other"), SCOPES.values(), ids=SCOPES.keys())
def test_scopes_are_told_apart(one, other):
    a, b = (program(f"{line}\nupdate = g * n") for line in (one, other))
    assert signature(a) != signature(b)


# What has to fall together -----------------------------------------------------------------------

LION = "x = interp(g, m, 0.9)\nupdate = sign(x)\nm = interp(g, m, 0.99)"
ADAM = "m = interp(g, m, 0.9)\nx = square(g)\nv = interp(x, v, 0.99)\ny = sqrt(v)\nupdate = m / y"
DUPLICATES = {
    "m * m and square(m)": (ADAM, ADAM.replace("square(g)", "g * g")),
    "cubes": ("update = cube(g)", "x = g * g\nupdate = x * g"),
    "commuted arguments": ("x = g + w\nupdate = x * 2", "x = w + g\nupdate = 2 * x"),
    "renamed variables": (LION, LION.replace("x", "blend")),
    "swapped states": (ADAM, ADAM.replace("m", "z").replace("v", "m").replace("z", "v")),
    "dead code": (LION, "v = cosh(w)\ny = tan(v)\n" + LION + "\ny = m - w"),
    "distributed": ("x = g + w\nupdate = x * 3", "x = g * 3\ny = w * 3\nupdate = x + y"),
    "associated": ("x = g + w\nupdate = x + m", "x = w + m\nupdate = x + g"),
    "averages in other words": (
        "m = interp(g, m, 0.9)\nupdate = m * 1",
        "x = 0.9 * m\ny = g * 0.1\nm = x + y\nupdate = m * 1",
    ),
    "averages by difference": (
        "m = interp(g, m, 0.9)\nupdate = m * 1",
        "x = g - m\ny = x * 0.1\nm = m + y\nupdate = m * 1",
    ),
    "a sign of what was scaled": (
        LION,
        LION.replace("sign(x)", "sign(y)").replace("\nu", "\ny = x * 7\nu"),
    ),
    "a root of a square": ("x = square(g)\nupdate = sqrt(x)", "update = abs(g)"),
    "double negation": ("x = 0 - g\nupdate = 0 - x", "update = g * 1"),
    "constant arithmetic": ("x = get_eps()\ny = sqrt(x)\nupdate = g * y", "update = g * 1e-4"),
    "zero of either sign": ("update = maximum(g, 0)", "x = minimum(g, 0)\nupdate = g - x"),
}


@pytest.mark.parametrize(("one", "other"), DUPLICATES.values(), ids=DUPLICATES.keys())
def test_duplicates_fall_together(one, other):
    assert signature(program(one)) == signature(program(other))


def test_normal_forms_keep_the_signature():
    rng = np.random.default_rng(3)
    programs = []
    for entry in ZOO.values():
        child = with_states(entry.program, 2)
        for _ in range(20):
            child = mutate(child, rng).program
            programs.append(child)
    plain = signatures(programs)
    assert signatures([canonical(p) for p in programs]) == plain
    assert signatures([live(p) for p in programs]) == plain
    assert len(set(plain)) > 40


def test_company_does_not_matter():
    programs = list(DISTINCT.values())
    together = signatures(programs)
    assert signatures(programs[::-1]) == together[::-1]
    assert [signature(p) for p in programs] == together
    assert signatures([]) == []


def test_rules_that_are_never_finite_have_no_signature():
    never = program("x = arccosh(g)\ny = exp(1e10)\nx = x * y\ny = 0 * y\nupdate = x * y")
    later = program("x = exp(t)\nx = exp(x)\nx = exp(x)\nx = exp(x)\nupdate = g * x")
    once = program("update = arccosh(g)")  # finite where a gradient is above 1
    assert signatures([never, later]) == ["", ""]
    assert signature(once) != ""


def test_a_statement_without_effect_on_any_update_does_not_matter():
    lion = ZOO["lion"].program
    more = (*lion.statements, Statement("x", "cosh", ("g",)))
    assert signature(Program(more, lion.inputs)) == signature(lion)
