import json
import math
from pathlib import Path

import pytest

from search.behaviour.kind import classify
from search.language.program import from_rows, parse
from search.zoo import ZOO

PAPER = json.loads(
    Path(__file__).with_name("data").joinpath("lion_paper_programs.json").read_text()
)["programs"]

KINDS = {
    "sgd": ("linear filter", 1),
    "momentum": ("linear filter", 1),
    "nesterov": ("linear filter", 1),
    "adagrad": ("normalised", 0),
    "rmsprop": ("normalised", 0),
    "adam": ("normalised", 0),
    "adamw": ("normalised", 0),
    "adam_no_correction": ("normalised", 0),
    "adamw_no_correction": ("normalised", 0),
    "adabelief_no_correction": ("normalised", 0),
    "sign_sgd": ("sign of the gradient", 0),
    "sign_momentum": ("sign momentum", 0),
    "lion": ("Lion form", 0),
    "adamw_initial": ("normalised", 0),
    "tiger": ("sign momentum", 0),
    "lion_huber": ("Lion form", None),  # at all gradients but the smallest
    "radam": ("mixed", None),
    "diffgrad": ("mixed", None),
    "exadam": ("mixed", None),
    "adafactor_unfactored": ("mixed", None),
    "muon": ("mixed", None),  # of matrices normalised, of vectors a linear filter
}
NORMALISED = (
    *("adabelief", "adan", "amsgrad", "cautious_adamw", "cautious_lion", "grams", "lion_group"),
    *("lion_l2", "nadam", "optimistic_amsgrad"),
)
KINDS |= dict.fromkeys(NORMALISED, ("normalised", 0))
SIGNS = ("sign_sgd", "sign_momentum", "lion", "tiger", "lion_huber")


def program(body, states="m", more=""):
    lines = "\n".join(f"    {line.strip()}" for line in body.strip().splitlines())
    states = f", {states}" if states else ""
    return parse(f"def update(w, g{states}{more}):\n{lines}\n    return update{states}\n")


@pytest.mark.parametrize("name", KINDS)
def test_the_zoo(name):
    kind = classify(ZOO[name].program)
    assert (kind.name, kind.degree) == KINDS[name]
    assert kind.is_sign == (name in SIGNS)
    assert not kind.climbs


EMA = "m = interp(g, m, 0.9)\n"
SIGN_MOMENTUM = {
    "over its own size": EMA + "x = m * m\ny = sqrt(x)\nupdate = m / y",
    "over its absolute value": EMA + "x = abs(m)\nupdate = m / x",
    "half of it": EMA + "x = abs(m)\ny = m / x\nupdate = y * 0.5",
    "clipped": EMA + "x = m * 1e9\ny = minimum(x, 1)\nupdate = maximum(y, -1)",
    "saturated": EMA + "x = m * 1e9\nupdate = tanh(x)",
    "another saturation": EMA + "x = m * 1e9\nupdate = arctan(x)",
    "of a monotone function": EMA + "x = cube(m)\ny = sinh(x)\nupdate = sign(y)",
    "of a sum": "x = m * 0.9\nm = x + g\nupdate = sign(m)",
    "of a scaled sum": "x = m * 0.9\ny = g * 1e-4\nm = x + y\nupdate = sign(m)",
    "with a decay": EMA + "x = sign(m)\ny = w * 0.1\nupdate = x + y",
    "times the learning rate": EMA + "x = sign(m)\nupdate = x * lr",
}


@pytest.mark.parametrize("body", SIGN_MOMENTUM.values(), ids=SIGN_MOMENTUM.keys())
def test_sign_momentum_in_disguise(body):
    kind = classify(program(body, more=", lr"))
    assert kind.name == "sign momentum"
    assert kind.decays == pytest.approx((0.9,), rel=1e-4)
    assert kind.response[:3] == pytest.approx((1, 0.9, 0.81), rel=1e-4)
    assert "sign momentum" in str(kind)


