"""Exported files follow their program, and read as if a person had written them."""

import ast
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from search.evolution.mutate import random_program
from search.export import class_name, to_source
from search.interpreter.population import Population
from search.language.functions import ARRAY, OPS, SCALAR, TENSOR, ProgramError, result_kind
from search.language.program import Program, parse
from search.zoo import NAMED, ZOO
from tasks.types import Layout, Params, ParamSpec, StepInfo

SHAPES = {"a": (4, 3), "b": (7,), "c": (1,), "d": ()}
LAYOUT = Layout(tuple(ParamSpec(name, shape) for name, shape in SHAPES.items()))
LR, DECAY, STEPS = 0.01, 0.1, 6
NAMES = itertools.count()


def load(source: str) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer class of an exported file."""
    module = ModuleType(f"exported_{next(NAMES)}")
    sys.modules[module.__name__] = module
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    )
    return found


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Parameters ``[n]`` and gradients ``[STEPS, n]``, many sizes, both signs."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(LAYOUT.n, generator=generator)
    grads = torch.randn(STEPS, LAYOUT.n, generator=generator)
    return flat.to(dtype), (grads * 10 ** torch.linspace(-1, 0.5, LAYOUT.n)).to(dtype)


def as_program(program: Program, flat: Tensor, grads: Tensor, lr: float = LR) -> Tensor:
    """The trajectory ``[STEPS, n]`` that is meant."""
    rule = Population.of([program], torch.tensor([0]))
    rate, decay = torch.full((1,), lr, dtype=flat.dtype), torch.full((1,), DECAY, dtype=flat.dtype)
    params, trace = Params(flat[None].clone(), LAYOUT), []
    state = rule.init(params)
    for k, g in enumerate(grads):
        info = StepInfo(k, STEPS, rate, decay, torch.zeros_like(rate))
        updates, state = rule.update(g[None].clone(), state, params, info)
        params = Params(params.flat - updates, LAYOUT)
        trace.append(params.flat[0].clone())
    return torch.stack(trace)


def as_optimizer(
    program: Program, flat: Tensor, grads: Tensor, foreach: bool, groups: int = 1
) -> Tensor:
    """The trajectory of the exported class, its parameters spread over ``groups``."""
    exported = load(to_source(program, "rule", "test", LR, DECAY))
    params = [p.clone().requires_grad_() for p in LAYOUT.views(flat).values()]
    cut = [params[i::groups] for i in range(groups)]
    settings = {} if program.form == "full" else {"weight_decay": DECAY}
    optimizer = exported([{"params": part} for part in cut], lr=LR, foreach=foreach, **settings)
    trace = []
    for g in grads:
        for p, gradient in zip(params, LAYOUT.views(g).values(), strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        trace.append(torch.cat([p.detach().reshape(-1) for p in params]))
    return torch.stack(trace)


FULL = """
def full_update(w, g, m, v, lr):
    g = clip_by_global_norm(g, lr)
    m = interp(g, m, 0.9)
    v = interp(m, v, 1.109)
    x = m * lr
    wd = w * 0.2
    update = x + wd
    return update, m, v
"""
AWKWARD = """
def update(w, g, params, v, lr, t):
    torch = g * 0.5
    w = w + torch
    params = interp(params, w, 0.1)
    v = square(lr)
    late = get_e()
    half = sqrt(0.25)
    late = late * half
    v = sqrt(v)
    x = tanh(t)
    x = x * g
    v = v * x
    steps = norm(v)
    steps = steps / v
    update = steps * late
    update = update + params
    return update, params, v
"""
OPERANDS = {SCALAR: ("lr", "size", "t"), ARRAY: ("lengths", "others", "lengths")}
OPERANDS |= {TENSOR: ("g", "w", "m")}


def uses(name: str) -> list[Program]:
    """For every combination of kinds that a function accepts, a program that runs on its result."""
    programs = []
    for kinds in itertools.product(*OPS[name].accepts):
        args = [OPERANDS[kind][place] for place, kind in enumerate(kinds)]
        call = f"{name}({', '.join(args)})"
        lines = ["lengths = norm(g)", "others = norm(w)"]
        lines += ["size = cosine_sim(g, w)"] if "size" in args else []
        lines += [f"x = {call}", "update = x * g", "v = update + v", f"m = {call}"]
        lines += ["m = m * g"] if result_kind(OPS[name], kinds) < TENSOR else []
        lines += ["m = m * 0.5", "return update, m, v"]
        programs.append(parse("def update(w, g, m, v, lr, t):\n    " + "\n    ".join(lines)))
    return programs


TAKEN_BY_LISTS = """
def update(w, g, m, ms):
    m_kept = g * 2.0
    ms = ms + m_kept
    m = m + ms
    update = m * 1.0
    return update, m, ms
