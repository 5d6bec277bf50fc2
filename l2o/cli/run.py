"""A run as the commands see it, of whichever engine: one protocol, and who keeps it.

``l2o resume``, ``watch``, ``reproduce`` and ``report`` ask ``run_at`` what lies in a directory, and
then no more which engine it is of. What a method needs is imported when it is called: a look at a
search does not wait for what trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.display.page import Page
from tasks.display.plain import Console
from tasks.executors.named import PROCESSES
from tasks.user_code.imports import Trusted

META = "run.json"
"""What a meta-training has, as ``l2o.meta.record`` says, which imports torch."""


class Run(Protocol):
    """Finished or not. ``trusted``: which of the code that it names may be run."""

    @property
    def path(self) -> Path: ...

    def resume(self, trusted: Trusted, workers: int | None, where: str | None) -> int:
        """Go on to its end; the exit status. ``workers``: as many, by default as when it began;
        ``where``: their executor, by default processes."""
        ...

    def reproduce(self, trusted: Trusted, workers: int | None, where: str | None) -> int:
        """Repeat it: 0 if every number comes out the same, 1 if not."""
        ...

    def line(self) -> str:
        """Its state in a line."""
        ...

    def follow(self, every: float, console: Console) -> None:
        """Show it, with a look ``every`` so many seconds, until it is finished."""
        ...

    def page(self, remade_by: str, trusted: bool) -> Page:
        """Its report."""
        ...


def run_at(path: Path) -> Run:
    """The run in a directory; a search unless it is a meta-training, as a search says what it is
    not."""
    return MetaTraining(path) if (path / META).is_file() else Search(path)


def together(runs: Mapping[str, Run], remade_by: str) -> Page | None:
    """One report of several runs, by what they are called; None where they are of both engines."""
    places = {name: run.path for name, run in runs.items()}
    kinds = {type(run) for run in runs.values()}
    if kinds == {MetaTraining}:
        from l2o.meta import joined

        return joined.page(places, remade_by)
    if kinds == {Search}:
        from search.run import joined

        return joined.page(places, remade_by)
    return None


@dataclass(frozen=True)
class Search:
    path: Path

    def resume(self, trusted: Trusted, workers: int | None, where: str | None) -> int:
        from search.commands.search import resume

        return resume(self.path, workers, trusted, where or PROCESSES)

    def reproduce(self, trusted: Trusted, workers: int | None, where: str | None) -> int:
        from search.run.reproduce import reproduce

        count = 1 if workers is None else workers
        return reproduce(self.path, count, trusted, where or PROCESSES)

    def line(self) -> str:
        from search.run.watch import line

        return line(self.path)

    def follow(self, every: float, console: Console) -> None:
        from search.run.watch import follow

        follow(self.path, every, console)

    def page(self, remade_by: str, trusted: bool) -> Page:
        from search.record.archive import open_existing
        from search.run.report import page

        with open_existing(self.path, readonly=True) as archive:
            return page(archive, remade_by)


@dataclass(frozen=True)
class MetaTraining:
    path: Path

    def resume(self, trusted: Trusted, workers: int | None, where: str | None) -> int:
        from l2o.cli.meta_train import resume

        _no_workers(workers, where)
        return resume(self.path, trusted)

    def reproduce(self, trusted: Trusted, workers: int | None, where: str | None) -> int:
        from l2o.meta.reproduce import reproduce

        _no_workers(workers, where)
        return reproduce(self.path, trusted)

    def line(self) -> str:
        from l2o.meta.watch import line

        return line(self.path)

    def follow(self, every: float, console: Console) -> None:
        from l2o.meta.watch import follow

        follow(self.path, every, console)

    def page(self, remade_by: str, trusted: bool) -> Page:
        from l2o.meta.report import page

        return page(self.path, remade_by, trusted)


def _no_workers(workers: int | None, where: str | None) -> None:
    for name, given in {"--workers": workers, "--executor": where}.items():
        if given is not None:
            raise ValueError(
                f"{name}: got it beside a meta-training, expected it for searches alone: torchrun "
                "starts the processes of a meta-training"
            )