LATER = "m = interp(g, m, 0.99)"
LION = {
    "over its own size": f"b = interp(g, m, 0.9)\nx = b * b\ny = sqrt(x)\nupdate = b / y\n{LATER}",
    "over its absolute value": f"b = interp(g, m, 0.9)\nx = abs(b)\nupdate = b / x\n{LATER}",
    "saturated": f"b = interp(g, m, 0.9)\nx = b * 1e9\nupdate = tanh(x)\n{LATER}",
    "unnormalised": f"a = g * 3\nb = m * 27\nc = a + b\nupdate = sign(c)\n{LATER}",
    "a sum": "a = m * 90\nb = g * 1000\nc = a + b\nupdate = sign(c)\nx = m * 0.99\nm = x + g",
}


@pytest.mark.parametrize("body", LION.values(), ids=LION.keys())
def test_lion_in_disguise(body):
    kind = classify(program(body))
    assert kind.name == "Lion form"
    assert kind.decays == pytest.approx((0.9, 0.99), rel=1e-4)
    assert str(kind) == "sign of a two-decay average, 0.9 and 0.99: the Lion form"


HEAVY_PASTS = {
    "Lion form": ("x = interp(g, m, 0.999)\nupdate = sign(x)\nm = interp(g, m, 0.9)", (0.999, 0.9)),
    "sign of a filter": ("m = m * 1.25\nm = m + g\nupdate = sign(m)", ()),
}


@pytest.mark.parametrize("name", HEAVY_PASTS)
def test_the_past_may_weigh_far_more_than_the_present(name):
    body, decays = HEAVY_PASTS[name]
    kind = classify(program(body))
    assert (kind.name, kind.decays) == (name, pytest.approx(decays, rel=1e-4))


NO_AVERAGES = {
    "two delays": "a = m * 0.5\nb = v * 0.3\nc = g + a\nv = m * 1\nm = g * 1",
    "two delays, one ratio": "a = m * 0.9\nb = v * 0.81\nc = g + a\nv = m * 1\nm = g * 1",
    "one that alternates": "b = m * -0.9\nc = g * 1\nm = b + g",
}


@pytest.mark.parametrize("body", NO_AVERAGES.values(), ids=NO_AVERAGES.keys())
def test_filters_that_end_or_alternate_are_no_averages(body):
    kind = classify(program(f"{body}\nx = b + c\nupdate = sign(x)", states="m, v"))
    assert (kind.name, kind.decays) == ("sign of a filter", ())


@pytest.mark.parametrize("last", ["update = y * 1", "update = sign(y)"])
def test_what_cancels_but_for_rounding_weighs_nothing(last):
    kind = classify(program(f"{EMA}x = g * 0.1\ny = m - x\n{last}"))
    assert kind.response[:3] == pytest.approx((0, 1, 0.9))
    assert not kind.climbs


def test_a_sign_may_shrink_with_time():
    kind = classify(program(f"{EMA}s = sign(m)\nr = sqrt(t)\nupdate = s / r", more=", t"))
    assert (kind.name, kind.decays) == ("sign momentum", pytest.approx((0.9,), rel=1e-4))


def test_the_raw_program_of_the_paper_is_of_the_lion_form():
    rows = PAPER["lion_raw"]["statements"]
    kind = classify(from_rows(rows, ("w", "g", "m", "v", "lr"), "full"))
    assert kind.name == "Lion form"
    assert kind.decays == pytest.approx((0.9, 1.109133005142212 * 0.8999999761581421), rel=1e-4)


def test_nesterov_under_a_sign_is_of_the_lion_form():
    kind = classify(program("x = m * 0.9\nm = x + g\ny = m * 0.9\nz = g + y\nupdate = sign(z)"))
    assert (kind.name, kind.decays) == ("Lion form", pytest.approx((0.81, 0.9), rel=1e-4))


