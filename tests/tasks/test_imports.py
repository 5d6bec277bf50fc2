"""The user's folder: found for the names that the user gives, and for nothing else.

Every case is a process of its own in a folder where files lie that must not be run: those that
libraries look for, and some that are called as Python's own and ours are.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.suites import resolve
from tasks.user_code import imports

ROOT = Path(__file__).parents[2]
PROBED = (
    "cuda",
    "psutil",
    "tensorflow",
    "cupy",
    "pandas",
    "yaml",
    "numpy",
    "random",
    "re",
    "torch",
)
PLANTED = "open({!r}, 'a').write(__name__ + chr(10))\n"

TASKS = """
from tasks import Entry
from tasks.data import loaders
from tasks.families import mlp
import torch, random, numpy
import widths
MINE = "the user's"

def suite():
    import lazily
    return Entry(mlp.MLP(width=lazily.WIDTH, data=loaders.digits(), batch_size=16), 12)
"""
OTHER = """
import tasks
from tasks import suite
from package.part import WIDTH
assert tasks.MINE and WIDTH == 3
"""


@pytest.fixture
def folder(tmp_path):
    for name in PROBED:
        (tmp_path / f"{name}.py").write_text(PLANTED.format(str(tmp_path / "ran")))
    for package, init in (("search", "raise RuntimeError('not ours')"), ("package", "")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(init)
    (tmp_path / "package" / "part.py").write_text("from .other import WIDTH\n")
    (tmp_path / "package" / "other.py").write_text("from widths import WIDTH\n")
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "my_tasks.py").write_text(OTHER)
    (tmp_path / "widths.py").write_text("WIDTH = 3\n")
    (tmp_path / "lazily.py").write_text("from widths import WIDTH\n")
    return tmp_path


def python(folder, *arguments, path=""):
    """What a process in ``folder`` says that finds our packages as an installed one does: last."""
    code = f"import sys; sys.path.append({str(ROOT)!r})\n"
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(code)
    searched = os.pathsep.join(filter(None, [path, str(folder / "site"), *filter(None, sys.path)]))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": searched, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


SEARCH = """
import sys
from l2o.cli.main import main
sys.exit(main(
    "search --run-dir run --workers 1 --budget.candidates 12 --evolution.batch 4"
    " --funnel.suite my_tasks:suite --verdict.trials 1 --verdict.seeds 1 --verdict.finalists 1"
    " --verdict.held_out characters --funnel.length 0.5 --verdict.meta_validation null".split()
))
"""


def test_a_search_and_its_workers_run_nothing_but_what_is_named(folder):
    text = SEARCH.replace("characters", "package.held:suite")
    (folder / "package" / "held.py").write_text(
        "from tasks.families.linear import Logistic\nfrom tasks.data.loaders import breast_cancer\n"
        "suite = Logistic(data=breast_cancer(), batch_size=16)\n"
    )
    status, _, err = python(folder, "-P", "-c", text)
    assert status == 0, err
    assert not (folder / "ran").exists()


def test_python_m_does_not_look_where_the_user_is(folder):
    (folder / "re.py").unlink()  # Python itself runs these, before it runs anything of ours
    status, out, err = python(folder, "-m", "l2o.cli", "suites", "tasks:suite")
    assert (status, err) == (0, "")
    assert "mlp-digits-w3-d1" in out
    assert not (folder / "ran").exists()


SCRIPT = """
import l2o, search
import tasks
from tasks import MINE
from tasks.suites import resolve
from l2o.loading import Learned
assert tasks.MINE == MINE
assert search.load("lion").name == "lion"
(entry,) = resolve("tasks:suite")
assert isinstance(entry.task, tasks.mlp.MLP)
print(entry.task.name)
"""


@pytest.mark.parametrize("path", ["", "."])
def test_a_script_beside_files_of_our_names_finds_its_own_and_we_ours(folder, path):
    for name in (*PROBED, "search/__init__"):
        (folder / f"{name}.py").unlink()  # a script's folder comes first in Python itself
    (folder / "script.py").write_text(SCRIPT)
    status, out, err = python(folder, "script.py", path=path)
    assert (status, out, err) == (0, "mlp-digits-w3-d1\n", "")


def test_the_wrong_order_is_explained_in_one_line(folder):
    for name in (*PROBED, "search/__init__"):
        (folder / f"{name}.py").unlink()
    (folder / "tasks.py").write_text("MINE = 1")
    (folder / "script.py").write_text("import tasks\nimport l2o")
    status, _, err = python(folder, "script.py")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: tasks: {folder / 'tasks.py'} was imported before l2o")
    assert "import l2o first" in last


# ----------------------------------------------------------------------------- in this process


def test_names_are_of_the_users_folder_first(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (entry,) = resolve("tasks:suite")
    assert entry.task.name == "mlp-digits-w3-d1"
    assert str(folder) not in sys.path
    assert imports.module("numpy").__name__ != "numpy"  # it was named
    assert (folder / "ran").read_text().endswith("numpy\n")
    assert imports.module("json") is sys.modules["json"]


def test_a_module_is_run_once_and_has_its_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    first = imports.module("widths")
    assert imports.module("widths") is first is sys.modules[first.__name__]
    assert imports.module("package.other").WIDTH == 3


def test_files_find_what_lies_beside_them_and_where_the_user_is(folder, monkeypatch):
    (folder / "rules").mkdir()
    (folder / "rules" / "my.rule.py").write_text("from beside import A\nfrom widths import WIDTH\n")
    (folder / "rules" / "beside.py").write_text("A = 1\n")
    monkeypatch.chdir(folder)
    found = imports.file(Path("rules/my.rule.py"))
    assert (found.A, found.WIDTH) == (1, 3)
    (folder / "rules" / "my.rule.py").write_text("A = 2\n")
    assert imports.file(Path("rules/my.rule.py")).A == 2


def test_ours_is_never_there_twice(monkeypatch):
    """The working directory may be where our packages are."""
    monkeypatch.chdir(ROOT)
    import tasks.families.mlp

    assert imports.module("tasks.families.mlp") is tasks.families.mlp
    assert not imports.folders(ROOT).hold("search.language.program")
