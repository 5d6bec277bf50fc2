"""A function of the language is one row; kernels need not have it.

Programs that call such a function run in torch, their neighbours in the kernel; nothing that was
written before it came changes.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import search
from search.behaviour.kind import classify
from search.behaviour.signature import signatures
from search.evolution.mutate import mutate, random_program
from search.evolution.settings import Mutation
from search.export.build import to_class
from search.interpreter import cpu
from search.interpreter.bytecode import Table
from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.interpreter.registers import encode, places
from search.language.canonical import canonical
from search.language.functions import OPS, PAPER
from search.language.program import Program, parse, to_text
from search.simplify.chain import simplify
from search.zoo import ZOO
from tasks.types import Layout, Params, ParamSpec, StepInfo

ROOT = Path(__file__).parents[2]
SHAPES = ((5, 7), (7,), (9, 4), (4, 3, 2, 2), (), (1, 6))
LAYOUT = Layout(tuple(ParamSpec(f"p{k}", shape) for k, shape in enumerate(SHAPES)))
OTHERS = [op for op in OPS.values() if op.name not in PAPER]
POLAR = parse("def full_update(w, g):\n    update = orthogonalize(g)\n    return update\n")
STATEFUL = parse(
    "def update(w, g, m, v, t):\n    m = interp(g, m, 0.9)\n    v = orthogonalize(m)\n"
    "    s = global_norm(v)\n    x = v / s\n    update = x * t\n    return update, m, v\n"
)
MIXED = [ZOO["adam"].program, ZOO["muon"].program, ZOO["lion_group"].program, STATEFUL, POLAR]


def gradients(steps: int, instances: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, instances, LAYOUT.n, generator=generator).to(dtype)


def follow(rule: Population, grads: Tensor, lr: Tensor) -> Tensor:
    """Parameters and memory after every step: ``[steps, N, 1 + S, n]``."""
    params, trace = Params(torch.zeros_like(grads[0]), LAYOUT), []
    state = rule.init(params)
    for k, now in enumerate(grads):
        info = StepInfo(k, len(grads), lr, 0.1 * lr, lr)
        updates, state = rule.update(now, state, params, info)
        params = Params(params.flat - updates, LAYOUT)
        trace.append(torch.cat([params.flat[:, None], state["memory"]], 1))
    return torch.stack(trace)


def polar(x: Tensor) -> Tensor:
    """``orthogonalize`` of one instance's tensors."""
    rule = Population.of([POLAR], torch.tensor([0]))
    params, zero = Params(torch.zeros_like(x)[None], LAYOUT), torch.zeros(1, dtype=x.dtype)
    info = StepInfo(0, 1, zero, zero, zero)
    return rule.update(x[None], rule.init(params), params, info)[0][0]


# A population ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [MIXED, MIXED[::-1]], ids=["kernel first", "reference first"])
def test_a_population_equals_its_members_alone_to_the_bit(order, dtype):
    owner = torch.arange(3 * len(order)) % len(order)
    grads, lr = gradients(4, len(owner), dtype), torch.linspace(0.01, 0.3, len(owner), dtype=dtype)
    together = follow(Population.of(order, owner), grads, lr)
    for i, p in enumerate(owner.tolist()):
        rule = Population.of([order[p]], torch.tensor([0]))
        alone = follow(rule, grads[:, i : i + 1], lr[i : i + 1])[:, 0]
        assert torch.equal(together[:, i, : alone.shape[1]], alone), order[p]


