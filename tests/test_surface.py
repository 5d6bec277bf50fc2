"""What people import: listed at three doors, all that documents use, nothing from deeper inside."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOORS = ("tasks", "search", "l2o")
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
DEEP = re.compile(
    r"\b(?:from\s+(?:tasks|search|l2o)\.[\w.]+\s+import|import\s+(?:tasks|search|l2o)\.\w+)"
)
TAKEN = re.compile(r"\bfrom\s+(tasks|search|l2o)\s+import\s+([\w, ]+)")


@pytest.mark.parametrize("door", DOORS)
def test_a_door_has_what_it_lists(door):
    module = import_module(door)
    for name in module.__all__:
        found = getattr(module, name)
        assert getattr(found, "__module__", door).startswith(door.split(".")[0]), name
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{door}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("door", DOORS)
def test_type_checkers_see_what_the_door_lists(door):
    tree = ast.parse((ROOT / door / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and "TYPE" in ast.dump(node.test)
    )
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert seen == import_module(door).HOMES


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_stay_at_the_doors(path):
    text = path.read_text(encoding="utf-8")
    assert DEEP.findall(text) == []
    for door, names in TAKEN.findall(text):
        for name in re.findall(r"\w+", names):
            assert name in import_module(door).__all__, f"{path.name}: {door}.{name}"


def test_the_reference_lists_all_of_it():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    assert listed == {name for door in DOORS for name in import_module(door).__all__}
