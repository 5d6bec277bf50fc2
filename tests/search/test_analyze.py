import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search.evolution.mutate import mutate, random_program
from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.language.canonical import canonical
from search.language.functions import ProgramError
from search.language.program import Program, Statement, from_rows, parse, to_text
from search.language.validity import check, live
from search.zoo import ZOO
from tasks.types import Layout, Params, ParamSpec, StepInfo

PAPER = json.loads(
    Path(__file__).with_name("data").joinpath("lion_paper_programs.json").read_text()
)
LION_RAW = from_rows(
    PAPER["programs"]["lion_raw"]["statements"], ("w", "g", "m", "v", "lr"), "full"
)
LAYOUT = Layout((ParamSpec("a", (2, 3)), ParamSpec("b", (4,))))


def program(body, states="m, v", more=""):
    lines = "\n".join(f"    {line.strip()}" for line in body.strip().splitlines())
    states = f", {states}" if states else ""
    return parse(f"def update(w, g{states}{more}):\n{lines}\n    return update{states}\n")


def random_programs(count):
    """Random programs, and random descendants of known ones."""
    rng = np.random.default_rng(7)
    programs = [random_program(rng, int(rng.integers(1, 16))) for _ in range(count)]
    for entry in ZOO.values():
        child = entry.program
        for _ in range(10):
            child = mutate(child, rng).program
            programs.append(child)
    return programs


# Dead statements -------------------------------------------------------------------------------


def test_the_raw_program_of_lion_has_twelve_live_statements():
    kept = live(LION_RAW)
    assert (LION_RAW.length, kept.length) == (21, 12)
    assert kept.inputs == LION_RAW.inputs
    rows = list(LION_RAW.statements)
    dropped = [str(s) for s in rows if s not in kept.statements]
    assert dropped == [
        "m = clip_by_global_norm(m, lr)",
        "v845 = sqrt(0.6270633339881897)",
        "v968 = sign(v)",
        "v968 = v - v",
        "v845 = tanh(v845)",
        "v1 = square(v1)",
        "m = cosh(update)",
        "lr = tan(1.4572199583053589)",
        "lr = cos(v845)",
    ]
    assert canonical(LION_RAW).length == 12
    assert canonical(LION_RAW).states == ("m",)  # the other never carries anything


LIVE = {
    "a write that is overwritten before it is read": (
        "m = sin(g)\nm = interp(g, m, 0.9)\nupdate = sign(m)\nm = cos(g)",
        "m = sin(g)\nm = interp(g, m, 0.9)\nupdate = sign(m)",
    ),
    "a state that matters only two steps later": (
        "update = m * g\nm = v * g\nv = sign(g)",
        "update = m * g\nm = v * g\nv = sign(g)",
    ),
    "states that feed only each other": (
        "update = sign(g)\nm = v * g\nv = m + g",
        "update = sign(g)",
    ),
    "a state that feeds only itself": (
        "m = interp(g, m, 0.9)\nupdate = sign(g)",
        "update = sign(g)",
    ),
    "a local that is never read": ("x = sin(g)\nupdate = sign(g)", "update = sign(g)"),
    "an update that is overwritten": ("update = sin(g)\nupdate = cos(g)", "update = cos(g)"),
    "an update that is read": (
        "update = sin(g)\nupdate = cos(update)",
        "update = sin(g)\nupdate = cos(update)",
    ),
}


@pytest.mark.parametrize(("body", "kept"), LIVE.values(), ids=LIVE.keys())
def test_live(body, kept):
    assert live(program(body)) == program(kept)


# Normal form -----------------------------------------------------------------------------------

