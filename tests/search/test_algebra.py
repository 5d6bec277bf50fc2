import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.behaviour.probe import respond
from search.behaviour.signature import signatures
from search.evolution.mutate import mutate, random_program
from search.language.canonical import canonical
from search.language.flow import flow, to_program
from search.language.functions import ProgramError
from search.language.program import from_rows, parse, to_text
from search.simplify.agreement import Setting, agreement
from search.simplify.algebra import NORMAL_FORM, simplify
from search.simplify.patterns import RULES, rewritings
from search.simplify.recurrences import dependent_states, expand, sums
from search.zoo import ZOO, with_states

PAPER = json.loads(
    Path(__file__).with_name("data").joinpath("lion_paper_programs.json").read_text()
)["programs"]


def paper(name):
    return from_rows(PAPER[name]["statements"], ("w", "g", "m", "v", "lr"), "full")


def program(body, states="m, v", name="update"):
    lines = "\n".join(f"    {line.strip()}" for line in body.strip().splitlines())
    states = f", {states}" if states else ""
    return parse(f"def {name}(w, g{states}, lr, t):\n{lines}\n    return update{states}\n")


def body(one):
    """Statements as text, for comparison."""
    return [str(statement) for statement in one.statements]


def random_programs(count):
    rng = np.random.default_rng(5)
    for entry in ZOO.values():
        child = with_states(entry.program, 2)
        for _ in range(count):
            child = mutate(child, rng).program
            yield child
    for _ in range(count):
        yield random_program(rng, int(rng.integers(1, 16)))


# Values instead of variables -------------------------------------------------------------------


def test_there_and_back_is_the_normal_form():
    for one in random_programs(12):
        assert to_program(flow(one)) == canonical(one)


def test_states_that_change_places_need_a_copy():
    swap = flow(
        program("x = 1.0 * m\ny = 1.0 * v\nm = 1.0 * y\nv = 1.0 * x\nz = m * v\nupdate = z * g")
    )
    values = replace(swap, states={"m": "v", "v": "m"})
    copied = to_program(values)
    assert sum(s.op == "mul" and 1.0 in s.args for s in copied.statements) >= 2


# The table of rules ----------------------------------------------------------------------------

STAND_FOR = {  # tensors and scalars of either sign; y away from zero
    "a": "sin(g)",
    "b": "cos(w)",
    "x": "sinh(g)",
    "y": "cube(g)",
    "s": "lr * -2",
    "t": "lr * 3",
    "c": "0.7",
    "d": "-2.5",
    "p": "1.7",
    "q": "0.6",
    "n": "-1.3",
}


def statements(text):
    """Lines that end in ``z = text``, its letters replaced, one operation a line."""
    lines = []

    def build(node):
        if isinstance(node, ast.Name) and node.id in "cdpqn":
            return STAND_FOR[node.id]
        if isinstance(node, ast.Name):
            line = f"{node.id} = {STAND_FOR[node.id]}"
            lines.extend([line] * (line not in lines))
            return node.id
        if isinstance(node, ast.BinOp):
            symbol = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
            lines.append(f"{build(node.left)} {symbol} {build(node.right)}")
        elif isinstance(node, ast.Call):
            lines.append(f"{ast.unparse(node.func)}({', '.join(map(build, node.args))})")
        else:
            return str(float(ast.literal_eval(node)))
        lines[-1] = f"r{len(lines)} = {lines[-1]}"
        return f"r{len(lines)}"

    last = build(ast.parse(text, mode="eval").body)
    return [*lines, f"z = {last} * 1.0"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule[0]} is {rule[1]}")
def test_each_rule_holds(rule):
    left, right = (
        Setting(program("\n".join([*statements(text), "update = z + g"]), "")) for text in rule
    )
    assert agreement(left, right).holds
    values = flow(left.program)
    found = {name for row in range(len(values.rows)) for name, _ in rewritings(values, row)}
    assert f"{rule[0]} -> {rule[1]}" in found


def test_a_wrong_step_would_be_noticed():
    lion = ZOO["lion"].program
    for old, new in (("0.9)", "0.901)"), ("0.99)", "0.9901)"), ("sign", "cbrt")):
        other = parse(to_text(lion).replace(old, new))
        assert not agreement(Setting(lion), Setting(other)).holds
    adam = ZOO["adam"].program
    other = parse(to_text(adam).replace("(g2, v, 0.999)", "(g2, v, 0.99900001)"))
    assert not agreement(Setting(adam), Setting(other, lr=1 + 2e-6)).holds
    assert not agreement(Setting(adam), Setting(adam, weight_decay=1e-4)).holds


