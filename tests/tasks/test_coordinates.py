"""The coordinate check: flat lines in muP, rising ones without it; and what it reports."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from l2o.architectures.small_fc import SmallFC
from search.behaviour.degree import degree
from search.interpreter.population import Population
from search.zoo import ZOO
from tasks.data.loaders import help_text
from tasks.families.mlp import MLP
from tasks.families.transformer import Transformer
from tasks.mup.coordinate_plot import draw
from tasks.mup.coordinates import Coordinates, coordinate_check
from tasks.mup.scaling import mup, scaled

WIDTHS = (64, 128, 256, 512)
NETWORKS = {
    "mlp": lambda width: MLP(width, 3, "tanh", batch_size=32),
    "transformer": lambda width: Transformer(width, 1, 2, help_text(8), 8),
}
RATES = {"adamw": 0.004, "lion": 0.002, "momentum": 0.1}
THETA = SmallFC(step_mult=0.003).initial(0)


def program(name):
    return lambda task: Population.of([ZOO[name].program], torch.zeros(1, dtype=torch.int64))


def checks(network, rule):
    """The check without and with muP; ``rule`` is a program of the zoo or ``small_fc``."""
    if rule == "small_fc":
        optimizer = SmallFC(step_mult=0.003)
        plain, scaling = (
            (lambda task: optimizer.rule(THETA)),
            (lambda task: optimizer.rule(THETA, task.multipliers())),
        )
        lr, widths = 1.0, WIDTHS[:3]
    else:
        plain, k = program(rule), degree(ZOO[rule].program)
        scaling = lambda task: scaled(plain(task), task.multipliers(k))  # noqa: E731
        lr, widths = RATES[rule], WIDTHS
    make = NETWORKS[network]
    return [
        coordinate_check(make, plain, widths, 4, lr=lr),
        coordinate_check(lambda width: mup(make(width), WIDTHS[0]), scaling, widths, 4, lr=lr),
    ]


@pytest.mark.parametrize("rule", [*RATES, "small_fc"])
@pytest.mark.parametrize("network", NETWORKS)
def test_flat_in_mup_and_rising_without(network, rule):
    standard, in_mup = checks(network, rule)
    assert max(in_mup.ratios().values()) < 2, f"\n{in_mup}"
    widths = len(standard.widths)
    assert max(standard.ratios().values()) > 2 ** (0.5 * (widths - 1)), f"\n{standard}"


@dataclass(frozen=True)
class Shift:
    """Moves every parameter by ``lr`` at every step."""

    def init(self, params):
        return {}

    def update(self, grads, state, params, info):
        return info.lr[:, None] * torch.ones_like(grads), state

    def select(self, index):
        return self


def test_what_is_measured():
    """The bias row of the first layer: lr times (1 + the sum of the inputs), step by step."""
    check = coordinate_check(MLP, lambda task: Shift(), [8, 16], 5, seeds=[0, 1], lr=0.1)
    assert check.layers == ("w0", "b0", "w1", "b1")
    assert check.steps == (1, 2, 4, 5)
    assert check.each.shape == (2, 2, 4, 4)
    low, high = check.range(1)
    assert np.all((low <= check.change[:, -1, 1]) & (check.change[:, -1, 1] <= high))
    pixels = MLP().data.batch("validation", torch.arange(32))[0].flatten(1).double().sum(1)
    for width in range(2):
        for k, step in enumerate(check.steps):
            expected = [x.square().mean().sqrt() for x in (pixels, pixels + 1)]
            expected = [0.1 * step * float(x) for x in expected]
            assert check.change[width, k, :2] == pytest.approx(expected, rel=1e-4)


def table(*changes):
    return Coordinates((64, 128), (1,), ("w0",), np.array(changes).reshape(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [((1.0, 3.0), 3.0), ((3.0, 1.0), 3.0), ((0.0, 0.0), 1.0), ((0.0, 1.0), math.inf)]
    + [((1.0, bad), math.inf) for bad in (math.nan, math.inf)],
)
def test_ratio(changes, ratio):
    assert table(*changes).ratios() == {"w0": ratio}


def test_table_and_rows():
    check = table(1.0, 3.0)
    head, row = str(check).splitlines()
    assert head.split() == ["change", "of", "w", "64", "w", "128", "ratio"]
    assert row.split() == ["w0", "1", "3", "3"]
    assert list(check.rows()) == [(64, 1, "w0", 1.0), (128, 1, "w0", 3.0)]


def test_figure(tmp_path):
    draw({"standard": table(1.0, 3.0), "muP": table(1.0, math.nan)}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 3), "widths: got 0, expected a positive integer"),
        (((8,), 0), "steps: got 0, expected a positive integer"),
        (((8,), 1, ()), "seeds: got 0, expected a positive integer"),
    ],
)
def test_nothing_to_measure(arguments, message):
    with pytest.raises(ValueError, match=message):
        coordinate_check(MLP, lambda task: Shift(), *arguments)
