"""A search as a function, and its run as an object.

Nothing is printed unless ``show`` is true. Ctrl-C, or a notebook's stop button, raises
KeyboardInterrupt when the run is in good order; ``resume`` goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from search import loading
from search.commands import inspection
from search.commands import search as commands
from search.record.archive import Archive, open_existing
from search.run import report, stages
from search.run import summary as showing
from search.run.config import Config
from search.run.history import front, trimmed
from search.run.view import Progress, View
from search.zoo.entry import Entry
from tasks.commands import notebook
from tasks.display import page
from tasks.display.plain import Console
from tasks.executors.named import PROCESSES
from tasks.runs.interrupt import Interrupted
from tasks.user_code.imports import Trusted, agreed

Callback = Callable[[Progress], object]


def search(
    run_dir: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    callback: Callback | None = None,
    show: bool = False,
    **fields: Any,
) -> Result:
    """Evolve update rules, as ``l2o search`` does, in a new directory.

    ``fields`` are those of the command and of its files, such as ``preset="quick"``, ``seed=1``,
    ``budget={"minutes": 1}`` or ``funnel={"suite": my_suite}``; ``config`` is such a file, which
    they beat. ``callback`` is given a ``Progress`` after each batch and ends the search by
    returning True. A suite of the notebook's own is searched in this process, without workers.

    Raises ValueError for what is wrong with a field, RunExists for a directory that is there.
    """
    given = notebook.arguments(config, fields | {"run_dir": fspath(run_dir)})
    with notebook.as_a_function(f"search.resume({fspath(run_dir)!r})"):
        asked = commands.asked(given)
        with commands.begun(asked) as archive:
            return _proceed(archive, asked.workers, callback, show, asked.where)


def resume(
    run_dir: str | PathLike[str],
    *,
    workers: int | None = None,
    trusted: Trusted = False,
    callback: Callback | None = None,
    show: bool = False,
) -> Result:
    """Go on with a search, as ``l2o resume`` does. Raises RunError where there is none, ValueError
    for one that names code to be run, unless that is ``trusted``."""
    with (
        notebook.as_a_function(f"search.resume({fspath(run_dir)!r})"),
        open_existing(Path(run_dir)) as archive,
    ):
        config = Config.from_dict(archive.run()["config"])
        if trusted is not True:
            agreed(config.imports(), trusted, Path(run_dir))
        return _proceed(archive, commands.processes(workers, config), callback, show)


def _proceed(
    archive: Archive,
    workers: int,
    callback: Callback | None,
    show: bool,
    where: str = PROCESSES,
) -> Result:
    with _Told(callback, Console(quiet=not show)) as view:
        try:
            stages.proceed(archive, workers, view, lambda evaluated: view.enough, where)
        except Interrupted:
            raise KeyboardInterrupt from None
    return Result(archive.run_dir)


class _Told(View):
    """Tells a callback, too."""

    def __init__(self, callback: Callback | None, console: Console) -> None:
        super().__init__(console)
        self.callback, self.enough = callback, False

    def show(self, progress: Progress) -> None:
        super().show(progress)
        if self.callback is not None:
            self.enough = self.callback(progress) is True


@dataclass(frozen=True)
class Result:
    """A search's run, finished or not; what it says is read from its directory, each time."""

    run_dir: Path

    @property
    def summary(self) -> dict[str, Any]:
        """What ``l2o show --json`` prints."""
        with open_existing(self.run_dir, readonly=True) as archive:
            return showing.summary(archive)

    @property
    def finished(self) -> bool:
        return self.summary["finished"]

    @property
    def best(self) -> Entry:
        """The winner, or the best so far. Raises ValueError where nothing was evaluated."""
        return loading.load(self.run_dir)

    @property
    def front(self) -> list[Entry]:
        """The programs that no shorter one beats on the proxy tasks, the shortest first."""
        with open_existing(self.run_dir, readonly=True) as archive:
            found = front(trimmed(archive.records("WHERE c.fate = 'evaluated'")))
        return [loading.load(self.run_dir, record.id) for record in found]

    @property
    def evaluation(self) -> Any:
        """What the verdict measured: a row for each stage, rule and baseline. Changes of the loss
        in % with a 95 % interval, None where a run diverged.

        A pandas DataFrame where pandas is installed, else a list of dictionaries.
        """
        return notebook.table(
            [
                {"stage": stage, "rule": standing["rule"], "against": name} | _percent(interval)
                for stage, standings in self.summary["stages"].items()
                for standing in standings
                for name, interval in standing["against"].items()
                if name != standing["rule"]
            ]
        )

    def export(self, file: str | PathLike[str], name: str | None = None) -> Path:
        """Write the best as a torch.optim.Optimizer, as ``l2o export`` does: a new file."""
        out = Path(file)
        inspection.save_optimizer(self.best, out, name or out.stem)
        return out

    def report(self, file: str | PathLike[str]) -> list[Path]:
        """Write the report, as ``l2o report`` does: the paths of the page and of its figures."""
        with open_existing(self.run_dir, readonly=True) as archive:
            made = report.page(archive, f"l2o report {self.run_dir}")
        return page.write(made, Path(file))


def _percent(interval: dict[str, Any] | None) -> dict[str, float | None]:
    found = interval or {}
    logs = {name: found.get(name) for name in ("mean", "low", "high")}
    return {name: None if x is None else 100 * math.expm1(x) for name, x in logs.items()}
