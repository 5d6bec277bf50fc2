"""The one inner loop: many independent training runs, a step at a time, all at once.

``start`` makes ``N`` runs, ``advance`` takes steps, ``evaluate`` measures them, and ``unroll`` is
the three in a row. An outer loop, whether it evolves programs or estimates meta-gradients, is
something that calls these and decides what to run next.

Three choices carry the rest:

* An instance is a row. Losses are written for one instance and lifted by ``vmap``; no operation
  mixes rows, so a run that diverges fills its own row with NaN and leaves its neighbours
  bit-identical.
* Randomness is a function of (seed, step), never of a generator that somebody advanced. All
  instances of a seed start from the same weights and see the same minibatches (common random
  numbers), so comparisons are sharp, and a resumed run needs no random state.
* Learning rates and minibatch indices of all steps are laid out before the first step, so the
  loop itself never waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.inner import cuda_graph
from tasks.inner.chunks import chunk_size, in_chunks
from tasks.inner.recorded import derivatives
from tasks.inner.schedules import Schedule, constant
from tasks.inner.step import inner_step
from tasks.oracles.base import Oracle, Point
from tasks.oracles.lifting import each, ways
from tasks.oracles.reading import reads
from tasks.rng import draw
from tasks.types import Batch, Inner, Params, Split, Task, UpdateRule

LAID_OUT = 64
"""Steps whose minibatch indices are drawn at once."""


@dataclass(frozen=True)
class Trajectory:
    """What ``unroll`` returns. A dropped instance keeps NaN from the step it was dropped at."""

    inner: Inner  # the runs still alive at the end
    alive: Tensor  # [K] int64: which of the N instances those are
    steps: tuple[int, ...]  # when validation was measured
    validation: Tensor  # [len(steps), N]
    training: Tensor  # [horizon, N]


def initial(task: Task, instances: int, seed: int | Tensor) -> Tensor:
    """Initial parameters ``[N, n]`` on the CPU: a function of each instance's seed alone."""

    def row(value: int) -> Tensor:
        return task.layout.flatten(task.init(torch.Generator().manual_seed(value)))

    if isinstance(seed, int):
        return row(seed).repeat(instances, 1)
    if seed.shape != (instances,):
        raise ValueError(f"seed: got shape {tuple(seed.shape)}, expected {(instances,)}")
    values, where = torch.unique(seed.cpu(), return_inverse=True)
    return torch.stack([row(int(value)) for value in values])[where]


