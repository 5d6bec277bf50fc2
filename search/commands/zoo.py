"""The known optimizers as ``l2o zoo`` shows them.

What is measured of them comes with the project, in ``search/zoo/known.json``, which
``python -m search.commands.zoo_table`` writes and a test measures again: so a list is there at
once. What of ``search/zoo/rules`` is not in it yet is measured when it is asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tasks.commands.parser import Arguments, parser

KNOWN = Path(__file__).parents[1] / "zoo" / "known.json"
TEXTS = KNOWN.with_name("rules")
CURVED = "reads a Hessian"
CAPTION = (
    "states: copies of the parameters that a rule keeps. scale: what a factor on all gradients "
    "does to updates: nothing (invariant), the same (linear), or it depends (mixed); –: not known."
)


def zoo(arguments: Arguments) -> int:
    """Known optimizers as programs: what is known of all, or the text of one.

    States are what a rule remembers of each parameter, in copies of it. The kind and the muP class
    (how updates scale with gradients, which decides how the learning rate scales with the width)
    are measured.

    l2o zoo
    l2o zoo lion
    l2o zoo --json
    """
    options_of = parser(zoo)
    options_of.add_argument("name", type=str, nargs="?", default=None, help="of one")
    options_of.add_argument("--json", action="store_true", help="all, with their texts")
    options = options_of.parse_args(list(arguments))
    if options.name is not None:
        print(_text(options.name), end="")
        return 0
    if options.json:
        print(json.dumps(known(), indent=2))
        return 0
    Console(width=None if sys.stdout.isatty() else 120).print(table())
    return 0


def _text(name: str) -> str:
    texts = {rule["name"]: rule["text"] for rule in known()["rules"]}
    if name in texts:
        return texts[name]
    from search.loading import rule  # of a run or a file, or what is wrong with the name

    return str(rule(name))


def known(texts: Path = TEXTS) -> dict[str, Any]:
    """All of it, as JSON can hold it; those that read a Hessian come last."""
    shipped = json.loads(KNOWN.read_text(encoding="utf-8"))
    names = {path.stem for path in texts.glob("*.txt")}
    listed = [rule for rule in shipped["rules"] if rule["name"] in names]
    for name in names - {rule["name"] for rule in listed}:
        from search.commands.zoo_table import facts  # imports torch
        from search.zoo import from_file

        listed.append(facts(from_file(texts / f"{name}.txt")))
    listed.sort(key=lambda rule: (rule["kind"] == CURVED, rule["name"]))
    return shipped | {"rules": listed}


def table() -> Table:
    """A row a rule, and what is no program below them."""
    found = known()
    absent = "\n".join(f"{names}: {why}." for names, why in found["no_program"].items())
    made = Table(
        box=box.SIMPLE_HEAD,
        caption=f"{CAPTION}\n\nWhat is no program, and why:\n{absent}",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    for title in ("name", "states", "statements", "kind", "scale", "muP class", "paper"):
        made.add_column(title, justify="right" if title.startswith("state") else "left")
    for rule in found["rules"]:
        made.add_row(*row(rule))
    return made


def row(found: Mapping[str, Any]) -> tuple[str, ...]:
    """One entry in words."""
    return tuple(
        str(found[name])
        for name in ("name", "states", "statements", "kind", "scale", "mup", "paper")
    )
