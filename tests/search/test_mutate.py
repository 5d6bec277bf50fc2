import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from search.behaviour.kind import classify
from search.evolution.mutate import mutate, random_program
from search.evolution.settings import Mutation
from search.language.functions import CONSTANT_BOUND, OPS, PAPER
from search.language.program import Statement, parse, to_text
from search.language.validity import check
from search.zoo import ZOO, with_states

START = ZOO["adamw_initial"].program
SUBJECTS = {name: entry.program for name, entry in ZOO.items()}


def children(program, settings=None, count=100, seed=0):
    rng = np.random.default_rng(seed)
    return [mutate(program, rng, settings) for _ in range(count)]


@pytest.mark.parametrize("program", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_children_are_valid_programs_one_change_away(program):
    for child in children(program):
        check(child.program)
        assert parse(to_text(child.program)) == child.program
        assert (child.program.inputs, child.program.form) == (program.inputs, program.form)
        old, new, k = list(program.statements), list(child.program.statements), child.where
        if child.kind == "insert":
            assert (child.before, new.pop(k)) == (None, child.after)
        elif child.kind == "delete":
            assert (old.pop(k), child.after) == (child.before, None)
        else:
            before, after = old.pop(k), new.pop(k)
            assert (before, after) == (child.before, child.after)
            assert (before.target, before.op) == (after.target, after.op)
            assert sum(a != b for a, b in zip(before.args, after.args, strict=True)) == 1
        assert old == new


COPIES = Mutation(insert=0, delete=0, modify=0, copy=1)


@pytest.mark.parametrize("program", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_a_copy_differs_in_one_argument_and_one_reader_turns_to_it(program):
    for child in children(program, COPIES, count=30):
        check(child.program)
        assert child.before
        assert child.after
        new = list(child.program.statements)
        copy = new.pop(child.where)
        assert copy == child.after
        assert (child.kind, copy.op) == ("copy", child.before.op)
        assert copy.target not in {*program.inputs, *(s.target for s in program.statements)}
        assert sum(a != b for a, b in zip(copy.args, child.before.args, strict=True)) == 1
        changed = [
            (arg, now)
            for before, after in zip(program.statements, new, strict=True)
            for arg, now in zip(before.args, after.args, strict=True)
            if arg != now
        ]
        assert changed in ([], [(child.before.target, copy.target)])


def test_a_copy_makes_the_lion_form_of_a_momentum_in_one_step():
    start = ZOO["sign_momentum"].program
    tried = children(start, COPIES, count=40)
    assert any(classify(child.program).name == "Lion form" for child in tried)


SWAPS = Mutation(insert=0, delete=0, modify=0, swap=1)


@pytest.mark.parametrize("program", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_a_swap_calls_another_function_on_what_fits(program):
    for child in children(program, SWAPS, count=30):
        check(child.program)
        assert child.before
        assert child.after
        assert child.kind == "swap"
        assert child.before.target == child.after.target
        old, new = list(program.statements), list(child.program.statements)
        assert (old.pop(child.where), new.pop(child.where)) == (child.before, child.after)
        assert old == new
        kept = zip(child.before.args, child.after.args, OPS[child.after.op].accepts, strict=False)
        assert all(a == b for a, b, accepted in kept if len(accepted) == 3)


def test_a_swap_makes_the_sign_of_a_momentum_in_one_step():
    start, only = ZOO["adam_no_correction"].program, replace(SWAPS, functions=("sign", "abs"))
    tried = children(start, only, count=40)
    assert any(classify(child.program).name == "sign momentum" for child in tried)


def test_all_randomness_comes_from_the_generator():
    assert children(START, count=20) == children(START, count=20)
    assert children(START, count=20, seed=1) != children(START, count=20)


def test_programs_are_not_changed():
    text = to_text(START)
    children(START, count=50)
    assert to_text(START) == text


def test_long_walks_stay_valid_and_bounded():
    rng, program, settings = np.random.default_rng(0), START, Mutation(max_length=14)
    lengths = set()
    for _ in range(400):
        program = mutate(program, rng, settings).program
        lengths.add(program.length)
    assert max(lengths) == 14
    assert min(lengths) < 9


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        (Mutation(delete=0, modify=0), {"insert"}),
        (Mutation(insert=0, modify=0), {"delete"}),
        (Mutation(insert=0, delete=0), {"modify"}),
        (Mutation(max_length=START.length), {"delete", "modify"}),
        (Mutation(constants_only=True), {"modify"}),
        (Mutation(delete=0, modify=0, copy=1, swap=1), {"insert", "copy", "swap"}),
        (Mutation(max_length=START.length, swap=1), {"delete", "modify", "swap"}),
    ],
)
def test_weights_choose_the_kind(settings, kinds):
    assert {child.kind for child in children(START, settings)} == kinds


def test_kinds_are_proposed_equally_often_by_default():
    """Invalid proposals are redrawn, so ask where nearly all are valid: among much junk."""
    program = START
    for _ in range(50):
        junk = Statement(f"junk{program.length}", "sin", ("g",))
        program = replace(program, statements=(junk, *program.statements))
    counts = Counter(child.kind for child in children(program, Mutation(max_length=256), 600))
    assert all(0.27 < counts[kind] / 600 < 0.4 for kind in ("insert", "delete", "modify"))


def test_every_function_and_every_target_is_reached():
    rng, settings = np.random.default_rng(0), Mutation(delete=0, modify=0)
    inserted = [mutate(START, rng, settings).after for _ in range(1500)]
    assert {s.op for s in inserted if s} == set(PAPER)
    targets = Counter(s.target for s in inserted if s)
    assert set(targets) == {*START.inputs, "update", "g2", "sqrt_v", "wd", "x0"}
    assert 0.4 < targets["x0"] / 1500 < 0.7


def test_a_changed_argument_is_redrawn_or_scaled():
    rng, settings = np.random.default_rng(0), Mutation(insert=0, delete=0)
    kinds = Counter()
    ratios = []
    for _ in range(2000):
        child = mutate(START, rng, settings)
        assert child.before is not None
        assert child.after is not None
        old, new = next(
            (a, b) for a, b in zip(child.before.args, child.after.args, strict=True) if a != b
        )
        kinds[type(old), type(new)] += 1
        if isinstance(old, float) and isinstance(new, float):
            ratios.append(new / old)
    assert set(kinds) == {(str, str), (str, float), (float, str), (float, float)}
    positive = np.log2([ratio for ratio in ratios if ratio > 0])
    assert abs(np.median(positive)) < 1  # most are scaled, by 2^N(0, 1)
    assert 0.5 < np.mean(np.abs(positive) < 1) < 0.75


@pytest.mark.parametrize("settings", [Mutation(1, 0, 0), Mutation(0, 0, 1)])
def test_new_arguments_are_what_is_in_scope(settings):
    read = set()
    for child in children(START, settings, 1500):
        assert child.after is not None
        old = child.before.args if child.before else (None,) * len(child.after.args)
        changed = {new for a, new in zip(old, child.after.args, strict=True) if a != new}
        above = {s.target for s in START.statements[: child.where]}
        names = {arg for arg in changed if isinstance(arg, str)}
        assert names <= {*START.inputs, *above}
        read |= names
    assert read == {*START.inputs, "update", "g2", "sqrt_v", "wd"}


@pytest.mark.parametrize("reads", [("w", "g"), ("g",), ()])
def test_inputs_can_be_hidden_from_new_arguments(reads):
    program = with_states(
        parse("def update(w, g, lr, t):\n    update = g * 1\n    return update\n"), 2
    )
    for child in children(program, Mutation(delete=0, modify=0, reads=reads)):
        assert child.after is not None
        read = {arg for arg in child.after.args if isinstance(arg, str)}
        assert read <= {*reads, "m", "v", "update"}


def test_a_statement_whose_inputs_are_hidden_is_left_as_it_is():
    text = "def update(w, g, lr):\n    n = norm(g)\n    update = g / n\n    return update\n"
    settings = Mutation(insert=0, copy=1, reads=("lr",))
    for child in children(parse(text), settings, 200):
        before, after = child.before, child.after
        assert before is None or after is None or (before.op, after.args) != ("norm", before.args)


def test_functions_can_be_chosen():
    settings = Mutation(delete=0, modify=0, functions=("sign", "interp"))
    assert {c.after.op for c in children(START, settings) if c.after} == {"sign", "interp"}


def test_constants_only():
    rng, program, settings = np.random.default_rng(0), START, Mutation(constants_only=True)
    for _ in range(100):
        program = mutate(program, rng, settings).program
    skeleton = [
        (s.target, s.op, *(a if isinstance(a, str) else None for a in s.args))
        for s in program.statements
    ]
    assert skeleton == [
        (s.target, s.op, *(a if isinstance(a, str) else None for a in s.args))
        for s in START.statements
    ]
    assert program != START


def test_constants_stay_bounded():
    text = f"def update(w, g):\n    update = g * {CONSTANT_BOUND!r}\n    return update\n"
    for child in children(parse(text), Mutation(constants_only=True, scale=1.0), 20):
        assert child.after is not None
        assert 0 < float(child.after.args[1]) <= CONSTANT_BOUND


def test_giving_up_is_an_error_that_shows_the_program():
    with pytest.raises(ValueError, match=r"no valid child in \d+ attempts[\s\S]*sign\(g\)"):
        mutate(ZOO["sign_sgd"].program, np.random.default_rng(0), Mutation(constants_only=True))
    with pytest.raises(ValueError, match="no valid child"):
        mutate(ZOO["sgd"].program, np.random.default_rng(0), Mutation(insert=0, modify=0))
    settings = Mutation(delete=0, modify=0, functions=("norm",), reads=())
    with pytest.raises(ValueError, match="nothing in scope"):
        children(ZOO["sgd"].program, settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"insert": -1.0}, "insert: got -1.0, expected a weight of at least 0"),
        ({"copy": math.nan}, "copy: got nan"),
        ({"insert": 0, "delete": 0, "modify": 0}, "insert, .* swap: got 0 for all, expected one"),
        ({"fresh": 1.5}, "fresh: got 1.5, expected a probability"),
        ({"constant": -0.1}, "constant: got -0.1"),
        ({"max_length": 0}, "max_length: got 0, expected 1 to 256"),
        ({"max_length": 1000}, "max_length: got 1000"),
        ({"functions": ("sin", "sine")}, "functions: got sine, expected some of add, "),
        ({"functions": ()}, "functions: got none"),
        ({"reads": ("g", "loss")}, "reads: got g, loss, expected some of w, g"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        Mutation(**setting)


def test_settings_survive_json():
    assert Mutation(functions=["sin"], reads=["g"]) == Mutation(functions=("sin",), reads=("g",))  # type: ignore[arg-type]


def test_a_child_describes_its_change():
    for child in children(START, count=30):
        change = {
            "insert": child.after,
            "delete": child.before,
            "modify": f"{child.before} -> {child.after}",
        }
        assert str(child) == f"{child.kind} {child.where}: {change[child.kind]}"


@pytest.mark.parametrize("length", [1, 2, 5, 20])
@pytest.mark.parametrize("form", ["direction", "full"])
def test_random_programs(length, form):
    rng = np.random.default_rng(length)
    seen = set()
    for _ in range(10):
        program = random_program(rng, length, ("w", "g", "m", "lr"), form)
        check(program)
        assert (program.length, program.form) == (length, form)
        assert program.statements[-1].target == "update"
        seen.add(program)
    assert len(seen) > 5
    again = random_program(np.random.default_rng(3), length)
    assert again == random_program(np.random.default_rng(3), length)


def test_random_programs_refuse_impossible_lengths():
    with pytest.raises(ValueError, match="length: got 0"):
        random_program(np.random.default_rng(0), 0)


def test_what_has_no_weight_does_not_happen():
    full = ZOO["adamw"].program
    with pytest.raises(ValueError, match=r"no valid child .* with insert 1, delete 0, .* swap 0"):
        mutate(full, np.random.default_rng(0), Mutation(delete=0, modify=0, max_length=full.length))
