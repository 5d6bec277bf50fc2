"""What every architecture promises: a table of architectures times properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l2o.architectures.features import blocks, factored_axes
from l2o.architectures.l2o_pa import L2OPA
from l2o.architectures.small_fc import SmallFC
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from l2o.base import LearnedOptimizer, ThetaError
from tasks.families.mlp import MLP
from tasks.families.quadratic import Quadratic
from tasks.inner.unroll import advance, start, unroll
from tasks.mup.scaling import update_multiplier
from tasks.oracles.hutchinson import hessian_every
from tasks.types import Layout, Params, ParamSpec, StepInfo

TASK = MLP(width=6, depth=1, batch_size=8)
SMALL = {
    "tuned_adam": TunedAdam(),
    "small_fc": SmallFC(step_mult=0.01),
    "small_fc, one layer": SmallFC(hidden_size=3, hidden_layers=1),
    "velo": Velo(lstm_size=8, bank_size=4, bank_scale=1.0),
    "velo, muP": Velo(lstm_size=8, bank_size=4, bank_scale=1.0, param_scale=False),
}
SIZES = [
    (TunedAdam(), 4),
    (SmallFC(), 197),
    (SmallFC(hidden_size=32), 2_409),
    (Velo(), 2_320_385),
    (L2OPA(), 5_742),
    (L2OPA(heads=("P", "A", "B", "B1", "B2")), 5_805),
]
each = pytest.mark.parametrize("name", SMALL)


@pytest.mark.parametrize(("optimizer", "size"), SIZES, ids=str)
def test_size(optimizer: LearnedOptimizer, size: int) -> None:
    assert optimizer.size == size
    assert optimizer.initial().shape == (size,)


def test_sizes_are_known_without_making_the_tensors() -> None:
    """A header of a checkpoint may claim any size; this one would be 400 TB."""
    assert SmallFC(hidden_size=10**7).size == 10**14 + 43 * 10**7 + 9


@each
def test_names_and_vector_are_one(name: str) -> None:
    optimizer, theta = SMALL[name], torch.randn(SMALL[name].size)
    assert torch.equal(optimizer.flatten(optimizer.named(theta)), theta)
    assert torch.equal(optimizer.initial(3), optimizer.initial(3))


@each
def test_unsuitable_theta_is_refused(name: str) -> None:
    optimizer = SMALL[name]
    theta = optimizer.initial()
    with pytest.raises(ThetaError, match=f"expected D = {optimizer.size}"):
        optimizer.rule(theta[:-1])
    theta[-1] = float("nan")
    with pytest.raises(ThetaError, match=f"NaN or infinity in {optimizer.layout.specs[-1].name}"):
        optimizer.rule(theta)
    named = optimizer.init_theta(torch.Generator().manual_seed(0))
    first = next(iter(named))
    with pytest.raises(ThetaError, match=f"{first} has shape"):
        optimizer.flatten(named | {first: torch.zeros(77)})
    with pytest.raises(ThetaError, match="got tensors other, expected"):
        optimizer.flatten({"other": torch.zeros(1)})


@each
def test_instances_do_not_touch(name: str) -> None:
    """A row of an unroll with many thetas equals the unroll of that row alone."""
    optimizer = SMALL[name]
    noise = torch.randn(3, optimizer.size, generator=torch.Generator().manual_seed(0))
    theta = optimizer.initial() + 0.01 * noise
    together = unroll(TASK, optimizer.rule(theta), instances=3, steps=4, lr=1.0).inner
    alone = unroll(TASK, optimizer.rule(theta[1]), instances=1, steps=4, lr=1.0).inner
    torch.testing.assert_close(together.params[1:2], alone.params, rtol=0, atol=1e-6)
    chunked = unroll(TASK, optimizer.rule(theta), instances=3, steps=4, lr=1.0, chunk=2).inner
    torch.testing.assert_close(chunked.params, together.params, rtol=0, atol=1e-6)


@each
def test_state_leads_with_instances_and_keeps_its_form(name: str) -> None:
    rule = SMALL[name].rule(SMALL[name].initial())
    before = start(TASK, rule, 2)
    after, _ = advance(TASK, rule, before, 1, horizon=5, lr=1.0)
    shapes = {key: value.shape for key, value in before.state.items()}
    assert {key: value.shape for key, value in after.state.items()} == shapes
    assert all(shape[0] == 2 for shape in shapes.values())


@pytest.mark.parametrize(
    "name", sorted(SMALL.keys() - {"velo"})
)  # whose steps are in a tensor's own size
def test_scale_multiplies_the_step_of_its_tensor(name: str) -> None:
    optimizer = SMALL[name]
    flat = start(TASK, optimizer.rule(optimizer.initial()), 2).params + 0.1
    params = Params(flat, TASK.layout)
    grads = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    one = torch.ones(2)
    info = StepInfo(0, 10, one, 0 * one, one)

    def step(scale):
        rule = optimizer.rule(optimizer.initial(), scale)
        return TASK.layout.views(rule.update(grads, rule.init(params), params, info)[0])

    factors = {spec.name: 0.5 + k for k, spec in enumerate(TASK.layout.specs)}
    plain, mapped, called = step(None), step(factors), step(lambda spec: factors[spec.name])
    for tensor, factor in factors.items():
        torch.testing.assert_close(mapped[tensor], factor * plain[tensor])
        assert torch.equal(mapped[tensor], called[tensor])
    with pytest.raises(ValueError, match="scale: got none for b0"):
        step({"w0": 1.0})


@each
def test_lr_and_decay_mean_what_they_mean_elsewhere(name: str) -> None:
    """update = lr (step + decay * params)."""
    rule = SMALL[name].rule(SMALL[name].initial())
    params = Params(start(TASK, rule, 1).params, TASK.layout)
    grads, one = torch.ones_like(params.flat), torch.ones(1)
    plain, _ = rule.update(grads, rule.init(params), params, StepInfo(0, 10, one, 0 * one, one))
    info = StepInfo(0, 10, 0.5 * one, 0.25 * one, one)
    both, _ = rule.update(grads, rule.init(params), params, info)
    torch.testing.assert_close(both, 0.5 * (plain + 0.25 * params.flat))


@pytest.mark.parametrize("nominal", [None, TunedAdam(lr=0.01).rule(torch.zeros(4))])
def test_own_decay_adds_to_what_a_user_asks_for(nominal) -> None:
    def trained(own: float, asked: float):
        optimizer = SmallFC(weight_decay=own, nominal=nominal)
        rule = optimizer.rule(optimizer.initial())
        return unroll(TASK, rule, instances=1, steps=3, lr=0.5, weight_decay=asked).inner.params

    torch.testing.assert_close(trained(0.2, 0.1), trained(0.0, 0.3))
    assert not torch.equal(trained(0.2, 0.0), trained(0.0, 0.0))


@each
def test_meta_gradients_are_finite_and_cover_theta(name: str) -> None:
    """Even where a tensor's gradient is exactly zero, as it is behind dead units."""
    optimizer = SMALL[name]
    theta = optimizer.initial().requires_grad_()
    flat = torch.randn(1, TASK.layout.n, generator=torch.Generator().manual_seed(0))
    rule, one = optimizer.rule(theta), torch.ones(1)
    state = rule.init(Params(flat, TASK.layout))
    for step in range(4):
        grads = flat.detach() * (torch.arange(TASK.layout.n) % 3 > 0)
        grads = grads * (TASK.layout.segments() != 1)
        info = StepInfo(step, 10, one, 0 * one, one)
        updates, state = rule.update(grads, state, Params(flat, TASK.layout), info)
        flat = flat - updates
    flat.square().sum().backward()
    assert theta.grad is not None
    assert torch.isfinite(theta.grad).all()
    assert torch.count_nonzero(theta.grad) > 0.3 * optimizer.size


