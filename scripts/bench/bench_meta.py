"""``bench.py meta``: what meta-training costs, part by part.

The workload of google/learned_optimization's own benchmark: PES, MLP 64-32-10 on digits, batch 128,
``small_fc`` with 4 hidden units, truncation 20, 8 / 16 / 32 tasks with one antithetic pair each.
Runs are staggered, so every instance has its own minibatch. An *inner step* is one step of one
instance. The floors are the gradient alone and the rule alone; what is left is drawing and
gathering minibatches, subtracting updates, perturbing theta and beginning episodes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.distributed as dist
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from turns import Spread, take_turns

from l2o.architectures.kernels import cpu
from l2o.architectures.small_fc import SmallFC, Step, reference
from l2o.estimators.episodes import Episodes, Lesson
from l2o.estimators.es import ES
from l2o.meta.ranks import Ranks
from tasks.families.mlp import MLP
from tasks.inner.recorded import WORTH, derivatives
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.oracles import gradient as gradients
from tasks.types import Batch, Params, StepInfo, Task

TASKS = (8, 16, 32)
TRUNCATION = 20
PEERS = {8: (6610, 6650), 16: (6750, 7950), 32: (7180, 9000)}
"""Inner steps a second of google/learned_optimization's best path on one and on two threads, on a
machine whose single thread multiplied 1024-square matrices at 181 GFLOP/s."""


Take = Callable[[Task, Mapping[str, Tensor], Batch, bool], gradients.Derivatives]


class PES:
    """Meta-training in progress, its gradient recorded, and its parts by themselves.

    ``tasks`` are those of all ``ranks`` together.
    """

    def __init__(self, tasks: int, ranks: Ranks | None = None) -> None:
        self.task, self.optimizer, self.ranks = MLP(), SmallFC(), ranks or Ranks()
        self.lesson, self.theta = Lesson(self.task), self.optimizer.initial()
        self.es = ES(Episodes((100, 1000), TRUNCATION, stagger=True))
        number = torch.arange(tasks)[self.ranks.own(tasks)]
        self.runs = self.es.start(self.optimizer, self.theta, self.lesson, number)
        for _ in range(WORTH // TRUNCATION + 3):
            self()
        self.params = Params(self.runs.inner.params, self.task.layout)

    @property
    def inner_steps(self) -> int:
        return len(self.runs.inner.params) * TRUNCATION

    def __call__(self) -> None:
        step = self.es.step(self.optimizer, self.theta, self.lesson, self.runs)
        self.runs = step.runs
        self.ranks.mean(step.gradient)

    @torch.no_grad()
    def gradients(self, take: Take) -> None:
        """Of one minibatch an instance, over and over."""
        index = torch.arange(self.task.batch_size).expand(len(self.params.flat), -1)
        batch = self.task.data.batch("train", index)
        for _ in range(TRUNCATION):
            self.task.layout.flatten(take(self.task, self.params.views, batch, False).grads)

    @torch.no_grad()
    def updates(self, step: Step) -> None:
        """The rule alone, one theta an instance."""
        flat = self.params.flat
        rule = self.optimizer.rule(self.theta.repeat(len(flat), 1))
        state, zero = rule.init(self.params), torch.zeros(len(flat))
        for k in range(TRUNCATION):
            info = StepInfo(k, 1000, zero + 1, zero, zero)
            _, state = step(rule, flat, state, self.params, info)


def meta(console: Console, turns: int) -> None:
    """Inner steps a second, where they go, two threads and processes, and an optimizer's step."""
    large = torch.randn(1024, 1024)
    peak = take_turns({"peak": lambda: large @ large}, turns)["peak"].rate(2 * 1024**3).scaled(1e-9)
    console.print(f"calibration: {peak} GFLOP/s in a product of 1024-square matrices, one thread")
    console.print(f"load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} processors")
    shares(console, turns)
    parallel(console, turns)
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
    table.add_row("learned_optimization, best", *(f"{PEERS[n][0]:,}" for n in TASKS))
    console.print(table)


class Clocked(NamedTuple):
    """Seconds of each turn."""

    wall: Spread
    processor: Spread


def parallel(console: Console, turns: int) -> None:
    """By the clock on the wall, where neighbours count, and by processor time, of processes that of
    the busier one: what cores of their own would come to. Processes exchange meta-gradients."""
    names = ("one thread", "two threads", "two processes, one thread each")
    found: dict[str, list[Clocked]] = {name: [] for name in names}
    for tasks in TASKS:
        found[names[0]].append(clocked(tasks, turns, 1))
        found[names[1]].append(clocked(tasks, turns, 2))
        found[names[2]].append(in_two_processes(tasks, turns))
    table = Table("inner steps a second", *(f"{n} tasks" for n in TASKS), box=box.SIMPLE_HEAD)
    steps = [2 * n * TRUNCATION for n in TASKS]
    for name, cells in found.items():
        pairs = [*zip(cells, steps, strict=True)]
        table.add_row(name, *(str(cell.wall.rate(n)) for cell, n in pairs))
        if name != "two threads":
            table.add_row("  by processor time", *(str(c.processor.rate(n)) for c, n in pairs))
    table.add_row("learned_optimization, two threads", *(f"{PEERS[n][1]:,}" for n in TASKS))
    console.print(table)


def clocked(tasks: int, turns: int, threads: int, ranks: Ranks | None = None) -> Clocked:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    pes, wall, processor = PES(tasks, ranks), [], []
    for _ in range(turns):
        begun = time.perf_counter(), time.process_time()
        pes()
        wall.append(time.perf_counter() - begun[0])
        processor.append(time.process_time() - begun[1])
    torch.set_num_threads(before)
    return Clocked(Spread(tuple(wall)), Spread(tuple(processor)))


def in_two_processes(tasks: int, turns: int) -> Clocked:
    """As under ``torchrun``: no turn begins before both have ended the one before."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        file = Path(folder) / "rendezvous"
        both = [pool.submit(one_of_two, rank, file, tasks, turns) for rank in range(2)]
        halves = [half.result() for half in both]
    slower = (map(max, *(part.turns for part in parts)) for parts in zip(*halves, strict=True))
    return Clocked(*(Spread(tuple(times)) for times in slower))


def one_of_two(rank: int, file: Path, tasks: int, turns: int) -> Clocked:
    dist.init_process_group("gloo", init_method=file.as_uri(), rank=rank, world_size=2)
    try:
        return clocked(tasks, turns, 1, Ranks(rank, 2))
    finally:
        dist.destroy_process_group()


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
