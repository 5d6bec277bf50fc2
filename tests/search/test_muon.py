"""Muon as a program is Muon as its authors and torch have it, in full precision."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import search
from search.interpreter.population import Population
from search.zoo import ZOO
from tasks.types import Layout, Params, ParamSpec, StepInfo

DATA = Path(__file__).with_name("data")
GOLDEN = np.load(DATA / "muon_10steps.npz")
MANIFEST = json.loads((DATA / "muon_10steps.manifest.json").read_text())
STEPS = 10
EXACT = {"torch_muon_fullprec": 1e-12, "kj_muon_fullprec": 2e-6}
"""The latter adds 1e-7 to a norm where torch takes at least 1e-7, as the program does."""


def golden(run: str, dtype: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By tensor: parameters before and after each update ``[11, ...]``, gradients ``[10, ...]``."""
    names = MANIFEST[run]["tensors"]
    expected = {name: torch.from_numpy(GOLDEN[f"{run}.{dtype}.{name}"]) for name in names}
    grads = {n: torch.from_numpy(GOLDEN[f"inputs.grads.{n}"]).to(expected[n].dtype) for n in names}
    return expected, grads


def as_program(expected: dict[str, Tensor], grads: dict[str, Tensor], lr: float, decay: float):
    """The flat parameters after each step; beside Adam, which stays in the kernel."""
    layout = Layout(tuple(ParamSpec(n, tuple(x.shape[1:])) for n, x in expected.items()))
    rule = Population.of([ZOO["adam"].program, ZOO["muon"].program], torch.tensor([0, 1]))
    start = layout.flatten({name: x[:1] for name, x in expected.items()}).repeat(2, 1)
    params, rate, trace = Params(start, layout), start.new_full((2,), lr), []
    state = rule.init(params)
    for k in range(STEPS):
        now = layout.flatten({name: g[k : k + 1] for name, g in grads.items()}).repeat(2, 1)
        info = StepInfo(k, STEPS, rate, start.new_full((2,), decay), torch.zeros_like(rate))
        updates, state = rule.update(now, state, params, info)
        params = Params(params.flat - updates, layout)
        trace.append(params.flat[1])
    return torch.stack(trace)


def as_optimizer(foreach: bool):
    def follow(expected: dict[str, Tensor], grads: dict[str, Tensor], lr: float, decay: float):
        params = [x[0].clone().requires_grad_() for x in expected.values()]
        settings: dict[str, Any] = {"lr": lr, "weight_decay": decay, "foreach": foreach}
        optimizer, trace = search.load("muon").optimizer(params, **settings), []
        for k in range(STEPS):
            for p, g in zip(params, grads.values(), strict=True):
                p.grad = g[k].clone()
            optimizer.step()
            trace.append(torch.cat([p.detach().reshape(-1) for p in params]))
        return torch.stack(trace)

    return follow


WAYS = {"program": as_program, "exported": as_optimizer(False), "foreach": as_optimizer(True)}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("run", MANIFEST)
def test_equal_to_golden_runs(run, way):
    hyper = MANIFEST[run]["hyper"]
    for dtype, tolerance in (("f64", EXACT[run]), ("f32", 2e-6)):
        expected, grads = golden(run, dtype)
        actual = way(expected, grads, hyper["lr"], hyper["weight_decay"])
        flat = torch.cat([x[1:].reshape(STEPS, -1) for x in expected.values()], 1)
        torch.testing.assert_close(actual, flat, rtol=0, atol=tolerance)


def test_the_golden_runs_move_and_are_stretched():
    """A comparison that could not fail would say nothing."""
    expected, grads = golden("torch_muon_fullprec", "f64")
    assert all((x[-1] - x[0]).abs().max() > 0.01 for x in expected.values())
    assert any(g.shape[1] > g.shape[2] for g in grads.values())