# What comes out --------------------------------------------------------------------------------

EMA = "m = interp(g, m, 0.9)"
SIGN_MOMENTUM = ["m = interp(g, m, 0.9)", "update = sign(m)"]
SHORTER = {
    "m / sqrt(m * m)": (f"{EMA}\nx = m * m\ny = sqrt(x)\nupdate = m / y", SIGN_MOMENTUM),
    "m / abs(m)": (f"{EMA}\nx = abs(m)\nupdate = m / x", SIGN_MOMENTUM),
    "abs(m) / m": (f"{EMA}\nx = abs(m)\nupdate = x / m", SIGN_MOMENTUM),
    "sign of a root": (f"{EMA}\nx = cbrt(m)\ny = x * 7\nupdate = sign(y)", SIGN_MOMENTUM),
    "clipped": (f"{EMA}\nx = clip_by_global_norm(m, lr)\nupdate = sign(x)", SIGN_MOMENTUM),
    "a sum of gradients": ("x = m * 0.9\nm = x + g\nupdate = sign(m)", SIGN_MOMENTUM),
    "nothing added": (f"{EMA}\nx = w - w\ny = m + x\nupdate = sign(y)", SIGN_MOMENTUM),
    "one state twice": (
        "m = interp(g, m, 0.9)\nx = v * 0.9\nv = x + g\ny = m + v\nupdate = sign(y)",
        SIGN_MOMENTUM,
    ),
    "an average by difference": (
        "x = g - m\ny = x * 0.1\nm = m + y\nupdate = sign(m)",
        SIGN_MOMENTUM,
    ),
    "nesterov's sign": (
        "x = m * 0.9\nm = x + g\ny = m * 0.9\nz = g + y\nupdate = sign(z)",
        ["x1 = interp(g, m, 0.81)", "update = sign(x1)", "m = interp(g, m, 0.9)"],
    ),
    "lion in units of its own": (
        "a = g * 0.3\nb = m * 2.7\nc = a + b\nupdate = sign(c)\nm = interp(g, m, 0.99)",
        ["x1 = interp(g, m, 0.9)", "update = sign(x1)", "m = interp(g, m, 0.99)"],
    ),
    "multiples of one average": (
        "m = interp(g, m, 0.9)\nv = interp(g, m, 0.5)\nx = square(v)\ny = sqrt(x)\nupdate = v / y",
        ["x1 = interp(g, m, 0.45)", "update = sign(x1)", "m = interp(g, m, 0.9)"],
    ),
}


def rounded(text):
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.6g}", text)


@pytest.mark.parametrize(("before", "after"), SHORTER.values(), ids=SHORTER.keys())
def test_shortest_form(before, after):
    start = Setting(program(before))
    steps = simplify(start)
    end = steps[-1].after
    assert [rounded(line) for line in body(end.program)] == after
    assert (end.lr, end.weight_decay) == (1, 0)
    assert agreement(start, end).holds
    assert all(step.agreement.holds for step in steps)


def test_the_raw_program_of_lion():
    steps = simplify(Setting(paper("lion_raw")))
    rules = [step.rule for step in steps]
    assert rules[0] == "9 statements never reach an update"
    assert "a / abs(a) -> sign(a)" in rules
    assert "a sum folds into one statement: interp(x, m, 0.99822)" in rules
    end = steps[-1].after
    assert end.lr == 0.0002171761734643951
    assert end.weight_decay == pytest.approx(0.4601978361606598, rel=1e-15)
    assert end.program.form == "direction"
    assert [rounded(line) for line in body(end.program)] == [
        "x1 = lr * 4604.56",
        "x2 = clip_by_global_norm(g, x1)",
        "x3 = arcsin(x2)",
        "x4 = interp(x3, m, 0.9)",
        "update = sign(x4)",
        "m = interp(x3, m, 0.99822)",
    ]


