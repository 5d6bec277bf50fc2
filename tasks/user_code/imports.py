"""Code of the user's, found where the user is, for the names that the user gives.

The user's folder is not on ``sys.path``: libraries probe for modules such as ``cuda``, and would
run whatever has that name there. It is a package of its own instead, which nobody else knows:
``my_tasks`` is its part ``my_tasks``. Code of that package has an ``__import__`` of its own, inside
functions, too, which looks there first. What Python comes with, or some library has loaded by
then, is found as ever.

A file may be called ``tasks.py``, as a package of ours is: it is the user's that the user's code
finds, and ours wherever the user's has no such part.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module, util
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

ROOT = Path(__file__).resolve().parents[2]
OURS = ("tasks", "search", "l2o")
PACKAGE = "_yours_"
"""How the packages begin that hold what is the user's."""


def module(name: str) -> ModuleType:
    """The module of a dotted name that the user gave: in the user's folders, else anywhere.

    Runs it. Raises whatever importing it does.
    """
    places = folders(*here())
    return places.load(name) if places.hold(name) else import_module(name)


Trusted = bool | str | Sequence[str]
"""What a user agrees to run: all that a run names, nothing of it, or what has these names."""


def agreed(names: Sequence[str], trusted: Trusted, run: Path) -> None:
    """Say which code the files of a ``run`` name, and that it is imported now.

    Raises ValueError unless the user has agreed to that: to all of it, or to these very names.
    """
    listed = ", ".join(dict.fromkeys(map(repr, names)))  # whose characters a terminal may show
    known = (
        {trusted} if isinstance(trusted, str) else {*([] if trusted in (True, False) else trusted)}
    )
    if known and known != {*names}:
        got = ", ".join(map(repr, sorted(known)))
        raise ValueError(f"--trust: got {got}, but {run} names {listed or 'no code'}")
    if not names:
        return
    if not trusted:
        raise ValueError(
            f"{run}: names code that would be run, from here or from what is installed: {listed}; "
            "if you know it, add --trust (in Python, trusted=True)"
        )
    print(f"--trust: running {listed}", file=sys.stderr)


def file(path: Path) -> ModuleType:
    """What a Python file defines; what it imports may lie beside it, or where the user is."""
    return folders(path.absolute().parent, *here()).run(path.absolute())


def here() -> list[Path]:
    """Where the user is: the working directory, and the folder of the script that runs."""
    return [Path.cwd(), *(path.parent for path in script())]


def script() -> list[Path]:
    """The file that Python was started with, if it was one; a command's has no ending."""
    main = sys.modules.get("__main__")
    path = Path(getattr(main, "__file__", None) or "")
    by_name = getattr(main, "__spec__", None) is not None  # python -m
    return [path.absolute()] if path.suffix == ".py" and not by_name else []


def shared_path() -> list[str]:
    """``sys.path`` for another process, without the user's folders, which Python puts there; that
    of our packages may be one of them."""
    theirs = {"", *map(str, here())} - {str(ROOT)}
    return [entry for entry in sys.path if entry not in theirs]