def test_only_who_calls_it_leaves_the_kernel():
    seen: list[tuple[Table, Tensor]] = []

    def watched(table: Table, owner: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        seen.append((table, owner))
        return cpu.step(table, owner, *rest, **more)

    owner = torch.arange(2 * len(MIXED)) % len(MIXED)
    grads, lr = gradients(1, len(owner)), torch.ones(len(owner))
    follow(Population.of(MIXED, owner, watched), grads, lr)
    ((table, owners),) = seen
    assert owners.tolist() == [0, 1, 0, 1]  # of Adam and lion_group
    assert set(table.code.ravel()) <= {OPS[name].code for name in PAPER}
    follow(Population.of(MIXED[:1], owner[:1], watched), grads[:, :1], lr[:1])
    assert len(seen) == 2
    follow(Population.of([POLAR], owner[:1], watched), grads[:, :1], lr[:1])
    assert len(seen) == 2


def test_the_registers_of_the_gpu_kernel_hold_the_other_programs_alone():
    table = Population.of(MIXED, torch.arange(len(MIXED)), reference).table.kernel
    assert table is not None
    known = Population.of([MIXED[0], MIXED[2]], torch.arange(2), reference).table
    assert encode(table, places(table, 6, 4)).words.shape[0] == 2
    assert table.length.tolist() == known.length.tolist()


@pytest.mark.parametrize("instances", [1, 3])
def test_a_choice_of_instances_goes_on(instances):
    rule = Population.of(MIXED, torch.arange(len(MIXED)))
    chosen = rule.select(torch.arange(instances))
    grads, lr = gradients(2, len(MIXED)), torch.ones(len(MIXED))
    some = follow(chosen, grads[:, :instances], lr[:instances])
    assert torch.equal(some, follow(rule, grads, lr)[:, :instances])


# The two functions ----------------------------------------------------------------------------


def test_orthogonalize_makes_the_singular_values_of_each_matrix_alike():
    x = gradients(1, 1, torch.float64)[0, 0]
    for (spec, span), before in zip(LAYOUT, LAYOUT.views(x).values(), strict=True):
        after = polar(x)[span].view(spec.shape)
        if len(spec.shape) < 2:
            assert torch.equal(after, before)
            continue
        u, _, v = torch.linalg.svd(before.flatten(1), full_matrices=False)
        kept = u.mT @ after.flatten(1) @ v.mT  # its singular vectors are those of ``before``
        torch.testing.assert_close(kept, kept.diagonal().diag(), rtol=0, atol=1e-12)
        assert ((kept.diagonal() > 0.3) & (kept.diagonal() < 1.3)).all()


def test_orthogonalize_knows_no_scale_and_leaves_zero_as_it_is():
    x = gradients(1, 1, torch.float64)[0, 0]
    where = torch.cat([x.new_full((s.numel,), len(s.shape) > 1) for s in LAYOUT.specs]).bool()
    torch.testing.assert_close(polar(1000 * x)[where], polar(x)[where])
    assert not polar(0 * x).any()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("op", [op for op in OTHERS if op.per_tensor], ids=lambda op: op.name)
def test_empty_matrices(op, shape):
    assert op.torch(*[torch.zeros(shape)] * op.arity).shape == shape


def test_muon_by_name():
    weight = torch.zeros(3, 2).requires_grad_()
    optimizer = search.load("muon").optimizer([weight], lr=0.1)
    weight.grad = torch.diag_embed(torch.ones(2)).repeat(2, 1)[:3]
    optimizer.step()
    assert 0.05 < -float(weight[1, 1].detach()) < 0.15
    assert classify(ZOO["muon"].program).name == "mixed"
    end = simplify(ZOO["muon"].program).end.program  # one statement of it reads another's result
    assert "interp(g, m, 0.9025)" in str(end)
    assert signatures([end]) == signatures([ZOO["muon"].program])


NO_COPY = """
def update(w, g, m):
    x = orthogonalize(g)
    update = orthogonalize(m)
    m = interp(x, m, 0.9)
    return update, m
"""
NAMED_ALIKE = """
def update(w, g, m, stretch):
    orthogonalize = stretch * 2.0
    _stretch = stretch(m)
    _by_matrix = orthogonalize(g)
    m = interp(_by_matrix, m, 0.5)
    stretch = _stretch + orthogonalize
    update = m + stretch
    return update, m, stretch
"""


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("text", [NO_COPY, NAMED_ALIKE])
def test_exported_files_share_no_memory_and_no_names(text: str, foreach: bool) -> None:
    """What stays as it is must not be written over where it came from."""
    program, grads, lr = parse(text), gradients(4, 1), torch.tensor([0.1])
    expected = follow(Population.of([program], torch.tensor([0])), grads, lr)[-1, 0, 0]
    params = [torch.zeros(shape).requires_grad_() for shape in SHAPES]
    made: Any = to_class(program, "rule", "")
    optimizer = made(params, lr=0.1, weight_decay=0.01, foreach=foreach)
    for now in grads:
        for p, g in zip(params, LAYOUT.views(now[0]).values(), strict=True):
            p.grad = g.clone()
        optimizer.step()
        grads_after = torch.cat([p.grad.reshape(-1) for p in params if p.grad is not None])
        assert torch.equal(grads_after, now[0])
    actual = torch.cat([p.detach().reshape(-1) for p in params])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_one_pass_over_large_parameters_keeps_their_shape():
    def trained(**settings) -> list[Tensor]:
        params = [torch.ones(shape).requires_grad_() for shape in ((260, 300), (3, 2))]
        optimizer = search.load("muon").optimizer(params, lr=0.1, **settings)
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        return [p.detach() for p in params]

    for actual, expected in zip(trained(fused=True), trained(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# What does not change -------------------------------------------------------------------------


def test_no_search_draws_it_unless_it_is_told_to():
    assert Mutation().functions == PAPER
    assert not [op.name for op in OTHERS if op.compiled]
    told = Mutation(functions=("orthogonalize", "add", "mul", "interp"), swap=1.0)
    rng, program, drawn = np.random.default_rng(0), ZOO["sign_momentum"].program, set[str]()
    for _ in range(30):
        program = mutate(program, rng, told).program
        drawn |= {statement.op for statement in program.statements}
    assert "orthogonalize" in drawn
    assert random_program(rng, 3, settings=Mutation(functions=("orthogonalize",))).length == 3
    with pytest.raises(ValueError, match=r"got orthogonalise, expected .*; did you mean orthogona"):
        Mutation(functions=("orthogonalise",))


def test_labels_are_for_good():
    """Canonical text orders arguments by them, and is the key of archives."""
    assert OPS["orthogonalize"].label == 7303846300492223149
    assert OPS["stretch"].label == 15907869865363746647


def test_a_variable_of_that_name_stays_valid():
    text = "def update(w, g):\n    stretch = sign(g)\n    update = stretch * g\n    return update\n"
    assert to_text(parse(text)) == text


def rewritten(program: Program) -> str:
    return to_text(canonical(program))


ELEMENTWISE = """
from search.language.functions.base import elementwise

doubled = elementwise("doubled", 1, lambda x: 2 * x, "2 * {0}")
"""
SCRIPT = """
import torch
from search.evolution.settings import Mutation
from search.export.build import to_class
from search.interpreter.population import Population
from search.language.canonical import canonical
from search.language.functions import OPS
from search.language.program import parse, to_text
from search.zoo import ZOO
from tasks.types import Layout, Params, ParamSpec, StepInfo

text = "def update(w, g):\\n    x = centre_rows(g)\\n    update = doubled(x)\\n    return update\\n"
program = parse(text)
layout, one = Layout((ParamSpec("a", (2, 3)), ParamSpec("b", (2,)))), torch.ones(1)
rule, params = Population.of([program], torch.tensor([0])), Params(torch.zeros(1, 8), layout)
grads = torch.tensor([[1.0, 2.0, 6.0, 0.0, 0.0, 3.0, 4.0, 5.0]])
info = StepInfo(0, 1, one, 0 * one, one)
updates, _ = rule.update(grads, rule.init(params), params, info)
assert updates.tolist() == [[-4, -2, 6, -2, -2, 4, 8, 10]], updates
p = torch.zeros(2, 3).requires_grad_()
p.grad = grads[0, :6].view(2, 3)
to_class(program, "rule", "")([p], lr=1.0).step()
assert torch.equal(-p.detach().flatten(), updates[0, :6])
assert len(Mutation().functions) == 43 and "centre_rows" in OPS
print(*(to_text(canonical(entry.program)) for entry in ZOO.values()), sep="")
"""


def test_the_recipe_of_the_documents_is_one_file(tmp_path):
    """Written into a copy of the project it is found, computed, exported, and changes nothing."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    recipe = text.split("## A new function of the language\n")[1].split("\n## ")[0]
    name, code = re.findall(r"`(search/\S+\.py)`:\n\n```python\n(.*?)```", recipe, re.S)[0]
    for package in ("search", "tasks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / name).with_name("doubled.py").write_text(ELEMENTWISE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "".join(rewritten(e.program) for e in ZOO.values()).strip()