@pytest.mark.parametrize("name", ["adamw_initial", "adabelief_like"])
def test_rate_and_decay_leave_full_programs(name):
    end = simplify(Setting(paper(name)))[-1].after
    lr, decay = {"adamw_initial": (0.001, 0.01), "adabelief_like": (0.03721, 0.0238)}[name]
    assert (end.lr, end.weight_decay) == (lr, pytest.approx(decay))
    same = {"adamw_initial": "adam_no_correction", "adabelief_like": "adabelief_no_correction"}[
        name
    ]
    assert signatures([end.program]) == signatures([ZOO[same].program])


FACTORS = {
    "a factor": ("x = sign(g)\nupdate = x * 3", 3, 0),
    "a decay": ("x = sign(g)\ny = w * 0.2\nupdate = x + y", 1, 0.2),
    "both": ("x = sign(g)\ny = w * 0.2\nx = x * 4\nupdate = x + y", 4, 0.05),
}


@pytest.mark.parametrize(("text", "lr", "decay"), FACTORS.values(), ids=FACTORS.keys())
def test_factors_and_decays_leave_directions(text, lr, decay):
    start = Setting(program(text), lr=0.5, weight_decay=0.1)
    end = simplify(start)[-1].after
    assert body(end.program) == ["update = sign(g)"]
    assert (end.lr, end.weight_decay) == pytest.approx((0.5 * lr, 0.1 / lr + decay))
    assert agreement(start, end).holds


def test_no_decay_is_negative():
    """No optimizer would take it: what grows the weights stays in the program."""
    start = Setting(
        program("x = sign(g)\ny = w * 0.2\nx = x * 4\nupdate = x - y"), weight_decay=0.1
    )
    end = simplify(start)[-1].after
    assert body(end.program) == ["x1 = sign(g)", "x2 = w * -0.05", "update = x1 + x2"]
    assert (end.lr, end.weight_decay) == (4, 0.025)
    assert agreement(start, end).holds


@pytest.mark.parametrize("length", [21, 80])
def test_terms_that_double_from_row_to_row(length):
    """Their number, as sums of products, is exponential in the length."""
    doubling = "x = tanh(g)\n" + "y = x * lr\nx = x + y\n" * length + "update = x * lr"
    steps = simplify(Setting(program(doubling, name="full_update")))
    assert {step.after.program.form for step in steps} == {"full"}
    scalar = "a = lr * 1.0\n" + "b = a * 1.5\na = a * b\n" * length + "update = g * a"
    simplify(Setting(program(scalar, "")))


def test_an_average_that_float32_cannot_hold_is_not_made():
    """1 - 0.99999999 is 0 there, and tasks run there."""
    for weight in (1e-8, 1e-6):
        one = program(f"x = g * {weight}\ny = m * {1 - weight!r}\nm = x + y\nupdate = sign(m)")
        assert not any("interp" in str(step.after.program) for step in simplify(Setting(one)))
    one = program("x = g * 0.001\ny = m * 0.999\nm = x + y\nupdate = sign(m)")
    assert "interp(g, m, 0.999)" in str(simplify(Setting(one))[-1].after.program)


def test_a_rate_may_be_zero():
    """Where a schedule warms up from 0, sign(g * lr) is 0 at first, and a state may keep that."""
    kept = program("x = g * lr\ny = sign(x)\nm = interp(y, m, 0.9)\nupdate = m * 1.0")
    assert not any("sign(g)" in str(step.after.program) for step in simplify(Setting(kept)))
    at_once = program("x = g * lr\nupdate = sign(x)", "")
    assert body(simplify(Setting(at_once))[-1].after.program) == ["update = sign(g)"]


def test_a_rate_is_small_beside_the_guard_of_a_division():
    one = "m = interp(g, m, 0.9)\na = abs(m)\nb = a * lr\nc = m / b\nd = c * lr\nupdate = d * lr"
    steps = simplify(Setting(program(one, name="full_update")))
    assert not any("sign" in str(step.after.program) for step in steps)


def test_what_is_tiny_is_not_nothing():
    """Where gradients are zero, the weights' sign is left."""
    one = "a = w * 1e-8\nb = a * 1e-8\nx = m + b\ny = x * 2.0\nupdate = sign(y)"
    end = simplify(Setting(program(f"m = interp(g, m, 0.9)\n{one}")))[-1].after
    assert "w" in {arg for s in end.program.statements for arg in s.args}


