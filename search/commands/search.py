"""The command ``l2o search``, and ``l2o resume`` of its runs.

What a search runs on is imported when it begins: help and mistakes do not wait for torch.
"""

from __future__ import annotations

import os
import shutil
from argparse import SUPPRESS
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jsonargparse import Namespace

from search.evolution.settings import FORM, Mutation, Settings, renewed, strategies
from search.fitness.settings import Funnel, Verdict
from search.run.config import Budget, Config
from tasks.commands.parser import KEPT, Arguments, made, parser, preset
from tasks.executors.named import PROCESSES, executors, known
from tasks.runs import files
from tasks.runs.interrupt import Interrupted
from tasks.user_code.imports import Trusted, agreed

if TYPE_CHECKING:
    from search.record.archive import Archive

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
        return _proceed(archive, asked_for.workers, asked_for.where)


class Asked(NamedTuple):
    """What a search is begun with; ``kept``: all fields, as a configuration file has them;
    ``where``: the executor of the workers."""

    run_dir: Path
    config: Config
    workers: int
    kept: str
    where: str


def asked(arguments: Arguments) -> Asked:
    """What the ``arguments`` of ``l2o search`` say. Raises ValueError or ArgumentError."""
    options_of = parser(search)
    options_of.add_argument("--run-dir", type=Path, required=True, help="a new directory")
    options_of.add_argument("--preset", type=str, default="quick", help=" or ".join(PRESETS))
    options_of.add_argument(
        "--start",
        type=str | list[str],
        default="adam_no_correction",
        help="what to start from: zoo names, program files, my_module:NAME, runs "
        "(default: AdamW as in the Lion paper, without bias correction)",
    )
    options_of.add_argument("--states", type=int, default=2, help="state variables of a program")
    options_of.add_argument("--seed", type=int, default=0, help="of everything random")
    _add_workers(options_of)
    options_of.add_argument("--device", type=str, default="cpu", help="where inner runs live")
    options_of.add_class_arguments(Budget, "budget", instantiate=False)
    options_of.add_class_arguments(Funnel, "funnel", instantiate=False)
    _add_evolution(options_of)
    options_of.add_class_arguments(Verdict, "verdict", instantiate=False)
    options_of.link_arguments("device", "funnel.device")
    options_of.set_defaults(preset(arguments, PRESETS))
    options: Any = options_of.parse_args(list(arguments))
    options.evolution = Namespace(renewed(vars(options.evolution)))
    kept = options_of.dump(options, skip_unset=False)
    options.evolution.mutation = made(Mutation, "evolution.mutation", options)
    from search.loading import rule
    from search.zoo import with_states

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
    known(options.executor)
    count = processes(options.workers, config)
    return Asked(options.run_dir, config, count, kept, options.executor)


def _add_evolution(options_of: Any) -> None:
    options_of.add_class_arguments(Settings, "evolution", instantiate=False, skip={"strategy"})
    options_of.add_argument(
        "--evolution.strategy",
        type=str,
        default=Settings.strategy,
        help=f"who is born and who lives: {', '.join(strategies())}, or {FORM}; "
        "with settings: random_search(length=8)",
    )
    options_of.add_argument("--evolution.random", type=int, default=0, help=SUPPRESS)  # see renewed


@contextmanager
def begun(asked: Asked) -> Iterator[Archive]:
    """A new run; its directory is gone again where it is refused before anything was tried."""
    from search.run import stages

    with stages.begin(asked.run_dir, asked.config) as archive:
        try:
            files.save_text(asked.run_dir / KEPT, asked.kept)
            yield archive
        except ValueError:
            if "calibration" not in archive.run():
                shutil.rmtree(archive.run_dir)
            raise


def resume(
    run_dir: Path, workers: int | None = None, trusted: Trusted = False, where: str = PROCESSES
) -> int:
    """Continue a search; see ``l2o.cli.runs.resume``.

    Raises ValueError for one that names code, unless that is ``trusted``.
    """
    from search.record.archive import open_existing

    with open_existing(run_dir) as archive:
        config = Config.from_dict(archive.run()["config"])
        agreed(config.imports(), trusted, run_dir)
        return _proceed(archive, processes(workers, config), where)


def _add_workers(options_of: Any) -> None:
    options_of.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="worker processes; 0: none, all in this one; "
        f"default: one a core, at most evolution.ahead, {SHARERS} on a GPU",
    )
    options_of.add_argument(
        "--executor", type=str, default=PROCESSES, help=f"of the workers: {', '.join(executors())}"
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


def _proceed(archive: Archive, workers: int, where: str) -> int:
    from search.run import stages, summary
    from search.run.view import View

    view = View()
    try:
        with view:
            stages.proceed(archive, workers, view, where=where)
    except (Interrupted, KeyboardInterrupt):
        names = Config.from_dict(archive.run()["config"]).imports()
        again = files.resuming(archive.run_dir, bool(names))
        view.say(f"stopped, nothing is lost; go on with: {again}")
        return 130
    summary.render(summary.summary(archive, top=0), view.console)
    return 0
