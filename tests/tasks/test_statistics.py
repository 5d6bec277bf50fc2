"""Statistics: known answers, symmetries, and that noise is called noise."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from l2o.cli.judging import ranking
from tasks.evaluation import intervals, statistics, time_to_target
from tasks.evaluation.intervals import FLOOR, iqm, over_seeds, over_tasks
from tasks.evaluation.report import _sentence
from tasks.evaluation.sensitivity import best_of, tuning
from tasks.evaluation.statistics import Measured, log_ratios
from tasks.evaluation.time_to_target import FACTORS, middle, profile, reached, steps_to

INF = math.inf


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1, 2, 3, 4]], 2.5),
        ([[1, 2], [3, 400]], 2.5),  # one diverged or lucky run of four does not count
        ([[1, 2], [3, INF]], 2.5),
        ([[1, INF], [INF, INF]], INF),
        ([[-INF, 1], [2, 3]], 1.5),
        ([[-INF, -INF], [-INF, 3]], -INF),
        ([[-INF, -INF], [INF, INF]], INF),
    ],
)
def test_interquartile_mean(values, expected):
    assert iqm(np.array(values, float)) == expected


@pytest.mark.parametrize(
    ("loss", "reference", "expected"),
    [
        (2.0, 1.0, math.log(2)),
        (INF, 1.0, INF),
        (1.0, INF, -INF),
        (INF, INF, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, 1e-9, math.log(FLOOR / 1e-9)),
        (1e-9, 0.0, math.log(1e-9 / FLOOR)),
    ],
)
def test_log_ratios_of_runs_that_diverged_or_reached_0(loss, reference, expected):
    assert log_ratios(np.array([loss]), np.array([reference]))[0] == pytest.approx(expected)


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def beaten(table):
    """How many rules are better than each."""
    return statistics.beaten_by(table, statistics.q_values(table)).sum(axis=1).tolist()


def test_intervals_cover_the_truth_and_do_not_depend_on_the_hour():
    hits = 0
    for seed in range(40):
        values = noise(seed, 4, 8)
        found = over_seeds(values)
        assert found == over_seeds(values)
        assert found.low <= found.mean <= found.high
        hits += found.low <= 0 <= found.high
    assert hits >= 33  # 95 % in the limit; percentile intervals of 8 seeds are a little short


def test_other_tasks_are_less_certain_than_other_seeds():
    values = np.arange(4.0)[:, None] + 0.01 * noise(0, 4, 5)
    seeds, tasks = over_seeds(values), over_tasks(values)
    assert tasks.high - tasks.low > 20 * (seeds.high - seeds.low)
    assert seeds.mean == tasks.mean


@pytest.mark.parametrize("over", [over_seeds, over_tasks])
@pytest.mark.parametrize(("tasks", "seeds"), [(1, 1), (3, 1), (1, 4), (2, 4)])
def test_one_seed_or_one_of_the_tasks_drawn_has_no_interval(over, tasks, seeds):
    found, drawn = over(noise(0, tasks, seeds)), seeds if over is over_seeds else min(tasks, seeds)
    assert math.isfinite(found.low) == math.isfinite(found.high) == (drawn > 1)
    assert found.n == tasks * seeds


def each_draw(values):
    """All ways to draw ``len(values)`` numbers with replacement."""
    return product(range(values), repeat=values)


def middle_half(values):
    """As rliable has it: of the sorted runs of all tasks, a quarter is cut at either end."""
    flat = np.sort(np.ravel(values))
    cut = len(flat) // 4
    return flat[cut : len(flat) - cut].mean()


def test_intervals_are_those_of_all_draws():
    """Enumerated, not drawn: 27 ways for each of 3 tasks; then tasks and seeds together."""
    values = noise(5, 3, 3) + np.arange(3)[:, None]
    by_seed = [
        middle_half([values[t][list(index)] for t, index in enumerate(choice)])
        for choice in product(each_draw(3), repeat=3)
    ]
    by_task = [middle_half(values[np.ix_(t, s)]) for t in each_draw(3) for s in each_draw(3)]
    for found, drawn in ((over_seeds(values), by_seed), (over_tasks(values), by_task)):
        assert found.mean == pytest.approx(middle_half(values))
        for end, level in ((found.low, 0.025), (found.high, 0.975)):
            assert np.mean(np.array(drawn) < end - 1e-9) <= level + 0.01
            assert np.mean(np.array(drawn) <= end + 1e-9) >= level - 0.01


def test_shares_have_exact_intervals():
    none, some = intervals.share(np.zeros(12, bool)), intervals.share(np.arange(10) < 3)
    assert none[:3] == pytest.approx((0, 0, 1 - 0.025 ** (1 / 12)))
    low, high = stats.beta.ppf([0.025, 0.975], [3, 4], [8, 7])
    assert some == pytest.approx((0.3, low, high, 10))


def losses(*shifts, tasks=4, seeds=5, spread=0.02):
    """Rules whose log losses differ by ``shifts``, with noise of their own."""
    return np.exp(np.array(shifts)[:, None, None] + spread * noise(1, len(shifts), tasks, seeds))


def test_noise_is_a_tie_and_a_difference_is_not():
    same, apart = losses(0.0, 0.0, 0.0), losses(0.0, 0.1, 0.2)
    assert beaten(same) == [0, 0, 0]
    assert beaten(apart) == [0, 1, 2]
    assert beaten(apart[::-1]) == [2, 1, 0]


def test_a_mean_and_ranks_that_disagree_are_a_tie():
    """One per cent better on three tasks of five, two worse on the others, twenty seeds."""
    gaps = np.concatenate([np.full(60, -0.01), np.full(40, 0.02)])
    gaps += 1e-5 * np.random.default_rng(0).standard_normal(100)
    pair = np.stack([np.exp(gaps).reshape(5, 20), np.ones((5, 20))])
    q = statistics.q_values(pair)
    assert q[0, 1] < statistics.ALPHA
    assert intervals.iqm(gaps) < 0  # the test says that these are worse
    assert not statistics.beaten_by(pair, q).any()


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


@pytest.mark.parametrize("tied", [False, True])
def test_p_values_are_those_of_all_signs(tied):
    """Wilcoxon's test by its definition: how many of the 2^n ways to sign the ranks are as far."""
    gaps = np.array([0.3, -0.1, 0.2, 0.5, 0.7, -0.4, 0.6, 0.8])
    if tied:  # those that diverged are equally far
        gaps[np.abs(gaps) >= 0.5] *= INF
    ranked = stats.rankdata(np.abs(gaps))
    observed = ranked @ np.sign(gaps)
    far = [abs(ranked @ signs) >= abs(observed) for signs in product((-1, 1), repeat=8)]
    table = np.exp(gaps).reshape(2, 4)
    assert statistics.p_value(table, np.ones((2, 4))) == pytest.approx(np.mean(far))