@pytest.mark.parametrize(
    "text",
    [
        "x = sign(g)\nupdate = x * 0.001",  # no schedule
        "x = lr * lr\nupdate = g * x",  # its square
        "x = g + lr\nupdate = x * 0.1",
    ],
)
def test_full_programs_that_are_not_proportional_to_the_rate_stay_full(text):
    start = Setting(program(text, name="full_update"))
    assert all(step.after.program.form == "full" for step in simplify(start))


LONGER = {"exadam", "optimistic_amsgrad"}  # written as in the paper


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"adamw_initial", *LONGER}))
def test_known_optimizers_are_as_short_as_they_get(name):
    steps = simplify(Setting(ZOO[name].program))
    assert all(step.after.size == steps[-1].after.size for step in steps)
    assert [step.rule for step in steps] != [NORMAL_FORM]


def test_simplification_keeps_the_meaning_and_the_second_time_finds_nothing():
    shorter = 0
    for one in random_programs(1):
        steps = simplify(Setting(one))
        if steps:
            end = steps[-1].after
            shorter += end.program.length < canonical(one).length
            assert end.size <= Setting(one).size
            assert agreement(Setting(one), end).holds
            again = simplify(end)
            assert not again or again[-1].after.size == end.size
    assert shorter > 0


# Linear algebra ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2).map(lambda x: round(x, 2)), min_size=3, max_size=3))
def test_expansion_of_nested_averages(abc):
    a, b, c = abc
    values = flow(
        program(f"x = interp(g, m, {a})\ny = interp(x, w, {b})\nz = y - m\nupdate = z * {c}")
    )
    total = expand(sums(values), values.update)
    expected = {
        "g": (1 - b) * (1 - a) * c,
        "m": ((1 - b) * a - 1) * c,
        "w": b * c,
    }
    for atom, weight in expected.items():
        assert total.get(atom, 0.0) == pytest.approx(weight, abs=1e-12)


def test_states_that_depend_on_each_other_are_found():
    values = flow(
        program("m = interp(g, m, 0.9)\nx = v * 0.9\nv = x - g\ny = m + v\nupdate = y + g")
    )
    found = dict(dependent_states(values))
    assert found == {"m": {"v": pytest.approx(-0.1)}, "v": {"m": pytest.approx(-10)}}
    apart = flow(program("m = interp(g, m, 0.9)\nv = interp(g, v, 0.8)\nupdate = m + v"))
    assert dict(dependent_states(apart)) == {}


def test_programs_that_cannot_run_are_refused():
    values = flow(program("update = g * 2"))
    with pytest.raises(ProgramError):
        to_program(replace(values, update=1.0))


def test_constants_are_not_taken_for_rows():
    values = flow(program("x = g * 3\ny = sin(x)\nz = y + 1\nupdate = z * 2"))
    assert expand(sums(values), values.update) == {1: 2.0, "1": 2.0}
    assert values.instead(1, "g").rows[2:] == (("add", ("g", 1.0)), ("mul", (2, 2.0)))


def test_a_state_that_nothing_reaches_is_zero():
    end = simplify(Setting(program("x = interp(g, m, 0.9)\nm = m * 0.5\nupdate = sign(x)")))[
        -1
    ].after
    assert body(end.program) == ["update = sign(g)"]


@pytest.mark.parametrize(
    "body",
    [
        f"{EMA}\nx = arcsin(g)\ny = x * 0.0\ns = sign(m)\nupdate = s + y",  # arcsin(2) is no number
        f"{EMA}\nx = g / g\nupdate = m * x",  # 0 / 0 is 0: nothing moves without a gradient
    ],
)
def test_what_differs_at_some_gradients_alone_is_kept(body):
    given = Setting(program(body))
    for _, after, agreed in simplify(given):
        assert agreed.holds
        given = after
    gradients = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    before, after = respond([program(body), given.program], gradients)
    assert torch.allclose(before, after, equal_nan=True)


def test_the_check_needs_no_name_of_the_program():
    lines = "x = g / m\ny = x * 1.0\nz = x - y\na = m_2 + z\nupdate = a * 1.0"
    given = program(f"m_2 = interp(g, m_2, 0.9)\nm = interp(m_2, m, 0.99)\n{lines}", "m, m_2")
    renamed = parse(to_text(given).replace("m_2", "n"))
    one, other = (simplify(Setting(p))[-1].after.program.length for p in (given, renamed))
    assert one == other == 2