def give_way() -> None:
    """Where a user's module of one of our names comes before ours on ``sys.path``, let the files
    of its folder find that one, and no others."""
    before = takewhile(lambda entry: Path(entry).resolve() != ROOT, sys.path)
    places = {Path(entry).absolute() for entry in before if _has_ours(entry)}
    if not places or builtins.__import__ is not _ORDINARY:
        return
    theirs = folders(*sorted(places))

    def chosen(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        own = name.partition(".")[0] in OURS and level == 0 and theirs.wrote(globals or {})
        return (theirs if own else _ORDINARY)(name, globals, locals, fromlist or (), level)

    builtins.__import__ = chosen


_ORDINARY = builtins.__import__


def _has_ours(entry: str) -> bool:
    return any(PathFinder.find_spec(name, [entry]) for name in OURS)


@cache
def folders(*paths: Path) -> Folders:
    """The same for the same ``paths``, so that a module is run once."""
    return Folders(tuple(map(str, dict.fromkeys(paths))))


class Folders:
    """Folders as a package that is on no path; ``paths``: in the order in which they are searched.

    It is the finder of its modules and, called, their ``__import__``.
    """

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        self.package = f"{PACKAGE}{crc32(repr(paths).encode()):08x}"
        sys.modules[self.package] = root = ModuleType(self.package)
        root.__path__ = [*paths]
        sys.meta_path.insert(0, self)

    def load(self, name: str) -> ModuleType:
        return import_module(f"{self.package}.{name}")

    def run(self, path: Path) -> ModuleType:
        """The module in a file, run anew."""
        name = f"{self.package}.{path.stem.replace('.', '_')}"
        spec = util.spec_from_file_location(name, path, loader=_Loader(name, str(path), self))
        assert spec is not None
        sys.modules[name] = found = util.module_from_spec(spec)
        try:
            _Loader(name, str(path), self).exec_module(found)
        except BaseException:
            del sys.modules[name]
            raise
        return found

    def hold(self, name: str) -> bool:
        """Whether a dotted name is a module here. Nothing is run to find out."""
        top, *parts = name.split(".")
        spec = PathFinder.find_spec(top, self.paths)
        if spec is None or _is_loaded(top, spec):
            return False
        for part in parts:
            inside = spec.submodule_search_locations
            if not inside or not (spec := PathFinder.find_spec(part, [*inside])):
                return False
        return bool(spec.origin) or not _is_anywhere(top)  # a folder alone gives way

    def wrote(self, names: Mapping[str, Any]) -> bool:
        """Whether the module of these names is one of ours, or what the user types."""
        path = names.get("__file__")
        if path is None:
            return names.get("__name__") == "__main__"
        places = (Path(path).absolute().is_relative_to(each) for each in self.paths)
        return any(places) and not Path(path).absolute().is_relative_to(ROOT)

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if not name.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path, self)
        return spec

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top in sys.modules
        if level == 0 and (top in OURS or not known) and self.hold(name):
            found = importlib.__import__(f"{self.package}.{name}", None, None, fromlist or ())
            if not fromlist:
                return getattr(found, top)
            if top not in OURS or any(part == "*" or hasattr(found, part) for part in fromlist):
                return found
        return importlib.__import__(name, globals, locals, fromlist or (), level)


class _Loader(SourceFileLoader):
    """Runs a file with an ``__import__`` of its own."""

    def __init__(self, name: str, path: str, importer: Folders) -> None:
        super().__init__(name, path)
        self.importer = importer

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": self.importer}
        super().exec_module(module)


def _is_loaded(name: str, spec: ModuleSpec) -> bool:
    """Whether that very file is, or would be, a module that everybody shares."""
    ours = name in OURS and spec.origin == str(ROOT / name / "__init__.py")
    return ours or getattr(sys.modules.get(name), "__file__", ours) == spec.origin


def _is_anywhere(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ValueError:  # a module that does not say where it is from
        return True


def imported(field: str, name: str, form: str) -> Any:
    """What the import path ``package.module:attribute`` leads to, in the user's folder first; runs
    the module.

    Raises ValueError, which says that ``form`` was expected of the ``field`` or why it fails.
    """
    path, colon, attribute = name.partition(":")
    if not (path and colon and attribute):
        raise ValueError(f"{field}: got {name!r}, expected {form}")
    with yours(field, name, "cannot be imported"):
        return getattr(module(path), attribute)


def name_of_yours(thing: type) -> str:
    """The import path by which ``imported`` finds a class again; none for one in a function."""
    module, _, inner = thing.__module__.partition(".")
    module = inner if module.startswith(PACKAGE) else thing.__module__
    return "" if "<" in thing.__qualname__ else f"{module}:{thing.__qualname__}"


@contextmanager
def yours(field: str, name: str, what: str = "fails") -> Iterator[None]:
    """Code of a user's, which may raise anything, and end the process: say so as a ValueError about
    ``field``."""
    try:
        yield
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise ValueError(f"{field}: got {name!r}, which {what}: {kind}: {error}") from error