@pytest.mark.parametrize("pairs", [1, 4, 5, 6, 10])
def test_the_least_p_value(pairs):
    table = np.exp(np.arange(1.0, pairs + 1))[None]
    found = statistics.p_value(table, np.ones((1, pairs)))
    assert found == pytest.approx(statistics.least_p(pairs))
    assert (found < statistics.ALPHA) == (pairs > 5)


def test_false_discoveries_by_the_step_up_procedure():
    """Benjamini and Hochberg 1995: reject the k smallest, k the last with p_k <= k / m * alpha."""
    table = np.exp(np.array([0, 0, 0.02, 0.03, 0.3])[:, None, None] + 0.03 * noise(8, 5, 3, 4))
    q = statistics.q_values(table)
    pairs = sorted(
        (statistics.p_value(table[a], table[b]), a, b) for a, b in combinations(range(5), 2)
    )
    last = max(
        (k for k, (p, *_) in enumerate(pairs, 1) if p <= k / len(pairs) * statistics.ALPHA),
        default=0,
    )
    assert 0 < last < len(pairs)
    for k, (_, a, b) in enumerate(pairs, 1):
        assert (q[a, b] <= statistics.ALPHA) == (k <= last)


def test_divergence_counts_against_a_rule():
    table = losses(0.0, 0.0)
    table[1, :, :3] = INF
    assert beaten(table) == [0, 1]


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


def test_nothing_reaches_the_target_of_a_reference_that_diverged():
    curves, marks = np.array([[4.0, 1.0], [3.0, 1.0]]), (0, 10)
    assert steps_to(curves, marks, INF).tolist() == [INF, INF]
    found = reached(curves, np.array([[4.0, INF], [3.0, INF]]), marks, (1.0, 1.0))
    assert (found.steps.mean, found.faster.mean, found.quicker) == (INF, 0, 0)


def test_a_target_above_the_start_is_reached_by_all_at_once():
    """By a reference that learned nothing: after the first step, as a curve has no earlier one."""
    curves, worse = np.array([[4.0, 1.0]] * 3), np.array([[4.0, 5.0]] * 3)
    found = reached(curves, worse, (0, 10), (1.0, 1.0))
    assert found.steps[:3] == found.faster[:3] == (1, 1, 1)


def test_half_of_the_runs_must_reach_it():
    assert middle(np.array([[1.0], [2.0], [INF]])) == [2.0]
    assert middle(np.array([[1.0], [INF]])) == [INF]


