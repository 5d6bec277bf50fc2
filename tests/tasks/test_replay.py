"""A recorded gradient is the gradient: bit for bit, for every family, on other numbers too."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks.data.loaders import digits, help_text
from tasks.families.autoencoder import Autoencoder
from tasks.families.conv import Conv
from tasks.families.linear import Logistic
from tasks.families.mlp import MLP
from tasks.families.module import ModuleTask
from tasks.families.quadratic import Quadratic
from tasks.families.transformer import Transformer
from tasks.inner import recorded as replay
from tasks.inner.recorded import Recording, recorded
from tasks.inner.unroll import advance, initial, start
from tasks.optim.torch_rule import TorchRule
from tasks.rng import draw
from tasks.types import Batch, Task
from tests.tasks.room_of_families import others

FIXED = torch.linspace(-1, 1, 9)


@dataclass(frozen=True)
class Fixed(Quadratic):
    """Brings a tensor along, and reads what a view sees after its base has been used."""

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        y = params["x"] * FIXED
        return (y.tanh() + FIXED.exp()).square().sum() + (y[1:] * y[:-1]).sum()


@dataclass(frozen=True)
class Fickle(Quadratic):
    """Cannot be recorded: what it does depends on the numbers that it is given."""

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return (2.0 if batch[0].sum() > 0 else 3.0) * params["x"].square().sum()


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.LayerNorm(4), nn.Linear(4, 10))


FAMILIES: list[Task] = [
    Quadratic(dimension=9),
    Fixed(dimension=9),
    Logistic(batch_size=7),
    MLP(width=9, batch_size=16),
    MLP(width=5, depth=2, activation="tanh", batch_size=8),
    Autoencoder(width=9, depth=1, latent=3, batch_size=16),
    Conv(width=3, depth=2, batch_size=8),
    Transformer(width=6, depth=1, heads=2, data=help_text(8), batch_size=4),
    ModuleTask(network, cross_entropy, digits(), 8, "normalised"),
]
FAMILIES += others(FAMILIES)
families = pytest.mark.parametrize("task", FAMILIES, ids=lambda task: type(task).__name__)


def given(task: Task, shared: bool, seed: int) -> list[Tensor]:
    """Five instances: their parameters, and examples of their own or of all of them."""
    seeds = torch.arange(5) + seed
    views = task.layout.views(initial(task, 5, seeds))
    index = draw(seed if shared else seeds, 0, task.data.size("train"), task.batch_size)
    return [*views.values(), *task.data.batch("train", index)]


def same(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in pairs)


@pytest.mark.parametrize("shared", [True, False])
@families
@torch.no_grad()
def test_no_bit_differs_and_inputs_stay_as_they_are(task: Task, shared: bool) -> None:
    recording = Recording(task, shared)
    assert recording.record(*given(task, shared, 0))
    for seed in (0, 7, 9, 7):
        inputs = given(task, shared, seed)
        assert same(recording(*inputs), recording.plain(*inputs))
        assert same(tuple(inputs), tuple(given(task, shared, seed)))
    inputs[0][2] = torch.nan
    assert same(recording(*inputs), recording.plain(*inputs))
    assert torch.equal(FIXED, torch.linspace(-1, 1, 9))


def test_only_what_nobody_reads_any_more_is_overwritten() -> None:
    def work(x: Tensor) -> tuple[Tensor, ...]:
        y = x + 1
        row = y[1:]
        z = y * 2  # not into y: row is still to be read
        return (z - 1).relu(), row.exp(), x

    x = torch.randn(4, 4)
    play, copy = recorded(work, x), x.clone()
    code = getattr(play, "__self__").code  # noqa: B009
    assert all(name in code for name in ("add.Tensor", "mul.Tensor", "sub_.Tensor", "relu_"))
    assert same(play(x), work(x))
    assert torch.equal(x, copy)


@torch.no_grad()
def test_what_cannot_be_recorded_goes_on_as_it_was() -> None:
    recording, inputs = Recording(Fickle(dimension=9), True), given(Fickle(dimension=9), True, 0)
    assert not recording.record(*inputs)
    assert same(recording(*inputs), recording.plain(*inputs))


def test_it_makes_no_difference_when_in_a_run_it_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a resumed run, which records at another time, would not be bit-exact."""

    @torch.no_grad()
    def run(worth: int) -> tuple[Tensor, ...]:
        monkeypatch.setattr(replay, "WORTH", worth)
        task, rule = MLP(width=7, batch_size=8), TorchRule(torch.optim.Adam)
        inner = start(task, rule, 4, torch.arange(4))
        inner, losses = advance(task, rule, inner, 6, horizon=6, lr=0.1)
        return inner.params, losses

    assert same(run(1), run(1000))
    assert same(run(4), run(1000))


def test_a_recording_keeps_nothing_of_what_the_tracer_noted() -> None:
    """Workers hold dozens of recordings; with notes each was tens of megabytes."""
    play = recorded(lambda x: (torch.exp(x).sum(),), torch.ones(3))
    graph = getattr(play, "__self__").graph  # noqa: B009
    assert len(graph.nodes) > 2
    assert not any(node.meta for node in graph.nodes)
