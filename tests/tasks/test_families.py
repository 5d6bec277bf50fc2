"""Every family against every property a task must have, those of new files of the room included."""

import doctest
import math
import os
import pickle
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vmap

from search.interpreter.population import Population
from search.zoo import ZOO
from tasks.cards import fingerprint
from tasks.data.loaders import breast_cancer, diabetes, digits, help_text
from tasks.families import module
from tasks.families.autoencoder import Autoencoder
from tasks.families.conv import Conv
from tasks.families.linear import Linear, Logistic
from tasks.families.mlp import MLP
from tasks.families.module import ModuleTask
from tasks.families.quadratic import Quadratic
from tasks.families.transformer import Transformer
from tasks.inner.unroll import initial, unroll
from tasks.oracles.lifting import TOGETHER, _ways, ways
from tasks.rng import draw
from tasks.types import Task
from tests.tasks.room_of_families import others


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 10))


def normalised() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * 6 * 6, 10))


cross_entropy = nn.functional.cross_entropy

# task, loss at initialisation (about), learning rate of plain gradient descent; None: not known
FAMILIES: list[tuple[Task, float | None, float | None]] = [
    (Quadratic(), None, 0.3),
    (Quadratic(dimension=3, spectrum=(0.1, 1.0, 2.0), noise=0.0), None, 0.3),
    (Linear(), 2.0, 0.03),
    (Logistic(), math.log(2), 0.1),
    (Logistic(data=digits()), math.log(10), 0.1),
    (MLP(), math.log(10), 0.1),
    (MLP(width=8, depth=3, activation="tanh", data=breast_cancer()), math.log(2), 0.1),
    (MLP(width=16, depth=2, activation="gelu", data=diabetes(), batch_size=32), 1.0, 0.1),
    (MLP(width=8, depth=1, activation="silu"), math.log(10), 0.1),
    (Conv(), math.log(10), 0.1),
    (Autoencoder(), 1.0, 0.5),
    (Autoencoder(20, 2, 4, "gelu", breast_cancer()), 1.0, 0.5),
    (Transformer(16, 1, 2, help_text(8), 8), math.log(96), 0.5),
    (ModuleTask(network, cross_entropy, digits(), 32, "linears"), math.log(10), 0.1),
    (ModuleTask(normalised, cross_entropy, digits(), 32, "batchnorm"), math.log(10), 0.1),
]
FAMILIES += [(task, None, None) for task in others(task for task, *_ in FAMILIES)]
families = pytest.mark.parametrize(
    ("task", "chance", "lr"), FAMILIES, ids=[task.name for task, _, _ in FAMILIES]
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def minibatch(task, seed=0, step=0):
    index = draw(seed, step, task.data.size("train"), task.batch_size)
    return task.data.batch("train", index)


@families
def test_init_is_a_function_of_the_generator(task, chance, lr):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = task.init(generator(1)), task.init(generator(1)), task.init(generator(2))
    assert torch.equal(torch.get_rng_state(), before)  # the global generator was left alone
    assert list(first) == list(again)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in first.values())
    assert [(spec.name, spec.shape) for spec in task.layout.specs] == [
        (name, tuple(p.shape)) for name, p in first.items()
    ]


@families
def test_loss_at_initialisation_is_near_chance(task, chance, lr):
    batch = task.data.batch("validation", torch.arange(min(64, task.data.size("validation"))))
    losses = [float(task.loss(task.init(generator(seed)), batch)) for seed in range(5)]
    mean = sum(losses) / 5
    assert 0 <= mean < math.inf
    if isinstance(task, Quadratic):  # E of (x - c)' H (x - c) / 2, x and c standard normal
        spread = task.optimum @ task.data.root @ task.data.root.mT @ task.optimum
        chance = float(task.eigenvalues.sum() + spread) / 2
        assert 0.3 * chance < mean < 2.5 * chance
    elif chance is not None:
        assert 0.7 * chance < mean < 2.2 * chance


@families
def test_gradients_are_finite_and_reach_every_parameter(task, chance, lr):
    grads = grad(task.loss)(task.init(generator(0)), minibatch(task))
    for name, g in grads.items():
        assert torch.isfinite(g).all(), name
        dead = name == "0.bias" and task.name == "batchnorm"  # normalised away
        assert dead or g.abs().max() > 0, name


