"""Every known optimizer, and every way of having no muP class."""

import pytest

from search.behaviour.degree import MixedError, degree, homogeneity
from search.language.program import parse
from search.zoo import ZOO

SGD_LIKE = {"sgd", "momentum", "nesterov"}
MIXED = {
    "adamw_initial": "parameters",
    "adafactor_unfactored": "parameters",
    "diffgrad": "no power",  # a sigmoid of the gradient's change
    "radam": "no power",  # its first steps are those of momentum
    "lion_l2": "how many elements",
    "lion_group": "how many elements",
    "muon": "how many elements",
}


def program(*lines, inputs="w, g, m", returns="update, m"):
    body = "".join(f"    {line}\n" for line in (*lines, f"return {returns}"))
    return parse(f"def update({inputs}):\n{body}")


ADAM_LIKE = {
    *("adabelief", "adabelief_no_correction", "adagrad", "adam", "adam_no_correction", "adamw"),
    *("adamw_no_correction", "adan", "amsgrad", "cautious_adamw", "cautious_lion", "exadam"),
    *("grams", "lion", "lion_huber", "nadam", "optimistic_amsgrad", "rmsprop", "sign_momentum"),
    *("sign_sgd", "tiger"),
}


@pytest.mark.parametrize("name", sorted(SGD_LIKE | ADAM_LIKE))
def test_the_zoo(name):
    found = homogeneity(ZOO[name].program)
    assert found.label == ("SGD-like" if name in SGD_LIKE else "Adam-like")
    assert degree(ZOO[name].program) == (1.0 if name in SGD_LIKE else 0.0)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["m = interp(g, m, 0.5)", "update = square(m)"], 2.0),
        (["m = interp(g, m, 0.5)", "update = cube(m)"], 3.0),
        (["m = interp(g, m, 0.5)", "update = sqrt(m)"], 0.5),
        (["m = interp(g, m, 0.5)", "update = cbrt(m)"], 0.3333),
        (["g2 = square(g)", "update = g / g2"], -1.0),
        (["s = cosine_sim(g, m)", "m = interp(g, m, 0.5)", "update = s * g"], 1.0),
        (["m = interp(g, m, 0.5)", "n = norm(m)", "k = norm(g)", "r = n / k", "update = r * g"], 1),
    ],
)
def test_any_degree_is_found(lines, expected):
    assert degree(program(*lines)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["s = sign(g)", "update = s + g"], "no power"),
        (["update = arctan(g)"], "no power"),
        (["m = interp(g, m, 0.5)", "e = 0.1 + m", "update = g / e"], "no power"),
        (["g2 = m * g", "m = interp(g, m, 0.5)", "update = m / g2"], "no power"),  # 0 at step 1
        (["n = norm(g)", "update = g / n"], "how many elements"),
        (["n = global_norm(g)", "update = g / n"], "how many elements"),
        (["update = clip_by_global_norm(g, 1.0)"], "how many elements"),
        (["d = 0.1 * w", "update = g + d"], "parameters"),
        (["s = cosine_sim(g, w)", "update = s * g"], "parameters"),
        (
            ["s = w - m", "m = w + 0.0", "s = sign(s)", "g = sign(g)", "update = g + s"],
            "parameters",
        ),
        (["update = 0.0 * g"], "vanish"),
        (["c = arccosh(-3.0)", "update = c * g"], "not finite"),
    ],
)
def test_mixed_rules_are_refused_with_the_reason(lines, reason):
    found = homogeneity(program(*lines))
    assert found.degree is None
    assert found.label == "mixed"
    with pytest.raises(MixedError, match=reason):
        degree(program(*lines))


@pytest.mark.parametrize("name", MIXED)
def test_why_some_of_the_zoo_have_no_class(name):
    assert MIXED[name] in homogeneity(ZOO[name].program).reason
