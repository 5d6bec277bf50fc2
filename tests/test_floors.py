"""Who may import whom: a file imports from its own room, and from rooms on lower floors.

Only ``l2o.cli`` knows both engines. Imports are read from the source, those inside functions
included. What is imported for type checkers alone counts, too.
"""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "tasks": "types checks < runs user_code < rng executors display < commands data oracles "
    "< families inner optim < suites mup < cards < evaluation",
    "search": "language record < interpreter < behaviour < export fitness < zoo "
    "< evolution simplify < run < loading < commands",
    "l2o": "base < architectures estimators < checkpoint < loading meta < cli",
}
ENGINES = {"tasks": {"tasks"}, "search": {"search", "tasks"}, "l2o": {"l2o", "tasks"}}
HEIGHTS = {
    f"{package}.{room}": height
    for package, floors in FLOORS.items()
    for height, floor in enumerate(floors.split(" < "))
    for room in floor.split()
}
HOMES = {
    f"{package}.{name}": home
    for package in FLOORS
    for name, home in import_module(package).HOMES.items()
}
"""What comes through a door comes from where it is defined."""
MOST = 15
"""Files of a room."""
SOURCES = [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {
                HOMES.get(f"{node.module}.{alias.name}", f"{node.module}.{alias.name}")
                for alias in node.names
            }
    return {n for n in names if n.split(".")[0] in (*FLOORS, "scripts", "tests")}


def test_every_room_has_a_floor_and_few_files():
    rooms = {name(path.parent).replace("/", ".") for path in SOURCES} - FLOORS.keys()
    outside = {
        name(p).removesuffix(".py").replace("/", ".") for p in SOURCES if p.parent.name in FLOORS
    }
    inside = {other for other in outside if not other.endswith("__init__")}
    assert {room(other) for other in rooms | inside} == HEIGHTS.keys()
    counts = {other: len([*(ROOT / other.replace(".", "/")).glob("*.py")]) for other in rooms}
    assert {other: count for other, count in counts.items() if count > MOST} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_lead_downwards(path):
    package, *inside = path.relative_to(ROOT).with_suffix("").parts
    here = f"{package}.{inside[0]}"
    if here == "l2o.cli":
        assert not {
            other for other in imported(path) if other.split(".")[0] in ("scripts", "tests")
        }
        return
    others = imported(path)
    assert {other for other in others if other.split(".")[0] not in ENGINES[package]} == set()
    if inside == ["__init__"]:  # the door: whatever it names is imported when somebody asks for it
        return
    upwards = {
        other
        for other in others
        if other.split(".")[0] == package
        and room(other) != here
        and HEIGHTS.get(room(other), 99) >= HEIGHTS[here]
    }
    assert upwards == set()


def test_a_kernel_is_imported_by_its_reference_alone():
    kernels = {
        "l2o.architectures.kernels.cpu": "l2o/architectures/small_fc.py",
        "l2o.architectures.kernels.gpu": "l2o/architectures/small_fc.py",
        "search.interpreter.cpu": "search/interpreter/population.py",
        "search.interpreter.gpu": "search/interpreter/population.py",
    }
    importers = {kernel: {name(p) for p in SOURCES if kernel in imported(p)} for kernel in kernels}
    assert importers == {kernel: {user} for kernel, user in kernels.items()}