"""
TAKEN_BY_HELPERS = """
def update(w, g, m, lr, t):
    _scalar = g * 2.0
    _power = power(lr, t)
    _dot = dot(g, w)
    isinstance = _scalar * _power
    _global_norm = global_norm(g)
    x = sin(t)
    y = cosine_sim(g, w)
    _cosine_sim = y + _dot
    _clip_by_global_norm = clip_by_global_norm(g, _global_norm)
    z = cosine_sim(isinstance, _clip_by_global_norm)
    m = isinstance * z
    m = m + _clip_by_global_norm
    x = x * _cosine_sim
    update = m * x
    return update, m
"""
TAKEN_IN_THE_PLURAL = """
def update(w, g, grad, param):
    x = g - grad
    param = interp(x, param, 0.5)
    update = sign(param)
    grad = 1.0 * g
    return update, grad, param
"""
A_NEGATIVE_FACTOR = """
def full_update(w, g, m, lr):
    m = interp(g, m, 0.9)
    d = w * -0.01
    x = m - d
    update = x * lr
    return update, m
"""
TWICE_A_NUMBER = """
def update(w, g, m, t):
    m = interp(g, m, 0.9)
    x = g * 2.0
    y = x + g
    x = t + 1.0
    z = x * t
    x = z * y
    z = 1.0 / t
    update = x * z
    return update, m
"""
TWO_DECAYS = """
def full_update(w, g, lr):
    a = w * 0.01
    b = g * 0.5
    c = w * 0.5
    d = a + b
    d = d + c
    update = d * lr
    return update
"""
OVERFLOWING = """
def update(w, g, m, t):
    m = interp(g, m, 0.9)
    past = t * -2000.0
    s = power(0.9, past)
    x = g / s
    update = m + x
    return update, m
"""
ZERO_TO_A_NEGATIVE_POWER = """
def update(w, g, m):
    c = arccosh(1.0)
    s = power(c, -0.5)
    m = g / s
    update = g + m
    return update, m
"""
DIVISORS_OF_ZERO = """
def update(w, g, m, lr, t):
    e = get_eps()
    b = 0.0 - e
    r = reciprocal(b)
    s = t / b
    u = t * b
    u = lr / u
    m = g / r
    x = g / s
    m = m + x
    x = g / u
    m = m + x
    update = g + m
    return update, m
"""
AVERAGE_OF_INFINITY = """
def update(w, g, m, v):
    m = interp(g, m, 0.9)
    v = log(v)
    v = interp(g, v, 0.999)
    a = exp(v)
    b = a + 1.0
    update = m / b
    return update, m, v
"""
AVERAGE_OF_WHAT_GROWS = """
def update(w, g, v):
    v = v + 1000.0
    v = cube(v)
    x = interp(g, v, 0.7)
    update = g / x
    return update, v
"""
A_STATE_THAT_NOBODY_READS = """
def update(w, g, m, t):
    m = cube(t)
    update = g / m
    m = g * 2.0
    return update, m
