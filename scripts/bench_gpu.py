"""What a GPU makes of the inner loop: ``python scripts/bench.py gpu``.

Four tables, written as Markdown and as JSON with device, versions and date:

* search: model-steps and programs a second against the number of instances, on two tasks, and what
  bounds them, beside the loop one would write, on the same device in the same run;
* population kernel: its time against its bytes at the copy bandwidth measured here;
* PES: inner steps a second against the number of particles;
* small_fc: a step on one large tensor list against fused AdamW.

``--device cpu --small`` runs all of it in a minute without a GPU, to see that it works; its numbers
mean nothing.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from plain_loops import run as run_program
from torch import Tensor

from l2o.episodes import Episodes, Lesson
from l2o.es import ES
from l2o.small_fc import SmallFC
from search.program import Program
from search.vm import Population
from search.zoo import ZOO
from tasks.chunks import chunk_size
from tasks.data import draw
from tasks.datasets import help_text
from tasks.environment import environment, prepare
from tasks.gradients import gradients
from tasks.mlp import MLP
from tasks.transformer import Transformer
from tasks.types import Layout, Params, ParamSpec, StepInfo, Task
from tasks.unroll import advance, initial, start

MOVED = 28  # bytes a parameter and step: read w, g, m, v; write w, m, v
CANDIDATE_STEPS = 3 * 100  # a candidate: three learning rates, a proxy's steps; nobody is stopped
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    instances: tuple[int, ...] = (64, 256, 1024, 4096, 16384, 65536)
    particles: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    parameters: int = 100_000_000
    copied: int = 2**32
    steps: int = 50
    repeats: int = 5


SMALL = Sizes((4, 16), (4, 8), 20_000, 2**20, 4, 2)


def programs() -> list[Program]:
    """Rules of two states and 4 to 12 statements, like those that a search meets."""
    chosen = [entry.program for entry in ZOO.values() if "h" not in entry.program.inputs]
    return [program for program in chosen if len(program.states) == 2]


def tasks() -> list[Task]:
    """The MLP proxy and the smallest transformer proxy."""
    text = help_text(16)
    return [MLP(), Transformer(width=16, depth=1, heads=2, data=text, batch_size=32)]


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of ``run`` after one that does not count; the device's own on a GPU."""
    run()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run()
            events[1].record()
            events[1].synchronize()
            found.append(events[0].elapsed_time(events[1]) / 1e3)
        else:
            before = time.perf_counter()
            run()
            found.append(time.perf_counter() - before)
    return statistics.median(found)


