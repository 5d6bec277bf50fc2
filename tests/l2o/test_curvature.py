"""Rules that read a Hessian, as a user of the command line meets them."""

import json
import sys

import pytest

from l2o.cli.main import main

RULES = ("adahessian", "oasis", "sophia")
SUITE = """
from tasks.families.mlp import MLP
from tasks.suites import Entry
small = Entry(MLP(width=8, activation="tanh", batch_size=32), 60)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "curved_suite.py").write_text(SUITE)
    (tmp_path / "newton.txt").write_text(
        "def update(w, g, h):\n    size = abs(h)\n    size = size + 0.1\n"
        "    update = g / size\n    return update\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("curved_suite", None)


def test_they_are_evaluated_like_any_other(here, capsys):
    settings = ["--suite", "curved_suite:small", "--trials", "4", "--seeds", "2"]
    assert main(["evaluate", *RULES, "newton.txt", *settings]) == 0
    assert all(name in capsys.readouterr().out for name in ("adahessian",))
    (found,) = {len(x) for x in json.loads((here / "results.json").read_text())["losses"].values()}
    losses = json.loads((here / "results.json").read_text())["losses"]
    assert found == 1
    for name in (*RULES, "newton.txt"):
        (runs,) = losses[name].values()
        assert max(runs) < 1.5, name  # digits: log(10) = 2.3 to begin with


@pytest.mark.parametrize("rule", [*RULES, "newton.txt"])
def test_no_search_starts_from_them(here, capsys, rule):
    assert main(["search", "--start", rule, "--run-dir", "run"]) != 0
    assert "start: got a program that reads h, a Hessian" in capsys.readouterr().err
    assert not (here / "run").exists()


@pytest.mark.parametrize("rule", RULES)
def test_they_are_shown_and_exported(here, capsys, rule):
    assert main(["zoo", rule]) == 0
    assert capsys.readouterr().out.startswith("def update(w, g")
    assert main(["export", rule, "--out", "mine.py"]) == 0
    assert "def set_hessian" in (here / "mine.py").read_text()
