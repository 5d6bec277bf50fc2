"""Reductions: a file and the engine agree wherever float32 can hold the result.

Squares of large numbers overflow float32, those of small ones vanish, and long sums lose digits; a
norm of them does not. And numbers that a file computes with are as precise as its parameters.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search.export.build import to_class
from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.language.program import Program, parse
from tasks.types import Layout, Params, ParamSpec, StepInfo

BODIES = {
    "norm": "x = norm(g)\n    y = g / x",
    "global_norm": "x = global_norm(g)\n    y = g / x",
    "dot": "y = g * 1.0\n    x = dot(y, w)\n    y = w * x",
    "cosine_sim": "x = cosine_sim(g, w)\n    y = w * x",
    "clip_by_global_norm": "y = clip_by_global_norm(g, 1.5)",
}
PROGRAMS = {
    name: parse(f"def full_update(w, g):\n    {body}\n    update = y * 1.0\n    return update")
    for name, body in BODIES.items()
}
SHAPES = ((4, 3), (7,), ())
LAYOUT = Layout(tuple(ParamSpec(f"p{i}", shape) for i, shape in enumerate(SHAPES)))


def by_engine(program: Program, flat: Tensor, grads: Tensor, step: Any = None) -> Tensor:
    rule = Population.of([program], torch.tensor([0]), step)
    params, zero = Params(flat[None], LAYOUT), torch.zeros(1, dtype=flat.dtype)
    info = StepInfo(0, 1, zero, zero, zero)
    return rule.update(grads[None], rule.init(params), params, info)[0][0]


def by_file(program: Program, flat: Tensor, grads: Tensor, **settings: Any) -> Tensor:
    made: Any = to_class(program, "rule", "")
    params = [x.clone().requires_grad_() for x in LAYOUT.views(flat).values()]
    for p, g in zip(params, LAYOUT.views(grads).values(), strict=True):
        p.grad = g.clone()
    made(params, **settings).step()
    return flat - torch.cat([p.detach().reshape(-1) for p in params])


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(-30, 30), spread=st.integers(0, 6))
@settings(max_examples=15, deadline=None)
def test_files_agree_with_the_engine(
    name: str, foreach: bool, seed: int, size: int, spread: int
) -> None:
    """Whose kernel agrees with its reference, in turn; dot products are kept within float32."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (size + spread * (torch.rand(LAYOUT.n, generator=generator) - 0.5))
    grads = torch.randn(LAYOUT.n, generator=generator) * scales
    flat = torch.randn(LAYOUT.n, generator=generator) * (1 / scales if name == "dot" else 1.0)
    expected = by_engine(PROGRAMS[name], flat, grads, reference)
    kernel = by_engine(PROGRAMS[name], flat, grads)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6 * float(flat.abs().max())}
    torch.testing.assert_close(kernel, expected, **close)
    actual = by_file(PROGRAMS[name], flat, grads, foreach=foreach)
    torch.testing.assert_close(actual, flat - (flat - expected), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", ["norm", "global_norm"])
def test_half_precision(name: str, size: float, dtype: torch.dtype) -> None:
    grads = torch.full((LAYOUT.n,), size)
    flat = torch.zeros(LAYOUT.n, dtype=dtype)
    expected = by_engine(PROGRAMS[name], flat.float(), grads.to(dtype).float())
    actual = by_file(PROGRAMS[name], flat, grads.to(dtype)).float()
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=0)


def test_long_sums_lose_nothing() -> None:
    p = torch.zeros(2**22, requires_grad=True)
    p.grad = torch.full_like(p, 0.1)
    made: Any = to_class(PROGRAMS["global_norm"], "rule", "")
    made([p]).step()
    expected = -(0.1 / (0.1 * 2**11))
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected), rtol=1e-6, atol=0)


NUMBERS = parse(
    "def full_update(w, g, lr, t):\n    a = power(0.999, t)\n    b = sqrt(lr)\n"
    "    c = a * b\n    d = sin(c)\n    update = g * d\n    return update"
)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.1)])
def test_numbers_of_a_float64_file_are_float64(
    lr: float | Tensor, capturable: bool, foreach: bool
) -> None:
    made: Any = to_class(NUMBERS, "rule", "")
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    p.grad = torch.ones_like(p)
    made([p], lr=lr, capturable=capturable, foreach=foreach).step()
    rate = torch.as_tensor(lr, dtype=torch.float64)
    expected = -torch.sin(0.999 * rate.sqrt()).expand(3)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)


CLIPS = {c: str(PROGRAMS["clip_by_global_norm"]).replace("1.5", c) for c in ("1.5", "1e-3", "-0.5")}


@pytest.mark.parametrize("step", [reference, None], ids=["reference", "kernel"])
@pytest.mark.parametrize("size", [1e10, 1e36, 3e38, 3.4e38])
@pytest.mark.parametrize("limit", CLIPS)
def test_what_is_clipped_may_be_longer_than_float32_can_say(
    limit: str, size: float, step: Any
) -> None:
    """Gradients are numbers, their norm is not: they are clipped, not lost."""
    grads = torch.linspace(-1, 1, LAYOUT.n) * size
    wide = grads.double()
    expected = (wide * (float(limit) / wide.norm())).float()
    flat = torch.zeros_like(grads)
    program = parse(CLIPS[limit])
    torch.testing.assert_close(by_engine(program, flat, grads, step), expected)
    for foreach in (False, True):
        actual = by_file(program, flat, grads, foreach=foreach)
        torch.testing.assert_close(actual, expected)
