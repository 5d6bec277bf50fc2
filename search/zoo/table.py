"""What is known of the known optimizers, as a table: most of it is measured."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from search.homogeneity import homogeneity
from search.kind import classify
from search.program import to_text
from search.zoo import NAMED
from search.zoo.entry import Entry
from search.zoo.literature import NO_PROGRAM

SCALES = {0.0: "invariant", 1.0: "linear", None: "mixed"}
CAPTION = (
    "states: copies of the parameters that a rule keeps. scale: what a factor on all gradients "
    "does to updates: nothing (invariant), the same (linear), or it depends (mixed); –: not known."
)


def facts(entry: Entry) -> dict[str, Any]:
    """One entry; ``scale`` says what a factor on all gradients does to updates."""
    program, found = entry.program, homogeneity(entry.program)
    kind = None if "h" in program.inputs else classify(program)
    return {
        "name": entry.name,
        "states": len(program.states),
        "statements": program.length,
        "kind": "reads a Hessian" if kind is None else kind.name,
        "scale": "–" if kind is None else SCALES.get(kind.degree, f"degree {kind.degree}"),
        "mup": found.label,
        "mup_reason": found.reason,
        "paper": entry.origin,
        "text": to_text(program),
    }


def known() -> dict[str, Any]:
    """All of it, as JSON can hold it."""
    return {"rules": [facts(entry) for entry in NAMED.values()], "no_program": NO_PROGRAM}


def table() -> Table:
    """A row a rule; those that read a Hessian come last, and what is no program below them."""
    absent = "\n".join(f"{names}: {why}." for names, why in NO_PROGRAM.items())
    made = Table(
        box=box.SIMPLE_HEAD,
        caption=f"{CAPTION}\n\nWhat is no program, and why:\n{absent}",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    for title in ("name", "states", "statements", "kind", "scale", "muP class", "paper"):
        made.add_column(title, justify="right" if title.startswith("state") else "left")
    for entry in NAMED.values():
        made.add_row(*row(entry))
    return made


def row(entry: Entry) -> tuple[str, ...]:
    """One entry in words."""
    found = facts(entry)
    return tuple(
        str(found[name])
        for name in ("name", "states", "statements", "kind", "scale", "mup", "paper")
    )
