"""Every maker of intervals, on every kind of values: none is made of too few, none holds what is
impossible."""

import math

import numpy as np
import pytest

from tasks.evaluation import wording
from tasks.evaluation.intervals import (
    bootstrapped,
    compare,
    ends,
    geometric,
    interval,
    over_seeds,
    over_tasks,
    share,
    within,
)
from tasks.evaluation.sensitivity import tuning

INF, NAN = math.inf, math.nan


def of_losses(maker):
    """A maker of ``[n]`` losses from one of ``[tasks, seeds]`` log ratios."""
    return lambda x: maker(np.log(np.maximum(x, 1e-30))[None].repeat(3, 0))


MAKERS = {  # of [n] losses -> (maker, the least n, the least value)
    "Student's": (interval, 3, -INF),
    "within": (lambda x: within(x, 0), 3, 0),
    "geometric": (geometric, 3, 0),
    "over seeds": (of_losses(over_seeds), 2, -INF),
    "over tasks": (of_losses(over_tasks), 2, -INF),
    "compare": (lambda x: compare(x[None], np.ones((1, len(x)))), 3, -INF),
    "median": (lambda x: bootstrapped(len(x), lambda d, axis=-1: np.median(d, axis), x), 3, 0),
    "budget": (
        lambda x: tuning(x[:, None] * [1, 3], np.full(len(x), 1e9), np.array([1.0, 2.0])).budget[0],
        3,
        0,
    ),
    "share": (lambda x: share(x > 1), 1, 0),
}
VALUES = {
    "one": [2.0],
    "two": [1.0, 41.7],
    "two alike": [2.0, 2.0],
    "three": [1.0, 2.0, 4.0],
    "far apart": [1e-6, 1.0, 1e6, 3.0],
    "all the same": [2.0, 2.0, 2.0, 2.0],
    "zeros": [0.0, 0.0, 1.0, 1.0],
    "infinite": [1.0, INF, 2.0, 3.0],
    "huge": [1e300, 2e300, 1e307, 1.0],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("maker", MAKERS)
def test_intervals_hold_what_can_be(maker, values):
    make, least, bottom = MAKERS[maker]
    x = np.array(VALUES[values])
    found = make(x)
    known = math.isfinite(found.low) and math.isfinite(found.high)
    if len(x) < least:
        assert (found.low, found.high) == (-INF, INF)
    if known:
        slack = 1e-9 * abs(found.mean)
        assert bottom <= found.low <= found.mean + slack
        assert found.mean <= found.high + slack
    if values == "all the same" and maker != "share":
        assert found.high - found.low == pytest.approx(0, abs=1e-9)
    for say in (wording.factor, wording.change, wording.portion):
        assert "nan" not in say(found)
        assert "inf" not in wording.factor(found)


def test_nothing_has_no_interval():
    for found in (interval(np.array([])), share(np.array([], bool))):
        assert math.isnan(found.mean)
        assert (found.low, found.high, found.n) == (-INF, INF, 0)


def test_a_bootstrap_takes_three_values():
    """Of two values it would be from one to the other."""
    for maker in (over_seeds, over_tasks):
        for shape in ((1, 2), (2, 1), (3, 1)):
            assert maker(np.arange(float(np.prod(shape))).reshape(shape)).low == -INF
    assert math.isfinite(over_seeds(np.array([[1.0, 2.0, 4.0]])).low)
    assert math.isfinite(over_tasks(np.array([[1.0, 2.0], [3.0, 4.0]])).low)


def test_what_is_no_number_may_be_anywhere():
    drawn = np.append(np.linspace(0, 1, 96), [NAN] * 4)
    assert ends(drawn) == (-INF, INF)


def test_a_step_over_two_tasks_has_no_interval():
    """It was 0.00 to 623004.53."""
    assert wording.factor(geometric(np.array([1.0, 41.7]))) == "6.46x (n = 2)"
    assert "n = " not in wording.factor(geometric(np.array([1.0, 41.7, 6.0])))
