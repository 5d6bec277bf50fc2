"""What is known of the known optimizers, as a table: most of it is measured."""

from __future__ import annotations

from rich import box
from rich.table import Table

from search.homogeneity import homogeneity
from search.kind import classify
from search.zoo import NAMED
from search.zoo.entry import Entry


def table() -> Table:
    """A row a rule; those that read a Hessian come last."""
    made = Table(box=box.SIMPLE_HEAD)
    for title in ("name", "states", "statements", "kind", "muP class", "paper"):
        made.add_column(title, justify="right" if title.startswith("state") else "left")
    for entry in NAMED.values():
        made.add_row(*row(entry))
    return made


def row(entry: Entry) -> tuple[str, ...]:
    """One entry in words."""
    program = entry.program
    kind = "reads a Hessian" if "h" in program.inputs else classify(program).name
    size = str(len(program.states)), str(program.length)
    return (entry.name, *size, kind, homogeneity(program).label, entry.origin)
