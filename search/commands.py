"""The commands of the search engine: search, show, export, simplify, data."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from search import run
from search import show as showing
from search.archive import Archive, open_existing
from search.config import Budget, Config
from search.evaluate import Funnel
from search.evolve import Settings
from search.mutate import Mutation
from search.rules import load, rule
from search.salvage import salvage
from search.verdict import Verdict
from search.view import View
from search.zoo import with_states
from search.zoo.entry import Entry
from tasks import files
from tasks.command import KEPT, Arguments, made, parser, preset
from tasks.fields import meant
from tasks.imports import agreed
from tasks.interrupt import Interrupted
from tasks.plain import Console

PRESETS: dict[str, dict[str, Any]] = {
    # Ends within three minutes on two cores.
    "quick": {
        "budget.candidates": 40_000,
        "budget.minutes": 1.25,
        "evolution.population": 100,
        "evolution.tournament": 8,
        "evolution.batch": 48,
        "verdict.finalists": 8,
        "verdict.trials": 24,
        "verdict.seeds": 5,
    },
    # An hour, and more of everything.
    "standard": {
        "budget.candidates": 2_000_000,
        "budget.minutes": 60.0,
        "funnel.length": 2.0,
        "evolution.population": 500,
        "evolution.tournament": 16,
        "evolution.batch": 64,
        "verdict.finalists": 20,
        "verdict.trials": 16,
        "verdict.seeds": 10,
    },
    # A million in ten minutes: batches that fill a GPU, and populations that outlive a batch.
    "gpu": {
        "device": "cuda",
        "budget.candidates": 1_000_000,
        "budget.minutes": 10.0,
        "evolution.population": 8000,
        "evolution.tournament": 32,
        "evolution.batch": 1024,
        "evolution.ahead": 4,
        "verdict.finalists": 20,
        "verdict.trials": 16,
        "verdict.seeds": 10,
    },
}
MOST_STATES = 100
EXACT_SECONDS, SECONDS = 10.0, 900.0
"""What simplifying may take: exactly, where a person waits for it; and with tasks."""
SHARERS = 2
"""Worker processes on a GPU: while one has it, the other prepares its batch. More would each take
its memory and compile its kernels, and the process that makes candidates is slower than two."""


def search(arguments: Arguments) -> int:
    """Evolve update rules, then see whether the best beats AdamW.

    A preset fixes the size of the run; every field of it can be overridden by name:

    l2o search --preset quick --run-dir runs/first
    l2o search --run-dir runs/second --seed 1 --budget.minutes 10 --evolution.population 300
    l2o search --run-dir runs/third --start "[lion,my_rule.txt]" --funnel.suite my_module:my_suite
    """
    asked_for = asked(arguments)
    with begun(asked_for) as archive:
        return _proceed(archive, asked_for.workers)


class Asked(NamedTuple):
    """What a search is begun with; ``kept``: all fields, as a configuration file has them."""

    run_dir: Path
    config: Config
    workers: int
    kept: str


def asked(arguments: Arguments) -> Asked:
    """What the ``arguments`` of ``l2o search`` say. Raises ValueError or ArgumentError."""
    options_of = parser(search)
    options_of.add_argument("--run-dir", type=Path, required=True, help="a new directory")
    options_of.add_argument("--preset", type=str, default="quick", help=" or ".join(PRESETS))
    options_of.add_argument(
        "--start",
        type=str | list[str],
        default="adam_no_correction",
        help="what to start from: zoo names, program files, runs "
        "(default: AdamW as in the Lion paper, without bias correction)",
    )
    options_of.add_argument("--states", type=int, default=2, help="state variables of a program")
    options_of.add_argument("--seed", type=int, default=0, help="of everything random")
    _add_workers(options_of)
    options_of.add_argument("--device", type=str, default="cpu", help="where inner runs live")
    options_of.add_class_arguments(Budget, "budget", instantiate=False)
    options_of.add_class_arguments(Funnel, "funnel", instantiate=False)
    options_of.add_class_arguments(Settings, "evolution", instantiate=False)
    options_of.add_class_arguments(Verdict, "verdict", instantiate=False)
    options_of.link_arguments("device", "funnel.device")
    options_of.set_defaults(preset(arguments, PRESETS))
    options: Any = options_of.parse_args(list(arguments))
    kept = options_of.dump(options, skip_unset=False)
    options.evolution.mutation = made(Mutation, "evolution.mutation", options)
    names = [options.start] if isinstance(options.start, str) else options.start
    if not 0 <= options.states <= MOST_STATES:
        raise ValueError(f"--states: got {options.states}, expected 0 to {MOST_STATES}")
    config = Config(
        start=tuple(str(with_states(rule(name), options.states)) for name in names),
        seed=options.seed,
        budget=made(Budget, "budget", options),
        funnel=made(Funnel, "funnel", options),
        evolution=made(Settings, "evolution", options),
        verdict=made(Verdict, "verdict", options),
    )
    return Asked(options.run_dir, config, processes(options.workers, config), kept)


@contextmanager
def begun(asked: Asked) -> Iterator[Archive]:
    """A new run; its directory is gone again where it is refused before anything was tried."""
    with run.begin(asked.run_dir, asked.config) as archive:
        try:
            files.save_text(asked.run_dir / KEPT, asked.kept)
            yield archive
        except ValueError:
            if "calibration" not in archive.run():
                shutil.rmtree(archive.run_dir)
            raise


def resume(run_dir: Path, workers: int | None = None, trusted: bool = False) -> int:
    """Continue a search; see ``l2o.cli.resume``.

    Raises ValueError for one that names code, unless that is ``trusted``.
    """
    with open_existing(run_dir) as archive:
        config = Config.from_dict(archive.run()["config"])
        agreed(config.imports(), trusted, run_dir)
        return _proceed(archive, processes(workers, config))


def _add_workers(options_of: Any) -> None:
    options_of.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="worker processes; 0: none, all in this one; "
        f"default: one a core, at most evolution.ahead, {SHARERS} on a GPU",
    )


def processes(given: int | None, config: Config) -> int:
    """How many worker processes. A suite that was defined in ``__main__``, such as a notebook, is
    not found by another process: ValueError where some were asked for."""
    suites = (config.funnel.suite, config.verdict.held_out, config.verdict.meta_validation)
    own = next((name for name in suites if str(name).startswith("__main__:")), None)
    if given is None:
        return 0 if own else _workers(None, config.funnel.device, config.evolution.ahead)
    if own and given > 0:
        raise ValueError(
            f"workers: got {given}, which do not find {own}; expected 0, or a suite in a module"
        )
    return _workers(given, config.funnel.device, config.evolution.ahead)


def _workers(given: int | None, device: str, ahead: int) -> int:
    if given is None:  # no more than ``ahead`` batches are ever out
        return min(ahead, SHARERS if device.startswith("cuda") else os.cpu_count() or 1)
    if given < 0:
        raise ValueError(f"--workers: got {given}, expected at least 0")
    return given


def _proceed(archive: Archive, workers: int) -> int:
    view = View()
    try:
        with view:
            run.proceed(archive, workers, view)
    except (Interrupted, KeyboardInterrupt):
        names = Config.from_dict(archive.run()["config"]).imports()
        again = files.resuming(archive.run_dir, bool(names))
        view.say(f"stopped, nothing is lost; go on with: {again}")
        return 130
    showing.render(showing.summary(archive, top=0), view.console)
    return 0


def show(arguments: Arguments) -> int:
    """The best programs of a run with scores and intervals, and the lineage of one.

    l2o show runs/first
    l2o show runs/first --id 1234 --json
    l2o show runs/damaged --salvage runs/saved
    """
    options_of = parser(show)
    options_of.add_argument("run", type=Path, help="the directory of a run, finished or not")
    options_of.add_argument("--id", type=int | None, default=None, help="of a candidate")
    options_of.add_argument("--top", type=int, default=10, help="how many programs")
    options_of.add_argument("--json", action="store_true", help="as one JSON document")
    options_of.add_argument(
        "--salvage", type=Path | None, default=None, help="a new directory for what is not damaged"
    )
    options = options_of.parse_args(list(arguments))
    if options.top < 0:
        raise ValueError(f"--top: got {options.top}, expected at least 0")
    if options.salvage is not None:
        lost = salvage(options.run, options.salvage)
        said = f"all but {len(lost)} groups of rows: {', '.join(lost)}" if lost else "everything"
        print(f"saved {options.salvage}: {said}", file=sys.stderr)
        options.run = options.salvage
    with open_existing(options.run, readonly=True) as archive:
        if options.id is None:
            content = showing.summary(archive, top=options.top)
        else:
            content = {"lineage": showing.lineage(archive, options.id)}
    if options.json:
        print(json.dumps(content, indent=2))
    else:
        showing.render(content, Console())
    return 0


def export(arguments: Arguments) -> int:
    """Write a rule as a torch.optim.Optimizer: one file that needs only torch.

    l2o export runs/first --id best --out my_rule.py
    l2o export lion --out lion.py
    """
    options_of = parser(export)
    options_of.add_argument(
        "rule", type=str, help="a run, a zoo name, a program file or a shipped rule's folder"
    )
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
    source = to_source(rule.program, name, rule.origin, rule.lr, rule.weight_decay)
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
    from search import simplify as simplifying
    from search.ablate import Ablation

    options_of = parser(simplify)
    options_of.add_argument(
        "rule", type=str, help="a run, a zoo name, a program file or a shipped rule's folder"
    )
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


def data(arguments: Arguments) -> int:
    """Which data sets there are, under which licence; fetch those that need it.

    l2o data list
    l2o data fetch fashion_mnist
    """
    from tasks import fetch
    from tasks.datasets import DATASETS, LICENCES, status

    options_of = parser(data)
    options_of.add_argument("action", type=str, help="list or fetch")
    options_of.add_argument("names", type=str, nargs="*", default=[], help="of those to fetch")
    options = options_of.parse_args(list(arguments))
    if options.action == "fetch":
        if not options.names:
            raise ValueError(
                f"data fetch: got no name, expected some of {', '.join(fetch.SOURCES)}"
            )
        for name in options.names:
            if name in DATASETS and name not in fetch.SOURCES:
                raise ValueError(
                    f"data fetch: got {name}, expected {', '.join(fetch.SOURCES)}: {status(name)}"
                )
        fetch.main(options.names)
        return 0
    if options.action != "list":
        likely = meant(options.action, ("list", "fetch"))
        raise ValueError(f"data: got {options.action!r}, expected list or fetch{likely}")
    width = max(map(len, LICENCES.values())) + 2
    for name in DATASETS:
        print(f"{name:16}{LICENCES[name]:{width}}{status(name).removeprefix(f'{name}: ')}")
    return 0
