"""What a rule is told: other people's trajectories, and what holds of every oracle of the room."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.data.arrays import Arrays
from tasks.families.mlp import MLP
from tasks.inner.unroll import advance, initial, start, unroll
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.oracles.gam import Gam
from tasks.oracles.perturbed import Perturbed
from tasks.oracles.reading import Reading, named, oracles, reads
from tasks.oracles.two_point import TwoPoint, normal
from tasks.types import Params, Task, Unusable

HERE = Path(__file__).with_name("data")
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(HERE / "oracle_10steps.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


class Written(Task):
    """The fixture's problem: a least-squares fit and a log-sum-exp, of all examples at once."""

    def __init__(self, golden: dict[str, Any]) -> None:
        self.golden = golden
        nothing = torch.zeros(2, 1, dtype=torch.float32)
        self.data = Arrays("written", *[(nothing, nothing)] * 3)
        self.batch_size, self.name = 1, "written"

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: self.golden[f"inputs.params.{name}"].to(torch.float64) for name in NAMES}

    def loss(self, params, batch) -> Tensor:
        v = torch.cat([params[name].reshape(-1) for name in NAMES])
        g = {name: self.golden[f"problem.{name}"].to(v.dtype) for name in ("A", "y", "B", "d")}
        fit = ((g["A"] @ v - g["y"]) ** 2).sum() / 80
        return fit + torch.logsumexp(g["B"] @ v + g["d"], 0)


@dataclass(frozen=True)
class Descent:
    """Gradient descent with torch's momentum; notes what it was told."""

    momentum: float = 0.0
    told: list[Tensor] = field(default_factory=list)

    def init(self, params: Params) -> dict[str, Tensor]:
        return {"m": torch.zeros_like(params.flat)}

    def update(self, grads, state, params, info):
        self.told.append(grads.clone())
        m = self.momentum * state["m"] + grads
        return info.lr[:, None] * m, {"m": m}

    def select(self, index: Tensor) -> Descent:
        return self


RUNS = {
    "sam_sgd": (Perturbed(rho=0.05), 0.9, 0.05),
    "asam_sgd": (Perturbed(rho=0.5, adaptive=True), 0.0, 0.05),
    "gam_sgd": (Gam(), 0.9, 0.05),
    "mezo_sgd": (None, 0.0, 0.01),
}


@pytest.mark.parametrize("run", RUNS)
def test_trajectories_are_other_peoples(run: str, golden) -> None:
    oracle, momentum, lr = RUNS[run]
    noise = golden["inputs.zo_noise"]
    oracle = oracle or TwoPoint(direction=lambda n, seed, step, like: noise[step])
    task, rule = Written(golden), Descent(momentum)
    flat = torch.cat([golden[f"inputs.params.{name}"].reshape(-1) for name in NAMES])
    inner = start(task, rule, 1)
    inner = inner._replace(params=flat[None].to(torch.float64), state={"m": 0 * flat[None]})
    for step in range(1, 11):
        with torch.no_grad():
            inner, _ = advance(task, rule, inner, 1, horizon=10, lr=lr, oracle=oracle)
        there = torch.cat([golden[f"{run}.f64.{name}"][step].reshape(-1) for name in NAMES])
        torch.testing.assert_close(inner.params[0], there, rtol=2e-6, atol=2e-6)


# ---------------------------------------------------------------- every oracle of the room


def small() -> MLP:
    return MLP(width=4, depth=1, batch_size=8)


def run(oracle: str, **options: Any) -> Any:
    with torch.no_grad():
        return unroll(small(), Descent(), instances=3, steps=6, lr=0.01, oracle=oracle, **options)


def test_the_room_is_listed() -> None:
    assert set(oracles()) == {"gradient", "hutchinson", "perturbed", "gam", "two_point"}


@pytest.mark.parametrize("name", oracles())
def test_runs_are_the_same_again_and_in_any_chunk(name: str) -> None:
    whole = run(name).inner.params
    assert whole.isfinite().all()
    assert torch.equal(run(name).inner.params, whole)
    assert torch.equal(run(name, chunk=2).inner.params[:2], whole[:2])


