"""The search on a GPU: the saturation curve of its inner loop, its kernel, and a real search.

* ``curve``: model-steps and whole programs a second against the number of instances, beside the
  loop one would write; every program at three learning rates, to the end, nobody stopped.
* ``kernel``: the population kernel alone against 28 bytes a parameter and step.
* ``decided``: ``l2o search --preset gpu`` until its budget is used: how many candidates were
  decided, and whether the process that makes candidates or those that evaluate them were busy.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from gpu_bounds import Machine, Row, Work, each, forget, memory, seconds, work_of_a_step
from plain_loops import run as run_program

from search.commands.search import PRESETS, SHARERS
from search.evolution.mutate import mutate
from search.evolution.settings import Mutation, Settings
from search.fitness.funnel import Calibration, Evaluator, Job, Measurement, Outcome, calibrate
from search.fitness.settings import Funnel
from search.interpreter.population import Population
from search.language.program import Program, parse, to_text
from search.run import stages as run
from search.run.config import BASELINES, Budget, Config
from search.run.loop import Search, fates
from search.run.view import View
from search.zoo import ZOO, with_states
from tasks.data.loaders import help_text
from tasks.display.plain import Console
from tasks.executors.base import Executor
from tasks.executors.inline import Inline
from tasks.executors.named import executor
from tasks.families.transformer import Transformer
from tasks.inner.unroll import advance, initial, start
from tasks.rng import draw
from tasks.suites import Entry, Suite, proxy
from tasks.types import Layout, Params, ParamSpec, StepInfo, Task

MOVED = 28  # bytes a parameter and step: read w, g, m, v; write w (or the update), m, v
TWELVE = """def update(w, g, m, v, lr):
    m = interp(g, m, 0.9)
    a = square(g)
    v = interp(a, v, 0.99)
    b = m * 1.1
    c = v * 1.01
    d = sqrt(c)
    e = d + 1e-08
    f = b / e
    k = sign(m)
    j = interp(f, k, 0.1)
    l = j * lr
    update = l + j
    return update, m, v
"""


def mlp_proxy() -> Suite:
    return proxy()[:1]


def transformer_proxy() -> Suite:
    """The smallest transformer there is in the suites."""
    text = help_text(16)
    return (Entry(Transformer(width=16, depth=1, heads=2, data=text, batch_size=16), 120),)


SUITES = {"MLP proxy": "mlp_proxy", "smallest transformer": "transformer_proxy"}


@dataclass(frozen=True)
class Sizes:
    """How much is measured. ``shrink`` divides the search's batch, population and budget."""

    instances: tuple[int, ...] = (64, 256, 1024, 4096, 16384, 65536)
    steps: int = 30
    repeats: int = 3
    length: float = 1.0
    elements: int = 2**28
    minutes: float = 10.0
    workers: int = SHARERS
    shrink: int = 1
    alone: int = 50_000


def begun() -> Program:
    return with_states(ZOO["adam_no_correction"].program, 2)


def mutants(count: int) -> list[Program]:
    """Programs as a search makes them: walks of ten mutations from AdamW."""
    rng, settings = np.random.default_rng(0), Mutation()
    found, program = [], begun()
    for k in range(count):
        program = mutate(begun() if k % 10 == 0 else program, rng, settings).program
        found.append(program)
    return found


# --------------------------------------------------------------------------------------- the curve


def eager(task: Task, program: Program, steps: int, device: torch.device) -> None:
    """One model and one program, as one would write it."""
    data = task.data.to(device)
    params = task.layout.views(initial(task, 1, 0)[0].to(device))
    state = {name: [torch.zeros_like(p) for _ in program.states] for name, p in params.items()}
    batches = draw(0, torch.arange(steps), data.size("train"), task.batch_size).to(device)
    for k, index in enumerate(batches):
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = task.loss(leaves, data.batch("train", index))
        found = torch.autograd.grad(loss, [*leaves.values()])
        with torch.no_grad():
            for (name, p), g in zip(leaves.items(), found, strict=True):
                update, state[name] = run_program(program, p, g, state[name], 1e-3, k + 1.0)
                params[name] = p - update


