"""A learned optimizer in a training script, from a checkpoint."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import l2o
from l2o import checkpoint, loading
from l2o.architectures.small_fc import SmallFC
from l2o.architectures.tuned_adam import TunedAdam, TunedAdamRule
from l2o.architectures.velo import Velo
from l2o.base import LearnedOptimizer
from l2o.checkpoint import CheckpointError
from tasks.mup.groups import param_groups
from tasks.mup.scaling import Scale, scaled
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.types import UpdateRule

ARCHITECTURES = [TunedAdam(lr=0.1), SmallFC(hidden_size=4), Velo(8, 4)]


def trained(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> Tensor:
    for step in range(steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        x = x.to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step(loss=loss)  # type: ignore[call-arg]
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def model(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: type(a).__name__)
def test_a_checkpoint_trains_saves_and_resumes(
    architecture: LearnedOptimizer, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "mine", architecture, architecture.initial(1), {"seed": 1})
    learned = l2o.load(tmp_path / "mine")
    assert (learned.name, learned.card["seed"]) == ("mine", 1)
    net = model()
    optimizer = learned.optimizer(net, weight_decay=0.01, horizon=6)
    before = trained(net, optimizer)
    assert not torch.equal(before, trained(model(), optimizer, 0))
    twin = copy.deepcopy(net)
    resumed = learned.optimizer(twin.parameters(), weight_decay=0.01, horizon=6)
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(trained(twin, resumed), trained(net, optimizer))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: type(a).__name__)
def test_double_precision_and_empty_parameters(
    architecture: LearnedOptimizer, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "mine", architecture, architecture.initial(1), {"seed": 1})
    learned, ends = l2o.load(tmp_path / "mine"), []
    for dtype in (torch.float32, torch.float64):
        net = model().to(dtype)
        optimizer = learned.optimizer(
            [*net.parameters(), nn.Parameter(torch.zeros(0, 3).to(dtype))]
        )
        for _ in range(3):
            optimizer.zero_grad()
            loss = net(torch.ones(2, 3, dtype=dtype)).square().mean()
            loss.backward()
            optimizer.step(loss=loss)  # type: ignore[call-arg]
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert ends[1].dtype == torch.float64
    torch.testing.assert_close(ends[0], ends[1].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("taken", [0, 2])
def test_a_model_that_is_made_double_later(architecture: LearnedOptimizer, taken: int) -> None:
    """Before the first step or in the middle, and one more group, of double precision from the
    beginning; copies go on as the optimizer does."""
    theta, net = architecture.initial(1), model()
    optimizer = loading.Learned("mine", architecture, theta, {}).optimizer(net)
    twin = copy.deepcopy(net)
    expected = trained(twin, loading.Learned("mine", architecture, theta, {}).optimizer(twin), 4)
    trained(net, optimizer, taken)
    more = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [more]})
    net.double()
    for step in range(taken, 4):
        net, optimizer, more = copy.deepcopy((net, optimizer, more))
        net, optimizer, more = pickle.loads(pickle.dumps((net, optimizer, more)))
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        loss = net(x).square().mean()
        (loss + more.square().sum()).backward()
        optimizer.step(loss=loss)
    found = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)
    assert (more != 1).all()


def test_parameters_may_come_later() -> None:
    optimizer = l2o.load("lo_small").optimizer([{"params": []}])
    optimizer.add_param_group({"params": [p := nn.Parameter(torch.ones(3))]})
    p.grad = torch.ones(3)
    optimizer.step()
    assert (p != 1).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("first", ["weight", "bias"])
def test_a_matrix_may_join_a_vector(architecture: LearnedOptimizer, first: str) -> None:
    """Averages over rows and columns are as long as a row of vectors alone."""
    net = nn.Linear(3, 4)
    other = "bias" if first == "weight" else "weight"
    getattr(net, other).requires_grad_(False)
    optimizer = loading.Learned("x", architecture, architecture.initial(), {}).optimizer(net)
    trained(net, optimizer, 2)
    getattr(net, other).requires_grad_(True)
    trained(net, optimizer, 2)
    one, two = (optimizer.state[p].keys() for p in net.parameters())
    assert one == two


@pytest.mark.parametrize("name", ["lo_small", "mulo_small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiled_step_is_the_same(name: str, dtype: torch.dtype) -> None:
    """The kernel's part is left as it is: a compiler cannot look into it."""
    start, ends = model()[:2].to(dtype), []
    for compiled in (False, True):
        torch._dynamo.reset()
        net = copy.deepcopy(start)
        given = {"base": model(8)[:2].to(dtype), "inputs": torch.zeros(1, 3, dtype=dtype)}
        settings = given if "mu" in name else {}
        optimizer = l2o.load(name).optimizer(net, **settings)
        if compiled:
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        ends.append(trained(net, optimizer))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], trained(start, optimizer, 0))


@pytest.mark.parametrize("inputs", [7, 9])
def test_what_belongs_to_no_element_is_kept_apart(inputs: int) -> None:
    """Where the units of an LSTM, or averages of the loss, are as many as the elements, too."""
    velo, net = Velo(lstm_size=8, bank_size=4), nn.Linear(inputs, 1)
    optimizer = loading.Learned("velo", velo, velo.initial(), {}).optimizer(net)
    net(torch.ones(1, inputs)).sum().backward()
    net.bias.grad = None
    optimizer.step(loss=1.0)
    state = optimizer.state[net.weight]
    assert {name: tuple(x.shape) for name, x in state.items()} == {
        "step": (),
        "m": (3, 1, inputs),
        "v": (1, 1, inputs),
        "row": (3, 1),
        "col": (3, inputs),
        **{f"shared.{name}": (10,) for name in ("loss_means", "loss_minima")},
        "hidden": (1, 8),
        "cell": (1, 8),
    }
    assert (state["hidden"] != 0).all()
    for name in ("shared.loss_means", "shared.loss_minima"):
        assert torch.equal(state[name], optimizer.state[net.bias][name])