def test_speed_up_of_twice_the_speed():
    marks = tuple(range(0, 101, 5))
    slow = np.exp(-np.array(marks) / 50)[None].repeat(5, 0)
    fast = np.exp(-np.array(marks) / 25)[None].repeat(5, 0)
    found = reached(fast, slow, marks, (3.0, 2.0))
    assert found.steps.mean == pytest.approx(50, rel=1e-2)
    assert found.faster.mean == pytest.approx(2, rel=1e-2)
    assert found.seconds == pytest.approx(150, rel=1e-2)
    assert found.quicker == pytest.approx(4 / 3, rel=1e-2)
    never = reached(slow, fast, marks, (3.0, 2.0))
    assert (never.steps.mean, never.seconds, never.faster.mean, never.quicker) == (INF, INF, 0, 0)


def test_seeds_that_never_reach_the_target_are_in_the_interval():
    marks = (0, 10)
    curves = np.array([[2.0, 0.5], [2.0, 0.5], [2.0, 1.5]])
    reference = np.array([[2.0, 1.0]] * 3)
    found = reached(curves, reference, marks, (1.0, 1.0))
    assert found.steps.mean == pytest.approx(20 / 3)
    assert (found.steps.high, found.faster.low) == (INF, 0)
    alone = reached(curves[:1], reference[:1], marks, (1.0, 1.0))
    assert (alone.faster.low, alone.faster.high) == (-INF, INF)


def test_the_target_is_drawn_with_the_seeds_of_the_reference():
    """Else a rule that is as good looks worse, for sure: the reference reaches its own median."""
    marks = tuple(range(0, 50, 10))
    decay = np.exp(-np.array(marks) / 20)
    first, other = decay * np.exp(0.1 * noise(5, 2, 6, 5).reshape(2, 6, 5))
    same = reached(first, first, marks, (1.0, 1.0))
    assert same.faster[:3] == (1, 1, 1)
    found = reached(other, first, marks, (1.0, 1.0))
    assert found.faster.low < 1
    _, score = time_to_target.scores([np.stack([first, other])], [marks], 0)
    assert (score.low, score.high) == (0, 1)


def test_profile():
    steps = np.array([[10.0, 30.0, INF], [20.0, 10.0, INF]])
    shares = profile(steps)
    at = {factor: int(np.argmin(abs(FACTORS - factor))) for factor in (1.0, 2.0, 3.0)}
    # The third task is solved by nobody, so nobody solves more than two of three.
    assert [shares[0, at[f]] for f in (1.0, 2.0, 3.0)] == [1 / 3, 1 / 3, 2 / 3]
    assert [shares[1, at[f]] for f in (1.0, 2.0, 3.0)] == [1 / 3, 2 / 3, 2 / 3]


def test_the_score_is_the_area_under_the_profile():
    steps = np.array([[10.0, 30.0, INF, 7.0], [20.0, 10.0, INF, INF], [39.0, 11.0, INF, 50.0]])
    fine = np.linspace(1, 4, 300_001)
    fastest = [10, 10, INF, 7]
    for rule, score in zip(steps, time_to_target.profile_scores(steps), strict=True):
        slower = [own / best if own < INF else INF for own, best in zip(rule, fastest, strict=True)]
        height = np.mean([fine >= ratio for ratio in slower], axis=0)
        assert score == pytest.approx(np.trapezoid(height, fine) / 3, abs=1e-4)
    assert time_to_target.profile_scores(np.full((2, 1), INF)).tolist() == [0, 0]


def test_scores_with_their_intervals():
    """Equal rules score alike on every draw of seeds; twice as slow is two thirds of the height."""
    decay = np.exp(-np.arange(0.0, 4.01, 0.1))
    slow = (decay * np.exp(0.05 * noise(0, 6, 1)))[None]
    curves, marks = np.concatenate([slow * decay, slow, slow]), tuple(range(0, 410, 10))
    first, second, third = time_to_target.scores([curves], [marks], 1)
    assert second == third
    assert first.mean == 1
    assert second.mean == pytest.approx(2 / 3, abs=0.05)
    assert second.low <= second.mean <= second.high
    assert first.n == 6
    alone = time_to_target.scores([curves[:, :1]], [marks], 1)[0]
    assert (alone.low, alone.high) == (-INF, INF)


# -------------------------------------------------------------------------------- how it was tuned


@given(st.lists(st.floats(0, 10), min_size=1, max_size=7), st.data())
def test_best_of_is_the_mean_over_all_subsets(values, data):
    trials = data.draw(st.integers(1, len(values)))
    subsets = [min(subset) for subset in combinations(values, trials)]
    assert best_of(np.array(values), trials) == pytest.approx(np.mean(subsets))