def curve(name: str, device: torch.device, sizes: Sizes, can: Machine) -> list[Row]:
    """The saturation curve of one task; the first row is the eager loop."""
    suite = f"{__name__}:{SUITES[name]}"
    funnel = Funnel(suite=suite, length=sizes.length, device=str(device))
    (task, steps), known = funnel.tasks()[0], mutants(min(4096, max(sizes.instances)))
    references = calibrate(funnel, [ZOO["adamw"].program], 8).references
    evaluate = Evaluator(funnel, references)
    alone = each(lambda n: eager(task, begun(), n, device), sizes.steps, device, sizes.repeats)
    full = len(funnel.factors) * steps  # model-steps of a program that nobody stops
    rows: list[Row] = [{"loop": "eager", "instances": 1, "step ms": 1e3 * alone}]
    rows[0] |= {"model-steps/s": 1 / alone, "programs/s": 1 / alone / full}
    for count in sizes.instances:
        forget(device)
        try:
            row = one_size(task, known, count, device, sizes, can)
            row["programs/s"] = programs_a_second(evaluate, known, count, device)
            rows.append(row | memory(device))
        except torch.OutOfMemoryError:
            rows.append({"loop": "batched", "instances": count, "bound by": "memory"})
    for row in rows:
        if "programs/s" in row:
            row["x eager model-steps"] = row["model-steps/s"] / rows[0]["model-steps/s"]
            row["x eager programs"] = row["programs/s"] / rows[0]["programs/s"]
    return rows