def start(
    task: Task,
    rule: UpdateRule,
    instances: int,
    seed: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Inner:
    """``N = instances`` runs before their first step. ``seed``: one for all, or ``[N]`` int64."""
    flat = initial(task, instances, seed).to(device)
    step: int | Tensor = 0
    if isinstance(seed, Tensor):
        seed = seed.to(device)
        step = torch.zeros_like(seed)
    return Inner(flat, rule.init(Params(flat, task.layout)), step, seed)


def advance(
    task: Task,
    rule: UpdateRule,
    inner: Inner,
    steps: int,
    *,
    horizon: int | Tensor,
    lr: Tensor | float,
    weight_decay: Tensor | float = 0.0,
    schedule: Schedule = constant,
    chunk: int | None = None,
    oracle: Oracle | str | None = None,
) -> tuple[Inner, Tensor]:
    """Take ``steps`` steps with every run.

    ``horizon`` (int or ``[N]``) is the length that the schedule stretches over; ``lr`` and
    ``weight_decay`` are numbers or ``[N]``. At most ``chunk`` instances are in flight at a time,
    by default as many as fit into memory (see ``chunks``); on one thread no bit of the results
    depends on it, unless a chunk holds a single instance, for which libraries choose other
    algorithms, or the loss multiplies parameters by a matrix that all instances share, which is
    one product of them all. The rule may overwrite ``inner.state``. ``oracle``, an object or the
    name of one, tells of the loss instead of what the rule reads (see ``tasks/oracles``). Returns
    the runs and their training losses ``[steps, N]``, each taken before its step. Differentiable
    with respect to whatever the rule holds, unless called under ``torch.no_grad``.

    Raises ValueError where the rule reads what ``oracle`` does not tell.
    """
    told_by = reads(rule, oracle)
    instances = inner.params.shape[0]
    device = inner.params.device
    lr = torch.as_tensor(lr, dtype=torch.float32, device=device).expand(instances)
    weight_decay = torch.as_tensor(weight_decay, dtype=torch.float32, device=device)
    weight_decay = weight_decay.expand(instances)

    def work(rows: slice) -> tuple[Inner, Tensor]:
        whole = rows.stop - rows.start == instances
        index = torch.arange(rows.start, rows.stop, device=device)
        return _advance_chunk(
            task,
            rule if whole else rule.select(index),
            inner if whole else inner.rows(rows),
            steps,
            horizon if isinstance(horizon, int) else horizon[rows],
            lr[rows],
            weight_decay[rows],
            schedule,
            told_by,
        )

    size = chunk
    if size is None:
        size = max(1, chunk_size(task, inner.params, inner.state) // told_by.memory)
    parts = in_chunks(work, instances, size)
    if len(parts) == 1:
        return parts[0]
    return join([part for part, _ in parts]), torch.cat([loss for _, loss in parts], dim=1)


def _advance_chunk(
    task: Task,
    rule: UpdateRule,
    inner: Inner,
    steps: int,
    horizon: int | Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    schedule: Schedule,
    oracle: Oracle,
) -> tuple[Inner, Tensor]:
    device = inner.params.device
    flat, state = inner.params, inner.state
    if flat.is_cuda:  # should memory run out, the chunk is run again: ``state`` must be as it was
        state = {name: value.clone() for name, value in state.items()}
    shared = isinstance(inner.seed, int) and isinstance(inner.step, int)
    clock = torch.arange(steps, device=device)[:, None] + inner.step  # [steps, 1] or [steps, N]
    now = clock.to(torch.float32)
    rates = schedule(now, torch.as_tensor(horizon, dtype=torch.float32, device=device)) * lr
    known = ways(task, oracle.backward)
    flat = flat.clone() if known.writes else flat
    plain = torch.is_grad_enabled() or not (oracle.steady and known.steady(shared))
    if device.type == "cuda" and not plain:
        return cuda_graph.advance(task, rule, inner, steps, horizon, rates, weight_decay, oracle)
    differentiable = torch.is_grad_enabled()
    # Without a graph into one block: small tensors that stay among large ones that come and go
    # leave a heap in pieces, which has cost gigabytes in runs of thousands of steps.
    losses, trained = [], flat.new_zeros(steps, flat.shape[0])
    for k, batch in enumerate(_minibatches(task, inner.seed, clock[:, 0] if shared else clock)):
        point = Point(task, flat, batch, shared, inner.seed, inner.step + k, known, derivatives)
        updates, state, loss = inner_step(
            point, oracle, rule, state, horizon=horizon, lr=rates[k], weight_decay=weight_decay
        )
        flat = flat - updates
        if differentiable:
            losses.append(loss)
        else:
            trained[k] = loss
    if losses:
        trained = torch.stack(losses)
    return Inner(flat, state, inner.step + steps, inner.seed), trained


def _minibatches(task: Task, seed: int | Tensor, clock: Tensor) -> Iterator[Batch]:
    """Training examples of each step: of all runs together, or ``[N, ...]`` of each."""
    data = task.data.to(clock.device)
    for block in clock.split(LAID_OUT):
        for index in draw(seed, block, data.size("train"), task.batch_size, clock.device):
            yield data.batch("train", index)


def shown(task: Task, rule: UpdateRule, inner: Inner) -> Tensor:
    """The parameters ``[N, n]`` that are to be measured: those that are trained, unless the rule
    has an ``evaluated`` that says otherwise, as schedule-free optimizers do."""
    evaluated = getattr(rule, "evaluated", None)
    if evaluated is None:
        return inner.params
    return evaluated(Params(inner.params, task.layout), inner.state)


@torch.no_grad()
def evaluate(
    task: Task,
    flat: Tensor,
    split: Split = "validation",
    chunk: int | None = None,
    *,
    metric: bool = False,
) -> Tensor:
    """Mean loss ``[N]`` of parameters ``[N, n]`` over the split's fixed examples; ``metric``: the
    mean of what the task is measured in besides.

    Where all instances meet in one matrix product, as in a ``Quadratic``, the last bits depend on
    how many run at a time.
    """
    data = task.data.to(flat.device)
    size = data.size(split)
    count = min(size, task.evaluation_size)
    index = torch.arange(count, device=flat.device) * size // count
    batches = [(data.batch(split, part), len(part)) for part in index.split(task.batch_size)]
    function = task.figure if metric else task.loss

    def work(rows: slice) -> Tensor:
        views = task.layout.views(flat[rows])
        mean = flat.new_zeros(rows.stop - rows.start)
        for batch, weight in batches:
            mean = mean + each(task, function, views, batch) * (weight / count)
        return mean

    most = chunk_size(task, flat, {}) if chunk is None else chunk
    return torch.cat(in_chunks(work, len(flat), most))


Keep = Callable[[int, Tensor, Tensor], Tensor]
"""(step, instances [K], their validation losses [K]) -> [K] bool: who goes on."""


@torch.no_grad()
def unroll(
    task: Task,
    rule: UpdateRule,
    *,
    instances: int,
    steps: int,
    lr: Tensor | float,
    weight_decay: Tensor | float = 0.0,
    schedule: Schedule = constant,
    seed: int | Tensor = 0,
    eval_at: Sequence[int] | None = None,
    keep: Keep | None = None,
    chunk: int | None = None,
    device: torch.device | str = "cpu",
    oracle: Oracle | str | None = None,
) -> Trajectory:
    """Train ``instances`` runs for ``steps`` steps; validate at ``eval_at`` (default: the end).

    After each validation but the last, ``keep`` may drop instances; they cost nothing from then
    on. Arguments otherwise as in ``start`` and ``advance``.

    Raises ValueError where a step of ``eval_at`` lies outside 0 .. steps.
    """
    marks = tuple(sorted(set(eval_at if eval_at is not None else (steps,))))
    if marks and not 0 <= marks[0] <= marks[-1] <= steps:
        raise ValueError(f"eval_at: got {marks}, expected steps between 0 and {steps}")
    inner = start(task, rule, instances, seed, device)
    rates = torch.as_tensor(lr, dtype=torch.float32, device=device).expand(instances)
    decay = torch.as_tensor(weight_decay, dtype=torch.float32, device=device).expand(instances)
    alive = torch.arange(instances, device=device)
    validation = torch.full((len(marks), instances), math.nan, device=device, dtype=torch.float32)
    training = torch.full((steps, instances), math.nan, device=device, dtype=torch.float32)
    done = 0
    for mark in sorted({*marks, steps}):
        inner, losses = advance(
            task,
            rule,
            inner,
            mark - done,
            horizon=steps,
            lr=rates[alive],
            weight_decay=decay[alive],
            schedule=schedule,
            chunk=chunk,
            oracle=oracle,
        )
        training[done:mark, alive] = losses
        done = mark
        if mark not in marks:
            continue
        measured = evaluate(task, shown(task, rule, inner), chunk=chunk)
        validation[marks.index(mark), alive] = measured
        if keep is not None and mark < steps:
            stay = keep(mark, alive, measured).nonzero().flatten()
            inner, rule, alive = inner.rows(stay), rule.select(stay), alive[stay]
        if not len(alive):
            break
    return Trajectory(inner, alive, marks, validation, training)


def join(parts: Sequence[Inner]) -> Inner:
    """Runs of several chunks, one after another."""

    def number(values: Sequence[int | Tensor]) -> int | Tensor:
        """Of all runs, or of each."""
        each = [x for x in values if isinstance(x, Tensor)]
        return torch.cat(each) if each else values[0]

    return Inner(
        torch.cat([part.params for part in parts]),
        {name: torch.cat([p.state[name] for p in parts]) for name in parts[0].state},
        number([part.step for part in parts]),
        number([part.seed for part in parts]),
    )
