"""Checkpoints by ``torch.distributed.checkpoint.state_dict``: one table, optimizers x histories.

Such a checkpoint leaves out what belongs to frozen parameters, calls parameters by their names, and
may be flattened to one level. A training that goes through one ends where it would have ended.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

import l2o
from l2o.architectures.l2o_pa import L2OPA
from l2o.architectures.small_fc import SmallFC
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from l2o.base import LearnedOptimizer
from l2o.loading import Learned
from search.export.build import to_class
from search.interpreter.population import Population
from search.language.program import parse
from search.zoo import NAMED
from tasks.families.composite import Lasso
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.oracles.hutchinson import hessian_every

FULL = """
def full_update(w, g, m, lr, t):
    g = clip_by_global_norm(g, 1.5)
    m = interp(g, m, 0.9)
    size = norm(m)
    root = sqrt(t)
    rate = lr / root
    update = m / size
    update = update * rate
    return update, m
"""
SIGN = "def update(w, g):\n    update = sign(g)\n    return update"
PROGRAMS = {name: NAMED[name].program for name in ("adam", "lion", "sophia")}
PROGRAMS |= {"full": parse(FULL), "sign": parse(SIGN)}
Make = Callable[..., Any]


def exported(name: str) -> Make:
    made: Any = to_class(PROGRAMS[name], name, "")
    return lambda params: made(params, lr=0.01)


def ruled(name: str) -> Make:
    rule = Population.of([PROGRAMS[name]], torch.tensor([0]))
    return lambda params: RuleOptimizer(params, rule, 0.01)


def learned(architecture: LearnedOptimizer) -> Make:
    found = Learned("x", architecture, architecture.initial(1), {})
    return lambda params: found.optimizer(params, horizon=100)


NOMINAL = Population.of([PROGRAMS["sophia"]], torch.tensor([0]))
MAKERS: dict[str, Make] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "lo_small": lambda params: l2o.load("lo_small").optimizer(params),
    "learned tuned": learned(TunedAdam()),
    "learned velo": learned(Velo(lstm_size=8, bank_size=4)),
    "learned nominal": learned(SmallFC(nominal=NOMINAL)),
}
MAKERS |= {f"exported {name}": exported(name) for name in PROGRAMS}
MAKERS |= {f"ruled {name}": ruled(name) for name in PROGRAMS}


def model(seed: int = 0, tied: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    net: Any = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1)
    )
    if tied:
        net.extra = nn.Linear(5, 5, bias=False)
        net.extra.weight = net[2].weight
    return net


def train(net: nn.Module, optimizer: Any, steps: Iterable[int], read: bool = True) -> None:
    """``read``: whether rules that want a Hessian get another one."""
    for step in steps:
        optimizer.zero_grad()
        h = x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for name, part in net.named_children():
            h = h if name == "extra" else part(h)
        loss = (h - x.sum(1, keepdim=True)).square().mean()
        reads = not hasattr(optimizer, "rule") or hessian_every(optimizer.rule)
        if read and reads and hasattr(optimizer, "set_hessian"):
            optimizer.set_hessian(loss, torch.Generator().manual_seed(step))
        loss.backward()
        given: Any = {"loss": loss} if type(optimizer) is RuleOptimizer else {}
        optimizer.step(**given)
    optimizer.zero_grad()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def require(net: Any, layer: int, needed: bool) -> None:
    for p in net[layer].parameters():
        p.requires_grad_(needed)
        p.grad = None


def plain(net: Any, optimizer: Any) -> None:
    train(net, optimizer, range(3))


def frozen(net: Any, optimizer: Any) -> None:
    """The first layer, after it was trained."""
    train(net, optimizer, range(3))
    require(net, 0, False)
    train(net, optimizer, range(3, 5))


def thawed(net: Any, optimizer: Any) -> None:
    """Frozen from the start, then not."""
    require(net, 0, False)
    train(net, optimizer, range(3))
    require(net, 0, True)
    train(net, optimizer, range(3, 5))


def refrozen(net: Any, optimizer: Any) -> None:
    thawed(net, optimizer)
    require(net, 0, False)
    require(net, 2, False)
    train(net, optimizer, range(5, 6))


def frozen_unseen(net: Any, optimizer: Any) -> None:
    """Frozen after the last step: no step was taken without it."""
    train(net, optimizer, range(3))
    require(net, 0, False)


HISTORIES = (plain, frozen, thawed, refrozen, frozen_unseen)


def through(make: Make, history: Callable[..., None], flat: bool, tied: bool, cut: int) -> None:
    """``cut``: the layers of the first of two groups; 0: one group."""

    def groups(net: Any) -> Any:
        first = [*net[:cut].parameters()]
        parts = [first, [p for p in net.parameters() if all(p is not q for q in first)]]
        return [{"params": part} for part in parts] if cut else net.parameters()

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    whole = model(tied=tied)
    optimizer = make(groups(whole))
    history(whole, optimizer)
    weights_then = copy.deepcopy(whole.state_dict())
    saved: Any = copy.deepcopy(get_optimizer_state_dict(whole, optimizer, options=options))
    other = model(7, tied)
    other.load_state_dict(weights_then)
    for p, q in zip(other.parameters(), whole.parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    resumed = make(groups(other))
    set_optimizer_state_dict(other, resumed, saved, options=options)
    for net, of in ((whole, optimizer), (other, resumed)):
        train(net, of, range(6, 8), read=False)
        train(net, of, range(8, 10))
    assert torch.equal(weights(whole), weights(other))


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("history", HISTORIES, ids=lambda x: x.__name__)
@pytest.mark.parametrize("name", MAKERS)
def test_goes_on_as_if_nothing_had_happened(name: str, history: Any, flat: bool) -> None:
    through(MAKERS[name], history, flat, tied=False, cut=0)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize(("tied", "cut"), [(True, 0), (False, 1), (True, 4)])
@pytest.mark.parametrize("name", MAKERS)
def test_tied_weights_and_groups(name: str, tied: bool, cut: int, flat: bool) -> None:
    through(MAKERS[name], frozen, flat, tied, cut)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("name", MAKERS)
def test_before_the_first_step(name: str, flat: bool) -> None:
    """Nothing moves, and a training starts from there."""
    net, other = model(), model()
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    optimizer, resumed = (MAKERS[name](x.parameters()) for x in (net, other))
    state = get_optimizer_state_dict(net, optimizer, options=options)
    set_optimizer_state_dict(other, resumed, copy.deepcopy(state), options=options)
    assert torch.equal(weights(net), weights(model()))
    for x, of in ((net, optimizer), (other, resumed)):
        train(x, of, range(3))
    assert torch.equal(weights(net), weights(other))
    assert weights(net).isfinite().all()


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "AdamW"])
def test_thawed_after_loading(name: str, flat: bool) -> None:
    """What was dropped starts again, and so does what was never used."""
    net = model()
    options = StateDictOptions(flatten_optimizer_state_dict=flat, strict=False)
    optimizer = MAKERS[name](net.parameters())
    frozen(net, optimizer)
    saved: Any = get_optimizer_state_dict(net, optimizer, options=options)
    for late in (False, True):
        resumed = MAKERS[name](net.parameters())
        require(net, 0, not late)
        set_optimizer_state_dict(net, resumed, copy.deepcopy(saved), options=options)
        require(net, 0, True)
        before = weights(net)
        train(net, resumed, range(5, 7))
        moved = weights(net) != before
        assert moved[:25].any()
        assert weights(net).isfinite().all()


def test_l2o_pa() -> None:
    """Of one parameter, as its problem has."""
    task = Lasso(problems=2, rows=6, columns=5, nonzeros=2)
    make = learned(L2OPA(hidden_size=3).on(task))

    def steps(net: Any, optimizer: Any, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss = task.loss(dict(net.named_parameters()), ())
            loss.backward()
            optimizer.step()

    for flat in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        nets = [nn.ParameterDict(task.init(torch.Generator().manual_seed(0))) for _ in range(2)]
        optimizers: list[Optimizer] = [make(net.parameters()) for net in nets]
        steps(nets[0], optimizers[0], 3)
        nets[1].load_state_dict(nets[0].state_dict())
        nets[0].zero_grad()
        state = get_optimizer_state_dict(nets[0], optimizers[0], options=options)
        set_optimizer_state_dict(nets[1], optimizers[1], copy.deepcopy(state), options=options)
        for net, optimizer in zip(nets, optimizers, strict=True):
            steps(net, optimizer, 3)
        assert torch.equal(*map(weights, nets))
