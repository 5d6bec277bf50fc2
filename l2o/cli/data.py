"""The command ``l2o data``."""

from __future__ import annotations

from tasks.checks import meant
from tasks.commands.parser import Arguments, parser
from tasks.data.fetch import SOURCES, main


def data(arguments: Arguments) -> int:
    """Which data sets there are, under which licence; fetch those that need it.

    l2o data list
    l2o data fetch fashion_mnist
    """
    from tasks.data.loaders import DATASETS, LICENCES, status

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
        main(options.names)
        return 0
    if options.action != "list":
        likely = meant(options.action, ("list", "fetch"))
        raise ValueError(f"data: got {options.action!r}, expected list or fetch{likely}")
    width = max(map(len, LICENCES.values())) + 2
    for name in DATASETS:
        print(f"{name:16}{LICENCES[name]:{width}}{status(name).removeprefix(f'{name}: ')}")
    return 0
