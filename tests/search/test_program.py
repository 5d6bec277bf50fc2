import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.evolution.mutate import random_program
from search.language.flat import ProgramSyntaxError
from search.language.functions import CONSTANT_BOUND, OPS, Kind, ProgramTypeError
from search.language.program import (
    MAX_CHARACTERS,
    MAX_STATEMENTS,
    Program,
    Statement,
    from_rows,
    kinds,
    parse,
    to_rows,
    to_text,
)

PAPER = json.loads(
    Path(__file__).with_name("data").joinpath("lion_paper_programs.json").read_text()
)
INPUTS = ("w", "g", "m", "v", "lr")

LION = """def update(w, g, m, lr):
    update = interp(g, m, 0.9)
    update = sign(update)
    m = interp(g, m, 0.99)
    return update, m
"""


def test_reads_what_is_written():
    program = parse(LION)
    assert program.inputs == ("w", "g", "m", "lr")
    assert program.states == ("m",)
    assert (program.form, program.length) == ("direction", 3)
    assert program.statements[1] == Statement("update", "sign", ("update",))
    assert str(program) == to_text(program) == LION


def test_comments_docstrings_spelling_and_layout_do_not_matter():
    text = '''"""A module."""
# Lion
def update(w, g, m, lr):
    """What it does."""
    update = interp(g, m, .9)  # blend

    update = sign(update); m = interp(g,
        m, 99e-2)
    return (update, m)
'''
    assert parse(text) == parse(LION)


def test_full_form_infix_and_negative_constants():
    text = """def full_update(w, g, lr, t, h):
    a = g + -2
    b = a - lr
    c = mul(b, t)
    update = c / h
    return update
"""
    program = parse(text)
    assert (program.form, program.states) == ("full", ())
    assert [s.op for s in program.statements] == ["add", "sub", "mul", "div"]
    assert program.statements[0].args == ("g", -2.0)
    assert isinstance(program.statements[0].args[1], float)
    assert to_text(program) == text.replace("-2", "-2.0").replace("mul(b, t)", "b * t")


@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 12),
    inputs=st.sampled_from([("w", "g"), INPUTS, ("w", "g", "s", "t"), (*INPUTS, "t", "h")]),
    form=st.sampled_from(["direction", "full"]),
)
def test_parse_inverts_print(seed, length, inputs, form):
    program = random_program(np.random.default_rng(seed), length, inputs, form)
    assert parse(to_text(program)) == program
    assert from_rows(json.loads(json.dumps(to_rows(program))), inputs, form) == program


@given(st.floats(-CONSTANT_BOUND, CONSTANT_BOUND))
def test_constants_survive_exactly(x):
    program = Program((Statement("update", "power", ("g", x)),), ("w", "g"))
    (again,) = parse(to_text(program)).statements
    assert again.args[1] == x
    assert np.signbit(again.args[1]) == np.signbit(x)


@pytest.mark.parametrize("name", PAPER["programs"])
def test_programs_of_the_paper_as_rows(name):
    rows = PAPER["programs"][name]["statements"]
    program = from_rows(rows, INPUTS, "full")
    assert to_rows(program) == rows
    assert parse(to_text(program)) == program


def wrap(body, parameters="w, g, m", result="update, m"):
    return f"def update({parameters}):\n    {body}\n    return {result}\n"


