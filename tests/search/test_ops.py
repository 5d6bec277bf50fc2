import math

import pytest
import torch

from search.language.functions import OPS, PAPER, Kind, ProgramTypeError, result_kind

SCALAR, ARRAY, TENSOR = Kind
ELEMENTWISE = [op for op in OPS.values() if not op.reduces]
EXECUTED = [op for op in OPS.values() if op.reduces and not op.per_tensor]
POINTS = (-2.5, -0.7, 0.0, 0.3, 0.9, 1.7)

# What each function is, said again in Python's own arithmetic; None where it is not a real number.
MEANING = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (y + 1e-8),
    "abs": abs,
    "cos": math.cos,
    "sin": math.sin,
    "tan": math.tan,
    "arcsin": math.asin,
    "arccos": math.acos,
    "arctan": math.atan,
    "exp": math.exp,
    "log": lambda x: math.log(abs(x)),
    "sinh": math.sinh,
    "cosh": math.cosh,
    "tanh": math.tanh,
    "arcsinh": math.asinh,
    "arccosh": math.acosh,
    "arctanh": math.atanh,
    "sign": lambda x: (x > 0) - (x < 0),
    "exp2": lambda x: 2.0**x,
    "exp10": lambda x: 10.0**x,
    "expm1": math.expm1,
    "log10": lambda x: math.log10(abs(x)),
    "log2": lambda x: math.log2(abs(x)),
    "log1p": lambda x: math.log(abs(1 + x)),
    "square": lambda x: x**2,
    "sqrt": lambda x: math.sqrt(abs(x)),
    "cube": lambda x: x**3,
    "cbrt": lambda x: math.copysign(abs(x) ** (1 / 3), x),
    "reciprocal": lambda x: 1 / (x + 1e-8),
    "power": math.pow,
    "maximum": max,
    "minimum": min,
    "interp": lambda x, y, a: (1 - a) * x + a * y,
    "get_pi": lambda: math.pi,
    "get_e": lambda: math.e,
    "get_eps": lambda: 1e-8,
}


def test_the_vocabulary_is_the_43_functions_of_the_paper():
    assert len(PAPER) == 43
    assert list(OPS)[:43] == list(PAPER)
    assert [OPS[name].label for name in PAPER] == list(range(43))
    assert [op.code for op in OPS.values()] == list(range(len(OPS)))
    assert all(name == op.name for name, op in OPS.items())
    assert {op.symbol: op.name for op in OPS.values() if op.symbol} == {
        "+": "add",
        "-": "sub",
        "*": "mul",
        "/": "div",
    }
    assert set(PAPER) - set(MEANING) == {op.name for op in EXECUTED}


def tuples(arity):
    grid = torch.cartesian_prod(*[torch.tensor(POINTS, dtype=torch.float64)] * max(arity, 1))
    return grid.reshape(-1, max(arity, 1)).T


def expected(name, row):
    try:
        return float(MEANING[name](*row))
    except (ValueError, ZeroDivisionError):  # outside the domain
        return None


@pytest.mark.parametrize("op", [OPS[name] for name in MEANING], ids=lambda op: op.name)
def test_meaning(op):
    columns = tuples(op.arity)
    results = op.torch(*columns) if op.arity else op.torch(columns[0])
    assert results.dtype == torch.float64
    checked = 0
    for row, result in zip(columns.T.tolist(), results.tolist(), strict=True):
        value = expected(op.name, row[: op.arity])
        if value is None:
            assert not math.isfinite(result)
        else:
            checked += 1
            assert result == pytest.approx(value, rel=1e-12, abs=1e-300)
    assert checked >= 1


@pytest.mark.parametrize("op", ELEMENTWISE, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_source_text_means_the_same(op, dtype):
    columns = tuples(op.arity).to(dtype)
    results = op.torch(*columns) if op.arity else op.torch(columns[0])
    source = op.source.format(*(f"x[{k}]" for k in range(op.arity)))
    again = torch.as_tensor(eval(source, {"torch": torch, "math": math, "x": columns}), dtype=dtype)
    torch.testing.assert_close(again.expand_as(results), results, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("op", EXECUTED, ids=lambda op: op.name)
def test_reductions_are_left_to_the_interpreter(op):
    assert op.doc
    with pytest.raises(TypeError, match=op.name):
        op.torch(*[torch.ones(1, 3)] * op.arity)


@pytest.mark.parametrize(
    ("name", "kinds", "result"),
    [
        ("add", (SCALAR, SCALAR), SCALAR),
        ("add", (SCALAR, ARRAY), ARRAY),
        ("div", (TENSOR, ARRAY), TENSOR),
        ("sqrt", (ARRAY,), ARRAY),
        ("norm", (TENSOR,), ARRAY),
        ("global_norm", (TENSOR,), SCALAR),
        ("dot", (TENSOR, TENSOR), SCALAR),
        ("cosine_sim", (TENSOR, TENSOR), SCALAR),
        ("clip_by_global_norm", (TENSOR, SCALAR), TENSOR),
        ("interp", (TENSOR, SCALAR, ARRAY), TENSOR),
        ("interp", (SCALAR, ARRAY, SCALAR), ARRAY),
        ("get_pi", (), SCALAR),
    ],
)
def test_result_kind(name, kinds, result):
    assert result_kind(OPS[name], kinds) == result


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("norm", (SCALAR,), "norm: argument 1 is SCALAR, it accepts TENSOR"),
        ("norm", (ARRAY,), "norm: argument 1 is ARRAY, it accepts TENSOR"),
        ("global_norm", (ARRAY,), "global_norm: argument 1 is ARRAY, it accepts TENSOR"),
        ("dot", (TENSOR, SCALAR), "dot: argument 2 is SCALAR, it accepts TENSOR"),
        ("cosine_sim", (ARRAY, TENSOR), "cosine_sim: argument 1 is ARRAY, it accepts TENSOR"),
        (
            "clip_by_global_norm",
            (TENSOR, TENSOR),
            "clip_by_global_norm: argument 2 is TENSOR, it accepts SCALAR",
        ),
        (
            "interp",
            (TENSOR, TENSOR, TENSOR),
            "interp: argument 3 is TENSOR, it accepts SCALAR or ARRAY",
        ),
        ("add", (TENSOR,), "add takes 2 arguments, not 1"),
    ],
)
def test_result_kind_refuses(name, kinds, message):
    with pytest.raises(ProgramTypeError) as caught:
        result_kind(OPS[name], kinds)
    assert str(caught.value) == message
