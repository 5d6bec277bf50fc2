"""What is known of the known optimizers; most of it is measured."""

from __future__ import annotations

import json
from typing import Any

from search.behaviour.degree import homogeneity
from search.behaviour.kind import classify
from search.commands.zoo import CURVED, KNOWN
from search.language.program import to_text
from search.zoo import NAMED
from search.zoo.entry import Entry

NO_PROGRAM = {
    "Shampoo, SOAP, K-FAC": "states that are matrices of another shape, and their decompositions",
    "M-FAC": "a window of a thousand past gradients and their Gram matrix",
    "Adafactor, factored": "means of rows and of columns; adafactor_unfactored is what it does to "
    "vectors",
}
"""Optimizers that no program can be, and why."""
SCALES = {0.0: "invariant", 1.0: "linear", None: "mixed"}


def facts(entry: Entry) -> dict[str, Any]:
    """One entry; ``scale`` says what a factor on all gradients does to updates."""
    program, found = entry.program, homogeneity(entry.program)
    kind = None if "h" in program.inputs else classify(program)
    return {
        "name": entry.name,
        "states": len(program.states),
        "statements": program.length,
        "kind": CURVED if kind is None else kind.name,
        "scale": "–" if kind is None else SCALES.get(kind.degree, f"degree {kind.degree}"),
        "mup": found.label,
        "mup_reason": found.reason,
        "paper": entry.origin,
        "text": to_text(program),
    }


def measured() -> dict[str, Any]:
    """All of it, as JSON can hold it."""
    return {"rules": [facts(entry) for entry in NAMED.values()], "no_program": NO_PROGRAM}


if __name__ == "__main__":  # what ``search.commands.zoo`` shows
    text = json.dumps(measured(), indent=1, ensure_ascii=False) + "\n"
    KNOWN.write_text(text, encoding="utf-8")
