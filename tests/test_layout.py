"""tasks imports nothing of ours; search and l2o import tasks, and never each other.

Imports are read from the source, those inside functions included.
"""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tasks", "search", "l2o")
ALLOWED = {"tasks": {"tasks"}, "search": {"search", "tasks"}, "l2o": {"l2o", "tasks"}}
COMPOSITION = {
    "l2o/cli/main.py",
    "l2o/cli/entrants.py",
    "l2o/cli/report.py",
    "l2o/cli/coord_check.py",
}
"""Where the engines meet: what a user may name on the command line can belong to either."""
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def imported(path: Path) -> set[str]:
    """Full names of the modules, and of what is taken from them, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check():
    assert {path.parts[len(ROOT.parts)] for path in SOURCES} == set(PACKAGES)
    assert {name(path) for path in SOURCES} >= COMPOSITION
    assert "search.loading" in imported(ROOT / "l2o" / "rules.py")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_the_engines_do_not_know_each_other(path):
    ours = {other.partition(".")[0] for other in imported(path)} & {*PACKAGES, "scripts", "tests"}
    allowed = set(PACKAGES) if name(path) in COMPOSITION else ALLOWED[name(path).split("/")[0]]
    assert ours <= allowed


def test_a_kernel_is_imported_by_its_reference_alone():
    importers = defaultdict(set)
    for path in SOURCES:
        for kernel in (k for k in SOURCES if k.parent.name == "kernels" and k.name[0] != "_"):
            module = name(kernel).removesuffix(".py").replace("/", ".")
            if module in imported(path) and path.parent != kernel.parent:
                importers[module].add(name(path))
    assert importers
    assert all(len(users) == 1 for users in importers.values()), importers