def test_untrained_adam_is_adam() -> None:
    task = Quadratic(dimension=5)
    rule = TunedAdam(lr=0.05, beta1=0.8, beta2=0.95, eps=1e-4).rule(torch.zeros(4))
    ours = unroll(task, rule, instances=1, steps=20, lr=1.0).inner.params[0]
    x = start(task, rule, 1).params[0].clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.05, betas=(0.8, 0.95), eps=1e-4)
    inner = start(task, rule, 1)
    for _ in range(20):
        # The gradient where the reference stands, on the batch of that step.
        at = inner._replace(params=x.detach()[None].clone())
        sgd, _ = advance(task, _Gradient(), at, 1, horizon=20, lr=1.0)
        x.grad = at.params[0] - sgd.params[0]
        adam.step()
        inner = inner._replace(step=sgd.step)
    torch.testing.assert_close(ours, x.detach(), rtol=1e-4, atol=1e-5)


class _Gradient:
    """Updates that are the gradients: how a test reads them off the loop."""

    def init(self, params):
        return {}

    def update(self, grads, state, params, info):
        return grads, state

    def select(self, index):
        return self


def test_a_nominal_rule_gets_what_it_reads() -> None:
    class Curved(_Gradient):
        hessian_every = 3
        reads_loss = True

    for nominal, every, reads in ((Curved(), 3, True), (_Gradient(), 0, False), (None, 0, False)):
        rule = SmallFC(nominal=nominal).rule(SmallFC().initial())
        assert hessian_every(rule) == every
        assert rule.reads_loss == reads


