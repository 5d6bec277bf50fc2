"""Population execution: the compiled kernel follows the reference, and instances stay apart.

Both take the same table; the reference says what the words mean. They are compared as
trajectories, in which every step starts from what the step before left behind.
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search.evolution.mutate import random_program
from search.evolution.settings import Mutation
from search.interpreter import cpu
from search.interpreter.population import Population
from search.interpreter.reference import Step, reference
from search.language.functions import ARRAY, OPS, PAPER, SCALAR, TENSOR, Kind, result_kind
from search.language.program import Program, parse
from search.zoo import NAMED, ZOO
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.types import Layout, Params, ParamSpec, StepInfo

LAYOUT = Layout((ParamSpec("w", (40, 20)), ParamSpec("b", (7,)), ParamSpec("c", (1,))))
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-11}
CHAOTIC = 1e-7  # relative change of a result, in float64, when its inputs change by 1e-12
EXACT = ("add", "sub", "mul", "div", "abs", "sign", "square", "cube", "reciprocal")
EXACT += ("maximum", "minimum", "interp", "get_pi", "get_e", "get_eps")


def inputs(steps: int, instances: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Parameters ``[N, n]`` and gradients ``[steps, N, n]`` of many sizes, both signs, and 0."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(instances, LAYOUT.n, generator=generator)
    grads = torch.randn(steps, instances, LAYOUT.n, generator=generator)
    grads *= 10 ** (2 * torch.rand(grads.shape, generator=generator) - 1.5)
    grads[..., ::50] = 0
    return flat.to(dtype), grads.to(dtype)


def trajectory(
    step: Step, programs: Sequence[Program], owner: Tensor, flat: Tensor, grads: Tensor
) -> Tensor:
    """Parameters and memory after every step: ``[steps, N, 1 + S, n]``."""
    rule = Population.of(programs, owner, step)
    state = rule.init(Params(flat, LAYOUT))
    lr = torch.linspace(0.01, 0.3, len(owner), dtype=flat.dtype)
    trace = []
    for k, gradients in enumerate(grads):
        info = StepInfo(k, len(grads), lr * (1 - k / 10), 0.1 + lr, torch.zeros_like(lr))
        updates, state = rule.update(gradients, state, Params(flat, LAYOUT), info)
        flat = flat - updates
        trace.append(torch.cat([flat[:, None], state["memory"]], 1).clone())
    return torch.stack(trace)


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=1.25), b.nan_to_num(nan=1.25))


OPERANDS = {
    SCALAR: ("lr", "size", "t"),
    ARRAY: ("lengths", "others", "lengths"),
    TENSOR: ("g", "w", "m"),
}


def uses(name: str) -> list[Program]:
    """For every combination of kinds that a function accepts, a program that runs on its result."""
    programs = []
    for kinds in product(*OPS[name].accepts):
        args = [OPERANDS[kind][place] for place, kind in enumerate(kinds)]
        result = result_kind(OPS[name], kinds)
        update = "update = 1.0 * x" if result == TENSOR else "update = x * g"
        lines = ["size = global_norm(g)", "lengths = norm(g)", "others = norm(w)"]
        lines += [f"x = {name}({', '.join(args)})", update, "m = interp(g, m, 0.5)"]
        lines += ["v = update + v", "return update, m, v"]
        programs.append(parse("def update(w, g, m, v, lr, t):\n    " + "\n    ".join(lines)))
    return programs


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", OPS)
def test_kernel_follows_the_reference_for_every_function(name: str, dtype: torch.dtype) -> None:
    programs = uses(name)
    owner = torch.arange(len(programs))
    flat, grads = inputs(3, len(owner), dtype)
    expected = trajectory(reference, programs, owner, flat, grads)
    actual = trajectory(cpu.step, programs, owner, flat, grads)
    tolerance = ROUNDING[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("step", [reference, cpu.step])
def test_functions_mean_what_numpy_means(step: Step) -> None:
    """A third opinion, for what torch and the kernel might both get wrong."""
    x = torch.tensor([[-1.5, -0.5, 0.0, 0.5, 1.5]], dtype=torch.float64)
    layout = Layout((ParamSpec("x", (5,)),))
    guarded = {
        "log": lambda v: np.log(np.abs(v)),
        "log2": lambda v: np.log2(np.abs(v)),
        "log10": lambda v: np.log10(np.abs(v)),
        "log1p": lambda v: np.log(np.abs(1 + v)),
        "sqrt": lambda v: np.sqrt(np.abs(v)),
        "reciprocal": lambda v: 1 / (v + 1e-8),
        "cube": lambda v: v**3,
        "exp10": lambda v: 10.0**v,
    }
    unary = [name for name in PAPER if OPS[name].arity == 1 and not OPS[name].reduces]
    for name in unary:
        program = parse(f"def full_update(w, g):\n    update = {name}(g)\n    return update")
        rule = Population.of([program], torch.tensor([0]), step)
        one = torch.ones(1, dtype=x.dtype)
        params = Params(torch.zeros_like(x), layout)
        updates, _ = rule.update(x, rule.init(params), params, StepInfo(0, 1, one, one, one))
        with np.errstate(all="ignore"):
            expected = (guarded.get(name) or getattr(np, name))(x.numpy())
        np.testing.assert_allclose(updates.numpy(), expected, rtol=1e-13, err_msg=name)


CLASSICS = (
    *("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "adam_no_correction"),
    *("adamw_no_correction", "adabelief_no_correction", "sign_sgd", "sign_momentum", "lion"),
    "adamw_initial",
)
MIXED = [ZOO[name].program for name in CLASSICS] + [uses(name)[0] for name in ("norm", "dot")]


def test_mixed_population_equals_its_members_alone() -> None:
    """States, forms, lengths and reductions differ; what the neighbours run does not matter."""
    owner = torch.arange(3 * len(MIXED)) % len(MIXED)
    flat, grads = inputs(4, len(owner))
    together = trajectory(cpu.step, MIXED, owner, flat, grads)
    lr = torch.linspace(0.01, 0.3, len(owner))
    for i, p in enumerate(owner.tolist()):
        rule = Population.of([MIXED[p]], torch.tensor([0]))
        alone, state = flat[i : i + 1], rule.init(Params(flat[i : i + 1], LAYOUT))
        for k in range(len(grads)):
            rate = lr[i : i + 1] * (1 - k / 10)
            info = StepInfo(k, 4, rate, 0.1 + lr[i : i + 1], rate)
            updates, state = rule.update(grads[k, i : i + 1], state, Params(alone, LAYOUT), info)
            alone = alone - updates
        assert torch.equal(together[-1, i, 0], alone[0])
        assert torch.equal(together[-1, i, 1 : 1 + state["memory"].shape[1]], state["memory"][0])


@pytest.mark.parametrize("step", [reference, cpu.step])
def test_mixed_population_agrees(step: Step) -> None:
    owner = torch.arange(2 * len(MIXED)) % len(MIXED)
    flat, grads = inputs(10, len(owner), torch.float64)
    expected = trajectory(reference, MIXED, owner, flat, grads)
    single = trajectory(step, MIXED, owner, flat.float(), grads.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [reference, cpu.step])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_diverged_instance_leaves_others_bit_identical(step: Step, poison: float) -> None:
    owner = torch.arange(2 * len(MIXED)) % len(MIXED)
    flat, grads = inputs(3, len(owner))
    expected = trajectory(step, MIXED, owner, flat, grads)
    grads[1, ::2] = poison
    actual = trajectory(step, MIXED, owner, flat, grads)
    assert torch.equal(actual[:, 1::2], expected[:, 1::2])
    assert not torch.equal(actual[:, ::2], expected[:, ::2])


@pytest.mark.parametrize("step", [reference, cpu.step])
def test_permuted_instances_give_permuted_results(step: Step) -> None:
    owner = torch.arange(2 * len(MIXED)) % len(MIXED)
    flat, grads = inputs(1, len(owner))
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(1))
    lr = torch.linspace(0.01, 0.3, len(owner))
    rule = Population.of(MIXED, owner, step)

    def one_step(rule: Population, index: Tensor) -> tuple[Tensor, Tensor]:
        params = Params(flat[index], LAYOUT)
        info = StepInfo(0, 1, lr[index], lr[index], lr[index])
        updates, state = rule.update(grads[0][index], rule.init(params), params, info)
        return updates, state["memory"]

    for all_of_them, permuted in zip(
        one_step(rule, torch.arange(len(owner))), one_step(rule.select(order), order), strict=True
    ):
        assert torch.equal(all_of_them[order], permuted)


def test_select_keeps_some_instances() -> None:
    rule = Population.of(MIXED, torch.arange(len(MIXED)))
    assert rule.select(torch.tensor([4, 1, 1])).owner.tolist() == [4, 1, 1]
    assert rule.select(torch.tensor([], dtype=torch.int64)).owner.tolist() == []


@pytest.mark.parametrize("step", [reference, cpu.step])
def test_hessian_input_comes_from_the_task(step: Step) -> None:
    """Beside a program with more states and without a Hessian, which keeps its own."""
    text = "def update(w, g, m, h):\n    m = m + h\n    update = g / m\n    return update, m"
    owner = torch.tensor([0, 1, 0])
    rule = Population.of([parse(text), ZOO["adam"].program], owner, step)
    flat, grads = inputs(2, 3, torch.float64)
    params, ones = Params(flat, LAYOUT), torch.ones(3, dtype=torch.float64)
    info = StepInfo(0, 2, ones, 0 * ones, ones)
    state, total = rule.init(params), torch.zeros_like(flat)
    for k in range(2):
        hessian = (k + 1.0) * flat.abs() + 1
        total = total + hessian
        given = info._replace(step=k, hessian=hessian)
        updates, state = rule.update(grads[k], state, params, given)
        expected = grads[k] / (total + 1e-8)
        torch.testing.assert_close(updates[[0, 2]], expected[[0, 2]])
    alone = Population.of([ZOO["adam"].program], torch.tensor([0]), step)
    one = Params(flat[1:2], LAYOUT)
    memory = alone.init(one)
    for k in range(2):
        short = StepInfo(k, 2, ones[:1], 0 * ones[:1], ones[:1])
        lonely, memory = alone.update(grads[k][1:2], memory, one, short)
    torch.testing.assert_close(updates[1:2], lonely)
    with pytest.raises(ValueError, match="hessian: got none"):
        rule.update(grads[0], state, params, info)


LOCAL_H = """def update(w, g, m):
    h = 2.0 * g
    update = m + h
    m = interp(g, m, 0.9)
    return update, m"""
WRITTEN_H = """def update(w, g, m, h):
    x = norm(h)
    m = m + h
    h = norm(g)
    y = g * x
    h = y / h
    update = h / m
    return update, m"""


@pytest.mark.parametrize("step", [reference, cpu.step])
@pytest.mark.parametrize("text", [LOCAL_H, WRITTEN_H])
@pytest.mark.parametrize("neighbour", ["adam", "sophia"])
def test_a_variable_called_h_is_like_others(step: Step, text: str, neighbour: str) -> None:
    """Written, it overwrites neither a state nor the Hessian, which is kept for two steps."""
    before, after = text.split("    h = ", 1)
    other = before + "    z = " + re.sub(r"\bh\b", "z", after)
    traces = []
    for program in (parse(text), parse(other)):
        programs, owner = [program, NAMED[neighbour].program], torch.tensor([0, 1])
        rule = Population.of(programs, owner, step, hessian_every=2)
        flat, grads = inputs(4, 2, torch.float64)
        params, ones = Params(flat, LAYOUT), torch.ones(2, dtype=torch.float64)
        state, trace = rule.init(params), []
        for k in range(4):
            info = StepInfo(k, 4, ones, 0 * ones, ones, hessian=(k + 1.0) * flat.abs() + 1)
            updates, state = rule.update(grads[k], state, params, info)
            trace.append(updates)
        traces.append(torch.stack(trace))
    assert torch.equal(*traces)


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_exactly_rounded_functions_agree_bit_for_bit(seed: int, length: int) -> None:
    """These functions have one right answer in float32, so any program of them does (so has sqrt,
    but torch's vectorised one is off by a unit now and then)."""
    rng = np.random.default_rng(seed)
    chosen = Mutation(functions=EXACT)
    names = ("w", "g", "m", "v", "lr", "t")
    programs = [random_program(rng, length, names, settings=chosen) for _ in range(3)]
    owner = torch.tensor([0, 1, 2, 1])
    flat, grads = inputs(3, len(owner))
    actual = trajectory(cpu.step, programs, owner, flat, grads)
    assert equal(actual, trajectory(reference, programs, owner, flat, grads))


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_random_programs_agree_where_they_are_not_chaotic(seed: int, length: int) -> None:
    """Whole vocabulary. Results that the last digits of the inputs decide are left out.

    Neighbours move in different directions, for a common factor is undone by a norm.
    """
    program = random_program(np.random.default_rng(seed), length, ("w", "g", "m", "v", "lr", "t"))
    owner = torch.tensor([0, 0])
    flat, grads = inputs(2, len(owner), torch.float64)
    expected = trajectory(reference, [program], owner, flat, grads)
    shift = 1e-12 * torch.randn(flat.shape[-1], generator=torch.Generator().manual_seed(1)).double()
    nearby = trajectory(reference, [program], owner, flat * (1 + shift), grads * (1 - shift))
    actual = trajectory(cpu.step, [program], owner, flat, grads)
    size = CHAOTIC * (1e-3 + expected.abs())
    calm = ((nearby - expected).abs() <= size) & expected.isfinite()
    assert ((actual - expected).abs() <= size)[calm].all(), str(program)


def test_every_kind_is_covered() -> None:
    """The table of functions above reaches all kinds, so that its absence would be noticed."""
    results = {
        result_kind(OPS[name], kinds) for name in OPS for kinds in product(*OPS[name].accepts)
    }
    assert results == set(Kind)


@pytest.mark.parametrize("under", [False, True], ids=["model alone", "default device"])
@pytest.mark.parametrize("name", ["adam", "muon", "sophia"])
def test_on_the_meta_device_shapes_are_enough(name: str, under: bool, caplog: Any) -> None:
    """The model is there, or everything is; states have their shapes and nothing is computed."""
    with torch.device("meta") if under else nullcontext():
        rule = Population.of([NAMED[name].program], torch.tensor([0]))
        net = torch.nn.Linear(3, 2, device="meta")
        optimizer = RuleOptimizer(net.parameters(), rule, 0.1, capturable=under)
        x = torch.ones(4, 3, device="meta")
        loss = net(x).square().sum()
        if rule.hessian_every:
            optimizer.set_hessian(loss)
        loss.backward()
        optimizer.step()
    states = optimizer.state_dict()["state"]
    assert all(x.is_meta for x in states[0].values() if x.ndim)
    assert states[0].keys() >= {"memory", "step"}
    assert not caplog.records
