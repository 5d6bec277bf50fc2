"""The text of a Python file and of all that it imports from beside it: by this it is told from
another one, without running it."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable
from pathlib import Path


def code_of(thing: Callable[..., object]) -> list[str]:
    """The text that a class or function is from, and all that it imports; none where it is not
    written in Python."""
    try:
        file = inspect.getsourcefile(thing)
    except TypeError:
        return []
    return [*sources(Path(file)).values()] if file else []


def sources(file: Path) -> dict[Path, str]:
    """The text of a Python file and of those that it imports, directly or not, from beside it or
    from the working directory."""
    found: dict[Path, str] = {}
    roots, waiting = {file.parent.absolute(), Path.cwd()}, [file.absolute()]
    while waiting:
        if (file := waiting.pop()) in found or not file.is_file():
            continue
        found[file] = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(found[file])):
            for root in roots:
                waiting += _imported(node, root, file.parent)
    return found


def _imported(node: ast.AST, root: Path, here: Path) -> list[Path]:
    """The files that an import may read, whether they are there or not; ``here``: that of ``node``
    is in this folder."""
    if isinstance(node, ast.Import):
        base, names = root, [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = [".."] * (node.level - 1)
        base = Path(os.path.normpath(here.joinpath(*above))) if node.level else root
        names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
    else:
        return []
    paths = [base / "__init__.py"] if base != root else []
    for name in names:
        place = base
        for part in filter(None, name.split(".")):  # the last may be what a module holds
            place = place / part
            paths += [place / "__init__.py", Path(f"{place}.py")]
    return paths