@families
@pytest.mark.parametrize("shared", [True, False], ids=["one-batch", "own-batches"])
def test_batched_equals_looped(task, chance, lr, shared):
    inits = [task.init(generator(seed)) for seed in range(3)]
    stacked = {name: torch.stack([init[name] for init in inits]) for name in inits[0]}
    seeds = 0 if shared else torch.arange(3)
    index = draw(seeds, 0, task.data.size("train"), task.batch_size)
    batch = task.data.batch("train", index)
    batched = vmap(grad_and_value(task.loss), in_dims=(0, None if shared else 0))
    grads, losses = batched(stacked, batch)
    for i, init in enumerate(inits):
        own = batch if shared else tuple(tensor[i] for tensor in batch)
        expected, loss = grad_and_value(task.loss)(init, own)
        torch.testing.assert_close(losses[i], loss, rtol=1e-5, atol=1e-6)
        for name in expected:
            torch.testing.assert_close(grads[name][i], expected[name], rtol=1e-3, atol=3e-6)


@families
def test_instances_run_together(task, chance, lr):
    assert _ways(task, id(task)) == ways(task) == TOGETHER


@families
def test_gradient_descent_makes_progress(task, chance, lr):
    held = task.data.batch("validation", torch.arange(min(256, task.data.size("validation"))))
    before = float(task.loss(task.init(generator(3)), held))
    after = []
    for rate in (1.0, 0.1, 0.01) if lr is None else (lr,):
        params = task.init(generator(3))
        for step in range(30):
            grads = grad(task.loss)(params, minibatch(task, step=step))
            params = {name: p - rate * grads[name] for name, p in params.items()}
        after.append(float(task.loss(params, held)))
    assert min(after) < 0.95 * before


@families
def test_pickles(task, chance, lr):
    again = pickle.loads(pickle.dumps(task))
    assert again.name == task.name
    assert again.batch_size == task.batch_size
    loss = task.loss(task.init(generator(0)), minibatch(task))
    assert torch.equal(again.loss(again.init(generator(0)), minibatch(again)), loss)


@families
def test_data_moves(task, chance, lr):
    there = task.data.to("meta")
    batch = there.batch("train", torch.zeros(2, 3, dtype=torch.int64, device="meta"))
    assert all(tensor.is_meta and tensor.shape[:2] == (2, 3) for tensor in batch)


@families
def test_compares_without_comparing_data(task, chance, lr):
    assert isinstance(hash(task), int)
    assert task == task
    assert task != FAMILIES[0][0] or task is FAMILIES[0][0]


def test_the_proxy_is_what_it_is_said_to_be():
    assert MLP() == MLP(width=32, depth=1, activation="relu", data=digits(), batch_size=128)
    assert MLP().sizes == [64, 32, 10]
    assert MLP().layout.n == 2410
    assert MLP().name == "mlp-digits-w32-d1"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(width=-3), "width: got -3, expected a positive integer"),
        (lambda: MLP(depth=0), "depth: got 0, expected a positive integer"),
        (lambda: MLP(batch_size=1.5), "batch_size: got 1.5, expected a positive integer"),  # pyright: ignore[reportArgumentType]
        (lambda: MLP(activation="step"), "activation: got 'step', expected one of gelu, relu"),
        (lambda: Linear(data=digits()), "data: got digits, expected real targets"),
        (lambda: Logistic(data=diabetes()), "data: got diabetes, expected classes"),
        (lambda: Conv(data=diabetes()), r"data: got diabetes of shape \(10,\), expected images"),
        (lambda: Autoencoder(latent=0), "latent: got 0, expected a positive integer"),
        (lambda: Transformer(width=10, heads=4), "heads: got 4, expected a divisor of width=10"),
        (lambda: Quadratic(spectrum="flat"), "spectrum: got 'flat', expected one of constant"),
        (lambda: Quadratic(spectrum=(1.0,)), r"spectrum: got \(1.0,\), expected 32 positive"),
        (lambda: Quadratic(condition=0.5), "condition: got 0.5, expected a number of at least 1"),
        (lambda: Quadratic(noise=math.nan), "noise: got nan, expected a number of at least 0"),
        (lambda: Quadratic(seed=-1), "seed: got -1, expected an integer of at least 0"),
        (
            lambda: ModuleTask(lambda: nn.BatchNorm1d(3), cross_entropy, digits(), 8, "x"),
            "build: got BatchNorm1d '' with running statistics",
        ),
        (
            lambda: ModuleTask(nn.Flatten, cross_entropy, digits(), 8, "x"),
            "build: got a module without parameters",
        ),
        *(
            (lambda part=part: module_task(part), f"build: got 'x', which cannot be .*: {reason}")
            for part, reason in (
                (nn.Linear(9, 9), r"RuntimeError: mat1 and mat2 shapes .* \(8x16 and 9x9\)"),
            )
        ),
        (
            lambda: module_task(nn.Identity(), partial(cross_entropy, reduction="none")),
            r"build: .*: ValueError: its loss has shape \(8,\), expected one number",
        ),
    ],
)
def test_wrong_fields_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# ------------------------------------------------------------------------------- one family each


