"""The GPU kernel of a population follows the reference: in numba's simulator everywhere, and on a
device where there is one.

Run as a script with ``NUMBA_ENABLE_CUDASIM=1`` this file writes what the simulated kernel gives:
numba decides when it is imported whether to simulate, so that takes a process of its own.
"""

import logging
import os
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search.interpreter import population
from search.interpreter.bytecode import assemble
from search.interpreter.population import Population
from search.interpreter.reference import Step, reference
from search.interpreter.registers import LAUNCHES, SHARED_BYTES, encode, places
from search.language.functions import ARRAY, OPS, SCALAR, TENSOR, result_kind
from search.language.program import parse
from search.zoo import ZOO
from tasks.types import Layout, Params, ParamSpec, StepInfo

LAYOUT = Layout((ParamSpec("w", (2, 2)), ParamSpec("b", (2,)), ParamSpec("c", (1,))))
OPERANDS = {SCALAR: ("lr", "t", "lr"), ARRAY: ("lengths", "others", "lengths"), TENSOR: "gw"}
PROGRAMS = [entry.program for entry in ZOO.values()]
ZOO_TEXTS = [str(p) for p in PROGRAMS if "h" not in p.inputs][::4]
LATE = """def update(w, g, m, lr):
    x = global_norm(g)
    y = g / x
    x = dot(y, w)
    y = clip_by_global_norm(y, 0.5)
    lengths = norm(y)
    lengths = sqrt(lengths)
    m = interp(y, m, 0.9)
    z = cosine_sim(m, g)
    update = m * lengths
    update = update * z
    update = x * update
    return update, m
"""


def trajectory(step: Step, programs: list[str], flat: Tensor, grads: Tensor) -> Tensor:
    """Parameters and memory after every step, ``[steps, N, 1 + S, n]``; a program an instance."""
    rule = Population.of([parse(text) for text in programs], torch.arange(len(programs)), step)
    state = rule.init(Params(flat, LAYOUT))
    lr = torch.linspace(0.01, 0.3, len(programs), dtype=flat.dtype)
    trace = []
    for k, gradients in enumerate(grads):
        info = StepInfo(k, len(grads), lr * (1 - k / 10), 0.1 + lr, torch.zeros_like(lr))
        updates, state = rule.update(gradients, state, Params(flat, LAYOUT), info)
        flat = flat - updates
        trace.append(torch.cat([flat[:, None], state["memory"]], 1).clone())
    return torch.stack(trace)


CLIP = "def update(w, g):\n    update = clip_by_global_norm(g, 0.5)\n    return update"


def uses(name: str) -> list[str]:
    """For every combination of kinds that a function accepts, a program that runs on its result."""
    programs = []
    for kinds in product(*OPS[name].accepts):
        args = [OPERANDS[kind][place] for place, kind in enumerate(kinds)]
        made = result_kind(OPS[name], kinds)
        arrays = ["lengths = norm(g)", "others = 2.0 - lengths"] if ARRAY in kinds else []
        lines = [*arrays, f"x = {name}({', '.join(args)})"]
        lines += ["update = 1.0 * x" if made == TENSOR else "update = x * g", "return update"]
        programs.append("def update(w, g, lr, t):\n    " + "\n    ".join(lines))
    return programs


def case(programs: list[str], steps: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(len(programs), LAYOUT.n, generator=generator)
    grads = torch.randn(steps, len(programs), LAYOUT.n, generator=generator)
    grads[..., ::5] = 0
    return {"programs": programs, "flat": flat, "grads": grads}


@cache
def cases() -> dict[str, dict]:
    double = case(ZOO_TEXTS[:3])
    return {
        **{name: case(uses(name)) for name in OPS},
        "zoo": case(ZOO_TEXTS, steps=2),
        "zoo in float64": double | {k: double[k].double() for k in ("flat", "grads")},
        "reductions of reductions": case([LATE, ZOO_TEXTS[0]], steps=2),
        "norms beyond float32": case([CLIP]) | {"grads": torch.full((1, 1, LAYOUT.n), 3e38)},
    }


def check(actual: Tensor, name: str) -> None:
    expected = trajectory(reference, **cases()[name])
    torch.testing.assert_close(actual.cpu(), expected, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("simulated") / "trajectories"
    command = [sys.executable, "-W", "ignore", __file__, str(out)]
    done = subprocess.run(
        command,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out)


@pytest.mark.parametrize("name", cases())
def test_simulated_kernel_follows_the_reference(name: str, simulated: dict[str, Tensor]) -> None:
    check(simulated[name], name)


def test_blocks_take_several_chunks_where_a_grid_has_too_few(simulated) -> None:
    assert torch.equal(simulated["one block for all chunks"], simulated["zoo in float64"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", cases())
def test_kernel_follows_the_reference_on_a_device(name: str) -> None:
    from search.interpreter import gpu

    def step(*arguments: Any, **_: Any) -> tuple[Tensor, Tensor]:
        there: Any = (x.cuda() if isinstance(x, Tensor) else x for x in arguments)
        updates, memory = gpu.step(*there)
        return updates.cpu(), memory.cpu()

    check(trajectory(step, **cases()[name]), name)


@pytest.mark.parametrize(("count", "launch"), [(3, (256, 4)), (15, (256, 2)), (60, (128, 1))])
def test_programs_with_more_registers_get_smaller_chunks(count, launch) -> None:
    names = [f"m{k}" for k in range(count)]
    sums = "\n    ".join(f"{name} = {name} + g" for name in names)
    inputs = ", ".join(names)
    program = f"def update(w, g, {inputs}):\n    {sums}\n    update = 2.0 * g\n    "
    table = assemble([parse(program + f"return update, {inputs}")])
    where = places(table, tensors=2, itemsize=4)
    assert (where.threads, where.elements) == launch
    assert where.size * 4 <= SHARED_BYTES


def test_programs_that_do_not_fit_are_refused() -> None:
    table = assemble([parse(ZOO_TEXTS[0])])
    with pytest.raises(ValueError, match="do not fit into"):
        places(table, tensors=2, itemsize=SHARED_BYTES // 64)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_registers_do_not_overlap(launch: tuple[int, int]) -> None:
    """Every number that a thread may touch is either its own or, if a constant, read only."""
    table = assemble([parse(text) for text in [*ZOO_TEXTS, LATE]])
    where = places(table, tensors=3, itemsize=1, launches=(launch,))
    words = encode(table, where).words
    threads, each = np.arange(where.threads), np.arange(where.elements)
    touched: dict[int, int] = {}
    for at, lane, step in words.reshape(-1, 13)[:, 1:].reshape(-1, 3):
        places_of = at + lane * threads[:, None] + step * each
        assert places_of.max() < where.reduced
        if not lane:
            assert at >= where.constant
            continue
        for thread, row in enumerate(places_of):
            assert all(touched.setdefault(int(place), thread) == thread for place in row)


def test_a_gpu_without_the_extra_is_served_and_told(caplog, monkeypatch) -> None:
    monkeypatch.setattr(population, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert population.default_step(torch.device("cuda")) is reference
    assert "l2o[gpu]" in caplog.text


if __name__ == "__main__":
    from search.interpreter import gpu

    torch.set_num_threads(1)
    found = {name: trajectory(gpu.step, **case) for name, case in cases().items()}
    gpu.MOST_BLOCKS = 1
    found["one block for all chunks"] = trajectory(gpu.step, **cases()["zoo in float64"])
    torch.save(found, sys.argv[1])