"""


def assert_same(program: Program, foreach: bool, groups: int = 1) -> None:
    flat, grads = problem()
    expected = as_program(program, flat, grads)
    actual = as_optimizer(program, flat, grads, foreach, groups)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_every_function_survives_export(name: str, foreach: bool) -> None:
    for program in uses(name):
        assert_same(program, foreach)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        *(FULL, AWKWARD, TAKEN_BY_LISTS, TAKEN_BY_HELPERS, TAKEN_IN_THE_PLURAL),
        *(A_NEGATIVE_FACTOR, TWICE_A_NUMBER, TWO_DECAYS, OVERFLOWING, ZERO_TO_A_NEGATIVE_POWER),
        *(DIVISORS_OF_ZERO, AVERAGE_OF_INFINITY, AVERAGE_OF_WHAT_GROWS, A_STATE_THAT_NOBODY_READS),
    ],
)
def test_awkward_programs(text: str, foreach: bool, groups: int) -> None:
    """Names that the file needs itself, kinds that change, reductions over all groups, names that
    are numbers now and tensors then, numbers that Python refuses to compute, infinite states."""
    assert_same(parse(text), foreach, groups)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "mixed", [{"lr": torch.tensor(LR)}, {"lr": torch.tensor([LR])}, {"capturable": True}]
)
def test_groups_may_mix_numbers_and_tensors(mixed: dict[str, Any], foreach: bool) -> None:
    lines = ["n = global_norm(g)", "d = g / n", "d = d * lr", "update = d / t", "return update"]
    program = parse("def full_update(w, g, lr, t):\n    " + "\n    ".join(lines))
    flat, grads = problem()
    params = [p.clone().requires_grad_() for p in LAYOUT.views(flat).values()]
    groups = [{"params": params[:2], **mixed}, {"params": params[2:]}]
    optimizer = load(to_source(program, "rule", ""))(groups, lr=LR, foreach=foreach)
    for g in grads:
        for p, gradient in zip(params, LAYOUT.views(g).values(), strict=True):
            p.grad = gradient.clone()
        optimizer.step()
    actual = torch.cat([p.detach().reshape(-1) for p in params])
    torch.testing.assert_close(actual, as_program(program, flat, grads)[-1], rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 15))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_programs_where_they_are_not_chaotic(seed: int, length: int) -> None:
    program = random_program(np.random.default_rng(seed), length, ("w", "g", "m", "v", "lr", "t"))
    flat, grads = problem()
    expected = as_program(program, flat, grads)
    nearby = as_program(program, flat * (1 + 1e-12), grads * (1 - 1e-12))
    size = 1e-6 * (1e-3 + expected.abs())
    calm = ((nearby - expected).abs() <= size) & expected.isfinite()
    calm &= (expected.abs() < 1e100).all(0)
    for foreach in (False, True):
        actual = as_optimizer(program, flat, grads, foreach)
        assert ((actual - expected).abs() <= size)[calm].all(), str(program)


def sources() -> Sequence[str]:
    rows = [(e.program, name, e.origin) for name, e in NAMED.items()]
    rows += [(parse(FULL), "full", "A test."), (parse(AWKWARD), "awkward", 'Say """hello"""; C:\\')]
    return [to_source(program, name, paper) for program, name, paper in rows]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_files_are_clean(tmp_path: Path, command: list[str]) -> None:
    for k, source in enumerate(sources()):
        (tmp_path / f"rule_{k}.py").write_text(source)
    config = Path(__file__).parents[2] / "pyproject.toml"
    ruff = [sys.executable, "-m", "ruff", *command, "--config", str(config), "--no-cache"]
    done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_import_torch_and_the_standard_library_alone() -> None:
    allowed = (
        "from __future__",
        "from collections.abc",
        "from functools",
        "from typing",
        "from torch",
        "import torch",
        "import warnings",
    )
    for source in sources():
        imports = [x for x in source.splitlines() if x.startswith(("import ", "from "))]
        assert all(line.startswith(allowed) for line in imports), imports


def test_file_holds_program_and_provenance(tmp_path: Path) -> None:
    program = ZOO["lion"].program
    path = tmp_path / "my_rule.py"
    path.write_text(to_source(program, "lion", "Found by run 7, seed 3."))
    spec = importlib.util.spec_from_file_location("my_rule", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ is not None
    assert "Found by run 7, seed 3." in module.__doc__
    text = module.__doc__[module.__doc__.index("    def update") : module.__doc__.index("It moves")]
    assert parse("\n".join(line[4:] for line in text.splitlines())) == program


def test_provenance_may_hold_anything() -> None:
    """A file may be called so, or after a slot of the text that it is written into."""
    for said in ("$FUSED.txt", "a $NAME and $5", "back\\slash", 'three """'):
        compile(to_source(ZOO["lion"].program, "lion", said), "exported", "exec")


