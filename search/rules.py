"""Programs by name: what a person may call a rule on the command line."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

from search.archive import open_existing
from search.program import OPTIONAL_INPUTS, Program, parse
from search.zoo import ZOO


def program_of(name: str) -> Program:
    """The program that ``name`` means: a zoo entry, the winner of a run, or a program file.

    Raises ValueError, naming what is accepted, if it is none of these.
    """
    if name in ZOO:
        return ZOO[name].program
    path = Path(name)
    if path.is_dir():
        return _winner(path)
    if path.is_file():
        return parse(path.read_text(encoding="utf-8"), filename=name)
    raise ValueError(
        f"no rule {name!r}: expected a file with a program, the directory of a run, "
        f"or one of {', '.join(ZOO)}"
    )


def _winner(run_dir: Path) -> Program:
    with open_existing(run_dir, readonly=True) as archive:
        winner = archive.run().get("winner")
        best = archive.best(1) if winner is None else [archive.record(winner)]
        if not best or best[0].text is None:
            raise ValueError(f"{run_dir}: nothing has been evaluated yet")
        return parse(best[0].text)


def with_states(program: Program, states: int) -> Program:
    """The same program with at least ``states`` state variables, the new ones unused."""
    if states < 0:
        raise ValueError(f"states: got {states}, expected at least 0")
    taken = {*program.inputs, *(statement.target for statement in program.statements)}
    names = (name for k in count(1) for name in (("m", "v")[k - 1] if k < 3 else f"s{k}",))
    spare = (name for name in names if name not in taken)
    missing = max(0, states - len(program.states))
    added = tuple(next(spare) for _ in range(missing))
    optional = tuple(name for name in program.inputs if name in OPTIONAL_INPUTS)
    rest = tuple(name for name in program.inputs if name not in OPTIONAL_INPUTS)
    return replace(program, inputs=(*rest, *added, *optional))