def test_gradient_against_average_has_no_finite_blend():
    kind = classify(program("x = g - m\nupdate = sign(x)\nm = interp(g, m, 0.9)"))
    assert (kind.name, kind.decays) == ("Lion form", (math.inf, pytest.approx(0.9)))
    assert kind.response[:3] == pytest.approx((1, -0.1, -0.09))


OTHERS = {
    "two averages": (
        "m = interp(g, m, 0.9)\nv = interp(g, v, 0.99)\nx = m + v\nupdate = sign(x)",
        "sign of a filter",
    ),
    "an old average": ("update = sign(m)\nm = interp(g, m, 0.9)", "sign of a filter"),
    "two gradients": ("x = g + m\nupdate = sign(x)\nm = g * 1", "sign of a filter"),
    "signs averaged": (
        "x = sign(g)\nm = interp(x, m, 0.9)\nupdate = sign(m)",
        "sign",
    ),
    "sizes that vary": ("m = interp(g, m, 0.9)\nx = sign(m)\ny = abs(g)\nupdate = x * y", None),
    "a square": ("x = abs(g)\nupdate = x * g", "homogeneous"),
    "a root": ("x = abs(g)\ny = sqrt(x)\nz = sign(g)\nupdate = y * z", "homogeneous"),
    "a norm": ("x = norm(g)\nupdate = g / x", "normalised"),
    "a large epsilon": ("x = abs(g)\ny = x + 0.1\nupdate = g / y", "mixed"),
    "weights": ("x = g * g\nupdate = w * x", "mixed"),
    "weights that moved": (
        "s = w - v\nv = w + 0.0\nm = interp(g, m, 0.9)\nx = sign(m)\nupdate = x + s",
        "mixed",
    ),
    "a sign times a norm": ("s = sign(g)\nx = norm(g)\nupdate = s * x", "homogeneous"),
    "an average's": (
        "m = interp(g, m, 0.9)\ns = sign(m)\nx = global_norm(m)\nupdate = s * x",
        "homogeneous",
    ),
    "a cosine in a sign": (
        "c = cosine_sim(g, m)\nx = m * c\nx = g + x\nupdate = sign(x)\nm = interp(g, m, 0.9)",
        "sign",
    ),
    "not finite": ("x = arccosh(g)\ny = exp(1e10)\nx = x * y\nupdate = x / x", "mixed"),
}


@pytest.mark.parametrize(("body", "name"), OTHERS.values(), ids=OTHERS.keys())
def test_other_rules(body, name):
    kind = classify(program(body, "m, v"))
    if name is None:
        assert not kind.is_sign
    else:
        assert kind.name == name
    assert kind.decays == ()
    assert str(kind)


def test_degree_is_what_scaling_gradients_shows():
    bodies = {
        "x = abs(g)\nupdate = x * g": 2,
        "x = abs(g)\ny = sqrt(x)\nupdate = y * g": 1.5,
        "m = interp(g, m, 0.9)\nupdate = cbrt(m)": 0.3333,
        "x = abs(g)\ny = power(x, 0.37)\nz = sign(g)\nupdate = y * z": 0.37,
    }
    for body, degree in bodies.items():
        assert classify(program(body)).degree == degree


def test_a_momentum_shows_its_response():
    assert classify(ZOO["momentum"].program).response[:3] == pytest.approx((1, 0.9, 0.81))


@pytest.mark.parametrize("name", ["sign_sgd", "sign_momentum", "lion", "momentum"])
def test_a_rule_that_climbs_is_told_from_one_that_descends(name):
    text = str(ZOO[name].program).replace("update = ", "down = ")
    up = classify(parse(text.replace("    return", "    update = down * -2\n    return")))
    down = classify(ZOO[name].program)
    assert up.climbs
    assert up.name == down.name
    assert up.response == pytest.approx([-a for a in down.response])
    assert "climbs" in str(up)