REFUSALS = [
    # (text, line, column, what the message says)
    ("", 1, 1, "one function"),
    ("x = 1", 1, 1, "one function"),
    ("import os\n" + LION, 1, 1, "one function"),
    (LION + LION, 1, 1, "one function"),
    (LION + "print(1)\n", 6, 1, "one function"),
    ("async " + LION, 1, 1, "one function"),
    ("def update(w, g:\n  pass", 1, 11, "not Python"),
    ("def update(w, g):\n\treturn 1\n  return 2", 3, 11, "not Python"),
    ("\0", 1, 1, "null bytes"),
    ("-" * 50_000 + "1", 1, 1, "nested too deeply"),
    ("(" * 1000, 1, 1, "nested too deeply"),
    ("\ud800", 1, 1, "not Python"),
    ("#" * (MAX_CHARACTERS + 1), 1, 1, f"at most {MAX_CHARACTERS}"),
    (LION.replace("update(w", "optimize(w"), 1, 1, "update or full_update"),
    ("@cache\n" + LION, 1, 2, "only plain parameters"),
    (wrap("update = sin(g)", "w, g, *m"), 1, 19, "only plain parameters"),
    (wrap("update = sin(g)", "w, g, m=1"), 1, 20, "only plain parameters"),
    (wrap("update = sin(g)", "w, g, m: int"), 1, 21, "only plain parameters"),
    (wrap("update = sin(g)", "w, g, /, m"), 1, 12, "only plain parameters"),
    (wrap("update = sin(g)", "w, g, *, m"), 1, 21, "only plain parameters"),
    (wrap("update = sin(g)", "g, w, m"), 1, 1, "def update(w, g, ...states, lr, t, h)"),
    (wrap("update = sin(g)", "w, m, g"), 1, 1, "def update(w, g, ...states, lr, t, h)"),
    (wrap("update = sin(g)", "w, g, lr, m"), 1, 1, "def update(w, g, ...states, lr, t, h)"),
    (wrap("update = sin(g)", "w, g, m, t, lr"), 1, 1, "def update(w, g, ...states, lr, t, h)"),
    (wrap("update = sin(g)", "w, g, update"), 1, 1, "def update(w, g, ...states, lr, t, h)"),
    (wrap("update = sin(g)", "w, g, m, m"), 1, 1, "twice"),
    (wrap("update = sin(g)", "w, g, sqrt"), 1, 1, "'sqrt' cannot name a state"),
    (wrap("update = sin(g)", "w, g, é"), 1, 1, "cannot name a state"),
    (wrap("update = sin(cos(g))"), 2, 18, "assign this to a variable first"),
    (wrap("update = g * (g + g)"), 2, 19, "assign this to a variable first"),
    (wrap("update = g * g * g"), 2, 14, "assign this to a variable first"),
    (wrap("update = g * -g"), 2, 18, "name = 0 - ..."),
    (wrap("update = sin(--1)"), 2, 18, "assign this to a variable first"),
    (wrap("update = -g"), 2, 14, "right-hand side"),
    (wrap("update = g"), 2, 14, "right-hand side"),
    (wrap("update = 0.5"), 2, 14, "right-hand side"),
    (wrap("update = g ** g"), 2, 14, "right-hand side"),
    (wrap("update = g @ g"), 2, 14, "right-hand side"),
    (wrap("update = torch.sin(g)"), 2, 14, "right-hand side"),
    (wrap("update = (lambda: g)()"), 2, 14, "right-hand side"),
    (wrap("update = __import__('os')"), 2, 25, "a variable or a number"),
    (wrap("update = g + True"), 2, 18, "a variable or a number"),
    (wrap("update = g + 1j"), 2, 18, "a variable or a number"),
    (wrap("update = sin(*g)"), 2, 18, "a variable or a number"),
    (wrap("update = sin(x=g)"), 2, 18, "no keywords"),
    (wrap("update = sin(g[0])"), 2, 18, "a variable or a number"),
    (wrap("update = eval(g)"), 2, 5, "no function 'eval'; there are add, sub"),
    (wrap("update = sin(g, g)"), 2, 5, "sin takes 1 arguments, 2 given"),
    (wrap("update = interp(g, m)"), 2, 5, "interp takes 3 arguments, 2 given"),
    (wrap("update = g * x"), 2, 18, "'x' is read before it is assigned"),
    (wrap("a = sin(g)\n    update = x * a\n    x = sin(g)"), 3, 14, "'x' is read before"),
    (wrap("update = g * lr"), 2, 18, "'lr' is read before it is assigned"),
    (wrap("update = g + update"), 2, 18, "'update' is read before it is assigned"),
    (wrap("update = g + 1e11"), 2, 18, "outside +-1e+10"),
    (wrap("update = g + -1e11"), 2, 18, "outside +-1e+10"),
    (wrap("update = g + 1e999"), 2, 18, "outside +-1e+10"),
    (wrap("update = g + 1" + "0" * 400), 2, 18, "outside +-1e+10"),
    (wrap("update = sin(g)\n    sqrt = sin(g)"), 3, 5, "'sqrt' cannot name a variable"),
    (wrap("update = sin(g)\n    é = sin(g)"), 3, 5, "cannot name a variable"),
    (wrap("x = sin(g)"), 1, 1, "'update' is never assigned"),
    (wrap("update: float = sin(g)"), 2, 5, "only `name = function(...)`"),
    (wrap("m += g"), 2, 5, "only `name = function(...)`"),
    (wrap("for i in g: pass"), 2, 5, "only `name = function(...)`"),
    (wrap("update = sin(g)\n    'text'"), 3, 5, "only `name = function(...)`"),
    (wrap("return g"), 2, 5, "only `name = function(...)`"),
    (wrap("update = x = sin(g)"), 2, 14, "assigns one variable"),
    (wrap("update, x = sin(g)"), 2, 5, "assigns one variable"),
    (wrap("m.x = sin(g)"), 2, 5, "assigns one variable"),
    (wrap("update = sin(g)", result="update"), 3, 5, "`return update, m`"),
    (wrap("update = sin(g)", result="m, update"), 3, 5, "`return update, m`"),
    (wrap("update = sin(g)", result="update, m, 1"), 3, 5, "`return update, m`"),
    (wrap("update = sin(g)", result=""), 3, 5, "`return update, m`"),
    ("def update(w, g):\n    update = sin(g)\n", 2, 5, "`return update, ...`"),
    ("def update(w, g):\n    'nothing'\n", 1, 1, "`return update, ...`"),
    (wrap("\n    ".join(["update = sin(g)"] * (MAX_STATEMENTS + 1))), 1, 1, "at most 256"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), REFUSALS)
