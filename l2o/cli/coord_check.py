"""The command ``l2o coord-check``: is a network in muP, with a given rule?"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2o.base import LearnedRule
from l2o.cli.entrants import entrant
from search.behaviour.degree import degree
from search.interpreter.population import Population
from tasks.checks import meant
from tasks.commands.parser import Arguments, parser
from tasks.data.loaders import help_text
from tasks.families.conv import Conv
from tasks.families.mlp import MLP
from tasks.families.named import families, is_family, with_fields
from tasks.families.transformer import Transformer
from tasks.mup.coordinate_plot import draw
from tasks.mup.coordinates import Coordinates, coordinate_check
from tasks.mup.scaling import Mup, mup_at, scaled
from tasks.runs.environment import prepare
from tasks.runs.files import save_text, writable
from tasks.types import Task, UpdateRule
from tasks.user_code.imports import imported, yours

NETWORKS: dict[str, Callable[[int], Task]] = {
    "mlp": lambda width: MLP(width, depth=3, batch_size=64),
    "conv": lambda width: Conv(width, depth=2),
    "transformer": lambda width: Transformer(width, 1, 2, help_text(16), batch_size=8),
}
LIMIT = 2.0
"""In muP no layer's change may differ by more than this factor between widths."""
STEEPEST = 10
"""The largest degree of a rule in its gradients: multipliers are the width to this power."""


def coord_check(arguments: Arguments) -> int:
    """See how much activations change in training at growing widths, with and without muP.

    Trains for a few steps at each width, with one learning rate for all. Writes a table,
    coordinates.csv, and a figure, coordinates.png. Exit status 1 where the lines are not flat in
    muP: some layer's change differs by more than a factor 2 between widths.

    l2o coord-check --out check
    l2o coord-check --task transformer --rule lion --widths "[64,128,256]" --steps 16 --out check
    l2o coord-check --rule checkpoints/mulo_small --out check
    l2o coord-check --task my_module:network_of_width --rule torch.optim.NAdam --degree 0 --out c
    """
    options_of = parser(coord_check)
    add = options_of.add_argument
    named = f"{', '.join(_networks())}, or the import path of a function from a width to a task"
    add("--task", type=str, default="mlp", help=named)
    add("--rule", type=str, default="adamw", help="anything that l2o evaluate takes")
    add("--widths", type=list[int], default=[64, 128, 256, 512, 1024, 2048], help="two or more")
    add("--steps", type=int, default=8, help="of training, at each width")
    add("--seeds", type=int, default=2, help="how many to take means over")
    add("--lr", type=float | None, default=None, help="default: of the rule")
    add(
        "--degree",
        type=float | None,
        default=None,
        help="of the rule in the gradient; 0: Adam, 1: SGD",
    )
    add("--base-width", type=int | None, default=None, help="default: the smallest width")
    add("--device", type=str, default="cpu", help="cpu or cuda")
    add("--trust", action="store_true", help="import the architecture that --rule names")
    add("--out", type=Path, required=True, help="a directory, new or not")
    options = options_of.parse_args(list(arguments))
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out: got {options.out}, a file; expected a directory, new or not")
    prepare(options.device)
    checks = _checks(options)
    _write(checks, options.out)
    return 0 if max(checks["muP"].ratios().values()) <= LIMIT else 1


def _checks(options: Any) -> dict[str, Coordinates]:
    """The same check under the standard parametrisation and in muP."""
    widths = sorted(set(options.widths))
    if len(widths) < 2:
        raise ValueError(f"--widths: got {widths}, expected two or more, to be compared")
    for name in ("lr", "degree"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{name}: got {value}, expected a number")
    if options.lr is not None and options.lr <= 0:
        raise ValueError(f"--lr: got {options.lr}, expected a number above 0")
    if options.degree is not None and abs(options.degree) > STEEPEST:
        raise ValueError(
            f"--degree: got {options.degree}, expected a number from {-STEEPEST} to {STEEPEST}"
        )
    make, named = _network(options.task), entrant(options.rule, options.trust)

    def make_rule(task: Task) -> UpdateRule:
        found = named.make(task, 1, options.device)
        # Multipliers are added below, whatever the rule was meta-trained in.
        return replace(found, scale=None) if isinstance(found, LearnedRule) else found

    rule = make_rule(make(widths[0]))
    power = _degree(rule) if options.degree is None else options.degree
    # Learned optimizers are meta-trained in muP without a base width, so that is how they are used.
    usual = None if isinstance(rule, LearnedRule) else widths[0]
    base = usual if options.base_width is None else options.base_width
    lr = named.lr if options.lr is None else options.lr

    def in_mup(width: int) -> Mup:
        return mup_at(make, width, base)

    def scaled_rule(task: Task) -> UpdateRule:
        assert isinstance(task, Mup)
        found, scale = make_rule(task), task.multipliers(power)
        if isinstance(found, LearnedRule):  # scales its steps, not the decay that is part of it
            return replace(found, scale=scale)
        return scaled(found, scale)

    settings = (widths, options.steps, range(options.seeds), lr, options.device)
    return {
        "standard": coordinate_check(make, make_rule, *settings),
        "muP": coordinate_check(in_mup, scaled_rule, *settings),
    }


def _write(checks: Mapping[str, Coordinates], out: Path) -> None:
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["parametrisation", "width", "step", "layer", "change"])
    for title, check in checks.items():
        table.writerows([title, *row] for row in check.rows())
        worst = max(check.ratios().values())
        print(f"{title}: the largest ratio is {worst:.3g}\n\n{check}\n")
    save_text(out / "coordinates.csv", text.getvalue())
    draw(checks, out / "coordinates.png")
    print(f"wrote coordinates.csv and coordinates.png in {out}")


def _networks() -> list[str]:
    """The families that have a width; the settings of some are those of ``NETWORKS``."""
    return [*NETWORKS, *(name for name in with_fields("width") if name not in NETWORKS)]


def _network(name: str) -> Callable[[int], Task]:
    if name in NETWORKS:
        return NETWORKS[name]
    known = _networks()
    form = f"one of {', '.join(known)}, or an import path package.module:function"
    function: Any = families()[name] if name in known else None
    function = function or imported("--task", name, form + meant(name, known))

    def make(width: int) -> Task:
        with yours("--task", name):
            task = function(width=width) if is_family(function) else function(width)
        if not isinstance(task, Task):
            kind = type(task).__name__
            raise ValueError(f"--task: got {name!r}, which returns a {kind}, expected a Task")
        return task

    return make


def _degree(rule: UpdateRule) -> float:
    if isinstance(rule, Population):
        return degree(rule.programs[0])
    if isinstance(rule, LearnedRule):  # their features are free of the gradient's scale
        return 0.0
    raise ValueError("--degree: not known for this rule; expected 0 (Adam-like) or 1 (SGD-like)")
