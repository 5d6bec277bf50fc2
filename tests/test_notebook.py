"""The commands as functions of a notebook."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import l2o
import search
from search.record.archive import open_existing
from tasks.commands import notebook
from tasks.runs.files import RunExists
from tests.search import tiny_suites

ROOT = Path(__file__).parents[1]
TINY = {
    "workers": 0,
    "budget": {"candidates": 60},
    "evolution": {"population": 10, "tournament": 3, "batch": 10},
    "funnel": {"suite": tiny_suites.proxy},
    "verdict": {
        "held_out": tiny_suites.held_out,
        "meta_validation": None,
        "finalists": 2,
        "trials": 2,
        "seeds": 2,
    },
}
BRIEF = {
    "train": {"widths": [4], "data": ["digits"]},
    "held_out": {"widths": [6], "data": ["digits"]},
    "estimation": {"horizon": [10, 20], "truncation": 5},
    "evaluation": {"steps": 5, "every": 3},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return search.search(tmp_path_factory.mktemp("runs") / "first", **TINY)


def rows(run_dir):
    with open_existing(run_dir, readonly=True) as archive:
        return [row for row in archive.dump() if row[0] != "run"]


def test_its_run_answers(found, tmp_path):
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    found.best.optimizer(model.parameters(), lr=1e-3).step()
    lengths = [entry.program.length for entry in found.front]
    assert lengths == sorted(set(lengths))
    assert "class MyRule" in found.export(tmp_path / "my_rule.py").read_text()
    with pytest.raises(ValueError, match="not overwritten"):
        found.export(tmp_path / "my_rule.py")
    assert all(path.is_file() for path in found.report(tmp_path / "report.html"))
    assert found == search.Result(found.run_dir)


@pytest.mark.parametrize("pandas", [True, False])
def test_tables(found, monkeypatch, pandas):
    if not pandas:
        monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    else:
        pytest.importorskip("pandas")
    table = found.evaluation
    lines = table.to_dict("records") if pandas else table
    assert {line["stage"] for line in lines} == {"proxy", "held_out"}
    assert all(line["low"] is line["high"] is None for line in lines)  # of two seeds


def test_what_a_run_keeps_makes_it_again(found, tmp_path):
    kept = found.run_dir / "config.yaml"
    assert yaml.safe_load(kept.read_text())["verdict"]["meta_validation"] is None
    again = search.search(tmp_path / "again", config=kept)
    assert rows(again.run_dir) == rows(found.run_dir)


def test_a_callback_ends_a_search_and_a_file_gives_way_to_arguments(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 5\nstart: lion\n")
    fields = TINY | {"seed": 6, "budget": {"candidates": 5000}}
    ended = search.search(
        tmp_path / "run", config=tmp_path / "run.yaml", callback=lambda _: True, **fields
    )
    assert ended.finished
    kept = yaml.safe_load((ended.run_dir / "config.yaml").read_text())
    assert (kept["seed"], kept["start"]) == (6, "lion")
    assert sum(ended.summary["fates"].values()) < 500


def test_stopping_keeps_the_run(capfd, tmp_path, found):
    run, seen, threads = tmp_path / "run", [], torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt, match=r"go on with search.resume\('.*run'\)"):
        search.search(run, callback=lambda _: os.kill(os.getpid(), signal.SIGINT), **TINY)
    assert not search.Result(run).finished
    with pytest.raises(ValueError, match="trusted=True"):
        search.resume(run, workers=0)
    assert search.resume(run, workers=0, trusted=True, callback=seen.append).finished
    assert [progress.batch for progress in seen] == [*range(2, len(seen) + 2)]
    assert capfd.readouterr() == ("", "")
    assert torch.get_num_threads() == threads
    assert rows(run) == rows(found.run_dir)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seeed": 1}, "no field 'seeed'; did you mean seed?"),
        ({"budget": {"minuts": 1}}, "budget.minutes?"),
        ({"budget": {"minutes": -1}}, "--budget.minutes: got -1"),
        ({"seed": "many"}, "--seed: got many, expected a whole number"),
        ({"preset": "quik"}, "did you mean quick?"),
        ({"start": object()}, "fields: got one that YAML cannot hold"),
        ({"config": "nope.yaml"}, "nope.yaml"),
        ({"funnel": {"suite": "__main__:mine"}, "workers": 2}, "workers: got 2, which do not find"),
    ],
)
def test_mistakes_are_value_errors_of_one_line(tmp_path, fields, words):
    with pytest.raises(ValueError) as caught:
        search.search(tmp_path / "new", **fields)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_overwritten(found):
    with pytest.raises(RunExists):
        search.search(found.run_dir)


def test_an_evaluation(capfd, tmp_path):
    said, out = [], tmp_path / "results.sqlite"
    for wanted in (4, 0):  # the second time all is there
        table = l2o.evaluate(
            "lion", tiny_suites.proxy, trials=2, seeds=2, out=out, callback=said.append
        )
        assert len(said) == wanted
        said.clear()
    assert [*table["rule"]] == ["adamw", "lion"] or [*table["rule"]] == ["lion", "adamw"]
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="no field 'trialss'; did you mean trials"):
        l2o.evaluate("lion", trialss=2)


def test_a_meta_training(capfd, tmp_path):
    seen, outer = [], {"steps": 3, "save_every": 1}
    learned = l2o.meta_train(tmp_path / "run", outer=outer, callback=seen.append, **BRIEF)
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert capfd.readouterr() == ("", "")

    def stop(progress):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"l2o.resume"):
        l2o.meta_train(tmp_path / "cut", outer=outer, callback=stop, **BRIEF)
    assert torch.equal(l2o.resume(tmp_path / "cut").theta, learned.theta)
    again = l2o.meta_train(tmp_path / "again", config=tmp_path / "run" / "config.yaml")
    assert torch.equal(again.theta, learned.theta)


SCRIPT = """
import search
from tasks.data.loaders import digits
from tasks.families.linear import Logistic
from tasks.suites import Entry

def mine():
    return Entry(Logistic(data=digits(), batch_size=16), steps=8)

found = search.search("run", funnel={"suite": mine}, budget={"candidates": 40},
    evolution={"population": 10, "tournament": 3, "batch": 10},
    verdict={"held_out": "tests.search.tiny_suites:held_out", "meta_validation": None,
             "finalists": 1, "trials": 2, "seeds": 2})
print(found.finished)
"""


def test_tasks_of_the_script_itself_need_no_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    place = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=place, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## In a notebook.*?```python\n(.*?)```", text, re.DOTALL)
    assert sum(bool(line) for line in block.splitlines()) <= 12
    block = block.replace("2000", "60").replace('"held_out"', '"tests.search.tiny_suites:held_out"')
    block = block.replace('preset="quick"', '**small, preset="quick"').replace(
        'outer={"steps": 20}', "**brief"
    )
    small = {name: TINY[name] for name in ("workers", "evolution", "funnel", "verdict")}
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 2)
    exec(block, {"model": model, "small": small, "brief": BRIEF | {"outer": {"steps": 2}}})
    assert Path("my_rule.py").is_file()


@pytest.mark.parametrize("package", ["tasks", "search", "l2o"])
def test_types_are_told(package):
    assert (ROOT / package / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]
