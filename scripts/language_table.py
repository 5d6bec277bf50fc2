"""Write the table of functions in docs/language.md, from the table that everything else reads.

python scripts/language_table.py
"""

from __future__ import annotations

from pathlib import Path

from search.language.functions import OPS, Kind, Op

PAGE = Path(__file__).parents[1] / "docs" / "language.md"
BEGIN, END = "<!-- functions: scripts/language_table.py -->\n", "<!-- end of functions -->\n"
HEAD = ("function", "meaning", "takes", "gives", "also", "in kernels")
NAMES = ("x", "y", "a")
KINDS = {Kind.SCALAR: "number", Kind.ARRAY: "number a tensor", Kind.TENSOR: "tensor"}


def row(op: Op) -> tuple[str, ...]:
    """What is said of a function, in words."""
    names = [
        "c" if kinds == (Kind.SCALAR,) else name
        for name, kinds in zip(NAMES, op.accepts, strict=False)
    ]
    call = f"{names[0]} {op.symbol} {names[1]}" if op.symbol else f"{op.name}({', '.join(names)})"
    facts = ["order does not matter"] if op.commutative else []
    facts += {"never": ["never negative"], "inherited": ["negative only if an argument is"]}.get(
        op.negative, []
    )
    meaning = op.doc.partition("\n")[0] or f"`{op.source.format(*NAMES)}`"
    takes = "; ".join(dict.fromkeys(_kinds(accepted) for accepted in op.accepts))
    gives = "as its arguments" if op.result is None else KINDS[op.result]
    gives = gives if op.accepts else "number"
    return f"`{call}`", meaning, takes, gives, ", ".join(facts), "yes" if op.compiled else "no"


def _kinds(accepted: tuple[Kind, ...]) -> str:
    return "any" if len(accepted) == len(Kind) else " or ".join(KINDS[kind] for kind in accepted)


def table() -> str:
    """Markdown, a line a function."""
    rows = [HEAD, ("---",) * len(HEAD), *map(row, OPS.values())]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def written(page: str) -> str:
    """The ``page`` with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