@torch.no_grad()
def one_size(
    task: Task,
    known: Sequence[Program],
    count: int,
    device: torch.device,
    sizes: Sizes,
    can: Machine,
) -> Row:
    """An inner step of ``count`` instances, and what it asks of the device."""
    programs = known[: max(1, count // 3)]
    rule = Population.of(programs, torch.arange(count, device=device) % len(programs))
    lr = torch.full((count,), 1e-3, device=device)
    inner = start(task, rule, count, device=device)

    def go(steps: int) -> None:
        advance(task, rule, inner, steps, horizon=4 * sizes.steps, lr=lr)

    step = each(go, sizes.steps, device, sizes.repeats)
    work = work_of_a_step(go) + Work(1, MOVED * task.layout.n * count)
    row: Row = {"loop": "batched", "instances": count, "step ms": 1e3 * step}
    row |= {"model-steps/s": count / step, "KB a model-step": work.moved / count / 1e3}
    return row | can.bounds(work, step)


def programs_a_second(
    evaluate: Evaluator, known: Sequence[Program], count: int, device: torch.device
) -> float:
    """Programs evaluated in full, with all that is done on the host for them."""
    factors = len(evaluate.funnel.factors)
    programs = max(1, count // factors)
    texts = tuple(to_text(known[k % len(known)]) for k in range(programs))
    rungs = len(evaluate.funnel.rungs) * len(evaluate.runs)
    job = Job(texts, (1e-3,) * programs, (math.inf,) * rungs)
    return programs / seconds(lambda: evaluate(job), device, 1)


# -------------------------------------------------------------------------------------- the kernel


@torch.no_grad()
def kernel(device: torch.device, sizes: Sizes, can: Machine) -> list[Row]:
    """A step of a dozen statements on the proxy's parameters and on one large tensor."""
    many, rows = mutants(64), []
    proxies = mlp_proxy()[0].task.layout
    large = Layout((ParamSpec("w", (sizes.elements,)),))
    for label, programs, layout in (
        ("12 statements", [parse(TWELVE)], proxies),
        ("12 statements", [parse(TWELVE)], large),
        ("AdamW", [ZOO["adamw"].program], proxies),
        (f"{len(many)} mutants", many, proxies),
    ):
        count = max(1, sizes.elements // layout.n)
        rule = Population.of(programs, torch.arange(count, device=device) % len(programs))
        flat = torch.randn(count, layout.n, device=device)
        params, grads = Params(flat, layout), torch.randn_like(flat)
        state, one = rule.init(params), torch.full((count,), 1e-3, device=device)
        info = StepInfo(0, 1, one, one, one)

        def step(rule=rule, grads=grads, state=state, params=params, info=info) -> None:
            rule.update(grads, state, params, info)

        taken = seconds(step, device, sizes.repeats)
        floor = MOVED * flat.numel() / can.bandwidth
        row: Row = {"programs": label, "instances": count, "parameters": layout.n}
        rows.append(row | {"step ms": 1e3 * taken, "floor ms": 1e3 * floor, "x": taken / floor})
    return rows


# --------------------------------------------------------------------------------- a million of it


def config(device: torch.device, sizes: Sizes) -> Config:
    """What ``l2o search --preset gpu`` runs, shrunk where ``sizes`` says so."""
    preset = PRESETS["gpu"]
    own = {k.removeprefix("evolution."): v for k, v in preset.items() if k.startswith("evolution.")}
    own |= {name: max(8, own[name] // sizes.shrink) for name in ("batch", "population")}
    candidates = preset["budget.candidates"] // sizes.shrink**2
    return Config(
        start=(to_text(begun()),),
        budget=Budget(max(40, candidates), sizes.minutes),
        funnel=Funnel(length=sizes.length, device=str(device)),
        evolution=Settings(**own),
    )


def decided(device: torch.device, sizes: Sizes) -> list[Row]:
    """A search, from the start of its workers on, and what it waited for."""
    chosen = config(device, sizes)
    baselines = [*(ZOO[name].program for name in BASELINES), begun()]
    calibration = calibrate(chosen.funnel, baselines, 12)
    context = (chosen.funnel, calibration.references)
    wall, processor = time.monotonic(), time.process_time()
    with executor("search.run.stages:worker", context, sizes.workers) as jobs:
        counts = searched(chosen, calibration, jobs, sizes.workers)
        wall, busy = time.monotonic() - wall, sum(jobs.busy)
    processor = time.process_time() - processor
    total = sum(counts.values())
    fresh = total - counts.get("invalid", 0) - counts.get("duplicate", 0)
    alone = driver_alone(chosen, calibration, sizes)
    workers, size = max(1, sizes.workers), chosen.evolution.batch
    whole, hardly = (batch_seconds(chosen, n, device) for n in (chosen.funnel.length, 0.02))
    rows = {
        "candidates decided": total,
        "seconds, the start of the workers included": wall,
        "candidates/s": total / wall,
        "minutes for a million": 1e6 * wall / total / 60,
        "programs run": fresh,
        "programs run/s": fresh / wall,
        **{f"share {fate}": count / total for fate, count in counts.items()},
        "worker processes": sizes.workers,
        "workers busy": busy / wall / workers,
        "programs/s of a busy worker": fresh / max(busy, 1e-9),
        f"seconds of a batch of {size}, nobody stopped": whole,
        "of it on the host (a batch of two steps)": hardly,
        "driver busy": processor / wall,
        "candidates/s of the driver alone": alone,
        "bound by": "driver" if processor / wall > busy / wall / workers else "workers",
    }
    return [{"what": what, "value": value} for what, value in rows.items()]


def batch_seconds(chosen: Config, length: float, device: torch.device) -> float:
    """A batch in a worker with nobody else on the device, tasks cut to ``length``."""
    funnel, size = replace(chosen.funnel, length=length), chosen.evolution.batch
    runs, rungs = len(funnel.runs()), len(funnel.rungs)
    evaluate = Evaluator(funnel, [[1.0] * rungs] * runs)
    texts = tuple(map(to_text, mutants(size)))
    job = Job(texts, (1e-3,) * size, (math.inf,) * (rungs * runs))
    return seconds(lambda: evaluate(job), device, 1)


def searched(
    chosen: Config, calibration: Calibration, jobs: Executor, workers: int
) -> dict[str, int]:
    """How many candidates met each fate, the archive written as ever."""
    with (
        tempfile.TemporaryDirectory() as place,
        View(Console(file=io.StringIO())) as view,
        run.begin(Path(place) / "run", chosen) as archive,
    ):
        Search(archive, chosen, calibration, jobs, view, workers, lambda: False).to_the_end()
        return fates(archive)


def driver_alone(chosen: Config, calibration: Calibration, sizes: Sizes) -> float:
    """Candidates a second where evaluating them takes no time: an upper bound for any device."""
    budget = Budget(min(sizes.alone, chosen.budget.candidates), chosen.budget.minutes)
    bare = Config(chosen.start, chosen.seed, budget, chosen.funnel, chosen.evolution)
    before = time.process_time()
    counts = searched(bare, calibration, Inline(made_up, chosen.funnel), 0)
    return sum(counts.values()) / (time.process_time() - before)


def made_up(funnel: Funnel):
    """Outcomes as numerous as real ones: a third passes every rung, the others none."""
    steps = [(run.name, run.seed, at) for run in funnel.runs() for at in funnel.marks(run.steps)]

    def outcome(number: int, lr: float) -> Outcome:
        reached = steps if number % 3 == 0 else steps[:1]
        rows = [Measurement(*at, lr * f, 1.0) for at in reached for f in funnel.factors]
        ladder = (0.01 * (number % 7),) * len(reached)
        if number % 3:
            return Outcome("stopped", None, None, ladder, tuple(rows))
        return Outcome("evaluated", ladder[0], lr, ladder, tuple(rows))

    return lambda job: [outcome(number, lr) for number, lr in enumerate(job.lrs)]
