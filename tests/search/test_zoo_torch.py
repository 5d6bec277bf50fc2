"""Known optimizers, as programs, are those optimizers: torch's own, other people's, or a formula.

Each is followed as a population (compiled and reference) and as an exported file (one parameter at
a time, and multi-tensor), so agreement also holds the four ways to run a program together.
"""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search.export import to_source
from search.interpreter import cpu
from search.interpreter.population import Population
from search.interpreter.reference import Step, reference
from search.language.program import Program, from_rows, parse
from search.zoo import NAMED, ZOO
from tasks.types import Layout, Params, ParamSpec, StepInfo

DATA = Path(__file__).with_name("data")
GOLDEN = np.load(DATA / "optimizers_10steps.npz")
MANIFEST = json.loads((DATA / "optimizers_10steps.manifest.json").read_text())
PAPER = json.loads((DATA / "lion_paper_programs.json").read_text())["programs"]
LAYOUT = Layout((ParamSpec("a", (5, 7)), ParamSpec("b", (7,)), ParamSpec("c", (7, 3))))
LR, STEPS = 1e-3, 50
NUMBERS = itertools.count()

Gradient = Callable[[int, Tensor], Tensor]
"""(step, flat parameters) -> flat gradient"""
Way = Callable[[Program, Tensor, Gradient, int, float, float], Tensor]
"""(program, start, gradient, steps, lr, weight_decay) -> parameters after each step"""


def population(step: Step, hessian: Tensor | None = None) -> Way:
    """``hessian``: ``[steps, n]``, for programs that read one."""

    def follow(
        program: Program, flat: Tensor, gradient: Gradient, steps: int, lr: float, decay: float
    ) -> Tensor:
        rule = Population.of([program], torch.tensor([0]), step)
        params, trace = Params(flat[None].clone(), LAYOUT), []
        state = rule.init(params)
        rate, fade = (
            torch.full((1,), lr, dtype=flat.dtype),
            torch.full((1,), decay, dtype=flat.dtype),
        )
        for k in range(steps):
            curvature = None if hessian is None else hessian[k : k + 1].to(flat.dtype)
            info = StepInfo(k, steps, rate, fade, torch.zeros_like(rate), curvature)
            grads = gradient(k, params.flat[0])[None].clone()
            updates, state = rule.update(grads, state, params, info)
            params = Params(params.flat - updates, LAYOUT)
            trace.append(params.flat[0])
        return torch.stack(trace)

    return follow


def exported(foreach: bool) -> Way:
    def follow(
        program: Program, flat: Tensor, gradient: Gradient, steps: int, lr: float, decay: float
    ) -> Tensor:
        module = ModuleType(f"zoo_{next(NUMBERS)}")
        sys.modules[module.__name__] = module
        exec(to_source(program, "rule", ""), module.__dict__)
        settings = {"weight_decay": decay} if program.form == "direction" else {}

        def make(params: list[Tensor]) -> torch.optim.Optimizer:
            return module.__dict__["Rule"](params, lr=lr, foreach=foreach, **settings)

        return optimize(make, flat, gradient, steps)

    return follow


def optimize(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    flat: Tensor,
    gradient: Gradient,
    steps: int,
) -> Tensor:
    params = [view.clone().requires_grad_() for view in LAYOUT.views(flat).values()]
    optimizer, trace = make(params), []
    for k in range(steps):
        row = torch.cat([p.detach().reshape(-1) for p in params])
        for p, g in zip(params, LAYOUT.views(gradient(k, row)).values(), strict=True):
            p.grad = g.clone()
        optimizer.step()
        trace.append(torch.cat([p.detach().reshape(-1) for p in params]))
    return torch.stack(trace)