LION = "update = interp(g, m, 0.9)\nupdate = sign(update)\nm = interp(g, m, 0.99)"
ADAM = "m = interp(g, m, 0.9)\nx = g * g\nv = interp(x, v, 0.99)\ny = sqrt(v)\nupdate = m / y"
SAME = {
    "names": (LION, "b = interp(g, v, 0.9)\nv = interp(g, v, 0.99)\nupdate = sign(b)"),
    "order of independent statements": (
        ADAM,
        "a = g * g\nv = interp(a, v, 0.99)\nb = sqrt(v)\nm = interp(g, m, 0.9)\nupdate = m / b",
    ),
    "swapped states": (
        ADAM,
        "v = interp(g, v, 0.9)\nx = g * g\nm = interp(x, m, 0.99)\ny = sqrt(m)\nupdate = v / y",
    ),
    "swapped states under a symmetric function": (
        "m = interp(g, m, 0.9)\nv = interp(w, v, 0.9)\nupdate = m * v",
        "m = interp(w, m, 0.9)\nv = interp(g, v, 0.9)\nupdate = m * v",
    ),
    "commuting arguments": ("a = g + w\nupdate = a * 2", "a = w + g\nupdate = 2 * a"),
    "maximum commutes": ("update = maximum(g, w)", "update = maximum(w, g)"),
    "dot commutes": ("a = dot(g, w)\nupdate = g * a", "a = dot(w, g)\nupdate = g * a"),
    "dead statements": (LION, "v = sin(w)\nx = cos(v)\n" + LION),
    "repeated expressions": (
        "a = sin(g)\nupdate = a * a",
        "a = sin(g)\nb = sin(g)\nupdate = a * b",
    ),
    "repeated expressions, commuted": (
        "a = g * w\nupdate = a / a",
        "a = g * w\nb = w * g\nupdate = a / b",
    ),
    "constant arithmetic": ("update = g * 0.5", "a = 1 / 1.99999999\nb = a + 0\nupdate = g * b"),
    "functions without arguments": ("update = g * 1e-8", "a = get_eps()\nupdate = g * a"),
    "equal states": (
        "m = interp(g, m, 0.9)\nx = m * m\nupdate = g / x",
        "m = interp(g, m, 0.9)\nv = interp(g, v, 0.9)\nx = m * v\nupdate = g / x",
    ),
    "overwritten inputs": ("a = sin(g)\nupdate = a * w", "g = sin(g)\nupdate = g * w"),
    "zeros": ("update = maximum(g, 0)", "update = maximum(g, -0.0)"),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_same_rule_in_other_words(one, other):
    assert to_text(canonical(program(one))) == to_text(canonical(program(other)))


DIFFERENT = {
    "division does not commute": ("update = g / w", "update = w / g"),
    "interp does not commute": ("update = interp(g, w, 0.5)", "update = interp(w, g, 0.5)"),
    "constants": ("update = g * 0.5", "update = g * 0.25"),
    "signs": ("update = g * -1", "update = g * -2"),
    "functions": ("update = sin(g)", "update = cos(g)"),
    "algebra is not its business": ("update = g * g", "update = square(g)"),
    "states that start equal and part later": (
        "m = interp(g, m, 0.9)\nv = interp(g, v, 0.9)\nupdate = m - v",
        "m = interp(g, m, 0.9)\nv = interp(g, v, 0.8)\nupdate = m - v",
    ),
    "present and next value of a state": (
        "m = interp(g, m, 0.9)\nupdate = m * g",
        "update = m * g\nm = interp(g, m, 0.9)",
    ),
    "which state feeds which": (
        "update = m * g\nm = v + g\nv = sign(g)",
        "update = v * g\nm = v + g\nv = sign(g)",
    ),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different_rules_stay_different(one, other):
    assert to_text(canonical(program(one))) != to_text(canonical(program(other)))


def test_the_form_is_part_of_the_rule():
    rule = program("update = sign(g)")
    assert canonical(rule) != canonical(replace(rule, form="full"))


def test_a_value_with_two_destinations_is_computed_twice():
    """Without copies, `m` cannot be written before `b` has read it, nor after without `a`."""
    rule = program("a = sign(g)\nb = a * m\nm = sign(g)\nupdate = a + b")
    assert to_text(canonical(rule)) == (
        "def update(w, g, m):\n"
        "    x1 = sign(g)\n"
        "    x2 = m * x1\n"
        "    update = x1 + x2\n"
        "    m = sign(g)\n"
        "    return update, m\n"
    )


def test_constants_that_no_program_may_contain_are_not_folded():
    for body in ("a = log(0)\nupdate = g * a", "a = exp(100)\nupdate = g * a"):
        assert canonical(program(body)).length == 2


def test_text_is_the_same_in_another_process():
    code = "from search.language.canonical import canonical; from search.zoo import ZOO; "
    code += "print(*(canonical(e.program) for e in ZOO.values()), sep='', end='')"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    there = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert there == "".join(to_text(canonical(e.program)) for e in ZOO.values())


def trajectory(rule, steps=5):
    """Updates ``[steps, n]`` in float64 on fixed random inputs."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(1, LAYOUT.n, generator=generator, dtype=torch.float64)
    grads = torch.randn(steps, 1, LAYOUT.n, generator=generator, dtype=torch.float64)
    population = Population.of([rule], torch.zeros(1, dtype=torch.int64), reference)
    params, zero = Params(flat, LAYOUT), flat.new_zeros(1)
    state, updates = population.init(params), []
    for step in range(steps):
        info = StepInfo(step, steps, flat.new_full((1,), 0.5 / (step + 1)), zero, zero)
        update, state = population.update(grads[step], state, params, info)
        updates.append(update[0])
    return torch.stack(updates)


def test_meaning_is_kept_and_the_normal_form_is_a_fixed_point():
    finite = 0
    for rule in random_programs(150):
        normal = canonical(rule)
        check(normal)
        assert canonical(normal) == normal
        assert canonical(live(rule)) == normal
        assert parse(to_text(normal)) == normal
        expected = trajectory(rule)
        finite += bool(expected.isfinite().all())
        for other in (live(rule), normal):
            torch.testing.assert_close(trajectory(other), expected, equal_nan=True)
    assert finite > 100


def disguise(rule, rng):
    """The same rule: variables renamed, arguments commuted, junk put in between."""
    locals = [s.target for s in rule.statements if s.target not in (*rule.inputs, "update")]
    states = list(rng.permutation(rule.states))
    names = dict(zip(rule.states, states, strict=True))
    names |= {name: f"z{rng.integers(10**6)}_{k}" for k, name in enumerate(locals)}
    statements = []
    for s in rule.statements:
        args = tuple(names.get(a, a) if isinstance(a, str) else a for a in s.args)
        if s.op in ("add", "mul", "dot", "maximum") and rng.random() < 0.5:
            args = args[::-1]
        statements += [
            Statement("junk", "sin", ("g",)),
            Statement(names.get(s.target, s.target), s.op, args),
        ]
    return Program(tuple(statements), rule.inputs, rule.form)


def test_disguises_are_seen_through():
    rng = np.random.default_rng(0)
    for rule in random_programs(100):
        hidden = disguise(rule, rng)
        check(hidden)
        assert canonical(hidden) == canonical(rule)


# Validity --------------------------------------------------------------------------------------

INVALID = {
    "scalar update": ("update = global_norm(g)", "'update' is SCALAR at the end"),
    "array update": ("update = norm(g)", "'update' is ARRAY at the end"),
    "scalar state": ("update = sign(g)\nm = dot(g, w)", "'m' is SCALAR at the end"),
    "constant update": ("update = w * 0.5", "does not depend on the gradient"),
    "gradient overwritten": ("g = sin(w)\nupdate = g + w", "does not depend on the gradient"),
    "gradient in a dead state": ("m = g + m\nupdate = w + v", "does not depend on the gradient"),
    "kinds": ("x = norm(g)\nupdate = dot(g, x)", "dot: argument 2 is ARRAY, it accepts TENSOR"),
}


@pytest.mark.parametrize(("body", "message"), INVALID.values(), ids=INVALID.keys())
def test_check_refuses(body, message):
    with pytest.raises(ProgramError, match=message):
        check(program(body))


@pytest.mark.parametrize(
    "body",
    [
        "update = sign(m)\nm = interp(g, m, 0.9)",
        "update = m * 2\nm = v * 2\nv = sin(g)",
        "x = dot(g, w)\nupdate = w * x",
        "m = global_norm(g)\nupdate = w * m\nm = sign(g)",
        "update = norm(g)\nupdate = g / update",
    ],
)
def test_check_accepts(body):
    check(program(body))


def test_check_covers_names_of_programs_made_by_hand():
    with pytest.raises(ProgramError, match="statement 1: 'x' is read before it is assigned"):
        check(Program((Statement("update", "sin", ("x",)),), ("w", "g")))
