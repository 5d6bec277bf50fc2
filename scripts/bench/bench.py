"""What the inner loop and the search cost, part by part and against the loops one would write.

    python scripts/bench/bench.py vm          the kernel's share of an inner step
    python scripts/bench/bench.py search      model-steps and decided candidates a second
    python scripts/bench/bench.py run         where the time of a whole search goes
    python scripts/bench/bench.py meta        inner steps of meta-training; a learned optimizer's
    python scripts/bench/bench.py optimizers  a step of exported rules beside torch's optimizers
    python scripts/bench/bench.py gpu         all of it on a GPU, against the size of the batch

Everything but ``run`` and ``gpu`` is one process on one thread, save that ``meta`` has its inner
loop on two threads and in two processes as well, and ``optimizers`` a process a subject. The things
compared take turns (A B C A B C ...), so that a machine that slows down slows all of them; each
number is the median of the turns with its smallest and largest. Time is the processor time of this
process: a neighbour may spoil the caches but is not counted. A *model-step* is one step of one
model: gradient, program, new parameters.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import torch
from bench_gpu import gpu
from bench_meta import meta
from bench_optimizers import report as optimizers
from bench_run import report as whole_run
from plain_loops import train, train_lifted
from rich import box
from rich.table import Table
from torch import Tensor
from turns import Spread, take_turns

from search.evolution.settings import Settings
from search.evolution.strategy import Evolution
from search.fitness.funnel import Calibration, Evaluator, calibrate
from search.fitness.settings import Funnel
from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.language.program import Program
from search.zoo import ZOO, with_states
from tasks.display.plain import Console
from tasks.families.mlp import MLP
from tasks.inner.recorded import WORTH, derivatives
from tasks.inner.unroll import advance, start
from tasks.rng import draw
from tasks.runs.environment import environment
from tasks.types import Params, StepInfo, Task

PROGRAMS = 64
CLASSICS = (
    *("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "adam_no_correction"),
    *("adamw_no_correction", "adabelief_no_correction", "sign_sgd", "sign_momentum", "lion"),
    "adamw_initial",
)
RATES = (3e-4, 1e-3, 3e-3)
HORIZON = 200


# -- the subjects: three ways to run the same programs on the same task ---------------------------


def programs() -> list[Program]:
    """Known rules of 1 to 11 statements, over and over."""
    return [ZOO[name].program for name, _ in zip(itertools.cycle(CLASSICS), range(PROGRAMS))]


class Batched:
    """All programs at all learning rates as the instances of one ``advance``."""

    def __init__(self, task: Task, steps: int) -> None:
        self.task, self.steps = task, steps
        self.lr = torch.tensor(RATES).repeat(PROGRAMS)
        owner = torch.arange(PROGRAMS).repeat_interleave(len(RATES))
        self.rule = Population.of(programs(), owner)
        self.slow = Population.of(programs(), owner, reference)
        self.inner = start(task, self.rule, len(owner))
        for _ in range(WORTH // steps + 1):  # till the gradient is recorded
            self()

    @property
    def model_steps(self) -> int:
        return len(self.lr) * self.steps

    @torch.no_grad()
    def __call__(self) -> None:
        advance(self.task, self.rule, self.inner, self.steps, horizon=HORIZON, lr=self.lr)

    @torch.no_grad()
    def gradients(self) -> None:
        views = self.task.layout.views(self.inner.params)
        for index in draw(0, torch.arange(self.steps), self._size, self.task.batch_size):
            derivatives(self.task, views, self.task.data.batch("train", index), shared=True)

    def updates(self, rule: Population) -> None:
        """The population step alone."""
        flat = self.inner.params
        params, state = Params(flat, self.task.layout), rule.init(Params(flat, self.task.layout))
        zero = torch.zeros(len(flat))
        for k in range(self.steps):
            _, state = rule.update(flat, state, params, StepInfo(k, HORIZON, self.lr, zero, zero))

    @property
    def _size(self) -> int:
        return self.task.data.size("train")


class Loop:
    """The loop one would write: a program at a time, an operation a tensor.

    ``lifted``: its learning rates together, by ``vmap`` over the gradient; else one by one, by
    autograd.
    """

    def __init__(self, task: Task, steps: int, lifted: bool = False) -> None:
        self.task, self.steps, self.lifted = task, steps, lifted
        self.programs = programs()[: len(CLASSICS)]

    @property
    def model_steps(self) -> int:
        return len(self.programs) * self.steps * (len(RATES) if self.lifted else 1)

    def __call__(self) -> None:
        for program in self.programs:
            if self.lifted:
                train_lifted(self.task, program, self.steps, RATES)
            else:
                train(self.task, program, self.steps, RATES[1])


# -- vm -------------------------------------------------------------------------------------------


def vm(console: Console, turns: int) -> None:
    """Where an inner step of all programs goes: gradient, kernel, the rest."""
    batched = Batched(MLP(), steps=5)
    seconds = take_turns(
        {
            "step": batched,
            "gradient": batched.gradients,
            "kernel": lambda: batched.updates(batched.rule),
            "reference": lambda: batched.updates(batched.slow),
        },
        turns,
    )
    each = {name: s.scaled(1e6 / batched.model_steps) for name, s in seconds.items()}
    rest = zip(each["step"].turns, each["gradient"].turns, each["kernel"].turns, strict=True)
    rest = Spread(tuple(step - gradient - kernel for step, gradient, kernel in rest))
    table = Table("part", "us a model-step", "share of the step", box=box.SIMPLE_HEAD)
    for name, spread in (
        ("gradient", each["gradient"]),
        ("programs, numba kernel", each["kernel"]),
        ("the rest", rest),
        ("inner step", each["step"]),
        ("programs, torch reference", each["reference"]),
    ):
        table.add_row(name, str(spread), f"{spread.middle / each['step'].middle:.0%}")
    console.print(f"{batched.task.name}, batch {batched.task.batch_size}, {sizes()}")
    console.print(table)


def sizes() -> str:
    lengths = [program.length for program in programs()]
    return (
        f"{PROGRAMS} programs (torch's classics, {min(lengths)} to {max(lengths)} statements, mean "
        f"{sum(lengths) / len(lengths):.1f}) x {len(RATES)} learning rates"
    )


# -- search ---------------------------------------------------------------------------------------


def search(console: Console, turns: int, seconds: float) -> None:
    """Model-steps a second of each loop, what limits them, and candidates decided a second."""
    console.print(f"model-steps a second, 64-32-10 on digits, {sizes()}")
    table = Table("batch", *LOOPS, "x eager", "x vmap", box=box.SIMPLE_HEAD)
    for batch_size in (128, 64, 32):
        rates = model_steps_a_second(MLP(batch_size=batch_size), turns)
        batched, eager, lifted = (rates[name].middle for name in LOOPS)
        cells = [str(rates[name]) for name in LOOPS]
        table.add_row(str(batch_size), *cells, f"{batched / eager:.1f}", f"{batched / lifted:.1f}")
    console.print(table)
    limits(console, turns)
    decided(console, seconds)


LOOPS = ("batched", "eager", "vmap of rates")


def model_steps_a_second(task: Task, turns: int) -> dict[str, Spread]:
    loops = (Batched(task, 5), Loop(task, 8), Loop(task, 4, lifted=True))
    subjects: dict[str, Any] = dict(zip(LOOPS, loops, strict=True))
    found = take_turns(subjects, turns)
    return {name: spread.rate(subjects[name].model_steps) for name, spread in found.items()}


def limits(console: Console, turns: int) -> None:
    """The matrix products of a step by themselves, against a large one."""
    table = Table(
        *("batch", "step", "its products alone, us a model-step", "of the peak"),
        "whole step, of the peak",
        box=box.SIMPLE_HEAD,
    )
    large = torch.randn(1024, 1024)
    for batch_size in (128, 64, 32):
        batched = Batched(MLP(batch_size=batch_size), 5)
        products, flops = matrix_products(batched)
        found = take_turns(
            {"peak": lambda: large @ large, "products": products, "step": batched}, turns
        )
        peak = 2 * 1024**3 / found["peak"].middle
        alone = found["products"].scaled(1e6 / len(batched.lr))
        step = found["step"].scaled(1e6 / batched.model_steps)
        shares = [flops * 1e6 / (x.middle * peak) for x in (alone, step)]
        cells = [str(step), str(alone), *(f"{share:.0%}" for share in shares)]
        table.add_row(str(batch_size), *cells)
    console.print(f"peak: {peak / 1e9:.0f} GFLOP/s, in a product of 1024-square matrices")
    console.print(table)


def matrix_products(batched: Batched) -> tuple[Callable[[], object], int]:
    """The batched products of one step forward and backward, and their operations a model."""
    instances, batch = len(batched.lr), batched.task.batch_size
    hidden = torch.randn(instances, batch, 32)
    logits, inputs = torch.randn(instances, batch, 10), torch.randn(batch, 64)
    w0, w1 = torch.randn(instances, 64, 32), torch.randn(instances, 32, 10)

    def run() -> tuple[Tensor, ...]:
        forward = inputs @ w0, hidden @ w1
        return *forward, hidden.mT @ logits, logits @ w1.mT, inputs.mT @ hidden

    return run, 2 * batch * (2 * 64 * 32 + 3 * 32 * 10)


def decided(console: Console, seconds: float) -> None:
    """A short real search, against evaluating every child in full in the eager loop."""
    funnel = Funnel()
    begun = with_states(ZOO["adam_no_correction"].program, 2)
    calibration = calibrate(funnel, [begun], 12)
    evolution, tried, spent = short_search(funnel, calibration, begun, seconds)
    total = sum(spent.values())
    rate = tried / total
    table = Table("what", "value", box=box.SIMPLE_HEAD)
    table.add_row("children decided", f"{tried:,} in {total:.0f} s: {rate:.0f} a second")
    for fate, count in fates(evolution).items():
        table.add_row(f"  {fate}", f"{count / evolution.tried:.0%}")
    made = tried / spent["make"]
    table.add_row("made, checked and compared alone", f"{made:,.0f} a second")
    table.add_row(
        "time on that / on evaluation", " / ".join(f"{x / total:.0%}" for x in spent.values())
    )
    eager = full_evaluations_a_second(funnel)
    table.add_row("full evaluations in the eager loop", f"{eager:.2f} a second (extrapolated)")
    table.add_row("ratio", f"{rate / eager:.0f}")
    console.print("candidates decided, one process, quick preset's sizes")
    console.print(table)


def short_search(
    funnel: Funnel, calibration: Calibration, begun: Program, seconds: float
) -> tuple[Evolution, int, dict[str, float]]:
    """Evolution and funnel in this process for so long: how many children were decided in that
    time, and seconds spent on each."""
    rungs = len(funnel.rungs) * len(calibration.references)
    settings = Settings(population=100, tournament=8, batch=48)
    evolution = Evolution(settings, [begun], calibration.lrs, seed=0, rungs=rungs)
    evaluate = Evaluator(funnel, calibration.references)
    batch = evolution.ask()
    evolution.tell(batch, evaluate(batch.job))  # the first one compiles and loads
    untimed, spent = evolution.tried, {"make": 0.0, "evaluate": 0.0}
    while sum(spent.values()) < seconds:
        before = time.process_time()
        batch = evolution.ask()
        between = time.process_time()
        evolution.tell(batch, evaluate(batch.job))
        spent["make"] += between - before
        spent["evaluate"] += time.process_time() - between
    return evolution, evolution.tried - untimed, spent


def fates(evolution: Evolution) -> dict[str, int]:
    """How many children met each fate; the invalid ones are those that got no number."""
    known = [candidate.fate for candidate in evolution.known.values()]
    counts = {fate: known.count(fate) for fate in ("stopped", "diverged", "evaluated")}
    counts["duplicate or invalid"] = evolution.tried - sum(counts.values())
    return counts


def full_evaluations_a_second(funnel: Funnel) -> float:
    """From the eager loop's model-steps a second on each proxy task; its validation is free."""
    seconds = 0.0
    for run in funnel.runs():
        loop = Loop(run.task, 8)
        (spread,) = take_turns({"eager": loop}, 5).values()
        seconds += len(funnel.factors) * run.steps * spread.middle / loop.model_steps
    return 1 / seconds