HYPER = {
    "lion": {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1},
    "adam": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1},
    "momentum": {"c1": 0.9, "weight_decay": 0.1},
    "sign_momentum": {"beta": 0.9, "weight_decay": 0.1},
    "adamw_initial": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "c1": 0.001},
}


@pytest.mark.parametrize("name", HYPER)
def test_constants_become_hyper_parameters(name: str) -> None:
    exported = load(to_source(ZOO[name].program, name, "", 0.3, 0.1))
    group = exported([torch.zeros(1)]).param_groups[0]
    flags = ("params", "lr", "rule", "maximize", "foreach", "capturable", "differentiable", "fused")
    assert {key: value for key, value in group.items() if key not in flags} == HYPER[name]
    assert group["lr"] == 0.3


def test_hyper_parameters_are_what_the_rule_uses() -> None:
    """A beta given to the constructor does what the same constant in the program would do."""
    flat, grads = problem()
    exported = load(to_source(ZOO["lion"].program, "lion", "", LR, DECAY))
    p = flat.clone().requires_grad_()
    optimizer = exported([p], beta1=0.5, beta2=0.7)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    text = str(ZOO["lion"].program).replace("0.99", "0.7").replace("0.9)", "0.5)")
    expected = as_program(parse(text), flat, grads)
    torch.testing.assert_close(p.detach(), expected[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sign_momentum", "SignMomentum"),
        ("runs/first best-3", "RunsFirstBest3"),
        ("AdamW", "AdamW"),
    ],
)
def test_class_names(name: str, expected: str) -> None:
    assert class_name(name) == expected


@pytest.mark.parametrize("name", ["", "3d", "//", "true", "none", "tensor", "BLOCK"])
def test_names_that_no_class_can_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name: got"):
        to_source(ZOO["lion"].program, name, "")


def test_names_that_files_read_are_refused() -> None:
    """The built-in ones too; all that begin with a capital, as names of classes do."""
    texts = [*sources(), to_source(parse(OVERFLOWING), "overflowing", "")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    read = {n.id for n in nodes if isinstance(n, ast.Name) and n.id[0].isupper()}
    assert {"ValueError", "RuntimeError", "OverflowError", "Tensor"} <= read
    for name in read:
        with pytest.raises(ValueError, match="the file needs"):
            class_name(name)


@pytest.mark.parametrize("name", ["m_kept", "ms"])
def test_a_name_that_python_does_not_assign_is_refused(name: str) -> None:
    with pytest.raises(ProgramError, match="'__debug__' cannot name a"):
        parse(TAKEN_BY_LISTS.replace(name, "__debug__"))


def test_programs_that_cannot_be_exported_are_refused() -> None:
    with pytest.raises(ProgramError, match="gradient"):
        to_source(parse("def update(w, g):\n    update = w * 2.0\n    return update"), "x", "")


AVERAGE = ("g2 = square(g)", "v = interp(g2, v, 0.9)")


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ((*AVERAGE, "x = sqrt(v)"), False),
        (("g2 = g * g", "v = v + g2", "x = sqrt(v)"), False),
        (("v = maximum(v, g)", "x = sqrt(v)"), False),
        ((*AVERAGE, "b = power(0.9, t)", "c = 1.0 - b", "a = v / c", "x = sqrt(a)"), False),
        (("v = interp(g, v, 0.9)", "x = sqrt(v)"), True),
        (("g2 = square(g)", "v = interp(g2, v, 1.5)", "x = sqrt(v)"), True),  # may be subtracted
        (("g2 = square(g)", "v = v - g2", "x = sqrt(v)"), True),
        (("g2 = square(g)", "v = g2 * 0.3", "x = sqrt(v)"), True),  # whoever uses it may change 0.3
        (("x = sqrt(v)", "v = 1.0 * g"), True),
    ],
)
def test_square_roots_take_absolute_values_unless_that_changes_nothing(lines, kept) -> None:
    body = "".join(f"    {line}\n" for line in (*lines, "update = g / x", "return update, v"))
    source = to_source(parse(f"def update(w, g, v, t):\n{body}"), "rule", "")
    code = source[source.index("def _move") :]
    assert (".abs()" in code) == kept
    assert ("_foreach_abs" in code) == kept


