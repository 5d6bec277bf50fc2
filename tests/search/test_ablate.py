import math

import pytest

from search.language.program import parse
from search.language.validity import check
from search.simplify import ablate
from search.simplify.ablate import Ablation, Edit, brevity, compare, measure, roundings, skips
from search.simplify.agreement import Setting
from search.zoo import ZOO
from tasks.evaluation.intervals import Interval
from tasks.families.linear import Logistic
from tasks.families.quadratic import Quadratic
from tasks.suites import Entry

HERE = f"{__name__}:SUITE"
FAST = Ablation(suite=HERE, trials=5, seeds=4, tuning_seeds=1)
LION = ZOO["lion"].program


def SUITE():
    return (Entry(Quadratic(dimension=8, noise=0.1), 20), Entry(Logistic(batch_size=16), 12))


@pytest.fixture(autouse=True)
def suite(monkeypatch):
    """Test modules cannot be imported by name, so the suite is handed over."""
    monkeypatch.setattr(ablate, "resolve", lambda name: SUITE() if name == HERE else ())


def program(body, states="m"):
    lines = "\n".join(f"    {line.strip()}" for line in body.strip().splitlines())
    states = f", {states}" if states else ""
    return parse(f"def update(w, g{states}):\n{lines}\n    return update{states}\n")


def texts(edits):
    return ["; ".join(map(str, edit.program.statements)) for edit in edits]


# Edits -----------------------------------------------------------------------------------------


def test_what_can_be_left_out_of_lion():
    edits = skips(LION)
    assert texts(edits) == [
        "update = sign(g)",
        "update = sign(m); m = interp(g, m, 0.99)",
        "update = interp(g, m, 0.9); m = interp(g, m, 0.99)",
    ]
    assert [edit.what for edit in edits] == [
        "without blend = interp(g, m, 0.9), g in its place",
        "without blend = interp(g, m, 0.9), m in its place",
        "without update = sign(blend)",
    ]


@pytest.mark.parametrize("name", ZOO)
def test_edits_are_valid_and_shorter(name):
    one = ZOO[name].program
    edits = [*skips(one), *roundings(one)]
    assert len({str(edit.program) for edit in edits}) == len(edits)
    for edit in edits:
        check(edit.program)
        assert brevity(edit.program) < brevity(one)


def test_a_statement_takes_what_only_it_needs_along():
    one = program("a = norm(g)\nb = a * 3\nc = g / b\nupdate = sign(c)")
    assert "update = sign(g)" in texts(skips(one))


ROUNDED = {
    0.8999999761581421: {0.9},
    0.9982196781841992: {0.998, 0.9982, 0.99822},
    0.99: set(),
    0.9: set(),
    1.109133005142212: {1.0, 1.1, 1.11},
    4604.556678792136: {5000.0, 4600.0},
    0.0314159: {0.03, 0.031, 0.0314},
    -2.71828: {-3.0, -2.7, -2.72},
    0.9999999999: set(),
}


@pytest.mark.parametrize(("constant", "values"), ROUNDED.items())
def test_constants_are_rounded_to_few_digits(constant, values):
    edits = roundings(program(f"m = interp(g, m, {constant})\nupdate = sign(m)"))
    assert {edit.program.statements[0].args[2] for edit in edits} == values
    for edit in edits:
        assert edit.what.startswith(f"{constant!r} rounded to ")


# Effects ---------------------------------------------------------------------------------------


def test_what_changes_nothing_is_harmless_and_what_matters_is_not():
    lion = "z = interp(y, m, 0.9)\nupdate = sign(z)\nm = interp(y, m, 0.8)"
    one = program(f"x = g * 0.001\ny = arctan(x)\n{lion}")
    effects = {effect.edit.what: effect for effect in measure(skips(one), Setting(one), FAST)}
    arctan, sign = effects["without y = arctan(x)"], effects["without update = sign(z)"]
    assert arctan.harmless
    assert abs(arctan.cost.mean) < 1e-3
    assert not sign.harmless
    assert sign.cost.low > 0.05
    assert next(iter(effects.values())).harmless


def test_costs_are_paired_and_reproducible():
    lion, sign = Setting(LION), Setting(ZOO["sign_sgd"].program)
    same, other = compare([lion, sign], lion, FAST)
    assert same[:3] == (0, 0, 0)
    assert other.n == FAST.seeds
    assert other.low < other.mean < other.high
    assert compare([lion, sign], lion, FAST) == [same, other]
    (back,) = compare([lion], sign, FAST)
    assert back.mean == pytest.approx(-other.mean)


def test_each_runs_with_its_own_weight_decay():
    """As if the decay stood in the program."""
    inside = program("x = sign(g)\ny = w * 0.5\nupdate = x + y", states="")
    plain = ZOO["sign_sgd"].program
    rules = [Setting(inside), Setting(plain, weight_decay=0.5), Setting(plain)]
    same, apart = compare(rules[1:], rules[0], FAST)
    assert same.mean == pytest.approx(0, abs=1e-5)
    assert abs(apart.mean) > 1e-3
    assert compare(rules[1:], rules[0], FAST) == compare(rules[:0:-1], rules[0], FAST)[::-1]


COSTS = {  # interval, harmless, harmless if better is allowed
    "nothing": (Interval(0.0, -0.001, 0.001, 8), True, True),
    "within": (Interval(0.005, 0.002, 0.009, 8), True, True),
    "worse": (Interval(0.02, 0.015, 0.03, 8), False, False),
    "perhaps worse": (Interval(0.0, -0.02, 0.02, 8), False, False),
    "better": (Interval(-0.05, -0.06, -0.04, 8), False, True),
    "diverged": (Interval(math.inf, math.inf, math.inf, 8), False, False),
}


@pytest.mark.parametrize("allow_better", [False, True])
def test_what_counts_as_harmless(monkeypatch, allow_better):
    monkeypatch.setattr(ablate, "compare", lambda *_: [cost for cost, _, _ in COSTS.values()])
    edits = [Edit(name, LION) for name in COSTS]
    found = measure(edits, Setting(LION), Ablation(tolerance=0.01, allow_better=allow_better))
    expected = {name for name, row in COSTS.items() if row[1 + allow_better]}
    assert {effect.edit.what for effect in found if effect.harmless} == expected
    assert {effect.edit.what for effect in found[: len(expected)]} == expected


def test_the_shortest_harmless_edit_comes_first(monkeypatch):
    monkeypatch.setattr(ablate, "compare", lambda *_: [Interval(0.0, 0.0, 0.0, 8)] * 3)
    found = measure(
        [Edit("", ZOO[name].program) for name in ("adam", "lion", "sgd")], Setting(LION), FAST
    )
    assert [effect.edit.program for effect in found] == [
        ZOO[name].program for name in ("sgd", "lion", "adam")
    ]


def test_nothing_to_measure_takes_no_time():
    assert measure([], Setting(LION), FAST) == []


def test_a_program_that_diverges_is_refused():
    never = program("x = exp(w)\ny = exp(1e9)\nx = x * y\nupdate = g * x")
    with pytest.raises(ValueError, match=r"diverges on quadratic.*before any edit"):
        measure(skips(never), Setting(never), FAST)


BAD = {"trials": 0, "seeds": 0, "tuning_seeds": 0, "tolerance": -1, "length": 0, "schedule": "up"}


@pytest.mark.parametrize(("name", "value"), BAD.items())
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=name):
        Ablation(**{name: value})