WAYS: dict[str, Way] = {
    "kernel": population(cpu.step),
    "reference": population(reference),
    "exported": exported(foreach=False),
    "foreach": exported(foreach=True),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(LAYOUT.n, generator=torch.Generator().manual_seed(0)).to(dtype)


def noisy_quadratic(step: int, flat: Tensor) -> Tensor:
    """Gradients that depend on where the optimizer went, at scales from 0.01 to 10."""
    noise = torch.randn(LAYOUT.n, generator=torch.Generator().manual_seed(1 + step))
    scale = 10 ** torch.linspace(-2, 1, LAYOUT.n)
    return (scale * (0.3 * flat + noise)).to(flat.dtype)


# torch.optim ------------------------------------------------------------------------------------

TORCH: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-8}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.01}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
}


@ways
@pytest.mark.parametrize("name", TORCH)
def test_equal_to_torch(name: str, way: Way) -> None:
    """Float32, 50 steps, to 1e-6. Rounding ``1 - lr * weight_decay`` costs torch half of that, and
    NAdam's product of momenta, which torch keeps in float32, costs it 2e-6."""
    make, settings = TORCH[name]
    expected = optimize(lambda p: make(p, lr=LR, **settings), start(), noisy_quadratic, STEPS)  # type: ignore[call-arg]
    decay = settings.get("weight_decay", 0.0)
    actual = way(ZOO[name].program, start(), noisy_quadratic, STEPS, LR, decay)
    tolerance = 3e-6 if name == "nadam" else 1e-6
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Formulas ---------------------------------------------------------------------------------------

