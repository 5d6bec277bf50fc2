import json

import numpy as np
import pytest
import torch

from search.commands.zoo import known, row, zoo
from search.commands.zoo_table import facts, measured
from search.language.canonical import canonical
from search.language.flat import ProgramSyntaxError
from search.language.functions import OPS, Kind
from search.language.program import input_kinds, kinds, parse, to_text
from search.language.validity import check
from search.zoo import NAMED, ZOO, load, lookup, with_states


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_every_entry_is_a_valid_program_without_dead_words(entry):
    check(entry.program)
    assert ZOO[entry.name] is entry is lookup(entry.name)
    assert load(entry.name) is entry
    assert canonical(entry.program).length == entry.program.length
    names = ("m", "v", "s3", "s4")
    assert canonical(entry.program).states == names[: len(entry.program.states)]
    assert entry.lr > 0
    assert entry.weight_decay >= 0
    assert (entry.program.form == "full") == (entry.name == "adamw_initial")
    assert kinds(entry.program)[-1] == Kind.TENSOR


def test_rules_are_different_unless_only_their_decay_is():
    texts = {}
    for entry in ZOO.values():
        texts.setdefault(to_text(canonical(entry.program)), []).append(entry.name)
    assert [names for names in texts.values() if len(names) > 1] == [
        ["adam", "adamw"],
        ["adam_no_correction", "adamw_no_correction"],
    ]


def test_names_that_are_asked_for():
    assert set(ZOO) >= {
        *("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion"),
        *("adam_no_correction", "adamw_no_correction", "sign_sgd", "sign_momentum"),
        "adamw_initial",
        *("adabelief", "adan", "exadam", "diffgrad", "grams", "cautious_lion", "cautious_adamw"),
        *("optimistic_amsgrad", "lion_l2", "lion_huber", "lion_group", "tiger", "nadam", "radam"),
    }
    assert {entry.name for entry in CURVATURE} >= {"adahessian", "oasis", "sophia"}


CURVATURE = [entry for entry in NAMED.values() if entry.name not in ZOO]


@pytest.mark.parametrize("entry", CURVATURE, ids=lambda entry: entry.name)
def test_rules_that_read_a_hessian_have_names_but_no_search_starts_from_them(entry):
    check(entry.program)
    assert entry.program.inputs[-1] == "h"
    assert lookup(entry.name) is NAMED[entry.name] is entry
    assert load(entry.name) is entry
    assert row(facts(entry))[3:6] == ("reads a Hessian", "–", "mixed")


def test_the_table():
    lion = ("lion", "1", "3", "Lion form", "invariant", "Adam-like", "Chen et al. 2023")
    rows = {rule["name"]: row(rule) for rule in known()["rules"]}
    assert rows["lion"] == lion
    assert rows["lion_group"][1:6] == ("1", "4", "normalised", "invariant", "mixed")
    assert rows["momentum"][3:6] == ("linear filter", "linear", "SGD-like")
    assert rows["radam"][3:6] == ("mixed", "mixed", "mixed")
    assert rows["muon"] == ("muon", "1", "4", "mixed", "mixed", "mixed", "Jordan et al. 2024")


def test_what_is_shipped_is_what_is_measured():
    """Else: python -m search.commands.zoo_table"""
    assert known() == measured()


def test_all_of_it_as_json(capsys):
    assert zoo(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [rule["name"] for rule in found["rules"]] == list(NAMED)
    assert all(parse(rule["text"]) == NAMED[rule["name"]].program for rule in found["rules"])
    assert all(rule["mup_reason"] for rule in found["rules"] if rule["mup"] == "mixed")
    assert {"SOAP", "K-FAC", "M-FAC"} <= {
        x for names in found["no_program"] for x in names.split(", ")
    }


def test_the_command_says_what_is_no_program(capsys):
    assert zoo([]) == 0
    shown = capsys.readouterr().out
    assert "Shampoo, SOAP, K-FAC: states that are matrices" in shown
    assert "M-FAC: a window" in shown


@pytest.mark.parametrize("find", [lookup, load])
def test_unknown_names_are_answered_with_the_known_ones(find):
    with pytest.raises(ValueError, match=r"'loin'.*; did you mean .*lion.*l2o zoo lists"):
        find("loin")


def test_load_reads_files(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(to_text(ZOO["lion"].program))
    assert load(path).program == load(str(path)).program == ZOO["lion"].program
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as some editors write it
    assert load(path).program == ZOO["lion"].program
    path.write_text("def update(w, g):\n    update = g\n    return update\n")
    with pytest.raises(ProgramSyntaxError, match=r"mine\.py:2:14: "):
        load(path)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "adamw_initial"])
def test_spare_states_change_nothing_but_room(name, count):
    program = ZOO[name].program
    wider = with_states(program, count)
    assert len(wider.states) == max(count, len(program.states))
    assert wider.states[: len(program.states)] == program.states
    assert parse(to_text(wider)) == wider
    assert canonical(wider) == canonical(program)


def test_spare_states_take_no_name_in_use():
    program = parse("def update(w, g):\n    m = sin(g)\n    update = m * g\n    return update\n")
    assert with_states(program, 2).states == ("v", "s0")


# Against torch.optim ---------------------------------------------------------------------------


def by_hand(program, g, memory, lr, t):
    """One step of an elementwise program, straight from the table of functions."""
    known = {"w": None, "g": g, "lr": torch.tensor(lr), "t": torch.tensor(float(t)), **memory}
    assert set(input_kinds(program)) <= set(known)
    for statement in program.statements:
        args = [
            known[arg] if isinstance(arg, str) else torch.tensor(arg, dtype=torch.float64)
            for arg in statement.args
        ]
        known[statement.target] = OPS[statement.op].torch(*args)
    return known["update"], {name: known[name] for name in program.states}


# Largest difference of two trajectories, in units of lr. Where rules divide, it is the epsilons:
# Adagrad's differs from torch's, and the bias corrections get one too, 1e-8 beside 1 - 0.999^t,
# half of which shows after the square root: in t steps at most 0.5e-5 * (1 + 1/2 + ... + 1/t).
TRAJECTORIES = [
    ("sgd", lambda p, lr: torch.optim.SGD(p, lr), 1e-12),
    ("momentum", lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), 1e-12),
    ("nesterov", lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True), 1e-12),
    ("adagrad", lambda p, lr: torch.optim.Adagrad(p, lr), 1e-6),
    ("rmsprop", lambda p, lr: torch.optim.RMSprop(p, lr), 1e-12),
    ("adam", lambda p, lr: torch.optim.Adam(p, lr), 2e-5),
    ("adamw", lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.0), 2e-5),
]


@pytest.mark.parametrize(("name", "make", "tolerance"), TRAJECTORIES)
def test_trajectories_are_those_of_torch(name, make, tolerance):
    rng = np.random.default_rng(0)
    gradients = torch.tensor(rng.standard_normal((30, 5)))
    lr, program = 0.03, ZOO[name].program
    theirs = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = make([theirs], lr)
    ours = torch.zeros(5, dtype=torch.float64)
    memory = {state: torch.zeros(5, dtype=torch.float64) for state in program.states}
    for t, g in enumerate(gradients, 1):
        theirs.grad = g.clone()
        optimizer.step()
        update, memory = by_hand(program, g, memory, lr, t)
        ours = ours - lr * update
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=lr * tolerance)