def test_names_are_looked_up_among_the_shipped(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "mulo_tiny", SmallFC(), SmallFC().initial())
    assert loading.load("mulo_tiny", tmp_path).architecture == SmallFC()
    with pytest.raises(ValueError, match=r"a folder with .* or one of mulo_tiny"):
        loading.load("mulo_huge", tmp_path)
    checkpoint.save(tmp_path / "run" / "best", TunedAdam(), TunedAdam().initial())
    assert loading.load(tmp_path / "run").architecture == TunedAdam()
    with pytest.raises(ValueError, match=r"inputs: got none, expected what base takes"):
        loading.load("mulo_tiny", tmp_path).optimizer(model(16), base=model(8))
    with pytest.raises(ValueError, match="no learned optimizer 'mulo_huge'"):
        l2o.load("mulo_huge")
    (tmp_path / "mulo_tiny" / checkpoint.TENSORS).write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        loading.load("mulo_tiny", tmp_path)


def test_wide_models_take_smaller_steps_in_mup(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "mine", TunedAdam(), TunedAdam().initial())
    wide = model(16)
    groups = param_groups(wide, model(4), (torch.zeros(1, 3),), lr=1.0)
    optimizer = l2o.load(tmp_path / "mine").optimizer(groups)
    assert {group["lr"] for group in optimizer.param_groups} == {1.0, 0.25}
    assert trained(wide, optimizer).isfinite().all()


def test_meta_trained_in_mup(tmp_path: Path) -> None:
    """Widths count from one, decay is the same everywhere, and a base is needed to tell roles."""
    own, asked = 0.1, 0.05
    optimizer = SmallFC(weight_decay=own)
    checkpoint.save(tmp_path / "mine", optimizer, optimizer.initial(), {"mup": True})
    learned, wide, inputs = l2o.load(tmp_path / "mine"), model(16), (torch.zeros(1, 3),)
    for base, given in ((model(4), inputs), (model(32), inputs), (model(4), inputs[0])):
        groups = learned.optimizer(wide, weight_decay=asked, base=base, inputs=given).param_groups
        assert {group["lr"]: len(group["params"]) for group in groups} == {1.0: 4, 1 / 16: 2}
        for group in groups:
            assert group["lr"] * (group["weight_decay"] + own) == pytest.approx(own + asked)
    with pytest.raises(ValueError, match=r"base: got None for mine, which was meta-trained in muP"):
        learned.optimizer(wide)
    with pytest.raises(ValueError, match="got the same width twice"):
        learned.optimizer(wide, base=model(16), inputs=inputs)
    with pytest.raises(ValueError, match="base: got one beside parameters"):
        learned.optimizer(wide.parameters(), base=model(4), inputs=inputs)
    learned.optimizer(wide.parameters())  # somebody who knows


def test_a_tensor_rate_stays_one_in_mup() -> None:
    """A scheduler, or a compiled step, fills it in place."""
    lr, architecture = torch.tensor(1.0), TunedAdam()
    learned = loading.Learned("mine", architecture, architecture.initial(), {"mup": True})
    optimizer = learned.optimizer(model(16), lr, base=model(4), inputs=torch.zeros(1, 3))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert all(isinstance(rate, Tensor) for rate in rates)
    assert {float(rate) for rate in rates} == {1.0, 1 / 16}
    assert len({id(rate) for rate in [*rates, lr]}) == len(rates) + 1


class Anywhere(TunedAdam):
    """Does not look at the values of theta, which some devices do not have."""

    def rule(self, theta: Tensor, scale: Scale | None = None) -> TunedAdamRule:
        return TunedAdamRule(self, theta, scale)


def test_theta_goes_where_the_parameters_are() -> None:
    rule = loading.Placed(Anywhere(), TunedAdam().initial())
    for device in ("cpu", "meta"):
        found = rule.at(torch.ones(2, dtype=torch.float64, device=device))
        assert isinstance(found, TunedAdamRule)
        assert (found.theta.device.type, found.theta.dtype) == (device, torch.float64)
        assert rule.at(torch.zeros(3, dtype=torch.float64, device=device)) is found


@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda rule: scaled(rule, lambda spec: 1.0)])
def test_a_rule_that_reads_the_loss_wants_it(wrap: Callable[[UpdateRule], UpdateRule]) -> None:
    net, rule = model(), wrap(Velo(8, 4).rule(Velo(8, 4).initial()))
    optimizer = RuleOptimizer(net.parameters(), rule)
    net(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"reads the training loss: call step\(loss=loss\)"):
        optimizer.step()
    optimizer.step(loss=1.0)
    optimizer.step(lambda: 1.0)
    with pytest.raises(ValueError, match="horizon: got 0, expected a positive integer"):
        RuleOptimizer(net.parameters(), rule, horizon=0)


def test_maximizing_is_minimizing_the_negative_for_rules_that_read_the_loss() -> None:
    rule, found = Velo(8, 4).rule(Velo(8, 4).initial()), []
    for sign in (1, -1):
        net = model()
        optimizer = RuleOptimizer(net.parameters(), rule, maximize=sign < 0)
        for step in range(4):
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = sign * (net(x) - 1).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert found[0].isfinite().all()
    assert torch.equal(*found)
