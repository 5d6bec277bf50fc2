"""What the inner loop promises: rows that never meet, and times and sizes that make no difference.

The rules here keep memory (momentum) or answer differently for each instance (``Rates``), so that
a row that was mixed up, dropped or advanced twice shows.
"""

import json
import math
import subprocess
import sys
import weakref
from dataclasses import dataclass, replace
from textwrap import dedent
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad_and_value, vmap

from tasks.data.loaders import help_text
from tasks.families.autoencoder import Autoencoder
from tasks.families.conv import Conv
from tasks.families.linear import Logistic
from tasks.families.mlp import MLP
from tasks.families.quadratic import Quadratic
from tasks.families.transformer import Transformer
from tasks.inner import chunks
from tasks.inner import unroll as loop
from tasks.inner.schedules import Schedule, constant, cosine, linear, warmup, warmup_cosine
from tasks.inner.unroll import advance, evaluate, initial, start, unroll
from tasks.oracles.gradient import Derivatives, gradients
from tasks.rng import draw
from tasks.types import Params, State, StepInfo, Task
from tests.tasks.room_of_families import others


@dataclass(frozen=True)
class Momentum:
    """``m = beta m + g``, ``update = lr (m + weight_decay w)``, a beta for each instance."""

    beta: Tensor  # [N]

    def init(self, params: Params) -> State:
        return {"m": torch.zeros_like(params.flat)}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        m = self.beta[:, None] * state["m"] + grads
        return info.lr[:, None] * (m + info.weight_decay[:, None] * params.flat), {"m": m}

    def select(self, index: Tensor) -> "Momentum":
        return replace(self, beta=self.beta[index])