# -- command line ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("vm", "search", "run", "meta", "optimizers", "gpu"))
    parser.add_argument("--turns", type=int, default=9, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=40, help="length of the short search")
    parser.add_argument("--processes", type=int, default=5, help="for each of the optimizers")
    parser.add_argument("--rules", nargs="*", default=[], help="optimizers, as for l2o export")
    parser.add_argument("--peer", type=Path, help="of meta, optimizers: somebody's interpreter")
    parser.add_argument("--device", default="cuda", help="of gpu: cuda, cuda:N or cpu")
    parser.add_argument("--small", action="store_true", help="of gpu: only see that it works")
    parser.add_argument("--parts", nargs="*", default=[], help="of gpu: what to measure")
    parser.add_argument("--minutes", type=float, default=10, help="of run and gpu: the search")
    parser.add_argument("--workers", type=int, default=2, help="of run: processes")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="of gpu: results")
    options = parser.parse_args()
    for name in ("turns", "seconds", "processes", "minutes", "workers"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name}: got {getattr(options, name)}, expected more than 0")
    if options.peer and not which(options.peer):
        parser.error(f"--peer: got {options.peer}, expected a Python")
    torch.set_num_threads(1)
    if options.what == "gpu":
        try:
            gpu(options.device, options.small, options.out, options.parts, options.minutes)
        except ValueError as error:
            parser.exit(2, f"{error}\n")
        return
    console = Console(width=None if Console().is_terminal else 150, highlight=False)
    facts = environment()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items() if value))
    if options.what == "optimizers":
        try:
            optimizers(console, options.processes, options.rules, options.peer)
        except ValueError as error:
            parser.exit(2, f"{error}\n")
        return
    if options.what == "run":
        whole_run(console, options.minutes, options.workers)
        return
    console.print(
        f"1 process, 1 thread, seed 0, {options.turns} turns: median (smallest–largest)\n"
    )
    if options.what == "vm":
        vm(console, options.turns)
    elif options.what == "meta":
        try:
            meta(console, options.turns, options.peer)
        except RuntimeError as error:
            parser.exit(2, f"{error}\n")
    else:
        search(console, options.turns, options.seconds)


if __name__ == "__main__":
    main()
