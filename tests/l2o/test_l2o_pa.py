"""L2O-PA against proximal gradient descent, torch's LSTM and its own formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from l2o.architectures.l2o_pa import HEADS, L2OPA
from l2o.estimators.backprop import Backprop
from l2o.estimators.episodes import Episodes, Lesson
from tasks.families.composite import Composite, Lasso, SparseLogistic, fista, soft
from tasks.families.mlp import MLP
from tasks.inner.unroll import advance, start, unroll
from tasks.types import Params

LASSO = Lasso(problems=2, rows=20, columns=40, nonzeros=4)
LOGISTIC = SparseLogistic(problems=2, rows=60, columns=10, nonzeros=4, penalty=0.01)
problems = pytest.mark.parametrize("task", [LASSO, LOGISTIC], ids=lambda task: task.name)


@problems
def test_without_heads_it_is_ista(task: Composite) -> None:
    optimizer = L2OPA(hidden_size=2, heads=()).on(task)
    ours = unroll(task, optimizer.rule(optimizer.initial()), instances=2, steps=30, lr=1.0)
    ista = fista(task, 30, momentum=False).flatten()
    torch.testing.assert_close(ours.inner.params[1], ista, rtol=1e-2, atol=2e-3)


@problems
def test_constant_heads_reproduce_the_formula(task: Composite) -> None:
    """P = 2 sigmoid(0) = 1 and a chosen A, stepped by hand."""
    optimizer = L2OPA(a_range="softplus", a_scale=0.3).on(task)
    named = {k: 0 * v for k, v in optimizer.init_theta(torch.Generator()).items()}
    rule = optimizer.rule(optimizer.flatten(named))
    ours = unroll(task, rule, instances=1, steps=10, lr=1.0).inner.params[0]
    momentum = 0.3 * torch.log(torch.tensor(2.0))
    x = y = torch.zeros(task.problems, task.columns)
    size = 0.9999 / task.lipschitz[:, None]
    for _ in range(10):
        after = soft(y - size * task.gradient(y), size * task.penalty)
        x, y = after, after + momentum * (after - x)
    torch.testing.assert_close(ours, y.flatten(), rtol=1e-3, atol=1e-4)


def test_lstm_is_torchs() -> None:
    optimizer = L2OPA(hidden_size=5).on(LASSO)
    named = optimizer.init_theta(torch.Generator().manual_seed(1))
    lstm = torch.nn.LSTM(2, 5, num_layers=2, batch_first=True)
    names = {"weight_ih": "wi", "weight_hh": "wh", "bias_ih": "bi", "bias_hh": "bh"}
    with torch.no_grad():
        for theirs, ours in names.items():
            for layer in range(2):
                value = named[f"lstm{layer}.{ours}"]
                getattr(lstm, f"{theirs}_l{layer}").copy_(value.mT if value.ndim == 2 else value)
    rule = optimizer.rule(optimizer.flatten(named))
    state = rule.init(Params(torch.zeros(1, LASSO.layout.n), LASSO.layout))
    inputs = torch.randn(1, LASSO.layout.n, 2)
    output, memory = rule.lstm(inputs, state)
    begin = (state["hidden"][0].contiguous(), state["cell"][0].contiguous())
    expected, (hidden, _) = lstm(inputs[0][:, None], begin)
    torch.testing.assert_close(output[0], expected[:, 0])
    torch.testing.assert_close(memory["hidden"][0], hidden)


def test_all_heads_run_and_each_theta_is_its_own() -> None:
    optimizer = L2OPA(heads=HEADS).on(LASSO)
    theta = torch.stack([optimizer.initial(0), optimizer.initial(1)])
    together = unroll(LASSO, optimizer.rule(theta), instances=2, steps=5, lr=1.0).inner.params
    alone = unroll(LASSO, optimizer.rule(theta[1]), instances=1, steps=5, lr=1.0).inner.params
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-6)
    assert torch.isfinite(together).all()
    assert not torch.equal(together[0], together[1])


def test_it_needs_to_know_its_problem() -> None:
    with pytest.raises(ValueError, match="expected a Composite such as Lasso"):
        L2OPA().on(MLP())
    with pytest.raises(ValueError, match="use on"):
        L2OPA().rule(L2OPA().initial())
    with pytest.raises(ValueError, match="heads: got 'Q', expected one of A, B, B1, B2, P"):
        L2OPA(heads=("Q",))


def test_meta_gradient_reaches_theta() -> None:
    optimizer = L2OPA().on(LASSO)
    theta = optimizer.initial().requires_grad_()
    rule = optimizer.rule(theta)
    _, losses = advance(LASSO, rule, start(LASSO, rule, 1), 5, horizon=5, lr=1.0)
    losses.mean().backward()
    assert theta.grad is not None
    assert torch.isfinite(theta.grad).all()
    assert (theta.grad != 0).float().mean() > 0.9


def test_ten_meta_steps_beat_fista_on_new_problems() -> None:
    lessons = [Lesson(replace(LASSO, problems=4, seed=seed)) for seed in range(1, 9)]
    unseen = replace(LASSO, problems=32, seed=100)
    estimator, optimizer = Backprop(Episodes(20)), L2OPA()
    theta = optimizer.initial().requires_grad_()
    adam = torch.optim.Adam([theta], lr=5e-3)
    for step in range(10):
        lesson = lessons[step % len(lessons)]
        runs = estimator.start(optimizer, theta, lesson, torch.arange(1))
        theta.grad = estimator.step(optimizer, theta.detach(), lesson, runs).gradient
        adam.step()
    rule = optimizer.on(unseen).rule(theta.detach())
    ours = unroll(unseen, rule, instances=1, steps=20, lr=1.0).inner.params.view(32, -1)
    best = unseen.objective(fista(unseen, 2000)).mean()
    gap = unseen.objective(ours).mean() - best
    assert gap < 0.5 * (unseen.objective(fista(unseen, 20)).mean() - best)
