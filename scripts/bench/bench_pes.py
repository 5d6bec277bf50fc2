"""PES by the clock on the wall: ours in one thread, two threads and two processes, and a peer's.

The workload of google/learned_optimization's own benchmark: PES, MLP 64-32-10 on digits, batch 128,
``small_fc`` with 4 hidden units, truncation 20, 8 / 16 / 32 tasks with one antithetic pair each.
Runs are staggered, so every instance has its own minibatch.

Everybody is a process of its own that answers a line, a number of tasks, with the seconds of one
meta-gradient, and waits in between. They take turns, so that a machine that slows down slows all.

    bench_pes.py THREADS [RANK FILE]    what answers for us; two of them that share a FILE are one
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import torch
import torch.distributed as dist
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from turns import Spread

from l2o.architectures.small_fc import SmallFC, Step
from l2o.estimators.episodes import Episodes, Lesson
from l2o.estimators.es import ES
from l2o.meta.ranks import Ranks
from tasks.families.mlp import MLP
from tasks.inner.recorded import WORTH
from tasks.oracles.gradient import Derivatives
from tasks.types import Batch, Params, StepInfo, Task

TASKS = (8, 16, 32)
TRUNCATION = 20
PEER = Path(__file__).with_name("peer_pes.py")
ONE, THREADS, PROCESSES = "one thread", "two threads", "two processes, one thread each"
THEIRS = {1: "learned_optimization, one core", 2: "learned_optimization, two cores"}

Take = Callable[[Task, Mapping[str, Tensor], Batch, bool], Derivatives]


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


@contextmanager
def asked(*commands: Sequence[str]) -> Iterator[Callable[[int], float]]:
    """What asks processes, all at once, and has the slowest answer. Raises RuntimeError where one
    of them ends."""
    with ExitStack() as stack:
        pipe = subprocess.PIPE
        started = [
            stack.enter_context(subprocess.Popen(each, stdin=pipe, stdout=pipe, text=True))
            for each in commands
        ]
        stack.callback(lambda: [process.kill() for process in started])

        def ask(tasks: int) -> float:
            for process in started:
                print(tasks, file=_there(process.stdin), flush=True)
            answers = [_there(process.stdout).readline() for process in started]
            if not all(answers):
                raise RuntimeError(f"{' '.join(commands[0])}: it ended, see above")
            return max(map(float, answers))

        yield ask


def _there(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def contest(console: Console, turns: int, peer: Path | None) -> None:
    """Inner steps a second of everybody, and ours over theirs within a turn; ``peer``: the
    interpreter of an environment with learned_optimization."""
    with ExitStack() as stack, TemporaryDirectory() as folder:
        own = [sys.executable, __file__, "1"]
        both = [[*own, str(rank), str(Path(folder, "rendezvous"))] for rank in range(2)]
        commands = {ONE: [own], THREADS: [[*own[:2], "2"]], PROCESSES: both}
        for cores, name in THEIRS.items() if peer else ():
            commands[name] = [[str(peer), str(PEER), str(cores)]]
        everybody = {name: stack.enter_context(asked(*c)) for name, c in commands.items()}
        found = {name: {n: [] for n in TASKS} for name in everybody}
        for turn in range(turns + 1):
            for tasks in TASKS:
                for name, ask in everybody.items():
                    seconds = ask(tasks)
                    if turn:
                        found[name][tasks].append(seconds)
    console.print(table(found))


def table(found: Mapping[str, Mapping[int, Sequence[float]]]) -> Table:
    """Rates, and where a peer was there the ratios to its own of as many cores."""
    shown = Table("inner steps a second", *(f"{n} tasks" for n in TASKS), box=box.SIMPLE_HEAD)
    for name, seconds in found.items():
        rates = (Spread((*seconds[n],)).rate(2 * n * TRUNCATION) for n in TASKS)
        shown.add_row(name, *map(str, rates))
    shown.add_section()
    for cores, ours in ((1, ONE), (2, THREADS), (2, PROCESSES)):
        if THEIRS[cores] in found:
            theirs = found[THEIRS[cores]]
            pairs = (zip(theirs[n], found[ours][n], strict=True) for n in TASKS)
            ratios = (Spread(tuple(slow / fast for slow, fast in pair)) for pair in pairs)
            shown.add_row(f"{ours} / {THEIRS[cores]}", *map(str, ratios))
    return shown


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    ranks, known = Ranks(), {}
    if len(sys.argv) > 2:
        ranks = Ranks(int(sys.argv[2]), 2)
        file = Path(sys.argv[3]).as_uri()
        dist.init_process_group("gloo", init_method=file, rank=ranks.rank, world_size=2)
    for line in sys.stdin:
        tasks = int(line)
        if tasks not in known:
            known[tasks] = PES(tasks, ranks)
        begun = time.perf_counter()
        known[tasks]()
        print(time.perf_counter() - begun, flush=True)
    os._exit(0)  # the other one may have been killed already


if __name__ == "__main__":
    main()
