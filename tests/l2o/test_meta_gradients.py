"""Meta-gradient estimators against what is known exactly.

The known case is a linear system, x' = A x + B theta, with a linear loss c x: there evolution
strategies are exact in the mean at any sigma, and the true gradient is a sum of matrix powers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
import torch
from torch import Tensor

from l2o.architectures.small_fc import SmallFC
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from l2o.base import LearnedOptimizer, LearnedRule
from l2o.estimators.backprop import Backprop
from l2o.estimators.episodes import Episodes, Lesson, Runs, bounded, mean_loss
from l2o.estimators.es import ES, Noise, pair_gradient
from tasks.families.mlp import MLP
from tasks.families.quadratic import Quadratic
from tasks.mup.scaling import Scale
from tasks.types import Batch, Dataset, Params, Split, State, StepInfo, Task

A = torch.tensor([[0.9, 0.3], [-0.2, 0.8]])
B = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
C = torch.tensor([1.0, -0.5])
HORIZON, TRUNCATION = 20, 2


class Nothing(Dataset):
    name = "nothing"

    def size(self, split: Split) -> int:
        return 1

    def batch(self, split: Split, index: Tensor) -> Batch:
        return (index,)

    def to(self, device: torch.device | str) -> Nothing:
        return self


@dataclass(frozen=True)
class Position(Task):
    data: Dataset = field(default_factory=Nothing)
    batch_size: int = 1
    name: str = "position"

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.zeros(2)}

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return params["x"] @ C


@dataclass(frozen=True)
class LinearSystem(LearnedOptimizer):
    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"force": torch.zeros(2)}

    def rule(self, theta: Tensor, scale: Scale | None = None) -> LinearRule:
        return LinearRule(self, theta)


@dataclass(frozen=True, eq=False)
class LinearRule(LearnedRule):
    def init(self, params: Params) -> State:
        return {}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        return params.flat - (params.flat @ A.mT + self.named["force"] @ B.mT), state


def slope(steps: int) -> Tensor:
    """Of the mean loss over ``steps`` steps from a fixed start, each taken before its step."""
    total, effect = torch.zeros(2), torch.zeros(2, 2)  # effect: of theta on x
    for _ in range(steps):
        total += C @ effect
        effect = A @ effect + B
    return total / steps


SYSTEM, LESSON = LinearSystem(), Lesson(Position())
ONE = torch.tensor([0.4, -0.3])


def episode_mean(estimator: ES | Backprop, pairs: int, steps: int) -> Tensor:
    """The mean gradient over the outer steps of one episode."""
    runs = estimator.start(SYSTEM, ONE, LESSON, torch.arange(pairs))
    gradients = []
    for _ in range(steps):
        gradient, _, runs = estimator.step(SYSTEM, ONE, LESSON, runs)
        gradients.append(gradient)
    return torch.stack(gradients).mean(dim=0)


def es(noise: Noise, **settings) -> ES:
    truncation = None if noise == "full" else TRUNCATION
    return ES(Episodes(HORIZON, truncation), noise, **({"sigma": 0.1} | settings))


TRUTH, SHORT = slope(HORIZON), slope(TRUNCATION)
EXPECTED: dict[Noise, Tensor] = {
    "full": TRUTH,
    "truncated": SHORT,
    "persistent": TRUTH,
    "reuse": TRUTH,
}


@pytest.mark.parametrize("noise", EXPECTED)
def test_bias_is_as_predicted(noise: Noise) -> None:
    """PES, noise reuse and full ES find the true gradient, truncated ES what K steps show of it."""
    outer = 1 if noise == "full" else HORIZON // TRUNCATION
    estimate = episode_mean(es(noise), pairs=6000, steps=outer)
    torch.testing.assert_close(estimate, EXPECTED[noise], rtol=0, atol=0.05 * float(TRUTH.norm()))
    assert (TRUTH - SHORT).norm() > 0.5 * TRUTH.norm()


@pytest.mark.parametrize(("truncation", "expected"), [(None, TRUTH), (TRUNCATION, SHORT)])
def test_backprop_is_exact_for_what_it_sees(truncation: int | None, expected: Tensor) -> None:
    estimator = Backprop(Episodes(HORIZON, truncation))
    outer = 1 if truncation is None else HORIZON // truncation
    torch.testing.assert_close(episode_mean(estimator, 1, outer), expected)


def test_one_step_has_no_slope() -> None:
    assert torch.equal(episode_mean(Backprop(Episodes(HORIZON, 1)), 2, 3), torch.zeros(2))


@dataclass(frozen=True)
class Injected(ES):
    """Perturbations from a table instead of a generator."""

    table: tuple[Tensor, ...] = ()

    def perturbations(self, runs: Runs, over: Tensor, size: int) -> Tensor:
        step = 0 if self.noise == "reuse" else int(torch.where(over, 0, runs.step)[0])
        return self.table[step // TRUNCATION]


@pytest.mark.parametrize("noise", ["truncated", "persistent", "reuse"])
def test_injected_perturbations_give_the_formula(noise: Noise) -> None:
    """Two episodes of three truncations, recomputed with explicit loops, pair by pair."""
    generator = torch.Generator().manual_seed(0)
    table = tuple(0.1 * torch.randn(3, 2, generator=generator) for _ in range(3))
    estimator = Injected(Episodes(3 * TRUNCATION, TRUNCATION), noise, 0.1, table)
    runs = estimator.start(SYSTEM, ONE, LESSON, torch.arange(3))
    for k in range(6):
        if k % 3 == 0:
            halves, total = torch.zeros(2, 3, 2), torch.zeros(3, 2)
        e = table[0 if noise == "reuse" else k % 3]
        total = total + e
        losses = torch.zeros(2, 3)
        for half, sign in enumerate((1, -1)):
            for _ in range(TRUNCATION):
                losses[half] += halves[half] @ C / TRUNCATION
                halves[half] = halves[half] @ A.mT + (ONE + sign * e) @ B.mT
        if noise == "truncated":
            halves[1] = halves[0]
        weight = total if noise == "persistent" else e
        expected = ((losses[0] - losses[1])[:, None] * weight).sum(0) / (2 * 0.1**2 * 3)
        gradient, loss, runs = estimator.step(SYSTEM, ONE, LESSON, runs)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(loss, losses.mean())


def test_pair_gradient_by_hand() -> None:
    weight = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    gradient = pair_gradient(torch.tensor([4.0, -2.0]), weight, sigma=0.5)
    assert gradient.tolist() == [(4.0 - 4.0) / 1.0, 2.0 / 1.0]


BOWL = Quadratic(dimension=6, condition=3.0, batch_size=2)
SUBJECTS = [
    (TunedAdam(lr=0.05), 3000),
    (SmallFC(hidden_size=1, hidden_layers=1, step_mult=0.05), 6000),
]


@pytest.mark.parametrize(("optimizer", "pairs"), SUBJECTS, ids=["tuned_adam", "small_fc"])
def test_es_points_where_backprop_points(optimizer: LearnedOptimizer, pairs: int) -> None:
    lesson, whole = Lesson(BOWL), Episodes(6)
    theta = optimizer.initial(2)
    exact = Backprop(whole)
    runs = exact.start(optimizer, theta, lesson, torch.arange(pairs))
    truth = exact.step(optimizer, theta, lesson, runs).gradient
    cases: list[tuple[Noise, Episodes, int]] = [
        ("full", whole, 1),
        ("persistent", replace(whole, truncation=3), 2),
    ]
    for noise, episodes, outer in cases:
        estimator = ES(episodes, noise, sigma=0.02)
        runs = estimator.start(optimizer, theta, lesson, torch.arange(pairs))
        total = torch.zeros_like(theta)
        for _ in range(outer):
            gradient, _, runs = estimator.step(optimizer, theta, lesson, runs)
            total += gradient / outer
        assert torch.cosine_similarity(total, truth, dim=0) >= 0.99
        torch.testing.assert_close(total.norm(), truth.norm(), rtol=0.1, atol=0)


SMALL = Lesson(MLP(width=4, depth=1, batch_size=4), objective=bounded(3.0))
ARCHITECTURES = [TunedAdam(), SmallFC(), Velo(4, 2, step_mult=0.1, bank_scale=10.0)]
ESTIMATORS = [
    ES(Episodes((4, 9), 2, stagger=True, seed=3), "truncated"),
    ES(Episodes((4, 9), 2, stagger=True, seed=3), "persistent"),
    ES(Episodes((4, 9), 2, stagger=True, seed=3), "reuse"),
    ES(Episodes((4, 9), seed=3), "full"),
    Backprop(Episodes((4, 9), 2, stagger=True, seed=3)),
    Backprop(Episodes((4, 9), seed=3)),
]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{e}"[:60])


@every_estimator
@pytest.mark.parametrize("optimizer", ARCHITECTURES, ids=lambda o: type(o).__name__)
def test_every_estimator_trains_every_architecture(
    estimator: ES | Backprop, optimizer: LearnedOptimizer
) -> None:
    theta = optimizer.initial()
    runs = estimator.start(optimizer, theta, SMALL, torch.arange(3))
    for _ in range(4):
        gradient, loss, runs = estimator.step(optimizer, theta, SMALL, runs)
        assert gradient.shape == theta.shape
        assert torch.isfinite(gradient).all()
        assert 0 < loss <= 1
        assert (gradient != 0).any()


@pytest.mark.parametrize("optimizer", ARCHITECTURES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("diverged", [[1], [0, 1, 2]])
def test_a_diverged_run_weighs_as_much_as_a_bad_one(
    optimizer: LearnedOptimizer, diverged: list[int]
) -> None:
    """In a meta-gradient by the chain rule: the ceiling, which has no slope, until its episode is
    over; the others count as without it."""
    theta, estimator = optimizer.initial(), Backprop(Episodes(6, 2, seed=3))
    _, _, runs = estimator.step(
        optimizer, theta, SMALL, estimator.start(optimizer, theta, SMALL, torch.arange(3))
    )
    well = [k for k in range(3) if k not in diverged]
    rest = runs.rows(torch.tensor(well, dtype=torch.int64))
    params = runs.inner.params.index_fill(0, torch.tensor(diverged), torch.nan)
    state = {name: x.clone() for name, x in runs.inner.state.items()}
    state["m" if "m" in state else "v"][diverged] = torch.inf
    runs = runs._replace(inner=runs.inner._replace(params=params, state=state))
    for _ in range(2):
        gradient, loss, runs = estimator.step(optimizer, theta, SMALL, runs)
        expected, total = torch.zeros_like(theta), torch.tensor(float(len(diverged)))
        if well:
            expected, part, rest = estimator.step(optimizer, theta, SMALL, rest)
            total += part * len(well)
        torch.testing.assert_close(gradient, expected * len(well) / 3, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(loss, total / 3)
        assert runs.inner.params.isnan().all(dim=1).nonzero().flatten().tolist() == diverged
    assert runs.step.tolist() == [6, 6, 6]
    _, loss, runs = estimator.step(optimizer, theta, SMALL, runs)
    assert runs.inner.params.isfinite().all()
    assert loss < 1


def test_without_a_ceiling_a_diverged_run_makes_all_of_it_nan() -> None:
    optimizer, lesson = TunedAdam(), replace(SMALL, objective=mean_loss)
    estimator = Backprop(Episodes(6, 2))
    theta = optimizer.initial()
    runs = estimator.start(optimizer, theta, lesson, torch.arange(3))
    _, _, runs = estimator.step(optimizer, theta, lesson, runs)
    runs.inner.params[1] = torch.nan
    gradient, loss, _ = estimator.step(optimizer, theta, lesson, runs)
    assert gradient.isnan().any()
    assert loss.isnan()


@every_estimator
def test_a_run_is_a_function_of_its_number(estimator: ES | Backprop) -> None:
    """Two processes with half of the runs each average to one process with all of them, and a
    run put down and taken up again goes on as if nothing had been."""
    optimizer = SmallFC()
    theta = optimizer.initial()
    numbers = torch.arange(4)
    parts = [numbers, numbers[:2], numbers[2:]]
    runs = [estimator.start(optimizer, theta, SMALL, part) for part in parts]
    for _ in range(5):
        made = [estimator.step(optimizer, theta, SMALL, run) for run in runs]
        halves = (made[1].gradient + made[2].gradient) / 2
        torch.testing.assert_close(made[0].gradient, halves, rtol=1e-3, atol=1e-5)
        runs = [estimate.runs for estimate in made]
        assert torch.equal(runs[0].episode, torch.cat([runs[1].episode, runs[2].episode]))
    again = estimator.step(optimizer, theta, SMALL, runs[0])
    assert torch.equal(again.gradient, estimator.step(optimizer, theta, SMALL, runs[0]).gradient)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_estimator
@pytest.mark.parametrize("optimizer", ARCHITECTURES, ids=lambda o: type(o).__name__)
def test_devices_agree(estimator: ES | Backprop, optimizer: LearnedOptimizer) -> None:
    gradients = []
    for device in ("cpu", "cuda"):
        theta = optimizer.initial().to(device)
        runs = estimator.start(optimizer, theta, SMALL, torch.arange(3))
        for _ in range(4):
            gradient, _, runs = estimator.step(optimizer, theta, SMALL, runs)
        gradients.append(gradient.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=2e-3)


def test_chunks_bound_memory_not_results() -> None:
    estimator, optimizer = ESTIMATORS[1], SmallFC()
    theta = optimizer.initial()
    runs = estimator.start(optimizer, theta, SMALL, torch.arange(4))
    whole = estimator.step(optimizer, theta, SMALL, runs)
    parts = estimator.step(optimizer, theta, replace(SMALL, chunk=3), runs)
    torch.testing.assert_close(whole.gradient, parts.gradient, rtol=1e-3, atol=1e-5)


def test_episodes_end_apart_and_begin_afresh() -> None:
    episodes = Episodes((10, 40), 5, stagger=True)
    estimator, optimizer = ES(episodes), TunedAdam()
    theta = optimizer.initial()
    runs = estimator.start(optimizer, theta, SMALL, torch.arange(16))
    begun = []
    for _ in range(12):
        _, _, runs = estimator.step(optimizer, theta, SMALL, runs)
        assert (runs.horizon % 5 == 0).all()
        assert (runs.step <= runs.horizon).all()
        begun.append(runs.episode)
    assert len({tuple(e.tolist()) for e in begun}) > 6
    assert 1 < begun[-1].float().mean() < 12
    lengths = [episodes.length(number, 2) for number in range(200)]
    assert min(lengths) == 10
    assert max(lengths) == 40
    assert 18 < sum(lengths) / 200 < 25  # log-uniform: mean 21.6; uniform would be 25
    seeds = torch.as_tensor(runs.inner.seed).view(2, 16)
    assert torch.equal(seeds[0], seeds[1])
    assert len(seeds[0].unique()) == 16


def test_persistent_noise_is_summed_over_an_episode_only() -> None:
    estimator, optimizer = ES(Episodes(6, 2)), TunedAdam()
    theta = optimizer.initial()
    runs = estimator.start(optimizer, theta, SMALL, torch.arange(2000))
    spreads = []
    for _ in range(4):
        _, _, runs = estimator.step(optimizer, theta, SMALL, runs)
        spreads.append(float(runs.noise.std() / estimator.sigma))
    assert spreads == pytest.approx([1, 2**0.5, 3**0.5, 1], rel=0.05)


def test_bounded_objective() -> None:
    losses = torch.tensor([[1.0, 1.0, torch.nan, torch.inf], [3.0, 9.0, 1.0, 1.0]])
    assert bounded(4.0)(losses).tolist() == pytest.approx([0.5, 0.625, 0.625, 0.625])
    assert mean_loss(losses)[0] == 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Episodes(10, 20), "truncation: got 20, expected at most the horizon, 10"),
        (lambda: Episodes((10, 5)), "horizon: got .10, 5."),
        (lambda: Episodes(0), "horizon: got 0"),
        (lambda: Episodes(5, 0), "truncation: got 0"),
        (lambda: Episodes(5, 1, seed=-1), "seed: got -1"),
        (
            lambda: ES(Episodes(5, 1), cast(Noise, "pes")),
            "noise: got 'pes', expected one of full, trunc",
        ),
        (lambda: ES(Episodes(5, 1), "full"), "truncation: got 1, expected None for full"),
        (lambda: ES(Episodes(5), "reuse"), "truncation: got None, expected a number"),
        (lambda: ES(Episodes(5, 1), sigma=0.0), "sigma: got 0.0"),
        (lambda: bounded(0.0), "ceiling: got 0.0"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