@pytest.mark.parametrize("line", ["v = 1.0 * g", "v = g * 1.0"])
def test_states_that_keep_a_value_copy_it(line: str) -> None:
    text = f"def update(w, g, v):\n    update = g + v\n    {line}\n    return update, v"
    source = to_source(parse(text), "rule", "")
    assert "torch._foreach_copy_(v, g)" in source
    assert_same(parse(text), foreach=True)


@pytest.mark.parametrize(
    ("lines", "fused"),
    [
        (("g2 = square(g)", "v = interp(g2, v, 0.9)", "x = v + 1.0"), True),
        (("g2 = square(g)", "v = interp(g2, v, 0.9)", "x = v + g2"), False),  # read once more
        (("g2 = square(g)", "v = interp(v, g2, 0.1)", "x = v + 1.0"), False),
        (("g2 = square(v)", "v = interp(g2, v, 0.9)", "x = v + 1.0"), False),
        (("g2 = square(g)", "x = interp(g2, v, 0.9)", "v = 1.0 * x"), False),
    ],
)
def test_averages_of_squares_need_no_memory_for_the_square(lines, fused) -> None:
    body = "".join(f"    {line}\n" for line in (*lines, "update = g / x", "return update, v"))
    source = to_source(parse(f"def update(w, g, v):\n{body}"), "rule", "")
    assert ("_foreach_addcmul_(v, g, g" in source) == fused


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (("m = interp(g, m, 0.9)",), True),
        (("m = interp(m, g, 0.1)",), True),
        (("v = interp(g, v, 0.9)", "x = g - v", "x = x * x", "m = interp(x, m, 0.99)"), True),
        (("g2 = g * g", "v = v + g2", "x = sqrt(v)", "x = g / x", "m = interp(x, m, 0.9)"), True),
        (("v = v * 0.9", "v = v + g", "m = interp(v, m, 0.9)"), True),
        (("v = interp(m, v, 0.9)", "v = maximum(v, g)", "m = interp(v, m, 0.9)"), True),
        (("x = norm(g)", "x = g / x", "x = arcsinh(x)", "m = interp(x, m, 0.9)"), True),
        (("x = log(g)", "x = sin(x)", "x = exp(x)", "m = interp(x, m, 0.9)"), True),
        (("x = log(g)", "m = interp(x, m, 0.9)"), False),
        (("x = cube(g)", "x = cube(x)", "m = interp(x, m, 0.9)"), True),
        (("x = cube(g)", "x = cube(x)", "x = cube(x)", "m = interp(x, m, 0.9)"), False),
        (("x = g / v", "v = interp(g, v, 0.9)", "x = square(x)", "m = interp(x, m, 0.9)"), False),
        (("x = exp(g)", "m = interp(x, m, 0.9)"), False),
        (("x = reciprocal(g)", "m = interp(x, m, 0.9)"), False),
        (("x = g * g", "x = reciprocal(x)", "m = interp(x, m, 0.9)"), True),
        (
            ("x = g * g", "x = reciprocal(x)", "x = x * x", "x = cube(x)", "m = interp(x, m, 0.9)"),
            False,
        ),
        (("v = v * 1.0000001", "v = v + g", "x = tanh(v)", "m = interp(x, m, 0.9)"), True),
        (("v = v * 2.0", "v = v + g", "m = interp(v, m, 0.9)"), False),
        (("v = v + m", "v = v + g", "m = interp(v, m, 0.9)"), False),
        (("m = interp(g, m, 1.5)",), False),
    ],
)
def test_averages_are_one_call_where_nothing_is_infinite(lines, kept) -> None:
    body = "".join(f"    {x}\n" for x in (*lines, "update = m + v", "return update, m, v"))
    source = to_source(parse(f"def update(w, g, m, v):\n{body}"), "rule", "")
    assert ("m = torch.lerp" in source) == kept
    assert ("_foreach_lerp_(m" in source) == kept


def test_bias_corrections_are_plain_python() -> None:
    source = to_source(ZOO["adam"].program, "adam", "")
    assert "beta1**t" in source
    assert "_power" not in source
    assert "_scalar" not in source
