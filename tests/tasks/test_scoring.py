"""Scores against numbers worked out by hand, on a bowl where every loss is known exactly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tasks.evaluation import tuning
from tasks.evaluation.intervals import FLOOR, Interval, compare, interval, log_ratio
from tasks.evaluation.tuning import Setting, choose, finite, grid, measure, tune
from tasks.families.quadratic import Quadratic
from tasks.inner.schedules import linear
from tasks.inner.unroll import Trajectory, initial, start
from tasks.types import Batch, Params, State, StepInfo

# 1/2 |x - c|^2: a step of gradient descent multiplies the distance by 1 - lr, decay aside.
BOWL = Quadratic(dimension=4, spectrum="constant", noise=0.0)


class Sunk(Quadratic):
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return super().loss(params, batch) - 1000


@dataclass(frozen=True)
class Descent:
    """``update = lr (scale g + weight_decay w)``, a scale for each rule; a scale of 0 is NaN."""

    scales: tuple[float, ...]
    owner: Tensor

    def init(self, params: Params) -> State:
        return {}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        scale = torch.tensor(self.scales)[self.owner][:, None]
        step = scale * grads + info.weight_decay[:, None] * params.flat
        return info.lr[:, None] * torch.where(scale == 0, math.nan, step), state

    def select(self, index: Tensor) -> "Descent":
        return replace(self, owner=self.owner[index])


def rules(*scales: float) -> tuning.MakeRule:
    return lambda owner: Descent(scales, owner)


def loss_at_start(seed: int) -> float:
    return float((initial(BOWL, 1, seed)[0] - BOWL.optimum).square().sum()) / 2


def test_grid() -> None:
    rates = [setting.lr for setting in grid(5)]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert {setting.weight_decay for setting in grid(3)} == {0.0}
    assert [setting.lr for setting in grid(1)] == [1e-4]
    with pytest.raises(ValueError, match="trials: got 0, expected at least 1"):
        grid(0)


def test_tune_measures_every_rule_at_every_setting() -> None:
    settings = [Setting(0.1), Setting(0.5), Setting(0.9), Setting(1e30)]
    losses = tune(BOWL, rules(1.0, 2.0, 0.0), 3, 3, settings)
    start = loss_at_start(tuning.TUNING_SEED)
    for row, scale in enumerate((1.0, 2.0)):
        for column, lr in enumerate((0.1, 0.5, 0.9)):
            expected = start * (1 - scale * lr) ** 6
            assert float(losses[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert losses[:2, 3].isinf().all()
    assert losses[2].isinf().all()
    assert losses.min() >= 0


def test_tune_follows_decay_seed_and_schedule() -> None:
    """One step with decay d takes x to x - lr (x - c + d x)."""
    (loss,) = tune(BOWL, rules(1.0), 1, 1, [Setting(0.5, 0.2)], seed=7)[0].tolist()
    x, c = initial(BOWL, 1, 7)[0], BOWL.optimum
    after = x - 0.5 * (x - c + 0.2 * x)
    assert loss == pytest.approx(float((after - c).square().sum()) / 2, rel=1e-4)
    (loss,) = tune(BOWL, rules(1.0), 1, 2, [Setting(0.5)], seed=7, schedule=linear)[0].tolist()
    assert loss == pytest.approx(loss_at_start(7) * (0.5 * 0.75) ** 2, rel=1e-4)


def test_choose() -> None:
    settings = [Setting(1.0), Setting(2.0), Setting(3.0, 0.1)]
    inf = math.inf
    losses = torch.tensor([[3.0, 1.0, 2.0], [inf, inf, 5.0], [inf, inf, inf], [1.0, 1.0, 2.0]])
    expected = [settings[1], settings[2], settings[0], settings[0]]
    assert choose(losses, settings) == expected


def test_measure_runs_every_rule_at_its_own_setting_on_every_seed() -> None:
    chosen, seeds = [Setting(0.1), Setting(0.25), Setting(1e30)], [3, 1001]
    losses = measure(BOWL, rules(1.0, 2.0, 1.0), chosen, 2, seeds)
    assert losses.shape == (3, 2)
    for column, seed in enumerate(seeds):
        expected = [loss_at_start(seed) * 0.9**4, loss_at_start(seed) * 0.5**4]
        assert losses[:2, column].tolist() == pytest.approx(expected, rel=1e-4)
    assert losses[2].isinf().all()


def test_measure_reads_the_split_that_is_asked_for() -> None:
    """With noise the training bowls are not centred on the optimum, and validation is."""
    task = replace(BOWL, noise=2.0)
    settings, seeds = [Setting(0.5)], [5]
    train = measure(task, rules(1.0), settings, 2, seeds, split="train")
    test = measure(task, rules(1.0), settings, 2, seeds, split="test")
    # 1/2 E|x - c_i|^2 = 1/2 |x - c|^2 + 1/2 noise^2 dimension
    assert float(train - test) == pytest.approx(0.5 * 4 * 4, rel=0.15)


def test_rules_and_runs_are_on_the_device_that_is_asked_for(monkeypatch) -> None:
    """Whose place alone is known on "meta", so what is computed there is made up here."""
    owners, devices = [], []

    def make(owner: torch.Tensor):
        owners.append(owner.device.type)
        return rules(1.0)(owner)

    def unroll(task, rule, *, instances, steps, device, **_):
        devices.append(torch.device(device).type)
        inner = start(BOWL, rules(1.0)(torch.zeros(instances)), instances)
        nothing = torch.zeros(1, instances)
        return Trajectory(inner, torch.arange(instances), (steps,), nothing, nothing)

    monkeypatch.setattr("tasks.evaluation.tuning.unroll", unroll)
    settings = [Setting(0.1), Setting(0.2)]
    assert tune(BOWL, make, 2, 3, settings, device="meta").device.type == "cpu"
    assert measure(BOWL, make, settings, 3, [1], device="meta").device.type == "cpu"
    assert owners == devices == ["meta", "meta"]


def test_finite() -> None:
    losses = torch.tensor([1.0, math.nan, math.inf, -math.inf, -2.0])
    assert finite(losses).tolist() == [1.0, math.inf, math.inf, math.inf, -2.0]


def test_compare_is_the_mean_over_tasks_of_the_log_ratio() -> None:
    losses = np.array([[1.0, 2.0, 1.0], [4.0, 8.0, 4.0]])  # [tasks, seeds]
    reference = np.array([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
    found = compare(losses, reference)
    # seeds: (log 1/2 + log 2)/2 = 0, (log 1 + log 4)/2 = log 2, and 0 again
    assert found.mean == pytest.approx(math.log(2) / 3)
    assert found.n == 3
    half = 4.30265 * math.log(2) / 3  # Student's quantile for three values, times their error
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    back = compare(reference, losses)
    assert back.mean == pytest.approx(-found.mean)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_one_diverged_run_is_a_status(bad: float) -> None:
    losses, reference = np.ones((2, 3)), np.ones((2, 3))
    losses[1, 2] = bad
    found, against = compare(losses, reference), compare(reference, losses)
    assert (found.mean, found.high, str(found)) == (math.inf, math.inf, "diverged")
    assert (against.mean, against.high) == (-math.inf, math.inf)
    assert str(against) == "reference diverged"


def test_a_loss_of_0_is_no_divergence() -> None:
    losses, reference = np.array([[0.0, 1e-3, 1e-3]]), np.full((1, 3), 0.1)
    assert compare(losses, reference).mean < math.log(1e-3 / 0.1)
    assert compare(losses[:, :1], losses[:, :1]).mean == 0


def test_a_log_ratio_to_a_loss_of_0_is_a_number() -> None:
    ratios = log_ratio(torch.tensor([0.0, 8.0, math.inf]), torch.tensor(0.0))
    assert ratios.tolist() == pytest.approx([0.0, math.log(8 / FLOOR), math.inf])
    losses, reference = torch.rand(1000) + 0.1, torch.tensor(0.7)
    assert torch.equal(log_ratio(losses, reference), torch.log(losses / reference))


def test_losses_below_0_are_refused() -> None:
    task = Sunk(dimension=4, spectrum="constant", noise=0.0)
    with pytest.raises(ValueError, match=r"got a loss of .*, expected none below 0"):
        tune(task, rules(1.0), 1, 5, grid(2))
    with pytest.raises(ValueError, match=r"got a loss of .*, expected none below 0"):
        measure(task, rules(1.0), [Setting(0.1)], 5, seeds=[1])


def test_interval_prints() -> None:
    assert str(Interval(-0.12345, -0.2, 0.05, 8)) == "-0.1235 [-0.2000, +0.0500]"
    assert str(interval(np.array([0.25]))) == "+0.2500 (n = 1)"
    assert str(interval(np.array([0.25, 0.75]))) == "+0.5000 (n = 2)"


def test_interval_of_one_or_two_values_says_nothing_and_of_equal_values_is_a_point() -> None:
    assert interval(np.array([0.25])) == Interval(0.25, -math.inf, math.inf, 1)
    assert interval(np.array([0.25, 0.75])) == Interval(0.5, -math.inf, math.inf, 2)
    assert interval(np.full(5, -1.5)) == Interval(-1.5, -1.5, -1.5, 5)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_interval_is_that_of_the_t_test(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, size=n)
    found = interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover(n: int) -> None:
    """95 of 100, within four standard errors of that."""
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(size=n)) for _ in range(2000)]
    assert 1900 - 39 <= sum(x.low <= 0.0 <= x.high for x in found) <= 1900 + 39