def bandwidth(device: torch.device, sizes: Sizes) -> float:
    """Bytes a second of a large copy, read and written both counted."""
    source = torch.randn(sizes.copied // 8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device, sizes.repeats)


# ------------------------------------------------------------------------------------------ search


def eager(task: Task, program: Program, steps: int, device: torch.device) -> None:
    """One model and one program, as one would write it."""
    data = task.data.to(device)
    params = task.layout.views(initial(task, 1, 0)[0].to(device))
    memory = {name: [torch.zeros_like(p) for _ in program.states] for name, p in params.items()}
    batches = draw(0, torch.arange(steps), data.size("train"), task.batch_size).to(device)
    for k, index in enumerate(batches):
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = task.loss(leaves, data.batch("train", index))
        found = torch.autograd.grad(loss, [*leaves.values()])
        with torch.no_grad():
            for (name, p), g in zip(leaves.items(), found, strict=True):
                update, memory[name] = run_program(program, p, g, memory[name], 1e-3, k + 1.0)
                params[name] = p - update


@torch.no_grad()
def search(task: Task, device: torch.device, sizes: Sizes, speed: float) -> list[Row]:
    """The saturation curve of one task; the first row is the eager loop."""
    known = programs()
    alone = seconds(lambda: eager_steps(task, known, sizes, device), device, sizes.repeats)
    rows = [measured(task, "eager loop", 1, alone / sizes.steps, 0.0, device)]
    for count in sizes.instances:
        forget(device)
        try:
            rows.append(one_size(task, known, count, device, sizes, speed))
        except torch.OutOfMemoryError:
            rows.append({"task": task.name, "loop": "batched", "instances": count, "memory": "out"})
    best = rows[0]["model-steps/s"]
    for row in rows:
        if "model-steps/s" in row:
            row["times the eager loop"] = row["model-steps/s"] / best
    return explained(rows)


def eager_steps(task: Task, known: Sequence[Program], sizes: Sizes, device: torch.device) -> None:
    with torch.enable_grad():
        eager(task, known[0], sizes.steps, device)


def one_size(
    task: Task,
    known: Sequence[Program],
    count: int,
    device: torch.device,
    sizes: Sizes,
    speed: float,
) -> Row:
    owner = torch.arange(count, device=device) % len(known)
    rule = Population.of(known, owner)
    inner = start(task, rule, count, device=device)
    lr = torch.full((count,), 1e-3, device=device)

    def go() -> None:
        advance(task, rule, inner, sizes.steps, horizon=sizes.steps, lr=lr)

    row = measured(
        task, "batched", count, seconds(go, device, sizes.repeats) / sizes.steps, speed, device
    )
    part = min(count, chunk_size(task, inner.params, inner.state))
    views, data = task.layout.views(inner.params[:part]), task.data.to(device)
    batch = data.batch("train", torch.arange(task.batch_size, device=device))
    taken = seconds(lambda: gradients(task, views, batch, True), device, sizes.repeats)
    taken *= count / part
    grads = torch.randn_like(inner.params)
    info = StepInfo(0, 1, lr, lr, lr)

    def kernel() -> None:
        rule.update(grads, inner.state, Params(inner.params, task.layout), info)

    spent = seconds(kernel, device, sizes.repeats)
    row |= {"gradients alone, eager ms": 1e3 * taken, "kernel alone ms": 1e3 * spent}
    row["kernel / floor"] = 1e3 * spent / row["floor ms"]
    return row


def measured(
    task: Task, loop: str, count: int, step: float, speed: float, device: torch.device
) -> Row:
    row: Row = {"task": task.name, "loop": loop, "instances": count}
    row |= {"step ms": 1e3 * step, "model-steps/s": count / step}
    row["programs/s"] = count / step / CANDIDATE_STEPS
    row["floor ms"] = 1e3 * MOVED * task.layout.n * count / speed if speed else 0.0
    if device.type == "cuda":
        row["memory GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    return row


def explained(rows: list[Row]) -> list[Row]:
    """What bounds each size: launches, if a smaller one takes as long; the population's bytes, if
    they take half of the time; otherwise the arithmetic and traffic of gradients."""
    timed = [row for row in rows if "step ms" in row]
    for before, row in zip([None, *timed], timed, strict=False):
        if row["loop"] == "eager loop":
            row["bound by"] = "launches"
        elif row["floor ms"] > 0.5 * row["step ms"]:
            row["bound by"] = "bandwidth (programs)"
        elif before and before["loop"] == "batched" and row["step ms"] < 1.5 * before["step ms"]:
            row["bound by"] = "launches"
        else:
            row["bound by"] = "gradients"
    return rows


# --------------------------------------------------------------------------------- meta-training


def particles(device: torch.device, sizes: Sizes) -> list[Row]:
    """PES on the MLP proxy: inner steps a second against antithetic pairs."""
    optimizer, lesson = SmallFC(), Lesson(MLP())
    truncation = sizes.steps
    estimator = ES(Episodes(horizon=10 * truncation, truncation=truncation), "persistent")
    theta = optimizer.initial().to(device)
    rows = []
    for count in sizes.particles:
        forget(device)
        runs = estimator.start(optimizer, theta, lesson, torch.arange(count))
        taken = seconds(
            lambda runs=runs: estimator.step(optimizer, theta, lesson, runs), device, sizes.repeats
        )
        row: Row = {"pairs": count, "outer step ms": 1e3 * taken}
        row["inner steps/s"] = 2 * count * truncation / taken
        if device.type == "cuda":
            row["memory GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        rows.append(row)
    return rows


def large_step(device: torch.device, sizes: Sizes, speed: float) -> list[Row]:
    """``small_fc`` against AdamW on matrices of equal size, about ``sizes.parameters`` in all."""
    side = max(8, round((sizes.parameters / 24) ** 0.5))
    layout = Layout(tuple(ParamSpec(f"w{k}", (side, side)) for k in range(24)))
    rows = [adamw(layout, device, sizes, speed)]
    for dtype in (torch.float32, torch.bfloat16):
        for hidden in (4, 32):
            forget(device)
            rows.append(learned(hidden, dtype, layout, device, sizes))
    for row in rows:
        row["times AdamW"] = row["step ms"] / rows[0]["step ms"]
    return rows


def adamw(layout: Layout, device: torch.device, sizes: Sizes, speed: float) -> Row:
    params = [torch.randn(spec.shape, device=device) for spec in layout.specs]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(params, fused=True)
    taken = seconds(optimizer.step, device, sizes.repeats)
    floor = 1e3 * MOVED * layout.n / speed
    return {"rule": "AdamW, fused", "parameters": layout.n, "step ms": 1e3 * taken, "floor": floor}


@torch.no_grad()
def learned(
    hidden: int, dtype: torch.dtype, layout: Layout, device: torch.device, sizes: Sizes
) -> Row:
    optimizer = SmallFC(hidden_size=hidden)
    rule = optimizer.rule(optimizer.initial().to(device))
    params = Params(torch.randn(1, layout.n, device=device).to(dtype), layout)
    grads, one = torch.randn_like(params.flat), torch.ones(1, device=device)
    state = rule.init(params)
    info = StepInfo(0, 1, one, one * 0, one)
    held: list[Tensor] = []

    def go() -> None:
        held[:] = [rule.update(grads, state, params, info)[0]]

    try:
        taken = seconds(go, device, sizes.repeats)
    except RuntimeError as error:  # a CPU's reference knows float32 alone
        if device.type == "cuda":
            raise
        return {"rule": f"small_fc, hidden {hidden}", "step ms": float("nan"), "note": str(error)}
    name = f"small_fc, hidden {hidden}, {str(dtype).removeprefix('torch.')}"
    return {"rule": name, "parameters": layout.n, "step ms": 1e3 * taken}


# ------------------------------------------------------------------------------------------ report


def forget(device: torch.device) -> None:
    """Start counting memory anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def markdown(results: dict[str, Any]) -> str:
    """The results as a page of tables."""
    facts = [f"* {name}: {value}" for name, value in results["facts"].items() if value]
    lines = [f"# The inner loop on {results['facts']['device']}", "", *facts]
    for title, rows in results["tables"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in rows:
            lines.append("| " + " | ".join(shown(row.get(key, "")) for key in columns) + " |")
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def gpu(device: str, small: bool, out: Path) -> dict[str, Any]:
    """Measure everything and write ``out`` (JSON) and the same name with ``.md``."""
    prepare(device)
    place, sizes = torch.device(device), SMALL if small else Sizes()
    speed = bandwidth(place, sizes)
    facts = environment(device) | {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "CUDA": torch.version.cuda,
        "copy bandwidth, GB/s": f"{speed / 1e9:.0f}",
        "sizes": "small: to see that it works" if small else "full",
    }
    tables = {f"search on {task.name}": search(task, place, sizes, speed) for task in tasks()}
    tables["PES, small_fc on the MLP proxy"] = particles(place, sizes)
    tables["small_fc beside fused AdamW"] = large_step(place, sizes, speed)
    results = {"facts": facts, "tables": tables}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = markdown(results)
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    return results
