"""The commands that look at programs and at runs of programs: show, export, simplify."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from search.loading import load, rule
from search.record.archive import open_existing
from search.record.salvage import salvage
from search.run import summary as showing
from search.zoo.entry import Entry
from tasks.commands.parser import Arguments, named, parser
from tasks.display.plain import Console
from tasks.runs import files

RULE = "a run, a zoo name, a program file, my_module:NAME or a shipped rule's folder"
EXACT_SECONDS, SECONDS = 10.0, 900.0
"""What simplifying may take: exactly, where a person waits for it; and with tasks."""


def show(arguments: Arguments) -> int:
    """The best programs of a run with scores and intervals, and the lineage of one.

    l2o show runs/first
    l2o show runs/first --id 1234 --json
    l2o show "ours=runs/first"
    l2o show runs/damaged --salvage runs/saved
    """
    options_of = parser(show)
    options_of.add_argument(
        "run", type=str, help="the directory of a run, finished or not; NAME=RUN calls it so"
    )
    options_of.add_argument("--id", type=int | None, default=None, help="of a candidate")
    options_of.add_argument("--top", type=int, default=10, help="how many programs")
    options_of.add_argument("--json", action="store_true", help="as one JSON document")
    options_of.add_argument(
        "--salvage", type=Path | None, default=None, help="a new directory for what is not damaged"
    )
    options = options_of.parse_args(list(arguments))
    if options.top < 0:
        raise ValueError(f"--top: got {options.top}, expected at least 0")
    name, folder = named(options.run)
    if options.salvage is not None:
        lost = salvage(folder, options.salvage)
        said = f"all but {len(lost)} groups of rows: {', '.join(lost)}" if lost else "everything"
        print(f"saved {options.salvage}: {said}", file=sys.stderr)
        folder = options.salvage
    with open_existing(folder, readonly=True) as archive:
        if options.id is None:
            content = showing.summary(archive, top=options.top)
        else:
            content = {"lineage": showing.lineage(archive, options.id)}
    if options.json:
        print(json.dumps({"name": name} | content, indent=2))
        return 0
    console = Console()
    if name != str(named(options.run)[1]):
        console.print(f"{name}:")
    showing.render(content, console)
    return 0


def export(arguments: Arguments) -> int:
    """Write a rule as a torch.optim.Optimizer: one file that needs only torch.

    l2o export runs/first --id best --out my_rule.py
    l2o export lion --out lion.py
    """
    options_of = parser(export)
    options_of.add_argument("rule", type=str, help=RULE)
    options_of.add_argument("--id", type=str, default="best", help="of a run's candidate, or best")
    options_of.add_argument("--out", type=Path, required=True, help="a new Python file")
    options_of.add_argument("--name", type=str | None, default=None, help="of the class")
    options = options_of.parse_args(list(arguments))
    given = load(options.rule, None if options.id == "best" else _number(options.id))
    name = options.name or (options.out.stem if Path(options.rule).is_dir() else given.name)
    print(f"wrote {options.out}: class {save_optimizer(given, options.out, name)}")
    return 0


def save_optimizer(rule: Entry, out: Path, name: str) -> str:
    """Write ``rule`` as a Python file that defines a torch.optim.Optimizer; what it is called.

    Raises ValueError for a file that exists, or would hide another.
    """
    from search.export import to_source

    if out.exists():
        raise ValueError(f"--out: {out} exists and is not overwritten")
    if out.stem in {"torch", *sys.stdlib_module_names}:
        raise ValueError(f"--out: {out} would hide a module of that name; choose another")
    source = to_source(rule.program, name, rule.origin, rule.default_lr, rule.weight_decay)
    files.save_text(out, source)
    return re.findall(r"^class (\w+)", source, re.MULTILINE)[-1]


def simplify(arguments: Arguments) -> int:
    """The same rule in fewer statements, step by step, each with its reason.

    Exact steps are checked by running both programs. Then tasks decide what else makes no
    difference: each such step is shown with its effect and a 95 % interval. When time is up, the
    best so far is shown.

    l2o simplify runs/first
    l2o simplify my_rule.txt --suite proxy --json
    l2o simplify my_rule.txt --exact --seconds 60
    """
    from search.simplify import chain as simplifying
    from search.simplify.ablate import Ablation

    options_of = parser(simplify)
    options_of.add_argument("rule", type=str, help=RULE)
    options_of.add_argument("--exact", action="store_true", help="only what needs no tasks")
    options_of.add_argument(
        "--seconds",
        type=float | None,
        default=None,
        help=f"for all of it; default: {EXACT_SECONDS:g} with --exact, {SECONDS:g} without",
    )
    options_of.add_argument("--json", action="store_true", help="as one JSON document")
    options_of.add_class_arguments(Ablation, None)
    given: Any = options_of.parse_args(list(arguments))
    fields = {name: getattr(given, name) for name in Ablation.__dataclass_fields__}
    try:
        settings = None if given.exact else Ablation(**fields)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    seconds = (
        (EXACT_SECONDS if given.exact else SECONDS) if given.seconds is None else given.seconds
    )
    console = Console(stderr=True)
    with console.status("simplifying") as status:
        report = simplifying.simplify(
            rule(given.rule), settings, lambda step: status.update(step.what), seconds
        )
    if given.json:
        print(json.dumps(simplifying.to_json(report), indent=2))
    else:
        print(simplifying.to_text(report))
    return 0


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--id: got {text!r}, expected a candidate's number, or best")
    return int(text)
