"""The compiled ``small_fc`` against its reference, as trajectories: the same gradients, 5 steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from l2o.architectures.kernels import cpu
from l2o.architectures.small_fc import SmallFC, SmallFCRule, Step, reference
from l2o.architectures.tuned_adam import TunedAdam
from tasks.types import Layout, Params, ParamSpec, State, StepInfo

STEPS = 5
SHAPES = {
    "scalar": ((),),
    "vectors": ((1,), (7,), (1000,)),
    "square": ((6, 6),),
    "wide and tall": ((5, 7), (7, 5), (64, 32), (3, 700), (700, 3)),
    "longer than a block": ((40, 50), (1, 513)),
    "tied axes": ((4, 4, 4), (3, 5, 5), (5, 3, 5), (5, 5, 3)),
    "three": ((2, 3, 4), (4, 2, 3), (3, 4, 2), (17, 2, 31)),
    "convolution": ((3, 3, 4, 8), (8, 4, 3, 3), (2, 3, 2, 4)),
    "network": ((64, 32), (32,), (32, 10), (10,)),
}
ARCHITECTURES = {
    "h4": SmallFC(),
    "h1": SmallFC(hidden_size=1, hidden_layers=1),
    "h6": SmallFC(hidden_size=6, hidden_layers=3, step_mult=0.01, exp_mult=0.5),
    "h32": SmallFC(hidden_size=32, step_mult=0.01),
    "h64": SmallFC(hidden_size=64, hidden_layers=1),
}


def layout(shapes: tuple[tuple[int, ...], ...]) -> Layout:
    return Layout(tuple(ParamSpec(f"p{k}", shape) for k, shape in enumerate(shapes)))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def thetas(optimizer: SmallFC, instances: int) -> Tensor:
    return optimizer.initial() + 0.05 * normal(instances, optimizer.size, seed=1)


def trajectory(
    step: Step, rule: SmallFCRule, flat: Tensor, grads: Tensor, where: Layout
) -> tuple[Tensor, State]:
    """Parameters ``[STEPS, N, n]`` and the last state, for gradients ``[STEPS, N, n]``."""
    instances = len(flat)
    state, seen = rule.init(Params(flat, where)), []
    lr = torch.linspace(0.5, 1.5, instances)
    for k in range(STEPS):
        clock = torch.arange(instances) * 100 + k
        info = StepInfo(clock, 1000, lr, 0.01 * lr, torch.zeros(instances))
        updates, state = step(rule, grads[k], state, Params(flat, where), info)
        flat = flat - updates
        seen.append(flat)
    return torch.stack(seen), state


def problem(where: Layout, instances: int) -> tuple[Tensor, Tensor]:
    """Parameters, and gradients of very different sizes, some of them exactly zero."""
    flat, grads = normal(instances, where.n, seed=2), normal(STEPS, instances, where.n, seed=3)
    size = 10 ** (3 * normal(where.n, seed=4).clamp(-2, 1))
    return flat, torch.where(normal(where.n, seed=5) > 1, 0.0, grads * size)


def assert_equal_trajectories(rule: SmallFCRule, where: Layout, instances: int) -> None:
    flat, grads = problem(where, instances)
    ours, state = trajectory(cpu.step, rule, flat, grads, where)
    theirs, expected = trajectory(reference, rule, flat, grads, where)
    largest = float((theirs[-1] - flat).abs().max())
    torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=2e-5 * largest)
    largest = grads.abs().amax(0)[:, None]  # what momenta may have cancelled from
    assert ((state["m"] - expected["m"]).abs() <= 1e-6 * largest).all()
    for name in ("v", "row", "col"):
        torch.testing.assert_close(state[name], expected[name], rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trajectories_are_the_references(name: str, shapes: str) -> None:
    optimizer, where = ARCHITECTURES[name], layout(SHAPES[shapes])
    assert_equal_trajectories(optimizer.rule(thetas(optimizer, 3)), where, 3)


def test_one_theta_for_all_and_scales() -> None:
    where = layout(SHAPES["network"])
    scale = {"p0": 1.0, "p1": 0.1, "p2": 1 / 32, "p3": 3.0}
    optimizer = SmallFC(step_mult=0.01)
    shared = optimizer.rule(thetas(optimizer, 1)[0], scale)
    assert_equal_trajectories(shared, where, 2)
    flat, grads = problem(where, 2)
    scaled, _ = trajectory(cpu.step, shared, flat, grads, where)
    plain, _ = trajectory(cpu.step, optimizer.rule(shared.theta), flat, grads, where)
    assert not torch.allclose(scaled, plain)


def test_select_and_chunks_are_rows() -> None:
    where, optimizer = layout(SHAPES["network"]), SmallFC()
    rule, (flat, grads) = optimizer.rule(thetas(optimizer, 4)), problem(where, 4)
    info = StepInfo(7, 9, torch.ones(4), torch.zeros(4), torch.zeros(4))
    together, _ = cpu.step(
        rule, grads[0], rule.init(Params(flat, where)), Params(flat, where), info
    )
    index = torch.tensor([3, 1])
    params = Params(flat[index], where)
    some = rule.select(index)
    one = info._replace(lr=info.lr[:2], weight_decay=info.weight_decay[:2])
    chosen, _ = cpu.step(some, grads[0][index], some.init(params), params, one)
    assert torch.equal(chosen, together[index])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_diverged_instance_leaves_its_neighbours_bit_identical(bad: float) -> None:
    where, optimizer = layout(SHAPES["network"]), SmallFC(hidden_size=6)
    rule, (flat, grads) = optimizer.rule(thetas(optimizer, 3)), problem(where, 3)
    before, _ = trajectory(cpu.step, rule, flat, grads, where)
    grads[1, 1, ::7] = bad
    after, _ = trajectory(cpu.step, rule, flat, grads, where)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.equal(after[:, 1], before[:, 1])


def test_nan_spreads_as_in_the_reference() -> None:
    where, optimizer = layout(((5, 7), (7,))), SmallFC()
    rule, (flat, grads) = optimizer.rule(thetas(optimizer, 1)), problem(where, 1)
    grads[1, 0, 3] = float("nan")
    ours, _ = trajectory(cpu.step, rule, flat, grads, where)
    theirs, _ = trajectory(reference, rule, flat, grads, where)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert theirs.isnan().any()
    assert not theirs.isnan().all()


def test_what_fades_ends_at_zero() -> None:
    """Denormal numbers would make a step a hundred times slower."""
    where, optimizer = layout(((64,),)), SmallFC()
    rule, flat = optimizer.rule(optimizer.initial()), torch.ones(1, 64)
    params, state = (
        Params(flat, where),
        optimizer.rule(optimizer.initial()).init(Params(flat, where)),
    )
    state["m"].fill_(1e-36)
    info = StepInfo(0, 9, torch.ones(1), torch.zeros(1), torch.zeros(1))
    _, state = cpu.step(rule, torch.zeros(1, 64), state, params, info)
    assert not state["m"].any()


def test_the_kernel_is_used_where_it_can_be() -> None:
    where, optimizer = layout(((3, 4),)), SmallFC()
    params, grads = Params(torch.ones(1, 12), where), torch.ones(1, 12)
    rule = optimizer.rule(optimizer.initial())
    state = rule.init(params)
    assert rule.fastest(grads, state, params) is cpu.step
    learning = optimizer.rule(optimizer.initial().requires_grad_())
    assert learning.fastest(grads, state, params) is reference
    with torch.no_grad():
        assert learning.fastest(grads, state, params) is cpu.step
    double = optimizer.rule(optimizer.initial().double())
    assert double.fastest(grads, state, params) is reference


def test_a_nominal_rule_is_added_outside() -> None:
    where = layout(SHAPES["network"])
    adam = TunedAdam()
    nominal = adam.rule(adam.initial())
    optimizer = SmallFC(nominal=nominal)
    rule = optimizer.rule(optimizer.initial())
    flat, grads = problem(where, 2)
    params = Params(flat, where)
    info = StepInfo(0, 9, torch.full((2,), 0.5), torch.full((2,), 0.1), torch.zeros(2))
    together, _ = rule.update(grads[0], rule.init(params), params, info)
    alone, _ = nominal.update(grads[0], nominal.init(params), params, info)
    plain = SmallFC().rule(rule.theta)
    undecayed = info._replace(weight_decay=torch.zeros(2))
    learned, _ = plain.update(grads[0], plain.init(params), params, undecayed)
    torch.testing.assert_close(together, alone + learned)


COMPILED = """
import hashlib, sys, torch
from l2o.architectures.kernels import cpu
from l2o.architectures.small_fc import SmallFC
from tests.l2o.test_kernel import layout, problem, thetas, trajectory

torch.set_num_threads(1)
optimizer, where = SmallFC(step_mult=0.01), layout(((64, 8), (8,), (8, 8), (8, 10)))
flat, grads = problem(where, 2)
seen, _ = trajectory(cpu.step, optimizer.rule(thetas(optimizer, 2)), flat, grads, where)
print(hashlib.sha256(seen.numpy().tobytes()).hexdigest())
"""


def test_just_compiled_or_found_compiled_the_bits_are_the_same(tmp_path):
    env = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", COMPILED]
    first, second = (
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second