def momentum(instances: int) -> Momentum:
    return Momentum(torch.linspace(0, 0.9, instances))


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, NaN equal to NaN."""
    return torch.equal(one.nan_to_num(nan=1.25), other.nan_to_num(nan=1.25))


# What is odd is odd on purpose: rows that do not fill a vector register are added up differently.
FAMILIES: list[Task] = [
    Quadratic(dimension=9),
    Logistic(batch_size=7),
    MLP(width=9, batch_size=16),
    MLP(width=5, depth=2, activation="tanh", batch_size=8),
    Autoencoder(width=9, depth=1, latent=3, batch_size=16),
    Conv(width=3, depth=2, batch_size=8),
    Transformer(width=6, depth=1, heads=2, data=help_text(8), batch_size=4),
]
FAMILIES += others(FAMILIES)
families = pytest.mark.parametrize("task", FAMILIES, ids=[task.name for task in FAMILIES])
small = MLP(width=6, batch_size=8)


def runs(
    task: Task, rows: Tensor, lr: Tensor, seed: int | Tensor, chunk: int | None = None
) -> loop.Trajectory:
    """Rows ``rows`` of a fixed set of runs, each of its own beta, learning rate and seed."""
    return unroll(
        task,
        momentum(len(lr)).select(rows),
        instances=len(rows),
        steps=3,
        lr=lr[rows],
        seed=seed if isinstance(seed, int) else seed[rows],
        eval_at=(0, 2, 3),
        chunk=chunk,
    )


def assert_same_runs(task: Task, one: loop.Trajectory, rows: Tensor, other: loop.Trajectory):
    """``other`` is ``one`` with its instances in the order ``rows``."""
    assert same(one.training[:, rows], other.training), task.name
    assert same(one.inner.params[rows], other.inner.params), task.name
    assert same(one.inner.state["m"][rows], other.inner.state["m"]), task.name
    assert same(one.validation[:, rows], other.validation), task.name


# ------------------------------------------------------------------------- instances stay apart


@pytest.mark.parametrize("own", [False, True], ids=["one seed", "own seeds"])
@families
def test_a_diverging_instance_leaves_its_neighbours_bit_identical(task: Task, own: bool) -> None:
    lr = torch.full((7,), 0.05)
    rows, seed = torch.arange(7), torch.arange(7) if own else 3
    healthy = runs(task, rows, lr, seed)
    lr[2], lr[5] = 1e20, math.nan
    sick = runs(task, rows, lr, seed)
    assert sick.inner.params[5].isnan().any()
    assert not sick.inner.params[2].abs().max() < 1e15
    others = torch.tensor([0, 1, 3, 4, 6])
    assert healthy.inner.params.isfinite().all()
    assert torch.equal(healthy.inner.params[others], sick.inner.params[others])
    assert torch.equal(healthy.training[:, others], sick.training[:, others])
    assert torch.equal(healthy.validation[:, others], sick.validation[:, others])


@families
@settings(max_examples=4, deadline=None)
@given(order=st.permutations(range(7)), own=st.booleans())
def test_a_permutation_of_instances_permutes_the_results(
    task: Task, order: list[int], own: bool
) -> None:
    lr, seed = torch.linspace(0.01, 0.3, 7), torch.tensor([0, 1, 0, 2, 3, 1, 5]) if own else 0
    rows = torch.tensor(order)
    assert_same_runs(task, runs(task, torch.arange(7), lr, seed), rows, runs(task, rows, lr, seed))


def test_a_permutation_where_rows_end_inside_a_vector_register() -> None:
    """Where instances lie innermost in memory, a sum over a batch may depend on their place."""
    task = Transformer(width=16, depth=1, heads=2, data=help_text(16), batch_size=4)
    rows, lr = torch.arange(7).flip(0), torch.linspace(0.01, 0.3, 7)
    assert_same_runs(task, runs(task, torch.arange(7), lr, 0), rows, runs(task, rows, lr, 0))


@families
@pytest.mark.parametrize("own", [False, True], ids=["one seed", "own seeds"])
@pytest.mark.parametrize("chunk", [3, 5])
def test_the_chunk_size_changes_nothing(task: Task, own: bool, chunk: int) -> None:
    """Bit for bit while no chunk holds a single instance: see ``test_alone_is_as_in_company``."""
    lr, rows = torch.linspace(0.01, 0.3, 7), torch.arange(7)
    seed = torch.tensor([0, 1, 0, 2, 3, 1, 5]) if own else 0
    assert_same_runs(task, runs(task, rows, lr, seed), rows, runs(task, rows, lr, seed, chunk))


@families
def test_alone_is_as_in_company(task: Task) -> None:
    """Seeds of one's own: row ``i`` is the run that has only that seed. To rounding, not bits:
    libraries choose another algorithm for a batch of one."""
    lr, seeds = torch.linspace(0.01, 0.1, 4), torch.tensor([5, 0, 5, 2])
    together = runs(task, torch.arange(4), lr, seeds)
    for i in range(4):
        alone = runs(task, torch.tensor([i]), lr, int(seeds[i]))
        torch.testing.assert_close(together.inner.params[[i]], alone.inner.params)
        torch.testing.assert_close(together.training[:, [i]], alone.training)
        torch.testing.assert_close(together.validation[:, [i]], alone.validation)


def test_instances_of_one_seed_start_alike_and_of_two_seeds_differ() -> None:
    rows = initial(small, 3, torch.tensor([1, 4, 1]))
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[:1], initial(small, 1, 1))


def test_as_many_seeds_as_instances() -> None:
    with pytest.raises(ValueError, match=r"seed: got shape \(2,\), expected \(3,\)"):
        start(small, momentum(3), 3, torch.tensor([0, 1]))


# ------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shared", [True, False])
@families
def test_gradients_are_those_of_the_definition(task: Task, shared: bool) -> None:
    flat = initial(task, 3, torch.arange(3))
    index = draw(0 if shared else torch.arange(3), 0, task.data.size("train"), task.batch_size)
    batch = task.data.batch("train", index)
    views = task.layout.views(flat)
    definition = vmap(grad_and_value(task.loss), in_dims=(0, None if shared else 0))
    expected, losses = definition(views, batch)
    with torch.no_grad():
        found, measured = gradients(task, views, batch, shared)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(measured, losses)
    assert not any(grad.requires_grad for grad in found.values())


def test_a_quadratic_follows_gradient_descent_in_closed_form() -> None:
    """Without noise ``x_k = x* + (I - lr H)^k (x_0 - x*)``, and the loss is known at every step."""
    task = Quadratic(dimension=5, spectrum=(0.1, 0.3, 0.5, 1.0, 2.0), noise=0.0)
    lr, steps = 0.2, 12
    rule = Momentum(torch.zeros(1))
    trajectory = unroll(
        task, rule, instances=1, steps=steps, lr=lr, eval_at=range(steps + 1), seed=1
    )
    root = task.data.root.double()
    hessian = root @ root.T
    assert torch.allclose(torch.linalg.eigvalsh(hessian), task.eigenvalues.double(), atol=1e-6)
    gap = initial(task, 1, 1)[0].double() - task.optimum.double()
    shrink = torch.eye(5, dtype=torch.float64) - lr * hessian
    for k in range(steps + 1):
        loss = gap @ hessian @ gap / 2
        assert trajectory.validation[k, 0].item() == pytest.approx(loss.item(), rel=1e-4)
        if k < steps:
            assert trajectory.training[k, 0].item() == pytest.approx(loss.item(), rel=1e-4)
            gap = shrink @ gap
    torch.testing.assert_close(
        trajectory.inner.params[0].double() - task.optimum, gap, atol=1e-5, rtol=0
    )


def test_differentiable_in_what_the_rule_holds() -> None:
    """A meta-gradient through the loop equals a central difference."""
    task = Quadratic(dimension=4, noise=0.0)

    def final(beta: Tensor) -> Tensor:
        rule = Momentum(beta)
        inner = start(task, rule, 1)
        inner, _ = advance(task, rule, inner, 6, horizon=6, lr=0.1)
        return (inner.params - task.optimum).square().sum()

    beta = torch.tensor([0.5], requires_grad=True)
    (slope,) = torch.autograd.grad(final(beta), beta)
    with torch.no_grad():
        difference = (final(beta + 1e-2) - final(beta - 1e-2)) / 2e-2
    assert slope.item() == pytest.approx(difference.item(), rel=1e-2)


# ------------------------------------------------------------------------------------------ time


@families
def test_advance_in_pieces_equals_advance_in_one(task: Task) -> None:
    rule, lr = momentum(3), torch.tensor([0.02, 0.05, 0.1])
    options = {"horizon": 7, "lr": lr, "schedule": cosine, "weight_decay": 0.01}
    with torch.no_grad():
        whole, losses = advance(task, rule, start(task, rule, 3, 2), 7, **options)
        inner, pieces = start(task, rule, 3, 2), []
        for steps in (1, 4, 0, 2):
            inner, some = advance(task, rule, inner, steps, **options)
            pieces.append(some)
    assert torch.equal(whole.params, inner.params)
    assert torch.equal(losses, torch.cat(pieces))
    assert inner.step == whole.step == 7


@pytest.mark.parametrize("chunk", [None, 2])
def test_instances_may_be_at_different_steps(chunk: int | None) -> None:
    """A tensor of steps and horizons: each row goes on as if it were the only one."""
    rule, seeds = momentum(3), torch.tensor([4, 4, 9])
    ages, horizons, lr = torch.tensor([0, 3, 5]), torch.tensor([6, 8, 20]), torch.full((3,), 0.1)
    options = {"schedule": linear}
    parts, expected = [], []
    with torch.no_grad():
        for i, (age, horizon) in enumerate(zip(ages.tolist(), horizons.tolist(), strict=True)):
            one, row = rule.select(torch.tensor([i])), torch.tensor([i])
            runs = start(small, one, 1, seeds[row])
            options = {"horizon": horizon, "lr": 0.1, "schedule": linear}
            runs, _ = advance(small, one, runs, age, **options)
            parts.append(runs)
            expected.append(advance(small, one, runs, 3, **options))
        found, losses = advance(
            small,
            rule,
            loop.join(parts),
            3,
            horizon=horizons,
            lr=lr,
            schedule=linear,
            chunk=chunk,
        )
    assert torch.equal(torch.as_tensor(found.step), ages + 3)
    torch.testing.assert_close(found.params, loop.join([inner for inner, _ in expected]).params)
    torch.testing.assert_close(losses, torch.cat([loss for _, loss in expected], dim=1))


def test_a_common_step_with_seeds_of_their_own() -> None:
    """As many steps as instances, where a mistaken broadcast would go unnoticed."""
    rule, seeds = momentum(3), torch.tensor([4, 0, 9])
    with torch.no_grad():
        inner = start(small, rule, 3, seeds)
        expected, _ = advance(small, rule, inner, 3, horizon=3, lr=0.1)
        found, _ = advance(small, rule, inner._replace(step=0), 3, horizon=3, lr=0.1)
    assert torch.equal(found.params, expected.params)


def at(schedule: Schedule, steps: list[int], horizon: int) -> list[float]:
    values = schedule(torch.tensor(steps, dtype=torch.float32), torch.tensor(float(horizon)))
    return values.tolist()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, [1, 1, 1, 1]),
        (linear, [1, 0.5, 0, 0]),
        (cosine, [1, 0.5, 0, 0]),
        (warmup(5, linear), [0.2, 1, 0, 0]),
        (warmup(10, constant), [0.1, 0.6, 1, 1]),
        (warmup_cosine, [1.0, 0.5868241, 0, 0]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    assert at(schedule, [0, 5, 10, 15], 10) == pytest.approx(expected, abs=1e-6)


def test_warm_up_hands_over_to_a_whole_schedule() -> None:
    """After the rise the second schedule starts at its beginning and ends at its end."""
    values = at(warmup(4, cosine), list(range(12)), 12)
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert values[4:] == pytest.approx(at(cosine, list(range(8)), 8))
    steps = list(range(40))
    assert at(warmup_cosine, steps, 40) == at(warmup(4, cosine), steps, 40)


def test_the_schedule_multiplies_the_learning_rate_of_each_step() -> None:
    task = Quadratic(dimension=3, noise=0.0)
    seen = []

    class Watching(Momentum):
        def update(
            self, grads: Tensor, state: State, params: Params, info: StepInfo
        ) -> tuple[Tensor, State]:
            seen.append((info.step, info.horizon, info.lr.tolist(), info.weight_decay.tolist()))
            return super().update(grads, state, params, info)

    lr = torch.tensor([1.0, 0.5])
    rule = Watching(torch.zeros(2))
    unroll(task, rule, instances=2, steps=4, lr=lr, weight_decay=0.25, schedule=linear)
    rates = [[1.0, 0.5], [0.75, 0.375], [0.5, 0.25], [0.25, 0.125]]
    assert seen == [(k, 4, rates[k], [0.25, 0.25]) for k in range(4)]


# ----------------------------------------------------------------------- validation and dropping


def test_validation_is_measured_where_it_was_asked_for() -> None:
    rule, lr = momentum(3), torch.tensor([0.02, 0.05, 0.1])
    trajectory = unroll(small, rule, instances=3, steps=6, lr=lr, eval_at=(4, 0, 4, 6))
    assert trajectory.steps == (0, 4, 6)
    with torch.no_grad():
        for row, steps in zip(trajectory.validation, trajectory.steps, strict=True):
            inner, _ = advance(small, rule, start(small, rule, 3), steps, horizon=6, lr=lr)
            assert torch.equal(row, evaluate(small, inner.params))
    unmeasured = unroll(small, rule, instances=3, steps=6, lr=lr, eval_at=())
    assert unmeasured.validation.shape == (0, 3)
    assert torch.equal(unmeasured.inner.params, trajectory.inner.params)


@pytest.mark.parametrize("marks", [(-1, 3), (7,), (0, 6, 100)])
def test_validation_outside_the_run_is_refused(marks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"eval_at: got .*expected steps between 0 and 6"):
        unroll(small, momentum(1), instances=1, steps=6, lr=0.1, eval_at=marks)


def test_evaluation_is_the_mean_over_the_split() -> None:
    """Also where the last batch is shorter than the others: 512 examples in batches of 100."""
    task = MLP(width=4, batch_size=100)
    flat = initial(task, 2, torch.arange(2))
    for split in ("validation", "test"):
        size = task.data.size(split)
        index = torch.arange(min(size, 512)) * size // min(size, 512)
        batch = task.data.batch(split, index)
        expected = [task.loss(task.layout.views(row), batch) for row in flat]
        torch.testing.assert_close(evaluate(task, flat, split), torch.stack(expected))


class Counting(Momentum):
    """Counts the instances it updates."""

    work: list[int] = []

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        self.work.append(len(grads))
        return super().update(grads, state, params, info)


def test_dropped_instances_cost_nothing_and_leave_the_others_alone() -> None:
    lr = torch.linspace(0.01, 0.3, 5)
    rule = Counting(torch.linspace(0, 0.9, 5))
    rule.work.clear()
    seen = []

    def keep(step: int, instances: Tensor, losses: Tensor) -> Tensor:
        seen.append((step, instances.tolist()))
        return instances % 2 == 0 if step == 2 else instances != 4

    marks = (2, 4, 6)
    cut = unroll(small, rule, instances=5, steps=6, lr=lr, eval_at=marks, keep=keep)
    assert seen == [(2, [0, 1, 2, 3, 4]), (4, [0, 2, 4])]
    assert rule.work == [5, 5, 3, 3, 2, 2]
    assert cut.alive.tolist() == [0, 2]
    full = unroll(small, momentum(5), instances=5, steps=6, lr=lr, eval_at=marks)
    assert torch.equal(cut.inner.params, full.inner.params[[0, 2]])
    lives = {0: 6, 1: 2, 2: 6, 3: 2, 4: 4}
    for i, life in lives.items():
        assert torch.equal(cut.training[:life, i], full.training[:life, i])
        assert cut.training[life:, i].isnan().all()
        measured = sum(mark <= life for mark in marks)
        assert torch.equal(cut.validation[:measured, i], full.validation[:measured, i])
        assert cut.validation[measured:, i].isnan().all()


def test_nobody_left() -> None:
    def nobody(step: int, instances: Tensor, losses: Tensor) -> Tensor:
        return torch.zeros_like(losses, dtype=torch.bool)

    cut = unroll(small, momentum(3), instances=3, steps=6, lr=0.1, eval_at=(2, 4, 6), keep=nobody)
    assert len(cut.alive) == 0
    assert cut.validation.isfinite().sum(dim=1).tolist() == [3, 0, 0]
    assert cut.training.isfinite().sum(dim=1).tolist() == [3, 3, 0, 0, 0, 0]


# ---------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("instances", "size"), [(0, 3), (1, 3), (3, 3), (4, 3), (7, 3), (9, 1)])
def test_chunks_cover_everything_once(instances: int, size: int) -> None:
    pieces = [range(rows.start, rows.stop) for rows in chunks.chunks(instances, size)]
    assert [i for piece in pieces for i in piece] == list(range(instances))
    lengths = [len(piece) for piece in pieces]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_a_chunk_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk: got -1, expected at least 1"):
        unroll(small, momentum(2), instances=2, steps=1, lr=0.1, chunk=-1)
    with pytest.raises(ValueError, match="chunk: got 0, expected at least 1"):
        unroll(small, momentum(2), instances=2, steps=1, lr=0.1, chunk=0)


def test_the_chunk_follows_the_memory_an_instance_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(task: Task) -> int:
        inner = start(task, momentum(1), 1)
        return chunks.chunk_size(task, inner.params, inner.state)

    usual = size(small)
    assert size(replace(small, width=600)) < usual / 10  # more parameters
    assert size(replace(small, batch_size=800)) < usual / 10  # more activations
    monkeypatch.setattr(chunks, "MEMORY", chunks.MEMORY // 16)
    assert size(small) == pytest.approx(usual / 16, rel=0.01)
    monkeypatch.setattr(chunks, "MEMORY", 1)
    assert size(small) == 1


def test_a_run_keeps_no_tensor_of_a_step_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones that stay among large ones that come and go leave a heap in pieces."""
    losses: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def noted(*asked: Any) -> Derivatives:
        found = derivatives(*asked)
        alive.append(sum(loss() is not None for loss in losses))
        losses.append(weakref.ref(found.loss))
        return found

    derivatives = loop.derivatives
    monkeypatch.setattr(loop, "derivatives", noted)
    with torch.no_grad():
        trajectory = unroll(small, momentum(3), instances=3, steps=20, lr=0.1)
    assert trajectory.training.shape == (20, 3)
    assert len(alive) == 20
    assert max(alive) <= 1  # that of the step before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_bounded() -> None:
    """Growth of a process, in bytes: within the memory allowed, and far beyond it in one piece."""
    program = r"""
        import re, torch
        from pathlib import Path
        from tasks.families import conv, mlp
        from tasks.inner import chunks, unroll as loop

        class Descent:
            init = lambda self, params: {}
            update = lambda self, grads, state, params, info: (0.1 * grads, state)
            select = lambda self, index: self

        def peak():  # unlike what getrusage says, not that of the process that started this one
            status = Path("/proc/self/status").read_text()
            return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])

        def grow(task, chunk=None):
            size = chunks.chunk_size(task, loop.initial(task, 1, 0), {})
            loop.unroll(task, Descent(), instances=2, steps=1, lr=0.1)
            before = peak()
            loop.unroll(task, Descent(), instances=24 * size, steps=1, lr=0.1, chunk=chunk)
            return peak() - before

        torch.set_num_threads(1)
        chunks.MEMORY = 16 * 2**20
        tasks = mlp.MLP(width=8, batch_size=1024), conv.Conv(width=4, depth=2, batch_size=256)
        print([grow(task) for task in tasks])
        print([grow(tasks[0], 10**6)])
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True
    )
    bounded, unbounded = (json.loads(line) for line in done.stdout.splitlines())
    allowed = 16 * 2**20
    assert max(bounded) < 2 * allowed, bounded
    assert unbounded[0] > 4 * allowed, unbounded
