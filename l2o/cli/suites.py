"""The commands ``l2o suites`` and ``l2o data``: what there is to train on."""

from __future__ import annotations

import json
from typing import Any

from rich import box
from rich.table import Table

from tasks import cards
from tasks.checks import meant
from tasks.commands.parser import Arguments, parser
from tasks.data.fetch import SOURCES
from tasks.data.fetch import main as fetch
from tasks.data.loaders import DATASETS, LICENCES, status
from tasks.display.plain import Console
from tasks.families.named import families
from tasks.suites import SUITES, names, resolve


def suites(arguments: Arguments) -> int:
    """The named suites and families of tasks, and a card of each task of one.

    l2o suites
    l2o suites held_out
    l2o suites "mlp(width=64, depth=2)"
    l2o suites my_module:my_suite --json
    """
    options_of = parser(suites)
    options_of.add_argument("name", type=str, nargs="?", default=None, help="or an import path")
    options_of.add_argument("--json", action="store_true", help="as one JSON document")
    options = options_of.parse_args(list(arguments))
    if options.name is None and not options.json:
        width = max(map(len, SUITES)) + 2
        for name, suite in SUITES.items():
            first = (suite.__doc__ or "").strip().splitlines()[0]
            print(f"{name:{width}}{first.replace('``', '')}")
        print(
            f"\nFamilies, suites of one task: {', '.join(families())}; mlp(width=64) names fields."
        )
        print("l2o suites NAME shows the tasks of a suite.")
        return 0
    suites_of = {name: resolve(name) for name in ([options.name] if options.name else SUITES)}
    found = {
        name: dict(zip(names(suite), map(cards.card, suite), strict=True))
        for name, suite in suites_of.items()
    }
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(*(_cards(name, tasks) for name, tasks in found.items()))
    return 0


def _cards(name: str, cards: dict[str, dict[str, Any]]) -> Table:
    shown = Table(
        title=name,
        caption="examples: training / validation / test; MFLOP: of one gradient over a minibatch, "
        "matrix products and convolutions; AdamW: final validation loss, tuned by 16 trials, mean "
        "of 5 fresh seeds and its 95 % interval (scripts/studies/tune_references.py); –: not "
        "measured on these data",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("task", overflow="fold")
    for column in ("examples", "params", "batch", "steps", "MFLOP", "AdamW"):
        shown.add_column(column, justify="right")
    for task, c in cards.items():
        splits = " / ".join(f"{n:,}" for n in c["examples"].values())
        sizes = (f"{c[key]:,}" for key in ("parameters", "batch_size", "steps"))
        cost = f"{c['flops_a_step'] / 1e6:.3g}"
        shown.add_row(task, splits, *sizes, cost, _reference(c["reference"]))
    return shown


def _reference(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.4g} [{found['low']:.4g}, {found['high']:.4g}]"


def data(arguments: Arguments) -> int:
    """Which data sets there are, under which licence; fetch those that need it.

    l2o data list
    l2o data fetch fashion_mnist
    """
    options_of = parser(data)
    options_of.add_argument("action", type=str, help="list or fetch")
    options_of.add_argument("names", type=str, nargs="*", default=[], help="of those to fetch")
    options = options_of.parse_args(list(arguments))
    if options.action == "fetch":
        if not options.names:
            raise ValueError(f"data fetch: got no name, expected some of {', '.join(SOURCES)}")
        for name in options.names:
            if name in DATASETS and name not in SOURCES:
                raise ValueError(
                    f"data fetch: got {name}, expected {', '.join(SOURCES)}: {status(name)}"
                )
        fetch(options.names)
        return 0
    if options.action != "list":
        likely = meant(options.action, ("list", "fetch"))
        raise ValueError(f"data: got {options.action!r}, expected list or fetch{likely}")
    width = max(map(len, LICENCES.values())) + 2
    for name in DATASETS:
        print(f"{name:16}{LICENCES[name]:{width}}{status(name).removeprefix(f'{name}: ')}")
    return 0