def test_refusals_name_the_place_and_the_rule(text, line, column, message):
    with pytest.raises(ProgramSyntaxError) as caught:
        parse(text, filename="mine.py")
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"mine.py:{line}:{column}: ")


def test_the_longest_program_is_accepted():
    text = wrap("\n    ".join(["update = sin(g)"] * MAX_STATEMENTS))
    assert parse(text).length == MAX_STATEMENTS


FRAGMENTS = """def update(w, g, m):|    |
|return update, m|update|=|g|m|sin(|)|,|0.5|-|*|**|(|lambda|:|'|\\|1e999|é|\0|#"""
WORDS = st.sampled_from(FRAGMENTS.split("|"))


@given(st.text() | st.lists(WORDS, max_size=30).map("".join))
def test_any_text_is_a_program_or_a_syntax_error(text):
    try:
        program = parse(text)
    except ProgramSyntaxError:
        return
    assert parse(to_text(program)) == program


@given(st.data())
def test_damaged_programs_are_programs_or_syntax_errors(data):
    at = data.draw(st.integers(0, len(LION)))
    cut = data.draw(st.integers(0, 8))
    text = LION[:at] + data.draw(WORDS | st.characters()) + LION[at + cut :]
    try:
        program = parse(text)
    except ProgramSyntaxError:
        return
    assert parse(to_text(program)) == program


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["update"]], "is not [target, function, *arguments]"),
        ([["update", "sin", None]], "is not [target, function, *arguments]"),
        ([["update", "sin", "x"]], "statement 1: 'x' is read before it is assigned"),
        ([["update", "sin", "g"], ["m", "tg", "g"]], "statement 2: no function 'tg'"),
        ([["update", "add", "g"]], "statement 1: add takes 2 arguments, 1 given"),
        ([["update", "add", "g", float("nan")]], "statement 1: constant nan is outside"),
        ([["update", "add", "g", 10**400]], "statement 1: constant inf is outside"),
        ([["lambda", "sin", "g"]], "statement 1: 'lambda' cannot name a variable"),
        ([["m", "sin", "g"]], "'update' is never assigned"),
    ],
)
def test_faulty_rows(rows, message):
    with pytest.raises(ProgramSyntaxError) as caught:
        from_rows(rows, INPUTS)
    assert message in str(caught.value)


def test_kinds_follow_names_through_reassignment():
    program = parse("""def update(w, g, m, lr, h):
    a = norm(g)
    lr = sqrt(lr)
    a = a * lr
    m = m / a
    a = dot(m, h)
    update = g * a
    return update, m
""")
    assert [kind.name for kind in kinds(program)] == [
        *("ARRAY", "SCALAR", "ARRAY", "TENSOR", "SCALAR", "TENSOR")
    ]
    assert kinds(program)[0] is Kind.ARRAY


def test_kind_errors_name_statement_function_and_argument():
    program = parse(wrap("a = global_norm(g)\n    update = norm(a)"))
    with pytest.raises(ProgramTypeError) as caught:
        kinds(program)
    assert str(caught.value) == (
        "statement 2 (update = norm(a)): norm: argument 1 is SCALAR, it accepts TENSOR"
    )


def test_every_function_can_be_written_and_read():
    for op in OPS.values():
        body = f"x = {op.name}({', '.join('gml'[: op.arity])})\n    update = sin(g)"
        program = parse(wrap(body, "w, g, m, l", "update, m, l"))
        assert program.statements[0].op == op.name
        assert parse(to_text(program)) == program
