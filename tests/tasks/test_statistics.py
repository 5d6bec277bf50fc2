"""Statistics: known answers, symmetries, and that noise is called noise."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import statistics
from tasks.statistics import Measured, best_of, iqm, log_ratios, median, profile, steps_to

INF = math.inf


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1, 2, 3, 4]], 2.5),
        ([[1, 2], [3, 400]], 2.5),  # one diverged or lucky run of four does not count
        ([[1, 2], [3, INF]], 2.5),
        ([[1, INF], [INF, INF]], INF),
        ([[-INF, 1], [2, 3]], 1.5),
    ],
)
def test_interquartile_mean(values, expected):
    assert iqm(np.array(values, float)) == expected


@pytest.mark.parametrize(
    ("loss", "reference", "expected"),
    [(2.0, 1.0, math.log(2)), (INF, 1.0, INF), (1.0, INF, -INF), (INF, INF, 0.0)],
)
def test_log_ratios_of_runs_that_diverged(loss, reference, expected):
    assert log_ratios(np.array([loss]), np.array([reference]))[0] == pytest.approx(expected)


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_intervals_cover_the_truth_and_do_not_depend_on_the_hour():
    hits = 0
    for seed in range(40):
        values = noise(seed, 4, 8)
        found = statistics.over_seeds(values)
        assert found == statistics.over_seeds(values)
        assert found.low <= found.mean <= found.high
        hits += found.low <= 0 <= found.high
    assert hits >= 33  # 95 % in the limit; percentile intervals of 8 seeds are a little short


def test_other_tasks_are_less_certain_than_other_seeds():
    values = np.arange(4.0)[:, None] + 0.01 * noise(0, 4, 5)
    seeds, tasks = statistics.over_seeds(values), statistics.over_tasks(values)
    assert tasks.high - tasks.low > 20 * (seeds.high - seeds.low)
    assert seeds.mean == tasks.mean


@pytest.mark.parametrize("over", [statistics.over_seeds, statistics.over_tasks])
@pytest.mark.parametrize(("tasks", "seeds"), [(1, 1), (3, 1), (1, 4), (2, 4)])
def test_one_seed_has_no_interval(over, tasks, seeds):
    found = over(noise(0, tasks, seeds))
    assert math.isfinite(found.low) == math.isfinite(found.high) == (seeds > 1)
    assert found.n == tasks * seeds


def losses(*shifts, tasks=4, seeds=5, spread=0.02):
    """Rules whose log losses differ by ``shifts``, with noise of their own."""
    return np.exp(np.array(shifts)[:, None, None] + spread * noise(1, len(shifts), tasks, seeds))


def test_noise_is_a_tie_and_a_difference_is_not():
    same, apart = losses(0.0, 0.0, 0.0), losses(0.0, 0.1, 0.2)
    assert statistics.ranks(same) == [1, 1, 1]
    assert statistics.ranks(apart) == [1, 2, 3]
    assert statistics.ranks(apart[::-1]) == [3, 2, 1]


def test_false_discoveries_are_controlled_over_all_pairs():
    """Among ten equal rules, few pairs may look different, at five per cent many would."""
    found = sum(
        int((statistics.q_values(np.exp(noise(seed, 10, 3, 5))) < statistics.ALPHA).any())
        for seed in range(20)
    )
    assert found <= 4  # of 20 evaluations of 45 pairs each


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_q_values_are_symmetric_and_no_smaller_than_p(seed, rules):
    table = np.exp(noise(seed, rules, 2, 4))
    q = statistics.q_values(table)
    assert np.array_equal(q, q.T)
    assert (np.diag(q) == 1).all()
    for a, b in combinations(range(rules), 2):
        assert q[a, b] >= statistics.p_value(table[a], table[b]) - 1e-12


def test_divergence_counts_against_a_rule():
    table = losses(0.0, 0.0)
    table[1, :, :3] = INF
    assert statistics.ranks(table) == [1, 2]


# --------------------------------------------------------------------------------- time to target


@pytest.mark.parametrize(
    ("target", "steps"),
    [(4.0, 0.0), (5.0, 0.0), (3.0, 5.0), (2.0, 10.0), (1.5, 15.0), (1.0, 20.0), (0.9, INF)],
)
def test_steps_to_a_target_are_interpolated(target, steps):
    assert steps_to(np.array([4.0, 2.0, 1.0]), (0, 10, 20), target) == steps


def test_steps_to_a_target_from_a_diverged_point():
    curves = np.array([[4.0, INF, 1.0], [4.0, INF, INF]])
    assert steps_to(curves, (0, 10, 20), 2.0).tolist() == [20.0, INF]


def test_half_of_the_runs_must_reach_it():
    assert median(np.array([[1.0], [2.0], [INF]])) == [2.0]
    assert median(np.array([[1.0], [INF]])) == [INF]


def test_speed_up_of_twice_the_speed():
    marks = tuple(range(0, 101, 5))
    slow = np.exp(-np.array(marks) / 50)[None].repeat(5, 0)
    fast = np.exp(-np.array(marks) / 25)[None].repeat(5, 0)
    found = statistics.speed_up(fast, slow, marks, float(slow[0, -1]))
    assert found.mean == pytest.approx(2, rel=1e-2)
    assert statistics.speed_up(slow, fast, marks, float(fast[0, -1])).mean == 0


def test_profile():
    steps = np.array([[10.0, 30.0, INF], [20.0, 10.0, INF]])
    shares = profile(steps)
    at = {factor: int(np.argmin(abs(statistics.FACTORS - factor))) for factor in (1.0, 2.0, 3.0)}
    assert [shares[0, at[f]] for f in (1.0, 2.0, 3.0)] == [0.5, 0.5, 1.0]
    assert [shares[1, at[f]] for f in (1.0, 2.0, 3.0)] == [0.5, 1.0, 1.0]


# -------------------------------------------------------------------------------- how it was tuned


@given(st.lists(st.floats(0, 10), min_size=1, max_size=7), st.data())
def test_best_of_is_the_mean_over_all_subsets(values, data):
    trials = data.draw(st.integers(1, len(values)))
    subsets = [min(subset) for subset in combinations(values, trials)]
    assert best_of(np.array(values), trials) == pytest.approx(np.mean(subsets))


def test_tuning():
    found = statistics.tuning(np.array([[1.0, 1.05, 2.0, INF]]), np.array([4.0]))
    assert found.good == 0.5
    assert found.diverged == 0.25
    assert found.budget[-1] == 0
    assert list(found.budget) == sorted(found.budget, reverse=True)
    assert found.budget[0] == pytest.approx(np.log([1.0, 1.05, 2.0, 4.0]).mean())


def measured(curves):
    """``curves [rules, seeds, marks]`` on one task."""
    rules, seeds, points = curves.shape
    final = curves[:, None, :, -1]
    return Measured(
        rules=tuple("abc"[:rules]),
        tasks=("task",),
        seeds=tuple(range(seeds)),
        marks=(tuple(range(points)),),
        final=final,
        test=final,
        curves=(curves,),
        settings=((0.1, 0.0), (0.2, 0.0)),
        trials=final[:, :, :2],
        chosen=np.zeros((rules, 1), int),
        seconds=np.ones((rules, 1)),
    )


def test_standings_tell_who_is_better():
    decay = np.exp(-np.arange(9.0) * np.array([1.0, 2.0, 1.0])[:, None])
    curves = decay[:, None] * np.exp(0.01 * noise(3, 3, 20, 9))
    table = statistics.standings(measured(curves), "a")
    assert {s.rule: (s.rank, s.verdict) for s in table} == {
        "a": (2, "reference"),
        "b": (1, "better"),
        "c": (2, "tie"),
    }
    assert table[0].rule == "b"
    assert table[0].gap.mean == pytest.approx(-8, abs=0.05)
    assert table[0].speed_ups[0].mean == pytest.approx(2, rel=0.05)
    assert table[0].area.mean < 0


def test_a_reference_that_was_not_measured():
    with pytest.raises(ValueError, match="reference: got 'z', expected one of a, b"):
        statistics.standings(measured(np.ones((2, 3, 4))), "z")
