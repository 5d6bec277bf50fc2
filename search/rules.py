"""Programs by name: what a person may call a rule on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from search import zoo
from search.archive import open_existing
from search.program import Program, parse


class Found(NamedTuple):
    """A program of a run, and where it stands there."""

    id: int
    program: Program
    score: float


def rule(name: str) -> Program:
    """A zoo entry, the winner of a run (its directory), or the program in a file.

    Raises ValueError, naming what is accepted, if it is none of these.
    """
    if name not in zoo.ZOO and Path(name).is_dir():
        return winner(Path(name)).program
    return zoo.load(name)


def winner(run_dir: Path, candidate: int | None = None) -> Found:
    """The rule that won a run: that of the verdict, or the best so far; or a given candidate.

    Raises ValueError where there is none, or it was never evaluated.
    """
    with open_existing(run_dir, readonly=True) as archive:
        chosen = archive.run().get("winner") if candidate is None else candidate
        records = archive.best(1) if chosen is None else [archive.record(chosen)]
        if not records or records[0].text is None or records[0].score is None:
            which = "nothing" if candidate is None else f"candidate {candidate}"
            raise ValueError(f"{run_dir}: {which} has been evaluated")
        return Found(records[0].id, parse(records[0].text), records[0].score)
