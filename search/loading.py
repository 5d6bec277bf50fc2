"""What a RULE can be on the command line and in a script: a known optimizer, a run, a file or a
name in a user's module."""

from __future__ import annotations

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from search import zoo
from search.language.program import Program, parse
from search.language.validity import live
from search.record.archive import open_existing
from search.zoo import TEXT
from search.zoo.entry import Entry, from_text
from tasks.runs.files import one_thing, or_shipped
from tasks.user_code.imports import imported

LEARNED = "theta.safetensors"
"""What the folder of a learned optimizer holds instead."""


class Found(NamedTuple):
    """A program of a run, and where it stands there."""

    id: int
    program: Program
    score: float
    lr: float


def rule(name: str) -> Program:
    """The program of what ``load`` accepts. Raises ValueError as ``load`` does."""
    return load(name).program


def _text_of(path: Path) -> Path:
    """The file with the program where ``path`` is a shipped rule's folder; else ``path``."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: got a device or the like, expected a file or a directory")
    one_thing(path)
    if (path / LEARNED).is_file():
        raise ValueError(
            f"{path}: a learned optimizer is no program; l2o.load({str(path)!r}).optimizer(...) "
            "makes a torch.optim.Optimizer of it (docs/guide.md)"
        )
    return path / TEXT if (path / TEXT).is_file() else path


def load(name: str | PathLike[str], candidate: int | None = None) -> Entry:
    """A zoo entry, the winner of a run (its directory), a folder of ``checkpoints`` that holds a
    program, the entry in a text file, or the one that ``package.module:NAME`` imports.

    ``candidate``: another one of a run than its winner. Raises ValueError, naming what is accepted,
    if it is none of these.
    """
    path = None if name in zoo.NAMED else _text_of(or_shipped(name))
    if path is not None and path.is_dir():
        found = winner(path, candidate)
        origin = (
            f"candidate {found.id} of the run {path}; score {found.score:+.4f}, lr {found.lr:.2g}"
        )
        return Entry(f"rule_{found.id}", found.program, origin, found.lr)
    if candidate is not None:
        raise ValueError(f"candidate: got {candidate}, expected none: {name} is no run")
    if path is None or path.exists() or not _IMPORT_PATH.fullmatch(str(name)):
        return zoo.load(path or str(name))
    entry = of_module(str(name))
    if entry is None:
        raise ValueError(
            f"rule: got {str(name)!r}, which is no program; expected text, a Program or an Entry"
        )
    return entry


_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def of_module(name: str) -> Entry | None:
    """The entry that ``package.module:NAME`` leads to: text, a Program or an Entry of the user's.
    None where it leads to something else, such as a class. Imports the module.

    Raises ValueError for what cannot be imported, or text that is no rule.
    """
    if not _IMPORT_PATH.fullmatch(name):
        return None
    value = imported("rule", name, "package.module:NAME")
    if isinstance(value, Entry):
        program = from_text(str(value.program), value.name, value.origin, name).program
        return replace(value, program=program)
    called = name.rpartition(":")[2]
    return from_text(str(value), called, name, name) if isinstance(value, str | Program) else None


def winner(run_dir: Path, candidate: int | None = None) -> Found:
    """The rule that won a run: that of the verdict, or the best so far; or a given candidate.

    Statements without effect, which a search keeps to build on, are left out.
    Raises ValueError where there is none, or it was never evaluated.
    """
    with open_existing(run_dir, readonly=True) as archive:
        chosen = archive.run().get("winner") if candidate is None else candidate
        records = archive.best(1) if chosen is None else [archive.record(chosen)]
        if not records or records[0].text is None or records[0].score is None:
            if candidate is None:
                raise ValueError(f"{run_dir}: nothing has been evaluated")
            raise ValueError(f"{run_dir}: candidate {candidate} was not evaluated")
        best = records[0]
        assert best.text is not None
        assert best.score is not None
        assert best.lr is not None
        return Found(best.id, live(parse(best.text)), best.score, best.lr)