def test_nominal_rule_gets_a_learned_correction() -> None:
    nominal = TunedAdam(lr=0.01)
    thetas = torch.tensor([[0.0] * 4, [1.0] * 4])
    optimizer = SmallFC(nominal=nominal.rule(thetas))
    silent = torch.zeros(optimizer.size)
    ours = unroll(TASK, optimizer.rule(silent), instances=2, steps=3, lr=0.7).inner
    adam = unroll(TASK, nominal.rule(thetas), instances=2, steps=3, lr=0.7).inner
    assert torch.equal(ours.params, adam.params)
    assert torch.equal(ours.state["nominal.m"], adam.state["m"])
    theta = optimizer.initial(1)
    corrected = unroll(TASK, optimizer.rule(theta), instances=2, steps=1, lr=0.7).inner.params
    alone = unroll(TASK, SmallFC().rule(theta), instances=2, steps=1, lr=0.7).inner.params
    begin = start(TASK, _Gradient(), 2).params
    one_step = unroll(TASK, nominal.rule(thetas), instances=2, steps=1, lr=0.7).inner.params
    torch.testing.assert_close(corrected - begin, (alone - begin) + (one_step - begin))
    chunked = unroll(TASK, optimizer.rule(theta), instances=2, steps=1, lr=0.7, chunk=1).inner
    torch.testing.assert_close(chunked.params, corrected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmallFC(hidden_size=0), "hidden_size: got 0"),
        (lambda: SmallFC(hidden_layers=-1), "hidden_layers: got -1"),
        (lambda: SmallFC(weight_decay=1.0), "weight_decay: got 1.0"),
        (lambda: Velo(lstm_size=0), "lstm_size: got 0"),
        (lambda: Velo(loss_horizon=0), "loss_horizon: got 0"),
        (lambda: Velo(step_mult=math.nan), "step_mult: got nan"),
        (
            lambda: Velo(4, 2).rule(Velo(4, 2).initial(), update_multiplier),
            "param_scale: got True in muP",
        ),
        (lambda: TunedAdam(beta1=1.0), "beta1: got 1.0"),
        (lambda: TunedAdam(lr=0.0), "lr: got 0.0"),
    ],
)
def test_bad_fields_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), None),
        ((7,), None),
        ((5, 7), (0, 1)),
        ((7, 5), (1, 0)),
        ((6, 6), (0, 1)),
        ((2, 5, 5), (1, 2)),
        ((5, 2, 5), (0, 2)),
        ((3, 3, 4, 6), (2, 3)),
        ((1, 8), (0, 1)),
    ],
)
def test_factored_axes(shape: tuple[int, ...], axes: tuple[int, int] | None) -> None:
    assert factored_axes(shape) == axes


@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=4))
def test_blocks_tile_their_buffers(shapes: list[list[int]]) -> None:
    specs = tuple(ParamSpec(f"t{k}", tuple(shape)) for k, shape in enumerate(shapes))
    row = col = 0
    for block, spec in zip(blocks(Layout(specs)), specs, strict=True):
        assert (block.row.start, block.col.start) == (row, col)
        row, col = block.row.stop, block.col.stop
        if block.axes is None:
            assert (row - block.row.start, col - block.col.start) == (spec.numel, 0)
        else:
            d1, d0 = block.axes
            assert spec.shape[d1] <= spec.shape[d0]
            assert (row - block.row.start) * spec.shape[d0] == spec.numel
            assert (col - block.col.start) * spec.shape[d1] == spec.numel
