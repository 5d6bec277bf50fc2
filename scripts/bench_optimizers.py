"""What ``step()`` costs on the parameters of a transformer, in fresh processes.

    python scripts/bench_optimizers.py [RULE ...]

Eager optimizers are bimodal from process to process (memory is laid out anew), so every number is
the median over processes of the median over steps, with the smallest and the largest process.
Beside it stands the time that the unavoidable memory traffic takes at the speed of a copy: each
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
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from search.rules import load

STEPS = 12
EXPORTED = ("lion", "adamw", "sign_momentum", "adan", "cautious_lion")
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch AdamW, foreach": partial(torch.optim.AdamW, foreach=True),
    "torch AdamW, fused": partial(torch.optim.AdamW, fused=True),
}
OTHERS = {
    "lion-pytorch Lion": ("lion_pytorch", "Lion"),
    "pytorch_optimizer Lion": ("pytorch_optimizer", "Lion"),
}


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
        module, name = OTHERS[subject]
        return getattr(__import__(module), name)(params, **settings)
    return load(subject.removeprefix("exported ")).optimizer(params, foreach=True, **settings)


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
    half = STEPS // 4
    return {
        "step": median(seconds[half:]),
        "floor": moved * median(copies[half:]) / (2 * n),
    }


def report(console: Console, processes: int, rules: list[str]) -> None:
    """Print the table; subjects take turns, each time in a process of its own."""
    subjects = [*(f"exported {name}" for name in (*EXPORTED, *rules)), *TORCH]
    for name, (module, _) in OTHERS.items():
        if find_spec(module) is None:
            console.print(f"{name}: skipped, {module} is not installed")
        else:
            subjects.append(name)
    found: dict[str, list[dict[str, float]]] = {subject: [] for subject in subjects}
    for _ in range(processes):
        for subject in subjects:
            command = [sys.executable, __file__, "--subject", subject]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[subject].append(json.loads(done.stdout))
    reference = median(run["step"] for run in found["torch AdamW, foreach"])
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("optimizer", "ms a step", "/ AdamW foreach", "/ memory traffic"):
        table.add_column(title, justify="left" if title == "optimizer" else "right")
    for subject, runs in found.items():
        steps = [1e3 * run["step"] for run in runs]
        middle, floor = median(steps), 1e3 * median(run["floor"] for run in runs)
        spread = f"{middle:.1f} ({min(steps):.1f}–{max(steps):.1f})"
        table.add_row(subject, spread, f"{middle / 1e3 / reference:.2f}", f"{middle / floor:.1f}")
    n = sum(p.numel() for p in parameters())
    console.print(f"step() on {n:,} parameters, {processes} processes each, one thread")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rules", nargs="*", help="more rules, as for l2o export")
    parser.add_argument("--processes", type=int, default=5, help="for every optimizer")
    parser.add_argument("--subject", help="measure one in this process, print JSON")
    options = parser.parse_args()
    if options.subject:
        print(json.dumps(measure(options.subject)))
        return
    report(Console(width=None if Console().is_terminal else 110), options.processes, options.rules)


if __name__ == "__main__":
    main()