@pytest.mark.parametrize("name", oracles())
def test_a_diverged_instance_leaves_its_neighbours_bit_identical(name: str) -> None:
    task, rule, oracle = small(), Descent(), named(name)
    inner = start(task, rule, 3)
    spoilt = inner.params.clone()
    spoilt[1] = torch.nan
    with torch.no_grad():
        clean, _ = advance(task, rule, inner, 3, horizon=3, lr=0.01, oracle=oracle)
        mixed, _ = advance(
            task, rule, inner._replace(params=spoilt), 3, horizon=3, lr=0.01, oracle=oracle
        )
    assert torch.equal(mixed.params[[0, 2]], clean.params[[0, 2]])
    assert mixed.params[1].isnan().all()


@pytest.mark.parametrize("name", oracles())
def test_a_run_that_stopped_goes_on_as_if_it_had_not(name: str) -> None:
    task, rule = small(), Descent()
    with torch.no_grad():
        once, _ = advance(task, rule, start(task, rule, 2), 6, horizon=6, lr=0.01, oracle=name)
        part, _ = advance(task, rule, start(task, rule, 2), 4, horizon=6, lr=0.01, oracle=name)
        rest, _ = advance(task, rule, part, 2, horizon=6, lr=0.01, oracle=name)
    assert torch.equal(rest.params, once.params)


@pytest.mark.parametrize("name", oracles())
def test_a_rule_declares_what_it_reads(name: str) -> None:
    declared = Reading(Descent(), named(name))
    with torch.no_grad():
        found = unroll(small(), declared, instances=3, steps=6, lr=0.01)
    assert torch.equal(found.inner.params, run(name).inner.params)


def test_names_and_rules_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"oracle: got 'nobody', expected one of gam, gradient"):
        named("nobody")
    curved = Descent()
    object.__setattr__(curved, "hessian_every", 1)
    with pytest.raises(Unusable, match="TwoPoint, which tells no Hessian"):
        reads(curved, "two_point")


def test_a_training_loop_of_ones_own_has_gradients_alone() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="reads the oracle Perturbed, expected one that reads"):
        RuleOptimizer([w], Reading(Descent(), Perturbed()))


# --------------------------------------------------------------------------- two points


class Rounded(MLP):
    """A loss that nobody can go backward through."""

    def loss(self, params, batch) -> Tensor:
        return torch.from_numpy(super().loss(params, batch).detach().numpy())


def test_a_loss_without_a_gradient_will_do() -> None:
    task = Rounded(width=4, depth=1, batch_size=8)
    with torch.no_grad():
        found = unroll(task, Descent(), instances=2, steps=5, lr=1e-3, oracle="two_point")
        plain = unroll(small(), Descent(), instances=2, steps=5, lr=1e-3, oracle="two_point")
    torch.testing.assert_close(found.inner.params, plain.inner.params)


def test_the_mean_of_the_estimate_is_the_gradient() -> None:
    task, rule = small(), Descent()
    flat = initial(task, 1, 0)
    layout = task.layout

    def told(oracle: Any, seed: int) -> Tensor:
        rule.told.clear()
        inner = start(task, rule, 1)._replace(params=flat, seed=0, step=0)
        with torch.no_grad():
            advance(task, rule, inner, 1, horizon=1, lr=0.0, oracle=oracle)
        return rule.told[0][0]

    exact = told("gradient", 0)
    drawn = [normal(layout.n, seed, 0, flat) for seed in range(3000)]
    directions = iter(drawn)
    along = TwoPoint(direction=lambda *_: next(directions))
    mean = torch.stack([told(along, seed) for seed in range(len(drawn))]).mean(0)
    error = (mean - exact).norm() / exact.norm()
    assert error < 2 * (layout.n / len(drawn)) ** 0.5  # twice its standard deviation


def test_directions_are_normal() -> None:
    z = normal(200_000, 3, 5, torch.zeros(1))
    assert abs(float(z.mean())) < 0.01
    assert abs(float(z.var()) - 1) < 0.02
    assert abs(float((z**4).mean()) - 3) < 0.1
    assert torch.equal(z, normal(200_000, 3, 5, torch.zeros(1)))
    assert not torch.equal(z, normal(200_000, 3, 6, torch.zeros(1)))
    seeds = torch.tensor([3, 4])
    assert torch.equal(
        normal(9, seeds, torch.tensor([5, 5]), torch.zeros(1))[0], normal(9, 3, 5, z)
    )


def test_settings_are_checked() -> None:
    for wrong in (lambda: Perturbed(rho=0.0), lambda: TwoPoint(eps=-1.0)):
        with pytest.raises(ValueError, match="expected a positive number"):
            wrong()
