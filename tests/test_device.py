"""The inner loop on a device: it computes what the loop on a CPU does, and waits for nothing.

What a graph replays is run here without one, on the CPU: the same operations in the same order.
Operations that would make the host wait for a GPU are recognised when they are dispatched; on a GPU
CUDA itself is asked.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from l2o.architectures.small_fc import SmallFC
from l2o.architectures.small_fc import reference as small_fc_reference
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from search.interpreter import cpu, population
from search.interpreter.reference import Step
from search.zoo import ZOO
from tasks.data.loaders import help_text
from tasks.families.mlp import MLP
from tasks.families.quadratic import Quadratic
from tasks.families.transformer import Transformer
from tasks.inner import cuda_graph, unroll
from tasks.inner.chunks import in_chunks
from tasks.inner.schedules import cosine
from tasks.inner.unroll import start
from tasks.optim.torch_rule import TorchRule
from tasks.runs.environment import check_device, prepare
from tasks.types import Inner, Task, UpdateRule

TASKS: dict[str, Task] = {
    "mlp": MLP(width=4, batch_size=8),
    "quadratic": Quadratic(dimension=8, noise=0.1),
    "transformer": Transformer(8, 1, 2, data=help_text(4), batch_size=4),
}
INSTANCES = 5


def programs(step: Step) -> UpdateRule:
    chosen = [ZOO[name].program for name in ("adamw", "lion")]
    return population.Population.of(chosen, torch.arange(INSTANCES) % 2, step)


RULES: dict[str, Callable[[], UpdateRule]] = {
    "programs": lambda: programs(cpu.step),
    "tuned": lambda: TunedAdam().rule(TunedAdam().initial()),
    "small_fc": lambda: SmallFC().rule(SmallFC().initial()),
    "velo": lambda: Velo().rule(Velo().initial()),
    "torch's own": lambda: TorchRule(torch.optim.Adam),
}


def begin(task: Task, rule: UpdateRule, own: bool) -> Inner:
    seed = torch.arange(INSTANCES) if own else 3
    return start(task, rule, INSTANCES, seed)


def steps_of(task: Task, rule: UpdateRule, inner: Inner, count: int) -> tuple[Inner, torch.Tensor]:
    """``unroll.advance`` as a GPU would do it."""
    now = (torch.arange(count)[:, None] + inner.step).float()
    rates = cosine(now, torch.tensor(10.0)) * torch.linspace(0.01, 0.1, INSTANCES)
    decay = torch.full((INSTANCES,), 0.01)
    return cuda_graph.advance(task, rule, inner, count, 10, rates, decay)


@pytest.mark.parametrize("own", [False, True], ids=["one seed", "own seeds"])
@pytest.mark.parametrize(
    ("rule", "task"),
    [
        *product(("programs", "tuned"), TASKS),
        ("small_fc", "mlp"),
        ("velo", "mlp"),
        ("torch's own", "mlp"),
    ],
)
def test_what_graphs_replay_is_the_inner_loop(rule: str, task: str, own: bool) -> None:
    compare_loops(RULES[rule], TASKS[task], own)


def compare_loops(rule: Callable[[], UpdateRule], task: Task, own: bool) -> None:
    inner = begin(task, rule(), own)
    with torch.no_grad():
        expected, losses = unroll.advance(
            task,
            rule(),
            begin(task, rule(), own),
            4,
            horizon=10,
            lr=torch.linspace(0.01, 0.1, INSTANCES),
            weight_decay=0.01,
            schedule=cosine,
        )
    before = {name: value.clone() for name, value in inner.state.items()}
    actual, replayed = steps_of(task, rule(), inner, 4)
    torch.testing.assert_close(actual.params, expected.params, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(replayed, losses, rtol=1e-6, atol=1e-7)
    for name, value in before.items():  # so that a run out of memory can be repeated
        assert torch.equal(inner.state[name], value), name


class Waiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: reading a number, shapes that depend on numbers,
    and numbers of the host's made into tensors, which are copied from memory that may move."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        if name.startswith((*self.REFUSED, *(f"_{refused}" for refused in self.REFUSED))):
            raise AssertionError(f"{name} waits for the device")
        if name.startswith(("index.", "index_put")):
            masks = [place for place in args[1] if place is not None and place.dtype == torch.bool]
            assert not masks, f"{name} by a mask waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("rule", ["tuned", "small_fc", "velo"])
def test_no_operation_of_a_step_waits(rule: str, task: Task, monkeypatch) -> None:
    monkeypatch.setattr(
        "l2o.architectures.small_fc.SmallFCRule.fastest", lambda *_: small_fc_reference
    )
    chosen = RULES[rule]()
    inner = begin(task, chosen, own=True)
    steps_of(task, chosen, inner, 1)  # what is computed once is computed now
    steps: list[Callable[[], None]] = []
    monkeypatch.setattr(cuda_graph, "repeat", lambda step, *_: steps.append(step))
    steps_of(task, chosen, inner, 2)
    with Waiting():
        steps[0]()


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
        lambda x: x + x.new_tensor([1.0]),
        lambda x: bool(x[0] > 0),
    ],
)
def test_operations_that_wait_are_recognised(waits) -> None:
    with pytest.raises(AssertionError, match="waits"), Waiting():
        waits(torch.arange(3.0))


class Graphs:
    """What ``graphs.repeat`` uses of ``torch.cuda``; counts what is run and what is replayed.

    ``fault``: raised when a capture ends, as CUDA does where something went wrong in it.
    """

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.captures, self.replays, self.mode = fault, 0, 0, "default"
        stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
        self.current_stream = self.Stream = lambda _: stream
        self.stream = lambda _: nullcontext()

    def get_sync_debug_mode(self) -> str:
        return self.mode

    def set_sync_debug_mode(self, mode: str) -> None:
        self.mode = mode

    def CUDAGraph(self) -> Any:
        def replay() -> None:
            self.replays += 1

        return SimpleNamespace(replay=replay)

    @contextmanager
    def graph(self, graph: Any, capture_error_mode: str) -> Iterator[None]:
        self.captures += 1
        try:
            yield
        finally:
            if self.fault:
                raise self.fault


def repeat(cuda: Graphs, step: Callable[[], None], monkeypatch) -> int:
    """How often ``step`` itself was called in 20 steps on a device."""
    calls = []

    def counted() -> None:
        calls.append(cuda.mode)
        step()

    stub = SimpleNamespace(cuda=cuda, OutOfMemoryError=torch.OutOfMemoryError)
    monkeypatch.setattr(cuda_graph, "torch", stub)
    cuda_graph.repeat(counted, 20, torch.device("cuda"))
    assert cuda.mode == "default"
    return len(calls)


def test_a_step_is_captured_once_and_replayed(monkeypatch, caplog) -> None:
    cuda = Graphs()
    called = repeat(cuda, lambda: None, monkeypatch)
    assert (called, cuda.captures, cuda.replays) == (cuda_graph.WARM + 1, 1, 20 - cuda_graph.WARM)
    assert not caplog.text


def test_a_step_that_waits_is_not_captured(monkeypatch, caplog) -> None:
    cuda = Graphs()

    def waits() -> None:
        if cuda.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation (Triggered ...)", stacklevel=1)

    assert repeat(cuda, waits, monkeypatch) == 20
    assert cuda.captures == 0
    assert "slow: it waits for the device" in caplog.text


def test_a_step_that_cannot_be_captured_is_run_all_the_same(monkeypatch, caplog) -> None:
    cuda = Graphs(RuntimeError("CUDA error: operation not permitted\nmore"))
    # The capture's own call does nothing on a device.
    assert repeat(cuda, lambda: None, monkeypatch) == 20 + 1
    assert "slow: CUDA error: operation not permitted" in caplog.text
    assert "more" not in caplog.text


def test_out_of_memory_in_a_capture_is_that(monkeypatch, caplog) -> None:
    """Also where the end of the capture raises something else on top."""

    def step() -> None:
        if cuda.captures:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    for fault in (None, RuntimeError("operation failed due to a previous error")):
        cuda = Graphs(fault)
        with pytest.raises(torch.OutOfMemoryError):
            repeat(cuda, step, monkeypatch)
    assert not caplog.text


def test_a_chunk_without_memory_is_halved_and_the_run_goes_on(caplog, monkeypatch) -> None:
    task = TASKS["mlp"]
    options = {"instances": INSTANCES, "steps": 3, "lr": 0.1}
    expected = unroll.unroll(task, programs(cpu.step), **options, chunk=2)
    honest = unroll.derivatives

    def derivatives(task, views, *rest):
        if len(next(iter(views.values()))) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return honest(task, views, *rest)

    monkeypatch.setattr(unroll, "derivatives", derivatives)
    with caplog.at_level(logging.WARNING):
        actual = unroll.unroll(task, programs(cpu.step), **options)
    torch.testing.assert_close(actual.inner.params, expected.inner.params)
    torch.testing.assert_close(actual.training, expected.training)
    assert "out of GPU memory with 5 instances: going on with 3 at a time" in caplog.text


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_chunks_are_halved_until_they_fit(most: int) -> None:
    def work(rows: slice) -> list[int]:
        if rows.stop - rows.start > most:
            raise torch.OutOfMemoryError
        return [*range(rows.start, rows.stop)]

    assert [row for part in in_chunks(work, 11, 6) for row in part] == [*range(11)]


def test_a_single_instance_without_memory_is_an_error() -> None:
    def work(rows: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(work, 4, 4)


def test_a_broken_device_is_a_clear_message(monkeypatch) -> None:
    def zeros(*_, **__):
        raise RuntimeError("CUDA error: unknown error\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(
        ValueError, match=r"'cuda', which does not work: CUDA error: unknown error$"
    ):
        check_device("cuda")


# ------------------------------------------------------------------------------------- on a device

gpu = pytest.mark.gpu
needs = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@needs
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_whole_trajectories_agree_across_devices(task: Task) -> None:
    prepare("cuda")
    chosen = [e.program for e in ZOO.values() if "h" not in e.program.inputs]
    owner = torch.arange(len(chosen))
    options = {"instances": len(chosen), "steps": 40, "lr": 1e-3}
    here = unroll.unroll(task, population.Population.of(chosen, owner), **options)
    runs = [
        unroll.unroll(
            task, population.Population.of(chosen, owner.cuda()), **options, device="cuda"
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0].inner.params, runs[1].inner.params)
    torch.testing.assert_close(runs[0].training.cpu(), here.training, rtol=1e-3, atol=1e-4)


@gpu
@needs
@pytest.mark.parametrize("rule", ["programs", "tuned", "small_fc", "velo"])
def test_steps_do_not_wait_on_a_device(rule: str, monkeypatch, caplog) -> None:
    if rule == "programs":
        known = [ZOO["adamw"].program, ZOO["lion"].program]
        chosen = population.Population.of(known, (torch.arange(INSTANCES) % 2).cuda())
    else:
        learned = {"tuned": TunedAdam(), "small_fc": SmallFC(), "velo": Velo()}[rule]
        chosen = learned.rule(learned.initial().cuda())
    task = TASKS["mlp"]
    inner = start(task, chosen, INSTANCES, 3, "cuda")
    arguments = (task, chosen, inner, 20)
    unroll.unroll(task, chosen, instances=INSTANCES, steps=20, lr=1.0, device="cuda")
    steps: list[Callable[[], None]] = []
    monkeypatch.setattr(cuda_graph, "repeat", lambda step, *_: steps.append(step))
    rates = torch.ones(20, INSTANCES, device="cuda")
    cuda_graph.advance(*arguments, 20, rates, torch.zeros(INSTANCES, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps[0]()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "CUDA graph" not in caplog.text
