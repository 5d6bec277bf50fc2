"""The command ``l2o coord-check``, as a user calls it."""

import csv

import pytest
import torch

from l2o import checkpoint
from l2o.architectures.small_fc import SmallFC
from l2o.cli import coord_check
from l2o.cli.main import main
from l2o.meta import report
from tasks.inner.unroll import start
from tasks.mup.coordinates import coordinate_check
from tasks.types import Params, StepInfo

SMALL = ["--widths", "[32,64]", "--steps", "3", "--seeds", "1"]


@pytest.fixture
def learned(tmp_path):
    optimizer = SmallFC()
    checkpoint.save(tmp_path / "learned", optimizer, optimizer.initial())
    return str(tmp_path / "learned")


def run(*arguments):
    return main(["coord-check", *SMALL, *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rule", "lion"],
        ["--rule", "momentum", "--task", "transformer", "--base-width", "8"],
        ["--rule", "torch.optim.SGD", "--degree", "1", "--task", "conv"],
        ["--rule", "adamw", "--task", "autoencoder"],
        ["--rule", "adamw", "--task", "tasks.families.mlp:MLP"],
    ],
)
def test_writes_a_table_and_a_figure(arguments, tmp_path, capsys):
    assert run("--out", str(tmp_path / "check"), *arguments) == 0
    rows = list(csv.DictReader((tmp_path / "check/coordinates.csv").open()))
    assert {row["parametrisation"] for row in rows} == {"standard", "muP"}
    assert {row["width"] for row in rows} == {"32", "64"}
    assert all(float(row["change"]) >= 0 for row in rows)
    assert (tmp_path / "check/coordinates.png").stat().st_size > 10_000
    assert "muP: the largest ratio is" in capsys.readouterr().out


def test_a_learned_optimizer_is_used_without_a_base_width(learned, tmp_path):
    """Its readout is multiplied by 1/64 at width 64, not by 1/2."""
    changes = {}
    for base in ([], ["--base-width", "32"]):
        run("--out", str(tmp_path), "--rule", learned, *base)
        rows = csv.DictReader((tmp_path / "coordinates.csv").open())
        found = {
            (r["parametrisation"], r["width"], r["step"], r["layer"]): float(r["change"])
            for r in rows
        }
        changes[bool(base)] = found["muP", "64", "3", "w3"]
    assert changes[False] < 0.2 * changes[True]


def test_what_a_card_says_of_mup_does_not_scale_twice(learned, tmp_path):
    tables = []
    for in_mup in (False, True):
        loaded = checkpoint.load(learned)
        checkpoint.save(learned, loaded.optimizer, loaded.theta, {"mup": in_mup})
        run("--out", str(tmp_path), "--rule", learned)
        tables.append((tmp_path / "coordinates.csv").read_text())
    assert tables[0] == tables[1]


def test_a_rule_that_reads_a_hessian_gets_it_in_mup(tmp_path):
    run("--rule", "sophia", "--degree", "0", "--out", str(tmp_path))
    assert "muP" in (tmp_path / "coordinates.csv").read_text()


def test_mup_leaves_the_decay_of_a_learned_optimizer_as_it_is(tmp_path, monkeypatch):
    """Where learned steps are zero, the decay is all that happens."""
    optimizer, found = SmallFC(step_mult=0.0, weight_decay=0.1), []

    def check(make, make_rule, *settings):
        found.append((make(8), make_rule))
        return coordinate_check(make, make_rule, *settings)

    for module in (coord_check, report):
        monkeypatch.setattr(module, "coordinate_check", check)
    monkeypatch.setattr(report, "WIDTHS", (4, 8))
    checkpoint.save(tmp_path / "decaying", optimizer, optimizer.initial())
    run("--rule", str(tmp_path / "decaying"), "--out", str(tmp_path))
    report.coordinates(optimizer, optimizer.initial())
    one = torch.ones(1)
    for task, make_rule in found:
        rule = make_rule(task)
        params, state, _, _ = start(task, rule, 1)
        row = Params(params, task.layout)
        info = StepInfo(0, 10, one, 0 * one, one)
        updates, _ = rule.update(torch.zeros_like(params), state, row, info)
        torch.testing.assert_close(updates, 0.1 * params)
    assert len(found) == 4


def test_exit_status_tells_that_lines_are_not_flat(tmp_path, monkeypatch):
    """A rule of degree 0 that is said to have degree 1 gets the wrong multipliers."""
    assert run("--rule", "lion", "--lr", "0.002", "--degree", "1", "--out", str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "torch.optim.NAdam"], "--degree: not known for this rule"),
        (["--rule", "adamw_initial"], "its updates depend on the parameters"),
        (["--task", "nothing"], "--task: got 'nothing', expected one of mlp, conv, transformer"),
        (["--task", "l2o.cli.main:nothing"], "--task: got 'l2o.cli.main:nothing'"),
        (["--task", "os:sep"], "--task: got 'os:sep', which fails: TypeError: 'str' object"),
        (
            ["--task", "tasks.data.loaders:digits"],
            "--task: got 'tasks.data.loaders:digits', which fails",
        ),
        (["--task", "builtins:float"], "'builtins:float', which returns a float, expected a Task"),
        (["--widths", "[]"], "--widths: got [], expected two or more"),
        (["--widths", "[16, 16]"], "--widths: got [16], expected two or more"),
        (["--lr", "0"], "--lr: got 0.0, expected a number above 0"),
        (["--lr", ".nan"], "--lr: got nan, expected a number"),
        (["--degree", ".inf"], "--degree: got inf, expected a number"),
        (["--degree", "1e9"], "--degree: got 1000000000.0, expected a number from -10 to 10"),
        (["--degree=-11"], "--degree: got -11.0, expected a number from -10 to 10"),
        (["--steps", "0"], "steps: got 0"),
        (["--base-width", "0"], "width: got 0, expected a positive integer"),
    ],
)
def test_one_line_for_what_a_user_got_wrong(arguments, message, tmp_path, capsys):
    assert run("--out", str(tmp_path), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_any_task_by_import_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from tasks.families.mlp import MLP\n\ndef wide(width):\n    return MLP(width, 2)\n"
    (tmp_path / "my_networks.py").write_text(text)
    assert run("--task", "my_networks:wide", "--out", str(tmp_path)) == 0
    assert torch.get_num_threads() == 1
