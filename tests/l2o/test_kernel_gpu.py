"""The GPU kernel of ``small_fc`` follows the reference: in Triton's interpreter, and on a device.

Triton decides when it is imported whether to interpret, so that takes a process of its own: run as
a script with ``TRITON_INTERPRET=1`` this file writes what the interpreted kernel gives.
"""

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from l2o.architectures.small_fc import SmallFC, reference
from tasks.types import Layout, Params, ParamSpec, StepInfo

SHAPES = {"w": (3, 5), "tall": (6, 2), "square": (4, 4), "conv": (4, 3, 2), "b": (7,), "one": ()}
LAYOUT = Layout(tuple(ParamSpec(name, shape) for name, shape in SHAPES.items()))
LONG = Layout((ParamSpec("long", (4100,)), ParamSpec("b", (3,))))  # more than a tile


class Case(NamedTuple):
    hidden_size: int = 4
    hidden_layers: int = 2
    instances: int = 1
    own_theta: bool = False
    own_time: bool = False
    scaled: bool = False
    dtype: torch.dtype = torch.float32
    layout: Layout = LAYOUT
    broken: bool = False
    """A gradient of the last instance is NaN."""


CASES = {
    "default": Case(),
    "one unit, one layer": Case(1, 1),
    "deep": Case(5, 3),
    "wide": Case(64, 2),
    "one theta for all": Case(16, 2, instances=3),
    "a theta an instance": Case(32, 2, instances=3, own_theta=True, own_time=True),
    "scaled by muP": Case(scaled=True),
    "bfloat16": Case(dtype=torch.bfloat16, instances=2),
    "several tiles": Case(layout=LONG),
    "a gradient that is NaN": Case(instances=2, broken=True),
}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def trajectory(case: Case, step: Any, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Updates of each step and the averages at the end."""
    generator = torch.Generator().manual_seed(0)
    optimizer = SmallFC(case.hidden_size, case.hidden_layers, step_mult=0.1, exp_mult=0.1)
    theta = optimizer.initial(0)
    rows = case.instances if case.own_theta else 1
    theta = theta + 0.03 * torch.randn(rows, len(theta), generator=generator)
    theta = (theta if case.own_theta else theta[0]).to(device)
    scale = {spec.name: 2.0 ** (-k) for k, spec in enumerate(case.layout.specs)}
    rule = optimizer.rule(theta, scale if case.scaled else None)
    flat = torch.randn(case.instances, case.layout.n, generator=generator)
    flat = flat.to(case.dtype).to(device, dtype)
    state = rule.init(Params(flat, case.layout))
    lr = torch.rand(case.instances, generator=generator).to(device) + 0.5
    found = []
    for k in range(2):
        grads = torch.randn(flat.shape, generator=generator)
        if case.broken:
            grads[-1, 0] = torch.nan
        grads = grads.to(case.dtype).to(device, dtype)
        now = torch.arange(case.instances, device=device) * 7 + k if case.own_time else k
        info = StepInfo(now, 2, lr, 0.1 * lr, lr)
        params = Params(flat, case.layout)
        updates, state = step(rule, grads, state, params, info)
        found.append(updates)
    return [x.float().cpu() for x in (*found, *(state[name] for name in sorted(state)))]


def check(actual: list[Tensor], case: Case) -> None:
    expected = trajectory(case, reference, torch.float32)
    tolerance = TOLERANCE[case.dtype]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@cache
def interpreted(folder: Path) -> dict[str, list[Tensor]]:
    done = subprocess.run(
        [sys.executable, __file__, str(folder / "out")],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interpreted")


needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton, which is for Linux (l2o[test], l2o[gpu])"
)


@needs_triton
def test_a_tensor_too_long_for_32_bits_is_refused() -> None:
    from l2o.architectures.kernels import gpu

    layout = Layout((ParamSpec("w", (2**16, 2**15)),))
    with pytest.raises(ValueError, match=r"got a tensor of shape \(65536, 32768\), expected below"):
        gpu._map(layout, (1.0,), torch.device("cpu"))


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_follows_the_reference(name: str, folder: Path) -> None:
    check(interpreted(folder)[name], CASES[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_kernel_follows_the_reference_on_a_device(name: str) -> None:
    from l2o.architectures.kernels import gpu

    check(trajectory(CASES[name], gpu.step, CASES[name].dtype, "cuda"), CASES[name])


if __name__ == "__main__":
    from l2o.architectures.kernels import gpu

    torch.set_num_threads(1)
    results = {name: trajectory(case, gpu.step, case.dtype) for name, case in CASES.items()}
    torch.save(results, sys.argv[1])
