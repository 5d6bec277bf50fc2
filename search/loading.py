"""What a RULE can be on the command line and in a script: a known optimizer, a run or a file."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

from search import zoo
from search.language.program import Program, parse
from search.language.validity import live
from search.record.archive import open_existing
from search.zoo.entry import Entry
from tasks.runs.files import or_shipped

TEXT = "rule.txt"
"""The program in the folder of a shipped rule."""
LEARNED = "theta.safetensors"
"""What the folder of a learned optimizer holds instead."""


class Found(NamedTuple):
    """A program of a run, and where it stands there."""

    id: int
    program: Program
    score: float
    lr: float


def rule(name: str) -> Program:
    """A zoo entry, the winner of a run (its directory), a folder of ``checkpoints`` that holds a
    program, or the program in a file.

    Raises ValueError, naming what is accepted, if it is none of these.
    """
    if name in zoo.NAMED:
        return zoo.NAMED[name].program
    path = _text_of(or_shipped(name))
    return winner(path).program if path.is_dir() else zoo.load(path)


def _text_of(path: Path) -> Path:
    """The file with the program where ``path`` is a shipped rule's folder; else ``path``."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: got a device or the like, expected a file or a directory")
    if (path / LEARNED).is_file():
        raise ValueError(
            f"{path}: a learned optimizer is no program; l2o.load({str(path)!r}).optimizer(...) "
            "makes a torch.optim.Optimizer of it (docs/guide.md)"
        )
    return path / TEXT if (path / TEXT).is_file() else path


def load(name: str | PathLike[str], candidate: int | None = None) -> Entry:
    """What ``rule`` accepts, with its origin and the learning rate to start from.

    ``candidate``: another one of a run than its winner. Raises ValueError as ``rule`` does.
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
    if path is None:
        return zoo.NAMED[str(name)]
    program, stem = zoo.load(path), path.parent.name if path.name == TEXT else path.stem
    lr = 1e-3 if program.form == "direction" else 1.0
    return Entry(stem if stem[:1].isalpha() else f"rule_{stem}", program, f"the file {path}", lr)


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