Formula = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""(gradient, memory) -> direction"""


def _average(memory: dict[str, Tensor], name: str, value: Tensor, beta: float) -> Tensor:
    memory[name] = beta * memory.get(name, torch.zeros_like(value)) + (1 - beta) * value
    return memory[name]


def _adam(g: Tensor, memory: dict[str, Tensor]) -> Tensor:
    m, v = _average(memory, "m", g, 0.9), _average(memory, "v", g * g, 0.999)
    return m / (v.sqrt() + 1e-8)


def _adabelief(g: Tensor, memory: dict[str, Tensor]) -> Tensor:
    m = _average(memory, "m", g, 0.9)
    return m / (_average(memory, "v", (g - m) ** 2, 0.999).sqrt() + 1e-8)


def _lion(g: Tensor, memory: dict[str, Tensor]) -> Tensor:
    direction = torch.sign(0.9 * memory.get("m", 0.0 * g) + 0.1 * g)
    _average(memory, "m", g, 0.99)
    return direction


def _blend(g: Tensor, memory: dict[str, Tensor]) -> Tensor:
    """What Lion takes the sign of, and the other members of its family something else."""
    blend = 0.9 * memory.get("m", 0.0 * g) + 0.1 * g
    _average(memory, "m", g, 0.99)
    return blend


def _by_tensor(change: Callable[[Tensor], Tensor], flat: Tensor) -> Tensor:
    return LAYOUT.flatten({name: change(x) for name, x in LAYOUT.views(flat).items()})


def _cautious(step: Tensor, g: Tensor) -> Tensor:
    """Only where step and gradient agree, and larger there: share of each tensor at least 0.1 %."""
    mask = (step * g > 0).to(g.dtype)
    return step * _by_tensor(lambda m: m / m.mean().clamp(min=1e-3), mask)


def _corrected_adam(g: Tensor, memory: dict[str, Tensor], top: bool = False) -> Tensor:
    t = int(memory.setdefault("t", torch.zeros(())).add_(1))
    m, v = _average(memory, "m", g, 0.9), _average(memory, "v", g * g, 0.999)
    if top:
        v = memory["top"] = torch.maximum(v, memory.get("top", v))
    return m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def _optimistic(g: Tensor, memory: dict[str, Tensor]) -> Tensor:
    now = _corrected_adam(g, memory, top=True)
    before, memory["before"] = memory.get("before", 0.0 * g), now
    return 2 * now - before


FORMULAS: dict[str, Formula] = {
    "lion_l2": lambda g, memory: torch.nn.functional.normalize(_blend(g, memory), dim=0),
    "lion_group": lambda g, memory: _by_tensor(lambda x: x / x.norm(), _blend(g, memory)),
    "lion_huber": lambda g, memory: (_blend(g, memory) / 1e-3).clamp(-1, 1),
    "cautious_lion": lambda g, memory: _cautious(_blend(g, memory).sign(), g),
    "cautious_adamw": lambda g, memory: _cautious(_corrected_adam(g, memory), g),
    "optimistic_amsgrad": _optimistic,
    "adam_no_correction": _adam,
    "adamw_no_correction": _adam,
    "adabelief_no_correction": _adabelief,
    "sign_sgd": lambda g, memory: g.sign(),
    "sign_momentum": lambda g, memory: _average(memory, "m", g, 0.9).sign(),
    "lion": _lion,
}


@ways
@pytest.mark.parametrize("name", FORMULAS)
def test_equal_to_the_formula(name: str, way: Way) -> None:
    flat, memory, trace = start(torch.float64), {}, []
    for k in range(STEPS):
        direction = FORMULAS[name](noisy_quadratic(k, flat), memory)
        flat = flat - LR * (direction + 0.1 * flat)
        trace.append(flat)
    actual = way(ZOO[name].program, start(torch.float64), noisy_quadratic, STEPS, LR, 0.1)
    # A mask is divided by a share and the division's epsilon, nothing else by what is not tiny.
    exact = 1e-7 if name in ("cautious_lion", "cautious_adamw", "lion_l2", "lion_group") else 1e-10
    torch.testing.assert_close(actual, torch.stack(trace), rtol=0, atol=exact)
    single = way(ZOO[name].program, start(), noisy_quadratic, STEPS, LR, 0.1)
    torch.testing.assert_close(single.double(), torch.stack(trace), rtol=0, atol=2e-6)


@ways
def test_initial_program_of_the_paper_is_adamw_with_its_rates_inside(way: Way) -> None:
    full = way(ZOO["adamw_initial"].program, start(), noisy_quadratic, STEPS, 1.0, 0.0)
    direction = ZOO["adamw_no_correction"].program
    expected = way(direction, start(), noisy_quadratic, STEPS, 1e-3, 0.01)
    torch.testing.assert_close(full, expected, rtol=0, atol=2e-6)


# Other people's implementations -----------------------------------------------------------------


def changed(name: str, *changes: tuple[str, str]) -> Program:
    """A zoo program with other constants."""
    text = str(ZOO[name].program)
    for old, new in changes:
        text = text.replace(old, new)
    return parse(text)


GOLDEN_RUNS: dict[str, Program] = {
    "lion_default": ZOO["lion"].program,
    "lion_pytorch_wd": changed("lion", ("0.99", "0.98"), ("0.9)", "0.95)")),
    "torch_adamw": ZOO["adamw"].program,
    "tiger_default": ZOO["tiger"].program,
    "adabelief_default": ZOO["adabelief"].program,
    "adan_default": ZOO["adan"].program,
    "exadam_default": ZOO["exadam"].program,
    "diffgrad_default": ZOO["diffgrad"].program,
    "grams_default": changed("grams", ("step = m", "root = root + 9.9e-07\n    step = m")),
}
EXACT = {"torch_adamw": 2e-7, "adabelief_default": 1e-7, "exadam_default": 1e-7}
EXACT["diffgrad_default"] = 1e-6
"""Where it is not 1e-12, for epsilons differ; Adam's bias corrections meet that of division."""


def golden(name: str, dtype: str) -> Tensor:
    """``[11, n]``: before and after each update."""
    parts = [GOLDEN[f"{name}.{dtype}.{spec.name}"].reshape(11, -1) for spec, _ in LAYOUT]
    return torch.from_numpy(np.concatenate(parts, 1))


def golden_gradients() -> Tensor:
    parts = [GOLDEN[f"inputs.grads.{spec.name}"].reshape(10, -1) for spec, _ in LAYOUT]
    return torch.from_numpy(np.concatenate(parts, 1))


