"""What ``step()`` costs on the parameters of a transformer, in fresh processes.

    python scripts/bench/bench_optimizers.py [RULE ...]

An exported rule, as it is and with ``fused=True``, is held against two other ways to run its own
statements: multi-tensor functions over whole parameters, which is how one writes an eager
optimizer, and its step compiled by ``torch.compile``; *best* is the faster of the two. Other
people's optimizers stand beside it.

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
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from turns import Spread

from search.loading import load

STEPS = 12
DISCOVERED = str(Path(__file__).parents[2] / "checkpoints" / "normalised_momentum")
RULES = ("lion", "sign_momentum", "cautious_lion", "adamw", "adan", DISCOVERED)
WAYS = ("exported", "fused", "whole", "compiled")
"""As it is; with ``fused=True``; multi-tensor functions over whole parameters; compiled."""
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch AdamW, foreach": partial(torch.optim.AdamW, foreach=True),
    "torch AdamW, fused": partial(torch.optim.AdamW, fused=True),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lion-pytorch Lion": ("lion_pytorch", {}),
    "lion-pytorch Lion, foreach": ("lion_pytorch.foreach", {}),
    "pytorch_optimizer Lion, foreach": ("pytorch_optimizer", {"foreach": True}),
}
"""Their modules, and what makes them fast."""


def parameters(width: int = 384, layers: int = 5, words: int = 2048) -> list[Tensor]:
    """Of a transformer with about 10 M parameters, with gradients."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 6, 4 * width, batch_first=True)
    whole = nn.Sequential(nn.Embedding(words, width), *[layer] * layers, nn.LayerNorm(width))
    shapes = [p.shape for part in whole for p in part.parameters()]  # layers count each time
    params = [torch.randn(shape, generator=generator).mul_(0.02) for shape in shapes]
    for p in params:
        p.requires_grad_().grad = torch.randn(p.shape, generator=generator).mul_(1e-3)
    return params


def make(subject: str, params: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that a row of the table names."""
    settings: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1}
    if subject in TORCH:
        return TORCH[subject](params, **settings)
    if subject in OTHERS:
        module, more = OTHERS[subject]
        return import_module(module).Lion(params, **settings, **more)
    way, name = subject.split(" ", 1)
    optimizer = load(name).optimizer(params, **settings, fused=way == "fused")
    if way == "whole":
        sys.modules[type(optimizer).__module__].__dict__["_pieces"] = lambda *lists: [lists]
    if way == "compiled":
        optimizer.step = torch.compile(optimizer.step)
    return optimizer


def measure(subject: str) -> dict[str, float]:
    """In this process: seconds of a step, of a copy of one number, and numbers moved at least."""
    torch.set_num_threads(1)
    params = parameters()
    n = sum(p.numel() for p in params)
    source, target = torch.ones(n), torch.empty(n)
    optimizer = make(subject, params)
    before = params[0].detach().clone()
    seconds, copies = [], []
    for _ in range(STEPS):
        start = time.process_time()
        optimizer.step()
        middle = time.process_time()
        target.copy_(source)
        seconds.append(middle - start)
        copies.append(time.process_time() - middle)
    assert not torch.equal(before, params[0]), f"{subject} moved nothing"
    states = sum(
        x.numel()
        for state in optimizer.state.values()
        for x in state.values()
        if isinstance(x, Tensor) and x.ndim
    )
    moved = 3 * n + 2 * states  # read parameter, gradient, states; write parameter and states
    first = STEPS // 4  # after these
    return {
        "step": median(seconds[first:]),
        "floor": moved * median(copies[first:]) / (2 * n),
    }


def run(subject: str) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--subject", subject]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{subject}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def report(console: Console, processes: int, rules: list[str]) -> None:
    """Print the table. Raises ValueError, before anything is measured, for what is no rule."""
    names = [*RULES, *rules]
    for name in names:
        load(name)
    subjects = [*TORCH]
    for name, (module, _) in OTHERS.items():
        if find_spec(module.partition(".")[0]) is None:
            console.print(f"{name}: skipped, it is not installed")
        else:
            subjects.append(name)
    subjects += [f"{way} {name}" for name in names for way in WAYS]
    found: dict[str, list[dict[str, float]]] = {subject: [] for subject in subjects}
    for _ in range(processes):
        for subject in subjects:
            found[subject].append(run(subject))
    n = sum(p.numel() for p in parameters())
    console.print(f"step() on {n:,} parameters, {processes} processes each, one thread")
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("optimizer", "ms a step", *(f"/ {column}" for column in COLUMNS)):
        table.add_column(title, justify="left" if title == "optimizer" else "right")
    for subject in [*found][: -len(names) * len(WAYS)]:
        table.add_row(subject, *cells(found, subject, None))
    for name in names:
        for way in WAYS:
            title = Path(name).name if way == "exported" else f"  {way}"
            table.add_row(title, *cells(found, f"{way} {name}", name))
    console.print(table)


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
    parser.add_argument("--subject", help="measure one in this process, print JSON")
    options = parser.parse_args()
    if options.subject:
        print(json.dumps(measure(options.subject)))
        return
    console = Console(width=None if Console().is_terminal else 150)
    try:
        report(console, options.processes, options.rules)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
