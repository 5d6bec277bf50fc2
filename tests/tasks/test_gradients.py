"""Hessian diagonals: what the estimate is, when it is made, and what it does not depend on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tasks.data.loaders import help_text
from tasks.families.autoencoder import Autoencoder
from tasks.families.conv import Conv
from tasks.families.linear import Logistic
from tasks.families.mlp import MLP
from tasks.families.quadratic import Quadratic
from tasks.families.transformer import Transformer
from tasks.inner import unroll as loop
from tasks.inner.unroll import advance, initial, start, unroll
from tasks.oracles import hutchinson
from tasks.oracles.gradient import derivatives
from tasks.oracles.hutchinson import hessian_products, random_signs
from tasks.types import Batch, Params, State, StepInfo, Task
from tests.tasks.room_of_families import others

FAMILIES: list[Task] = [
    Quadratic(dimension=9),
    Logistic(batch_size=7),
    MLP(width=5, depth=2, activation="tanh", batch_size=8),
    Autoencoder(width=9, depth=1, latent=3, batch_size=16),
    Conv(width=3, depth=2, batch_size=8),
    Transformer(width=6, depth=1, heads=2, data=help_text(8), batch_size=4),
]
FAMILIES += others(FAMILIES)
families = pytest.mark.parametrize("task", FAMILIES, ids=[task.name for task in FAMILIES])


class Diagonal(Quadratic):
    """The bowl whose axes are those of the parameters."""

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return ((params["x"] - batch[0]).square() @ self.eigenvalues).mean() / 2


@dataclass(frozen=True)
class Newton:
    """``update = lr g / (|h| + 1)``; remembers ``h``, and how many steps brought one."""

    lr: Tensor  # [N], so that rows differ
    hessian_every: int = 1

    def init(self, params: Params) -> State:
        return {"h": torch.zeros_like(params.flat), "count": torch.zeros(len(params.flat))}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        fresh = info.hessian is not None
        h = info.hessian if info.hessian is not None else state["h"]
        return self.lr[:, None] * grads / (h.abs() + 1), {"h": h, "count": state["count"] + fresh}

    def select(self, index: Tensor) -> "Newton":
        return replace(self, lr=self.lr[index])


def newton(instances: int, every: int = 1) -> Newton:
    return Newton(torch.linspace(0.01, 0.1, instances), every)


def taken(task: Task, seeds: Tensor, rows: Tensor, chunk: int | None = None) -> loop.Trajectory:
    rule = newton(len(seeds)).select(rows)
    return unroll(task, rule, instances=len(rows), steps=3, lr=1.0, seed=seeds[rows], chunk=chunk)


def test_estimates_are_exact_where_the_hessian_is_diagonal() -> None:
    task = Diagonal(dimension=9)
    inner, _ = advance(task, newton(3), start(task, newton(3), 3), 2, horizon=2, lr=1.0)
    torch.testing.assert_close(inner.state["h"], task.eigenvalues.expand(3, 9))


def test_estimates_are_right_in_the_mean() -> None:
    """Of 4,000 seeds; the standard error of an element is that of a sum of its row, squared."""
    task, n = Quadratic(dimension=5, condition=4.0), 4000
    root = task.data.root
    hessian = root @ root.T
    flat = initial(task, 1, 0).expand(n, 5).contiguous()
    signs = task.layout.views(random_signs(5, torch.arange(n), torch.zeros(n).long(), flat))
    batch = task.data.batch("train", torch.arange(8))
    found = derivatives(task, task.layout.views(flat), batch, True, signs).hessian
    assert found is not None
    error = ((hessian.square().sum(1) - hessian.diagonal().square()) / n).sqrt()
    gap = (found["x"].mean(0) - hessian.diagonal()).abs()
    assert (found["x"].var(0) > 0.001).all()
    assert (gap < 4 * error).all()


@families
def test_products_are_those_of_the_whole_hessian(task: Task) -> None:
    """For every family: gradients are the same, and the second pass knows what its loss is of."""
    flat = initial(task, 2, torch.arange(2))
    batch = task.data.batch("train", torch.arange(task.batch_size))
    views = task.layout.views(flat)
    signs = random_signs(task.layout.n, torch.arange(2), torch.tensor([3, 4]), flat)
    with torch.no_grad():
        grads, loss, second = derivatives(task, views, batch, True, task.layout.views(signs))
        plain = derivatives(task, views, batch, True)
    assert second is not None
    assert not any(x.requires_grad for x in (*grads.values(), *second.values(), loss))
    torch.testing.assert_close(grads, plain.grads)

    def row(x: Tensor) -> Tensor:
        return task.loss(task.layout.views(x), batch)

    for k in range(2):
        z = signs[k]
        product = grad(lambda x, z=z: grad(row)(x) @ z)(flat[k])
        actual = task.layout.flatten(second)[k]
        torch.testing.assert_close(actual, z * product, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("chunk", [2, 3])
@families
def test_neither_neighbours_nor_chunks_make_a_difference(task: Task, chunk: int) -> None:
    """Two of the runs share a seed."""
    seeds = torch.tensor([4, 0, 4, 9, 1, 7])
    whole = taken(task, seeds, torch.arange(6))
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    for rows, parts in ((order, None), (torch.arange(6), chunk)):
        other = taken(task, seeds, rows, parts)
        assert torch.equal(whole.inner.params[rows], other.inner.params)
        assert torch.equal(whole.inner.state["h"][rows], other.inner.state["h"])


def test_estimates_come_when_they_are_due_and_cost_nothing_else(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        hutchinson, "random_signs", lambda *given: asked.append(given[2]) or random_signs(*given)
    )
    task = MLP(width=4, batch_size=4)
    for every, expected in ((1, [0, 1, 2, 3, 4]), (3, [0, 3]), (0, [])):
        asked.clear()
        inner, _ = advance(task, newton(2, every), start(task, newton(2), 2), 5, horizon=5, lr=1.0)
        assert asked == expected
        assert inner.state["count"].tolist() == [len(expected)] * 2


def test_signs_are_no_minibatch() -> None:
    signs = random_signs(2000, 0, 1, torch.zeros(()))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 0.1
    assert (signs * random_signs(2000, 0, 2, signs)).mean().abs() < 0.1
    assert torch.equal(
        signs, random_signs(2000, torch.tensor([5, 0]), torch.tensor([1, 1]), signs)[1]
    )


def test_a_linear_loss_has_no_curvature() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    slopes = torch.autograd.grad(x.sum() + y.sum(), [x, y], create_graph=True)
    assert [h.tolist() for h in hessian_products(slopes, [x, y], [x, y])] == [[0.0] * 3, [0.0] * 2]
    slopes = torch.autograd.grad(x.sum() + y.square().sum(), [x, y], create_graph=True)
    assert [h.tolist() for h in hessian_products(slopes, [x, y], [x, y])] == [[0.0] * 3, [2.0] * 2]


def test_gradients_of_steps_pass_through_the_estimate() -> None:
    """With respect to what the rule holds, as everywhere in the loop."""
    task = MLP(width=4, activation="tanh", batch_size=4)
    lr = torch.full((2,), 0.05, requires_grad=True)
    _, losses = advance(task, Newton(lr), start(task, newton(2), 2), 3, horizon=3, lr=1.0)
    (slope,) = torch.autograd.grad(losses[-1].sum(), lr)
    with torch.no_grad():
        ends = [
            advance(task, Newton(lr + d), start(task, newton(2), 2), 3, horizon=3, lr=1.0)[1][-1]
            for d in (-1e-2, 1e-2)
        ]
    torch.testing.assert_close(slope, (ends[1] - ends[0]) / 2e-2, rtol=0.02, atol=1e-3)
