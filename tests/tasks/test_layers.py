"""Layers against what every run must be: what a plain loop over one module makes of it, whatever
else is trained beside it. Add a layer, add a row."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from l2o.cli.main import main
from tasks.cards import fingerprint
from tasks.data.arrays import Arrays
from tasks.families.module import ModuleTask
from tasks.inner import recorded
from tasks.inner.unroll import advance, evaluate, initial, start
from tasks.optim.torch_rule import TorchRule
from tasks.oracles.gradient import derivatives
from tasks.oracles.hutchinson import random_signs
from tasks.oracles.lifting import attempt, noise, ways
from tasks.rng import draw

cross_entropy = F.cross_entropy
WEIGHT = torch.tensor([0.2, 1.0, 3.0])


class Tokens(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding, self.out = embedding, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x)
        return self.out(torch.tanh(y.mean(-2) if y.ndim > x.ndim else y))


class Rows(nn.Module):
    """``layer`` on sequences ``[B, 4, 8]``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(4, 8), layer, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.into(x))
        return self.out((y[0] if isinstance(y, tuple) else y).mean(1))


class Image(nn.Module):
    """``layer`` on images ``[B, 4, 4, 4]``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.into, self.layer = nn.Conv2d(1, 4, 3, padding=1), layer
        self.gain = nn.Parameter(WEIGHT.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(torch.tanh(self.into(x[:, None])))
        return torch.tanh(y.flatten(1).sum(1, keepdim=True)) * self.gain


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0, padded: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
        self.padding = torch.tensor([False, False, True, True]) if padded else None
        self.mask = torch.ones(4, 4).triu(1).bool() if causal else None

    def forward(self, x: Tensor) -> Tensor:
        padding = None if self.padding is None else self.padding.expand(len(x), 4)
        masks: dict[str, Any] = {"attn_mask": self.mask, "key_padding_mask": padding}
        return self.heads(x, x, x, need_weights=False, **masks)[0]


class Do(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Twice(nn.Module):
    """A layer in two places, whose weight another has, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 8)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Recomputed(nn.Module):
    """Runs forward again for its gradient: with the weights that it has by then."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return checkpoint(lambda y: torch.tanh(self.layer(y)), x, use_reentrant=False)


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.double()).float()


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape) if self.training else x


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0]


def summed(x: Tensor) -> Tensor:
    """Into places that some elements share."""
    place = (x.detach().abs() * 10).long() % x.shape[-1]
    row = torch.arange(len(x))[:, None, None].expand_as(place)
    column = torch.arange(x.shape[1])[None, :, None].expand_as(place)
    return torch.zeros_like(x).index_put((row, column, place), x, accumulate=True)


def ignoring(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return cross_entropy(outputs, torch.where(targets == 1, -100, targets), **options)


def sequence(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), layer, nn.Linear(8, 3))


def encoder(dropout: float) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)


Subject = tuple[Callable[[], nn.Module], Callable[..., Tensor], str]
BOTH, SHARED, NEITHER = "both", "shared", "neither"
"""Where instances run together: with batches of their own, too; on one batch for all; nowhere."""
SUBJECTS: dict[str, Subject] = {
    "padding": (lambda: Tokens(nn.Embedding(11, 6, padding_idx=0)), cross_entropy, SHARED),
    "padding last": (lambda: Tokens(nn.Embedding(11, 6, padding_idx=-1)), cross_entropy, SHARED),
    "max_norm": (lambda: Tokens(nn.Embedding(11, 6, max_norm=1.0)), cross_entropy, NEITHER),
    "frequency": (
        lambda: Tokens(nn.Embedding(11, 6, scale_grad_by_freq=True)),
        cross_entropy,
        BOTH,
    ),
    "sparse": (lambda: Tokens(nn.Embedding(11, 6, sparse=True)), cross_entropy, NEITHER),
    **{
        f"bag {mode}": (
            lambda mode=mode: Tokens(nn.EmbeddingBag(11, 6, mode=mode, padding_idx=0)),
            cross_entropy,
            BOTH,
        )
        for mode in ("sum", "mean", "max")
    },
    "ignored": (lambda: sequence(nn.Tanh()), ignoring, BOTH),
    "ignored, weights, smooth": (
        lambda: sequence(nn.Tanh()),
        lambda x, y: ignoring(x, y, weight=WEIGHT, label_smoothing=0.1),
        SHARED,
    ),
    "group norm": (lambda: Image(nn.GroupNorm(2, 4)), cross_entropy, BOTH),
    "instance norm": (lambda: Image(nn.InstanceNorm2d(4, affine=True)), cross_entropy, BOTH),
    "frozen batch norm": (lambda: Image(nn.BatchNorm2d(4).eval()), cross_entropy, BOTH),
    "unpooling": (
        lambda: Image(
            Do(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), (2, 2)))
        ),
        cross_entropy,
        BOTH,
    ),
    "interpolation": (lambda: Image(nn.Upsample(scale_factor=1.5)), cross_entropy, BOTH),
    "folding": (lambda: Image(Do(lambda x: F.fold(F.unfold(x, 2), 4, 2))), cross_entropy, BOTH),
    "in place": (lambda: sequence(nn.ReLU(inplace=True)), cross_entropy, BOTH),
    "accumulated": (lambda: Rows(Do(summed)), cross_entropy, BOTH),
    "on the host": (
        lambda: sequence(Do(lambda x: x / x.abs().max().item())),
        cross_entropy,
        NEITHER,
    ),
    "straight through": (lambda: sequence(Do(Sign.apply)), cross_entropy, NEITHER),  # pyright: ignore[reportArgumentType]
    "twice": (lambda: sequence(Twice()), cross_entropy, BOTH),
    "weight norm": (
        lambda: sequence(parametrizations.weight_norm(nn.Linear(8, 8))),
        cross_entropy,
        BOTH,
    ),
    "frozen spectral norm": (
        lambda: sequence(parametrizations.spectral_norm(nn.Linear(8, 8)).eval()),
        cross_entropy,
        BOTH,
    ),
    "attention": (lambda: Rows(Attention()), cross_entropy, BOTH),
    "causal attention": (lambda: Rows(Attention(causal=True)), cross_entropy, BOTH),
    "padded attention": (lambda: Rows(Attention(padded=True)), cross_entropy, BOTH),
    "encoder": (lambda: Rows(encoder(0.0)), cross_entropy, BOTH),
    "dropout": (lambda: sequence(nn.Dropout()), cross_entropy, SHARED),
    "functional dropout": (
        lambda: sequence(Do(lambda x: F.dropout(x, 0.5))),
        cross_entropy,
        SHARED,
    ),
    "alpha dropout": (lambda: sequence(nn.AlphaDropout()), cross_entropy, SHARED),
    "dropped channels": (lambda: Image(nn.Dropout2d()), cross_entropy, SHARED),
    "noise": (lambda: sequence(Noise()), cross_entropy, SHARED),
    "random slopes": (lambda: sequence(nn.RReLU()), cross_entropy, NEITHER),
    "attention dropout": (lambda: Rows(Attention(0.3)), cross_entropy, SHARED),
    "encoder dropout": (lambda: Rows(encoder(0.1)), cross_entropy, NEITHER),
    "RNN": (lambda: Rows(nn.RNN(8, 8, batch_first=True)), cross_entropy, NEITHER),
    "GRU": (lambda: Rows(nn.GRU(8, 8, batch_first=True)), cross_entropy, NEITHER),
    "LSTM": (
        lambda: Rows(nn.LSTM(8, 4, bidirectional=True, batch_first=True)),
        cross_entropy,
        NEITHER,
    ),
    "LSTM dropout": (
        lambda: Rows(nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)),
        cross_entropy,
        NEITHER,
    ),
}
subjects = pytest.mark.parametrize("name", SUBJECTS)
SEEDS = torch.tensor([5, 3, 5])
STEPS = 4


def data(tokens: bool) -> Arrays:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, 4, generator=drawn)
    if tokens:
        x = torch.randint(0, 11, (60, 7), generator=drawn)
        x[:, 4:] = 0
    y = torch.randint(0, 3, (60,), generator=drawn)
    return Arrays("some", (x[:40], y[:40]), (x[40:50], y[40:50]), (x[50:], y[50:]))


@cache
def task(name: str) -> ModuleTask:
    build, loss, _ = SUBJECTS[name]
    return ModuleTask(build, loss, data(isinstance(build(), Tokens)), 5, name)


@torch.no_grad()
def run(name: str, seed: int | Tensor, instances: int, parts: tuple[int, ...]) -> list[Tensor]:
    """Parameters, training losses and validation losses after some steps of gradient descent."""
    problem, rule = task(name), TorchRule(torch.optim.SGD)
    inner, losses = start(problem, rule, instances, seed), []
    for steps in parts:
        inner, taken = advance(problem, rule, inner, steps, horizon=STEPS, lr=0.3)
        losses.append(taken)
    return [inner.params, torch.cat(losses).T, evaluate(problem, inner.params)]


@cache
def plain(name: str, seed: int) -> list[Tensor]:
    """The loop that anyone would write, over one module."""
    problem = task(name)
    module = problem._built(0)  # buffers, too
    values = problem.layout.views(initial(problem, 1, seed)[0])
    module.load_state_dict({k: v.clone() for k, v in values.items()}, strict=False)
    optimizer, losses = torch.optim.SGD(module.parameters(), lr=0.3), []
    for step in range(STEPS):
        x, *targets = problem.data.batch("train", draw(seed, step, 40, 5))
        torch.manual_seed(int(noise(seed, step, torch.device("cpu"))))
        loss = problem.loss_fn(module(x), *targets)
        optimizer.zero_grad()
        loss.backward()
        for p in module.parameters():
            p.grad = p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad
        optimizer.step()
        losses.append(loss.detach())
    module.eval()
    mean = torch.zeros(())
    with torch.no_grad():
        for part in torch.arange(10).split(5):
            torch.manual_seed(0)
            x, *targets = problem.data.batch("validation", part)
            mean = mean + problem.loss_fn(module(x), *targets) / 2
    named = dict(module.named_parameters())
    flat = torch.cat([named[spec.name].detach().flatten() for spec in problem.layout.specs])
    return [flat, torch.stack(losses), mean]


@subjects
def test_runs_together_where_that_is_right(name: str) -> None:
    found = ways(task(name))
    where = {(True, True): BOTH, (True, False): SHARED, (False, False): NEITHER}
    assert where[found.shared, found.own] == SUBJECTS[name][2]


@pytest.mark.parametrize("seed", [5, SEEDS], ids=["one seed", "seeds"])
@subjects
def test_every_instance_is_a_plain_loop(name: str, seed: int | Tensor) -> None:
    found = run(name, seed, 3, (STEPS,))
    for k in range(3):
        expected = plain(name, 5 if isinstance(seed, int) else int(seed[k]))
        for actual, value in zip(found, expected, strict=True):
            torch.testing.assert_close(actual[k], value, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(x[0], x[2]) for x in found)


@subjects
def test_resumed_runs_are_the_same_to_the_bit(name: str) -> None:
    whole, resumed = run(name, SEEDS, 3, (2,)), run(name, SEEDS, 3, (1, 1))
    assert all(torch.equal(x, y) for x, y in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("shared", [True, False])
@subjects
@torch.no_grad()
def test_a_neighbour_that_is_lost_changes_nothing(name: str, shared: bool) -> None:
    problem, rule = task(name), TorchRule(torch.optim.SGD)
    seed, rows = (5, 3) if shared else (SEEDS, 3)
    ends = []
    for lost in (False, True):
        inner = start(problem, rule, rows, seed)
        if lost:
            inner = inner._replace(params=inner.params.index_fill(0, torch.tensor([1]), torch.nan))
        ends.append(advance(problem, rule, inner, 2, horizon=2, lr=0.3)[0].params[[0, 2]])
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "name", ["padding", "dropout", "attention", "encoder dropout", "GRU", "LSTM"]
)
@torch.no_grad()
def test_hessians_and_recorded_gradients_are_those_of_a_run_alone(name: str) -> None:
    problem = task(name)
    flat = initial(problem, 3, SEEDS)
    signs = random_signs(problem.layout.n, SEEDS, torch.tensor([0, 1, 0]), flat)
    keys, shared = noise(SEEDS, torch.tensor([0, 1, 0]), flat.device), len(SEEDS) == 1
    index = draw(SEEDS, torch.tensor([0, 1, 0]), 40, 5)
    views, batch = problem.layout.views(flat), problem.data.batch("train", index)
    along = problem.layout.views(signs)
    found = derivatives(problem, views, batch, shared, along, keys)
    with recorded.at_once():
        for _ in range(2):
            again = recorded.derivatives(problem, views, batch, shared, noise=keys)
    assert found.hessian is not None
    for k in range(3):
        one = problem.layout.views(flat[k : k + 1])
        z = problem.layout.views(signs[k : k + 1])
        own = tuple(part[k] for part in batch)
        expected = derivatives(problem, one, own, True, z, keys[k])
        assert expected.hessian is not None
        for entry in one:
            for x, y in (
                (found.grads, expected.grads),
                (again.grads, expected.grads),
                (found.hessian, expected.hessian),
            ):
                torch.testing.assert_close(x[entry][k], y[entry][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["attention", "encoder", "bag mean", "weight norm", "GRU"])
def test_nobody_is_told_what_functorch_lacks(name: str) -> None:
    build, loss, _ = SUBJECTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = ModuleTask(build, loss, data(isinstance(build(), Tokens)), 5, name)
        rule = TorchRule(torch.optim.SGD)
        advance(problem, rule, start(problem, rule, 2, 0), 1, horizon=1, lr=0.1)
        evaluate(problem, initial(problem, 2, 0))


class Counting(nn.Module):
    """Keeps what it has seen where nobody looks."""

    times = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        return x * self.times


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(8), "build: got BatchNorm1d '2' with running statistics"),
        (
            parametrizations.spectral_norm(nn.Linear(8, 8)),
            r"build: got 'x', .* its buffer '2\.parametrizations\.weight\.0\._u' is written",
        ),
        (Counting(), "build: got 'x', .* its loss is another one when it is asked for again"),
        (Recomputed, "its gradient by '1.weight' is not what the module by itself has"),
        (nn.LazyLinear(8), "build: got parameter '2.weight' without a size"),
        (Double(), "its parameters are torch.float64, expected torch.float32"),
    ],
)
def test_layers_that_are_no_function_of_weights_are_refused(layer: Any, message: str) -> None:
    def build() -> nn.Module:
        return sequence(layer if isinstance(layer, nn.Module) else layer())

    with pytest.raises(ValueError, match=message):
        ModuleTask(build, cross_entropy, data(False), 5, "x")


def test_tasks_that_differ_in_dropout_are_told_apart() -> None:
    made = [
        ModuleTask(lambda p=p: sequence(nn.Dropout(p)), cross_entropy, data(False), 5, "x")
        for p in (0.0, 0.1, 0.5)
    ]
    assert len({fingerprint(each) for each in made}) == 3


def test_padding_that_the_examples_do_not_show_is_padding() -> None:
    x = torch.randint(1, 11, (60, 7), generator=torch.Generator().manual_seed(0))
    rare = Arrays("rare", *[(x, x[:, 0] % 3)] * 3)
    build = SUBJECTS["padding"][0]
    assert not ways(ModuleTask(build, cross_entropy, rare, 5, "x")).own


@dataclass(frozen=True)
class Written(ModuleTask):
    """A task whose loss is written out, as others write theirs."""

    def loss(self, params: Any, batch: Any) -> Tensor:
        x, y = batch
        embedded = F.embedding(x, params["embedding.weight"], padding_idx=0)
        return cross_entropy(F.linear(embedded.mean(-2), params["out.weight"]), y)

    def training_loss(self, params: Any, batch: Any) -> Tensor:
        return self.loss(params, batch) + 0.1 * F.dropout(params["out.weight"]).square().sum()


def test_tasks_of_other_classes_are_compared_too() -> None:
    build, loss, _ = SUBJECTS["padding"]
    problem = Written(build, loss, data(True), 5, "written")
    assert ways(problem) == (True, False, True, True, False)
    rule = TorchRule(torch.optim.SGD)
    ends = []
    for seeds in (SEEDS, SEEDS[1:2]):
        inner = start(problem, rule, len(seeds), seeds)
        with torch.no_grad():
            ends.append(advance(problem, rule, inner, 2, horizon=2, lr=0.3)[0].params)
    torch.testing.assert_close(ends[0][1], ends[1][0])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("GRU", "instances are trained in turn, .*: together they fail: .*gru"),
        (
            "padding",
            "with seeds of their own .*: an embedding has a row of padding|differ",
        ),
        ("max_norm", "instances are trained in turn, .*: (its training writes|together they)"),
        (
            "dropout",
            "with seeds of their own are .* in turn, .*: together they fail: .*random",
        ),
    ],
)
def test_what_is_slow_is_said_and_why(name: str, why: str, caplog: Any) -> None:
    with caplog.at_level("INFO", "tasks.oracles.lifting"):
        fresh = replace(task(name), name=f"{name} again")  # tried when it is made
        ways(fresh)
        ways(fresh)
    for record in caplog.records:
        assert re.search(why, record.getMessage())
        assert "\n" not in record.getMessage()
    assert caplog.records


def test_a_task_is_tried_once(caplog: Any) -> None:
    fresh = replace(task("GRU"), name="GRU once")  # tried when it is made
    with caplog.at_level("INFO", "tasks.oracles.lifting"):
        attempt(fresh)
        ways(fresh)
    assert not caplog.records


def test_commands_say_what_is_slow(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "my_cells.py").write_text(
        "import torch\nfrom torch import nn\nfrom tasks import ModuleTask, digits\n"
        "from tasks.suites import Entry\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.cells, self.out = nn.GRU(8, 4, batch_first=True), nn.Linear(4, 10)\n"
        "    def forward(self, x):\n"
        "        return self.out(self.cells(x.flatten(1).reshape(-1, 8, 8))[0][:, -1])\n"
        "def suite():\n"
        "    made = ModuleTask(Net, nn.functional.cross_entropy, digits(), 16, 'cells')\n"
        "    return (Entry(made, 5),)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["suites", "my_cells:suite"]) == 0
    said = capsys.readouterr().err
    assert said.count("cells: instances are trained in turn, as slowly as by a loop") == 1