@ways
@pytest.mark.parametrize("run", GOLDEN_RUNS)
def test_equal_to_golden_runs(run: str, way: Way) -> None:
    grads, hyper = golden_gradients(), MANIFEST[run]["hyper"]
    for dtype, tolerance in (("f64", EXACT.get(run, 1e-12)), ("f32", 2e-6)):
        expected = golden(run, dtype)
        given = grads.to(expected.dtype)
        actual = way(
            GOLDEN_RUNS[run],
            expected[0],
            lambda k, _: given[k],  # noqa: B023
            10,
            hyper["lr"],
            hyper.get("weight_decay", 0.0),
        )
        torch.testing.assert_close(actual, expected[1:], rtol=0, atol=tolerance)


@ways
def test_adafactor_of_vectors_is_torchs(way: Way) -> None:
    """Torch factors the second moments of the matrices, which a program cannot."""
    expected, grads = golden("torch_adafactor_default", "f64"), golden_gradients()
    program = ZOO["adafactor_unfactored"].program
    actual = way(program, expected[0], lambda k, _: grads[k], 10, 0.01, 0.0)
    vector = LAYOUT.offsets[1], LAYOUT.offsets[2]
    torch.testing.assert_close(
        actual[:, slice(*vector)], expected[1:, slice(*vector)], rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("step", [cpu.step, reference])
@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("run", ["adahessian_default", "sophiah_default"])
def test_curvature_equal_to_golden_runs(run: str, dtype: str, step: Step) -> None:
    which, expected, grads = MANIFEST[run]["hessian"], golden(run, dtype), golden_gradients()
    parts = [GOLDEN[f"inputs.hessian_{which}.{spec.name}"].reshape(10, -1) for spec, _ in LAYOUT]
    hessian = torch.from_numpy(np.concatenate(parts, 1))
    program = NAMED[run.split("_")[0].replace("sophiah", "sophia")].program
    given, lr = grads.to(expected.dtype), MANIFEST[run]["hyper"]["lr"]
    way = population(step, hessian)
    actual = way(program, expected[0], lambda k, _: given[k], 10, lr, 0.0)
    torch.testing.assert_close(actual, expected[1:], rtol=0, atol=1e-6 if dtype == "f64" else 3e-6)


def test_oasis_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    hessian = torch.randn(10, LAYOUT.n, dtype=torch.float64, generator=generator)
    flat, d, trace = start(torch.float64), torch.zeros(LAYOUT.n, dtype=torch.float64), []
    for k in range(10):
        d = 0.99 * d + 0.01 * hessian[k]
        flat = flat - LR * noisy_quadratic(k, flat) / (d / (1 - 0.99 ** (k + 1))).abs().clamp(0.1)
        trace.append(flat)
    actual = population(reference, hessian)(
        NAMED["oasis"].program, start(torch.float64), noisy_quadratic, 10, LR, 0.0
    )
    torch.testing.assert_close(actual, torch.stack(trace), rtol=0, atol=1e-7)


# The programs of the Lion paper -----------------------------------------------------------------


def paper_program(name: str) -> Program:
    return from_rows(PAPER[name]["statements"], ("w", "g", "m", "v", "lr"), "full")


@ways
@pytest.mark.parametrize("name", PAPER)
def test_programs_of_the_paper_run_the_same_in_every_way(name: str, way: Way) -> None:
    def small(step: int, flat: Tensor) -> Tensor:  # the raw program takes arcsin of gradients
        return noisy_quadratic(step, flat).clamp(-0.9, 0.9)

    program = paper_program(name)
    actual = way(program, start(torch.float64), small, 10, 1.0, 0.0)
    expected = population(reference)(program, start(torch.float64), small, 10, 1.0, 0.0)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


def test_raw_program_of_the_paper_is_a_sign_with_decay() -> None:
    """``m / sqrt(m * m)`` is a sign, and what multiplies it is the rate that ablation kept."""
    rate, decay = 0.0002171761734643951, 0.4601978361606598
    before = start(torch.float64)
    after = population(reference)(paper_program("lion_raw"), before, noisy_quadratic, 1, 1.0, 0.0)[
        0
    ]
    signs = (before - after) / rate - decay * before
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs), rtol=0, atol=1e-2)
