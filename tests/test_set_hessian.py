"""Rules that read a Hessian in a training script: ``set_hessian(loss)``, then as always.

Both kinds of optimizers, exported files and ``RuleOptimizer``, draw the same signs and keep to the
same promises.
"""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from search import load
from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.language.program import parse
from search.zoo import NAMED, ZOO
from search.zoo.entry import Entry
from tasks.optim.rule_optimizer import RuleOptimizer

PLAIN = Entry("plain", parse("def update(w, g, h):\n    update = g / h\n    return update"), "")
ENTRIES = {name: NAMED[name] for name in NAMED if name not in ZOO} | {"plain": PLAIN}
LR = 0.01
Make = Callable[..., Optimizer]


def exported(name: str) -> Make:
    return lambda params, lr=LR, **given: ENTRIES[name].optimizer(params, lr=lr, **given)


def ruled(name: str) -> Make:
    rule = Population.of([ENTRIES[name].program], torch.tensor([0]), reference)
    return lambda params, lr=LR, **given: RuleOptimizer(params, rule, lr, **given)


KINDS = {"exported": exported, "ruled": ruled}


@pytest.fixture(params=[(kind, name) for kind in KINDS for name in ENTRIES], ids="-".join)
def make(request: pytest.FixtureRequest) -> Make:
    kind, name = request.param
    return KINDS[kind](name)


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def loss_of(net: nn.Module, step: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return net(x.to(next(net.parameters()).dtype)).square().mean()


def train(net: nn.Module, optimizer: Any, steps: range, every: int = 1, sign: int = 1) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = sign * loss_of(net, step)
        if step % every == 0:
            optimizer.set_hessian(loss, torch.Generator().manual_seed(step))
        loss.backward()
        optimizer.step()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def trained(make: Make, steps: int = 4, every: int = 1, **settings: Any) -> Tensor:
    net = model()
    train(net, make(net.parameters(), **settings), range(steps), every)
    return weights(net)


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_exact_where_the_hessian_is_diagonal(kind: str) -> None:
    """And gradients are those of a backward pass without it."""
    x, y, z = (torch.randn(shape, requires_grad=True) for shape in ((5,), (3,), ()))
    unused = torch.ones(2, requires_grad=True)
    optimizer: Any = KINDS[kind]("sophia")([x, y, z, unused])
    loss = (x**3).sum() + 2 * y.square().sum() + z**2
    optimizer.set_hessian(loss)
    loss.backward()
    torch.testing.assert_close(optimizer.state[x]["hessian"], 6 * x.detach())
    torch.testing.assert_close(optimizer.state[y]["hessian"], torch.full((3,), 4.0))
    assert torch.equal(optimizer.state[z]["hessian"], torch.tensor(2.0))
    assert not optimizer.state[unused]["hessian"].any()
    torch.testing.assert_close(x.grad, 3 * x.detach().square())
    optimizer.step()


def test_estimates_are_right_in_the_mean() -> None:
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    x = torch.ones(4, requires_grad=True)
    optimizer: Any = exported("sophia")([x])
    mean, generator = torch.zeros(4), torch.Generator().manual_seed(1)
    for _ in range(1000):
        optimizer.set_hessian((x @ root).square().sum() / 2, generator)
        mean += optimizer.state[x]["hessian"] / 1000
    hessian = root @ root.T
    error = ((hessian.square().sum(1) - hessian.diagonal().square()) / 1000).sqrt()
    assert ((mean - hessian.diagonal()).abs() < 4 * error).all()


@pytest.mark.parametrize("name", [*ENTRIES])
@pytest.mark.parametrize("every", [1, 2])
def test_both_kinds_and_both_paths_take_the_same_steps(name: str, every: int) -> None:
    expected = trained(exported(name), every=every)
    assert (expected != weights(model())).all()
    assert expected.isfinite().all()
    for actual in (
        trained(exported(name), every=every, foreach=True),
        trained(ruled(name), every=every),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_step_without_an_estimate_is_refused(make: Make) -> None:
    net = model()
    optimizer = make(net.parameters())
    loss_of(net, 0).backward()
    with pytest.raises(RuntimeError, match=r"reads a Hessian: call set_hessian\(loss\) before"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_to_the_same_trajectory(make: Make, dtype: torch.dtype) -> None:
    """Between two estimates, through a file."""
    whole, net = model(dtype), model(dtype)
    train(whole, make(whole.parameters()), range(4), every=3)
    optimizer = make(net.parameters())
    train(net, optimizer, range(2), every=3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = make(net.parameters(), lr=1.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(s["hessian"].dtype == torch.float32 for s in resumed.state.values())
    train(net, resumed, range(2, 4), every=3)
    assert torch.equal(weights(net), weights(whole))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_the_trajectory(make: Make, clone: Callable[[Any], Any]) -> None:
    net = model()
    optimizer = make(net.parameters())
    train(net, optimizer, range(2), every=3)
    twin, copied = clone((net, optimizer))
    train(twin, copied, range(2, 4), every=3)
    assert torch.equal(weights(twin), trained(make, every=3))


def test_maximize_descends_the_negative(make: Make) -> None:
    one, other = model(), model()
    train(one, make(one.parameters(), maximize=True), range(3))
    train(other, make(other.parameters()), range(3), sign=-1)
    assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("kind", KINDS)
def test_complex_is_two_real_numbers(kind: str) -> None:
    start = torch.randn(3, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    ends = []
    for p in (start.clone(), torch.view_as_real(start).clone()):
        optimizer: Any = KINDS[kind]("adahessian")([p.requires_grad_()])
        for step in range(3):
            optimizer.zero_grad()
            pair = torch.view_as_real(p) if p.is_complex() else p
            loss = (pair**4).sum() + pair.prod(-1).square().sum()
            optimizer.set_hessian(loss, torch.Generator().manual_seed(step))
            loss.backward()
            optimizer.step()
        ends.append(torch.view_as_real(p.detach()) if p.is_complex() else p.detach())
    torch.testing.assert_close(*ends)


def test_a_rule_by_its_name() -> None:
    assert load("adahessian").program == ENTRIES["adahessian"].program
