"""What ``step()`` costs on the parameters of a transformer, in fresh processes.

    python scripts/bench/bench_optimizers.py [RULE ...]

An exported rule, as it is and with ``fused=True``, is held against two other ways to run its own
statements: multi-tensor functions over whole parameters, which is how one writes an eager
optimizer, and its step compiled by ``torch.compile``; *best* is the faster of the two. Other
people's optimizers stand beside it: those that are installed here, or in the environment of the
interpreter that ``--peer`` names, whose torch they run on.

Eager optimizers are bimodal from process to process (memory is laid out anew), so subjects take
turns, each time in a process of its own. A time is the median over processes of the median over
steps, a ratio that of the ratios within a turn; behind them the smallest and the largest. The last
column has the time that the unavoidable memory traffic takes at the speed of a copy: each
parameter, gradient and state read once, each parameter and state written once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from shutil import which

from one_step import OTHERS, TORCH, parameters
from rich import box
from rich.console import Console
from rich.table import Table
from turns import Spread

from search.loading import load

DISCOVERED = str(Path(__file__).parents[2] / "checkpoints" / "normalised_momentum")
RULES = ("lion", "sign_momentum", "cautious_lion", "adamw", "adan", DISCOVERED)
WAYS = ("exported", "fused", "whole", "compiled")
"""As it is; with ``fused=True``; multi-tensor functions over whole parameters; compiled."""


def run(subject: str, python: str = sys.executable) -> dict[str, float]:
    """``one_step.measure`` in a process of its own."""
    command = [python, str(Path(__file__).with_name("one_step.py")), subject]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{subject}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def report(console: Console, processes: int, rules: list[str], peer: Path | None = None) -> None:
    """Print the table; ``peer``: the interpreter of an environment with other people's optimizers,
    this one by default. Raises ValueError, before anything is measured, for what is no rule."""
    if processes < 1:
        raise ValueError(f"--processes: got {processes}, expected at least 1")
    names = [*dict.fromkeys([*RULES, *rules])]
    for name in names:
        load(name)
    python = str(peer or sys.executable)
    if not which(python):
        raise ValueError(f"--peer: got {python}, expected a Python")
    others = [name for name, (module, _) in OTHERS.items() if installed(module, python)]
    for name in OTHERS.keys() - others:
        console.print(f"{name}: skipped, it is not installed")
    subjects = [*TORCH, *others, *(f"{way} {name}" for name in names for way in WAYS)]
    found: dict[str, list[dict[str, float]]] = {subject: [] for subject in subjects}
    for _ in range(processes):
        for subject in subjects:
            found[subject].append(run(subject, python if subject in OTHERS else sys.executable))
    n = sum(p.numel() for p in parameters())
    console.print(f"step() on {n:,} parameters, {processes} processes each, one thread")
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("optimizer", "ms a step", *(f"/ {column}" for column in COLUMNS)):
        table.add_column(title, justify="left" if title == "optimizer" else "right")
    for subject in (*TORCH, *others):
        table.add_row(subject, *cells(found, subject, None))
    for name in names:
        for way in WAYS:
            title = Path(name).name if way == "exported" else f"  {way}"
            table.add_row(title, *cells(found, f"{way} {name}", name))
    console.print(table)


def installed(module: str, python: str) -> bool:
    """Whether an interpreter can import a module."""
    seek = f"import importlib.util as u, sys; sys.exit(not u.find_spec({module.split('.')[0]!r}))"
    return subprocess.run([python, "-c", seek]).returncode == 0


COLUMNS = ("AdamW foreach", "whole foreach", "compiled", "best", "memory traffic")


def cells(
    found: dict[str, list[dict[str, float]]], subject: str, name: str | None
) -> tuple[str, ...]:
    """Time and ratios; ``name``: of the rule, if other ways to run it were measured."""

    def times(subject: str) -> list[float]:
        return [run["step"] for run in found[subject]]

    def over(others: list[float]) -> str:
        ratios = (x / y for x, y in zip(times(subject), others, strict=True))
        return str(Spread(tuple(ratios)))

    ratios = [over(times("torch AdamW, foreach"))]
    if name:
        whole, compiled = times(f"whole {name}"), times(f"compiled {name}")
        best = [min(pair) for pair in zip(whole, compiled, strict=True)]
        ratios += [over(others) for others in (whole, compiled, best)]
    ratios += [""] * (len(COLUMNS) - 1 - len(ratios))
    traffic = over([run["floor"] for run in found[subject]])
    return str(Spread(tuple(times(subject))).scaled(1e3)), *ratios, traffic


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rules", nargs="*", help="more rules, as for l2o export")
    parser.add_argument("--processes", type=int, default=5, help="for every optimizer")
    parser.add_argument("--peer", type=Path, help="the Python of an environment with others'")
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 150)
    try:
        report(console, options.processes, options.rules, options.peer)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
