"""Composite problems, and the reference method they are solved with."""

from __future__ import annotations

import pytest
import torch

from tasks.families.composite import Composite, Lasso, SparseLogistic, fista
from tasks.inner.unroll import evaluate
from tasks.oracles.lifting import TOGETHER, _ways, ways

LASSO = Lasso(problems=2, rows=20, columns=40, nonzeros=4)
LOGISTIC = SparseLogistic(problems=2, rows=60, columns=10, nonzeros=4, penalty=0.01)
problems = pytest.mark.parametrize("task", [LASSO, LOGISTIC], ids=lambda task: task.name)


@problems
def test_instances_run_together(task: Composite) -> None:
    assert _ways(task, id(task)) == ways(task) == TOGETHER


@problems
def test_gradient_is_that_of_the_smooth_part(task: Composite) -> None:
    x = torch.randn(2, task.columns, requires_grad=True)
    (slope,) = torch.autograd.grad(task.smooth(x).sum(), x)
    torch.testing.assert_close(task.gradient(x.detach()), slope)


@problems
def test_gradient_is_lipschitz_and_not_much_better(task: Composite) -> None:
    generator = torch.Generator().manual_seed(0)
    x, change = torch.randn(2, 2, task.columns, generator=generator).unbind(0)
    change = 1e-3 * change
    for _ in range(50):  # power iteration finds the steepest direction at 0
        moved = task.gradient(change) - task.gradient(0 * change)
        change = 1e-3 * moved / moved.norm(dim=-1, keepdim=True)
    ratio = (task.gradient(change) - task.gradient(0 * change)).norm(dim=-1) / change.norm(dim=-1)
    torch.testing.assert_close(ratio, task.lipschitz, rtol=2e-2, atol=0)
    far = (task.gradient(x + change) - task.gradient(x)).norm(dim=-1) / change.norm(dim=-1)
    assert (far <= task.lipschitz * 1.01).all()


@problems
def test_fista_finds_the_optimum_faster_than_ista(task: Composite) -> None:
    best = fista(task, 3000)
    slope = task.gradient(best)
    # Optimality: the gradient is -penalty * sign where x is not 0, and within it elsewhere.
    held = torch.where(best == 0, slope.abs() - task.penalty, (slope + task.penalty * best.sign()))
    assert held.clamp(min=0).max() < 1e-4
    assert (best == 0).any()
    optimum = task.objective(best)
    gap = (task.objective(fista(task, 60)) - optimum).mean()
    assert gap < (task.objective(fista(task, 60, momentum=False)) - optimum).mean()


def test_task_loss_is_the_mean_objective() -> None:
    x = torch.randn(3, LASSO.layout.n)
    objective = LASSO.objective(x.view(3, 2, -1))
    torch.testing.assert_close(evaluate(LASSO, x), objective.mean(dim=-1))
    again = Lasso(problems=2, rows=20, columns=40, nonzeros=4)
    assert torch.equal(again.data.matrix, LASSO.data.matrix)
    assert (LASSO.solution(torch.Generator().manual_seed(0)) != 0).sum() == 2 * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lasso(columns=5, nonzeros=9), "nonzeros: got 9, expected at most 5"),
        (lambda: Lasso(rows=0), "rows: got 0"),
        (lambda: Lasso(seed=-1), "seed: got -1"),
        (lambda: SparseLogistic(penalty=float("nan")), "penalty: got nan"),
    ],
)
def test_bad_fields_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