@pytest.mark.parametrize("spectrum", ["log", "linear", "constant"])
def test_quadratic_has_the_hessian_and_the_optimum_it_claims(spectrum):
    task = Quadratic(dimension=6, spectrum=spectrum, condition=50.0, noise=0.3)
    batch = task.data.batch("train", torch.arange(task.data.size("train")))
    hessian = torch.func.hessian(lambda x: task.loss({"x": x}, batch))(torch.randn(6))
    assert isinstance(hessian, torch.Tensor)
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian), task.eigenvalues, atol=1e-4, rtol=0)
    gradient = grad(task.loss)({"x": task.optimum}, batch)["x"]
    torch.testing.assert_close(gradient, torch.zeros(6), atol=1e-5, rtol=0)
    best = task.data.batch("validation", torch.tensor([0]))
    assert float(task.loss({"x": task.optimum}, best)) == 0
    if spectrum != "constant":
        assert float(task.eigenvalues.max() / task.eigenvalues.min()) == pytest.approx(50, rel=1e-3)


def test_the_axes_of_a_quadratic_are_the_same_on_every_processor():
    """Intel's library takes another way through a decomposition on some: here, on request."""
    ask = "from tasks.families.quadratic import Quadratic; print(Quadratic(64).data.root.tolist())"
    answers = {
        subprocess.check_output([sys.executable, "-c", ask], env=os.environ | {"MKL_CBWR": way})
        for way in ("AUTO", "COMPATIBLE")
    }
    assert len(answers) == 1


def test_quadratic_noise_is_in_the_minibatch():
    at_best = {"x": Quadratic().optimum}
    norms = {}
    for noise in (0.0, 0.1, 0.2):
        task = Quadratic(noise=noise)
        norms[noise] = float(grad(task.loss)(at_best, minibatch(task))["x"].norm())
    assert norms[0.0] < 1e-6
    assert norms[0.2] == pytest.approx(2 * norms[0.1], rel=1e-3)


def test_transformer_does_not_see_the_future():
    task = Transformer(16, 2, 4, help_text(12))
    params = task.init(generator(0))
    chars = task.data.batch("train", torch.tensor([5]))[0]
    changed = chars.clone()
    changed[:, 7] = (changed[:, 7] + 1) % task.data.vocabulary
    difference = (task.forward(params, chars) - task.forward(params, changed)).abs().amax(-1)[0]
    assert float(difference[:7].max()) == 0
    assert float(difference[7:].min()) > 0


def test_transformer_attention_is_torch_attention():
    task = Transformer(16, 1, 2, help_text(8))
    params = task.init(generator(0))
    x = torch.randn(3, 8, 16, generator=generator(1))
    query, key, value = (
        (x @ params[f"block0.{name}"]).unflatten(-1, (2, 8)).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = mixed.transpose(1, 2).flatten(2) @ params["block0.mix"]
    torch.testing.assert_close(task._attend(params, "block0", x), expected)


def module_task(part: nn.Module, loss=cross_entropy) -> ModuleTask:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), part, Last())

    return ModuleTask(build, loss, digits(), 8, "x")


class Last(nn.Module):
    def forward(self, x: Any) -> Tensor:
        return (x[0] if isinstance(x, tuple) else x)[..., :10]


def test_module_task_is_the_module():
    task = ModuleTask(network, cross_entropy, digits(), 32, "linears")
    params = task.init(generator(0))
    built = network()
    built.load_state_dict(params)
    x, y = minibatch(task)
    torch.testing.assert_close(task.loss(params, (x, y)), cross_entropy(built(x), y))


class Features(nn.Module):
    """Random features that are not trained: of a buffer and of parameters that are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.waves: Tensor
        self.register_buffer("waves", torch.randn(64, 5))
        self.frozen = nn.Linear(5, 6).requires_grad_(False)
        self.place = nn.Parameter(torch.tensor([1]), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(x.flatten(1) @ self.waves)[:, [0, 1, 2, 3, 4, 5]])


def test_what_needs_no_gradient_is_not_trained_and_what_is_not_used_stays():
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        made.append(ModuleTask(Features, cross_entropy, digits(), 8, "features"))
    assert fingerprint(made[0]) == fingerprint(made[1])
    task = made[0]
    params = task.init(generator(0))
    assert list(params) == ["unused", "head.weight", "head.bias"]
    rule = Population.of([ZOO["adam"].program], torch.zeros(1, dtype=torch.int64))
    run = unroll(task, rule, instances=1, steps=3, lr=torch.tensor([0.1]))
    end = task.layout.views(run.inner.params[0])
    start = initial(task, 1, 0)[0]
    assert torch.equal(end["unused"], task.layout.views(start)["unused"])
    assert not torch.equal(end["head.weight"], task.layout.views(start)["head.weight"])


def test_module_docstring_example_runs():
    result = doctest.testmod(module)
    assert result.attempted > 3
    assert result.failed == 0
