"""Evaluations and meta-trainings as functions.

Nothing is printed unless ``show`` is true. Ctrl-C, or a notebook's stop button, raises
KeyboardInterrupt when what was done is saved; the same evaluation, and ``resume``, go on.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from l2o import loading
from l2o.cli import evaluate as judging
from l2o.cli import meta_train as commands
from l2o.loading import Learned
from l2o.meta import run
from l2o.meta.ranks import Ranks, joined
from l2o.meta.view import Progress, View
from tasks.commands import notebook
from tasks.display.plain import Console
from tasks.runs.interrupt import Interrupted
from tasks.user_code.imports import Trusted, agreed

Callback = Callable[[Progress], object]


def evaluate(
    rules: str | Sequence[str],
    suite: Any = None,
    *,
    out: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    callback: judging.Told | None = None,
    show: bool = False,
    **fields: Any,
) -> Any:
    """Judge ``rules`` on the tasks of a ``suite``, as ``l2o evaluate`` does: a row for each rule.

    ``rules`` are what the command takes, such as ``"lion"``, ``"runs/first"`` or
    ``"torch.optim.NAdam"``; a suite is a name, or a function that returns tasks. ``fields`` are
    those of the command: ``trials=16, seeds=5, reference="adamw"``. Results are kept in the file
    ``out``, if there is one, which a later call goes on with. ``callback`` is given a line after
    each rule and task.

    A pandas DataFrame where pandas is installed, else a list of dictionaries: the place of a rule,
    its change of loss against the reference in % with a 95 % interval, what the paired test says.

    Raises ValueError for what is wrong with a field, or a rule that a task is not for.
    """
    names = [rules] if isinstance(rules, str) else [*rules]
    fields |= {"rules": names} | ({} if suite is None else {"suite": suite})
    again = "a call that names a file as out" if out is None else "the same call"
    place = tempfile.TemporaryDirectory() if out is None else nullcontext(None)
    with notebook.as_a_function(again), place as folder:
        file = Path(folder, "results.sqlite") if folder else Path(str(out))
        given = notebook.arguments(config, fields | {"out": fspath(file)})
        if judging.evaluate(given, Console(quiet=not show), callback or (lambda line: None)) == 130:
            raise KeyboardInterrupt
        found = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    return notebook.table([_row(standing) for standing in found["standings"]])


def _row(standing: Mapping[str, Any]) -> dict[str, Any]:
    gap = {name: standing["gap"][name] for name in ("mean", "low", "high")}
    change, low, high = (None if x is None else 100 * math.expm1(x) for x in gap.values())
    named = {name: standing[name] for name in ("rank", "rule", "verdict", "q")}
    share = standing["diverged"]["mean"]
    return named | {"change": change, "low": low, "high": high, "diverged": share}


def meta_train(
    run_dir: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    callback: Callback | None = None,
    show: bool = False,
    **fields: Any,
) -> Learned:
    """Meta-train a learned optimizer, as ``l2o meta-train`` does, in a new directory: the best.

    ``fields`` are those of the command and of its files, such as ``preset="quick"``,
    ``outer={"steps": 100}`` or ``train={"widths": [8, 16]}``; ``config`` is such a file, which
    they beat. ``callback`` is given a ``Progress`` after each outer step.

    Raises ValueError for what is wrong with a field, RunExists for a directory that is there.
    """
    given = notebook.arguments(config, fields | {"run_dir": fspath(run_dir)})
    with notebook.as_a_function(f"l2o.resume({fspath(run_dir)!r})"), joined() as ranks:
        commands.begin(commands.asked(given), ranks)
        return _proceed(Path(run_dir), ranks, callback, show)


def resume(
    run_dir: str | PathLike[str],
    *,
    trusted: Trusted = False,
    callback: Callback | None = None,
    show: bool = False,
) -> Learned:
    """Go on with a meta-training, as ``l2o resume`` does. Raises RunError where there is none,
    ValueError for one that names code to be run, unless that is ``trusted``."""
    if trusted is not True:
        agreed(run.imports(Path(run_dir)), trusted, Path(run_dir))
    with notebook.as_a_function(f"l2o.resume({fspath(run_dir)!r})"), joined() as ranks:
        return _proceed(Path(run_dir), ranks, callback, show)


def _proceed(run_dir: Path, ranks: Ranks, callback: Callback | None, show: bool) -> Learned:
    with _Told(callback, silent=not (show and ranks.first)) as view:
        try:
            run.proceed(run_dir, ranks, view)
        except Interrupted:
            raise KeyboardInterrupt from None
    return loading.load(run_dir, trusted=None)


class _Told(View):
    """Tells a callback, too."""

    def __init__(self, callback: Callback | None, silent: bool) -> None:
        super().__init__(silent=silent)
        self.callback = callback

    def show(self, progress: Progress) -> None:
        super().show(progress)
        if self.callback is not None:
            self.callback(progress)