def test_best_of_many():
    assert best_of(np.arange(2000.0), 1000) == pytest.approx(1000 / 1001, rel=1e-9)


def test_tuning():
    rates = np.array([0.01, 0.02, 0.03, 0.04])
    found = tuning(np.array([[1.0, 1.05, 2.0, INF]]), np.array([4.0]), rates)
    assert found.good.mean == 0.5
    assert found.diverged.mean == 0.25
    budget = [x.mean for x in found.budget]
    assert budget[-1] == 0
    assert budget == sorted(budget, reverse=True)
    assert budget[0] == pytest.approx(np.log([1.0, 1.05, 2.0, 4.0]).mean())
    assert found.near.mean == pytest.approx(np.log([1.05, 2.0]).mean())  # 0.04 is too far
    assert found.near.low == -INF  # one task
    assert math.isnan(tuning(np.ones((1, 2)), np.ones(1), np.array([1e-3, 1.0])).near.mean)


def test_tuning_where_nothing_is_finite():
    found = tuning(np.full((1, 2), INF), np.array([INF]), np.array([0.01, 0.02]))
    assert found.diverged.mean == 1
    assert found.budget[0].mean == 0


def test_tuning_has_intervals_over_tasks():
    losses = np.exp(noise(0, 5, 4))
    found = tuning(losses, np.full(5, 1e9), np.array([0.01, 0.02, 0.03, 0.04]))
    gaps = np.log(losses / losses.min(axis=1, keepdims=True)).mean(axis=1)
    half = 2.776445 * gaps.std(ddof=1) / math.sqrt(5)  # Student's, 4 degrees of freedom
    expected = gaps.mean(), gaps.mean() - half, gaps.mean() + half
    assert found.budget[0][:3] == pytest.approx(expected, rel=1e-5)
    assert found.budget[-1][:3] == (0, 0, 0)


def test_intervals_over_tasks_hold_nothing_impossible():
    losses = np.array([[1.0, 1.05, 1.02], [1.0, 5.0, 5.0], [1.0, 1.01, 1.02]])
    found = tuning(losses, np.full(3, 9.0), np.array([0.01, 0.02, 0.03]))
    assert found.good.high == 1
    assert found.near.low == found.budget[0].low == 0


def test_the_geometric_mean_of_factors():
    found = intervals.geometric(np.array([0.5, 2.0, 1.0]))
    half = 4.302653 * math.log(2) / math.sqrt(3)  # Student's, 2 degrees of freedom
    assert found == pytest.approx((1.0, math.exp(-half), math.exp(half), 3), rel=1e-5)
    assert intervals.geometric(np.array([3.0])) == pytest.approx((3.0, -INF, INF, 1))


def measured(curves):
    """``curves [rules, seeds, marks]`` on one task."""
    rules, seeds, points = curves.shape
    final = curves[:, None, :, -1]
    return Measured(
        rules=tuple("abc"[:rules]),
        schedules=("cosine",) * rules,
        tasks=("task",),
        seeds=tuple(range(seeds)),
        marks=(tuple(range(points)),),
        final=final,
        test=final,
        curves=(curves,),
        settings=(((0.1, 0.0), (0.2, 0.0)),) * rules,
        trials=final[:, :, :2],
        chosen=np.zeros((rules, 1), int),
        seconds=np.ones((rules, 1)),
    )


def test_a_better_rule_some_of_whose_runs_diverged_is_said_to_have():
    curves = np.exp(-np.arange(3.0) * np.array([1.0, 2.0])[:, None])[:, None]
    curves = np.repeat(curves, 20, axis=1)
    curves[1, :2, -1] = INF
    table = statistics.standings(measured(curves), "a")
    assert _sentence(table, "a").endswith(" 2 of its 20 fresh runs diverged.")
    shown = ranking(table, measured(curves), "a")
    assert [*shown.columns[-1].cells] == ["100 %, 10 %", "0 %, 0 %"]


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
    assert table[0].reached[0].faster.mean == pytest.approx(2, rel=0.05)
    assert table[0].profile.mean == 1
    assert table[1].profile.mean == pytest.approx(2 / 3, abs=0.05)
    assert table[0].area.mean < 0
    assert (table[0].diverged.mean, table[0].diverged.n) == (0, 20)


def test_a_reference_that_was_not_measured():
    with pytest.raises(ValueError, match="reference: got 'z', expected one of a, b"):
        statistics.standings(measured(np.ones((2, 3, 4))), "z")
