"""``bench.py meta``: what meta-training costs, part by part, and beside somebody else's.

An *inner step* is one step of one instance. The floors are the gradient alone and the rule alone;
what is left is drawing and gathering minibatches, subtracting updates, perturbing theta and
beginning episodes. ``bench_pes.py`` has the workload.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from bench_pes import PES, TASKS, contest
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from turns import Spread, take_turns

from l2o.architectures.kernels import cpu
from l2o.architectures.small_fc import SmallFC, reference
from tasks.inner.recorded import derivatives
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.oracles import gradient as gradients


def meta(console: Console, turns: int, peer: Path | None = None) -> None:
    """Inner steps a second, where they go, beside a ``peer``'s, and an optimizer's step."""
    large = torch.randn(1024, 1024)
    peak = take_turns({"peak": lambda: large @ large}, turns)["peak"].rate(2 * 1024**3).scaled(1e-9)
    console.print(f"calibration: {peak} GFLOP/s in a product of 1024-square matrices, one thread")
    console.print(f"load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} processors")
    contest(console, turns, peer)
    shares(console, turns)
    one_optimizer(console, turns)


def shares(console: Console, turns: int) -> None:
    table = Table("us an inner step", *(f"{n} tasks" for n in TASKS), box=box.SIMPLE_HEAD)
    columns: list[dict[str, Spread]] = []
    for tasks in TASKS:
        pes = PES(tasks)
        found = take_turns(
            {
                "whole step": pes,
                "gradient alone": lambda pes=pes: pes.gradients(derivatives),
                "rule alone": lambda pes=pes: pes.updates(cpu.step),
                "gradient, not recorded": lambda pes=pes: pes.gradients(gradients.derivatives),
                "rule, torch reference": lambda pes=pes: pes.updates(reference),
            },
            turns,
        )
        columns.append({k: spread.scaled(1e6 / pes.inner_steps) for k, spread in found.items()})
    for part in columns[0]:
        cells = (f"{c[part]}  {c[part].middle / c['whole step'].middle:.0%}" for c in columns)
        table.add_row(part, *cells)
    table.add_section()
    rates = [column["whole step"].rate(10**6) for column in columns]
    table.add_row("inner steps a second", *map(str, rates))
    console.print(table)


HIDDEN = ((64, 64), (256, 256), (640, 768), (1280, 1536), (2560, 2560))
"""Widths of networks of 0.05 to 8.6 million parameters; the middle one is the peers'."""


def one_optimizer(console: Console, turns: int) -> None:
    """``step()`` on the parameters of an MLP, against AdamW."""
    names = ("torch AdamW, foreach", "torch AdamW, fused", "small_fc")
    columns = (f"{name}, ms a step" for name in names)
    table = Table("parameters", *columns, "small_fc / AdamW foreach", box=box.SIMPLE_HEAD)
    rule = SmallFC().rule(SmallFC().initial())
    for hidden in HIDDEN:
        optimizers = (
            torch.optim.AdamW(perceptron(*hidden), foreach=True),
            torch.optim.AdamW(perceptron(*hidden), fused=True),
            RuleOptimizer(perceptron(*hidden), rule),
        )
        found = take_turns({n: o.step for n, o in zip(names, optimizers, strict=True)}, turns)
        pairs = zip(found["small_fc"].turns, found[names[0]].turns, strict=True)
        ratio = Spread(tuple(ours / theirs for ours, theirs in pairs))
        count = sum(p.numel() for p in perceptron(*hidden))
        table.add_row(f"{count:,}", *(str(found[n].scaled(1e3)) for n in names), str(ratio))
    console.print(f"MLP 784-A-B-10, hidden {SmallFC().hidden_size}, {turns} turns")
    console.print(table)


def perceptron(first: int, second: int) -> list[nn.Parameter]:
    """Its parameters, with gradients."""
    sizes = ((784, first), (first, second), (second, 10))
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return list(model.parameters())
