"""What a training script may expect of every optimizer: one table, rules x properties.

Exported files and ``RuleOptimizer`` keep the same contract, that of torch's own AdamW. A new rule
is a row of ``EXPORTED`` or ``RULES``; a new promise is one more test.

Rows of ``FUSED`` are exported files with ``fused=True``, whose statements are traced as they would
be for a compiler but run as they are; what a compiler makes of them is tested once.
"""

import copy
import importlib.util
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from l2o.architectures.tuned_adam import TunedAdam
from search.export import to_source
from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.language.program import parse
from search.zoo import ZOO
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.types import Params, State, StepInfo, UpdateRule

NORMALISED = """
def full_update(w, g, m, lr, t):
    g = clip_by_global_norm(g, 1.5)
    m = interp(g, m, 0.9)
    size = norm(m)
    root = sqrt(t)
    rate = lr / root
    update = m / size
    wd = w * 0.05
    update = update + wd
    update = update * rate
    return update, m
"""
EXPORTED = {
    "sgd": ZOO["sgd"].program,
    "lion": ZOO["lion"].program,
    "adam": ZOO["adam"].program,
    "normalised": parse(NORMALISED),
    "muon": ZOO["muon"].program,
}
FUSED = {"fused adam": "adam", "fused normalised": "normalised", "fused muon": "muon"}
ONE = torch.tensor([0])


@dataclass(frozen=True)
class Mixing:
    """A rule that remembers something of each element, of each tensor and of the whole."""

    def init(self, params: Params) -> State:
        sizes = params.flat.new_zeros(1, len(params.layout.specs))
        count = torch.zeros(1, dtype=torch.int64)
        return {"m": torch.zeros_like(params.flat), "sizes": sizes, "count": count}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        m = 0.9 * state["m"] + grads
        lengths = [grads[:, span].norm(dim=1) for _, span in params.layout]
        sizes = 0.5 * state["sizes"] + torch.stack(lengths, 1)
        count = state["count"] + 1
        rate = info.lr[:, None] / count.sqrt()[:, None] / (1 + sizes)
        updates = rate[:, params.layout.segments()] * m
        return updates, {"m": m, "sizes": sizes, "count": count}

    def select(self, index: Tensor) -> "Mixing":
        return self


RULES: dict[str, UpdateRule] = {
    "kernel": Population.of([ZOO["adam"].program], ONE),
    "reference": Population.of([ZOO["adam"].program], ONE, reference),
    "learned": TunedAdam(lr=1.0).rule(torch.zeros(4)),
    "mixing": Mixing(),
}
LR = 0.05


@dataclass(frozen=True)
class Subject:
    """An optimizer under test: ``make(params, **settings)``."""

    name: str
    make: Callable[..., Optimizer]


def imported(path: Path) -> Callable[..., Optimizer]:
    """The one optimizer class of a file, as if it had been imported by a training script."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    classes = (x for x in vars(module).values() if isinstance(x, type))
    return next(x for x in classes if x.__module__ == path.stem)


def write(name: str, folder: Path) -> Path:
    path = folder / f"exported_{name.replace(' ', '_')}.py"
    program = EXPORTED[FUSED.get(name, name)]
    path.write_text(to_source(program, name, "Written for a test.", LR, 0.0))
    return path


def traced(optimizer: Callable[..., Optimizer], backend: Any) -> partial[Optimizer]:
    """With ``fused=True``, by a compiler of its own, which gets the smallest parameters too."""

    module = sys.modules[optimizer.__module__]
    real = module._compiled

    def compiled(function: Callable[..., None]) -> Callable[..., None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
            return real(function)

    module.__dict__.update(_compiled=compiled, BLOCK=1)
    return partial(optimizer, fused=True)


exported = pytest.mark.parametrize("subject", EXPORTED, indirect=True)
in_torch = pytest.mark.parametrize("subject", [*EXPORTED, "reference", "mixing"], indirect=True)
"""Without the compiled kernel, and without meta-parameters of a precision of their own."""


@pytest.fixture(scope="session", params=[*EXPORTED, *FUSED, *RULES])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name = request.param
    if name in EXPORTED:
        return Subject(name, imported(write(name, tmp_path_factory.mktemp("exported"))))
    if name in FUSED:
        optimizer = imported(write(name, tmp_path_factory.mktemp("exported")))
        return Subject(name, traced(optimizer, "eager"))
    return Subject(
        name, lambda params, lr=LR, **settings: RuleOptimizer(params, RULES[name], lr, **settings)
    )


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def loss_of(net: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    dtype = next(net.parameters()).dtype
    return net(torch.randn(8, 4, generator=generator).to(dtype)).square().mean()


def train(net: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def trained(subject: Subject, steps: int = 4, **settings: Any) -> Tensor:
    net = model(settings.pop("dtype", torch.float32))
    train(net, subject.make(net.parameters(), **settings), range(steps))
    return weights(net)


# Groups ---------------------------------------------------------------------------------------


def test_groups_have_their_own_learning_rate(subject: Subject) -> None:
    net = model()
    before = weights(net)
    frozen = {"params": net[0].parameters(), "lr": 0.0}
    train(net, subject.make([frozen, {"params": net[2].parameters()}]), range(1))
    moved = weights(net) != before
    assert not moved[:25].any()
    assert moved[25:].all()


def test_named_parameters(subject: Subject) -> None:
    net = model()
    optimizer = subject.make(net.named_parameters())
    train(net, optimizer, range(4))
    assert torch.equal(weights(net), trained(subject))
    assert optimizer.state_dict()["param_groups"][0]["param_names"][0] == "0.weight"


def test_group_added_late_starts_at_the_default(subject: Subject) -> None:
    """Schedulers fill a tensor ``lr`` in place; that must reach neither the default nor others."""
    net = model()
    optimizer = subject.make(net[0].parameters(), lr=torch.tensor(LR))
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    train(net, optimizer, range(2))
    scheduler.step()
    before = weights(net)
    optimizer.add_param_group({"params": net[2].parameters()})
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(LR / 2)
    assert float(optimizer.param_groups[1]["lr"]) == pytest.approx(LR)
    train(net, optimizer, range(2, 3))
    assert (weights(net) != before).all()


@pytest.mark.parametrize("place", [0, 1])
def test_parameters_that_join_a_group_leave_the_others_their_state(
    subject: Subject, place: int
) -> None:
    """As with torch's own optimizers, be it in front of them."""
    old, new = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = subject.make([old])
    for _ in range(2):
        old.grad = torch.ones(3)
        optimizer.step()
    before = {name: x.clone() for name, x in optimizer.state[old].items()}
    optimizer.param_groups[0]["params"].insert(place, new)
    new.grad, old.grad = torch.ones(3), None
    optimizer.step()
    for name, value in before.items():
        if not name.startswith("shared."):
            torch.testing.assert_close(optimizer.state[old][name], value, msg=name)
    assert {name for name in optimizer.state[new] if "shared" not in name} == {
        name for name in before if "shared" not in name
    }
    assert (new != 1).all()


def test_what_belongs_to_no_element_is_kept() -> None:
    """When a parameter joins in front: a copy with each, or what is of its tensor."""
    old, new = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = RuleOptimizer([old], RULES["mixing"])
    for params in ([old], [new, old]):
        optimizer.param_groups[0]["params"] = params
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
    assert [int(optimizer.state[p]["shared.count"]) for p in (old, new)] == [2, 2]
    for p, size in ((old, 1.5 * 3**0.5), (new, 3**0.5)):
        torch.testing.assert_close(optimizer.state[p]["sizes"], torch.tensor([size]))


def test_schedulers_change_the_step(subject: Subject) -> None:
    net = model()
    optimizer = subject.make(net.parameters())
    scheduler = LambdaLR(optimizer, lambda step: float(step == 0))
    train(net, optimizer, range(1))
    scheduler.step()
    before = weights(net)
    train(net, optimizer, range(1, 3))
    assert torch.equal(weights(net), before)


# Checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_to_the_same_trajectory(subject: Subject, dtype: torch.dtype) -> None:
    """Through a file, loaded with ``weights_only``; half precision keeps its float32 states."""
    net = model(dtype)
    optimizer = subject.make(net.parameters())
    train(net, optimizer, range(2))
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    net_state, optimizer_state = torch.load(file, weights_only=True)
    other = model(dtype)
    other.load_state_dict(net_state)
    resumed = subject.make(other.parameters(), lr=1.0)
    resumed.load_state_dict(optimizer_state)
    train(other, resumed, range(2, 4))
    assert torch.equal(weights(other), trained(subject, dtype=dtype))


def states(optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    """All that is remembered in floating point, but for the number of steps."""
    kept = [pair for state in optimizer.state.values() for pair in state.items()]
    return [(name, x) for name, x in kept if name != "step" and x.is_floating_point()]


def test_half_precision_keeps_float32_states(subject: Subject) -> None:
    net = model(torch.bfloat16)
    optimizer = subject.make(net.parameters())
    train(net, optimizer, range(2))
    loaded = subject.make(net.parameters())
    loaded.load_state_dict(optimizer.state_dict())
    for (name, one), (_, other) in zip(states(optimizer), states(loaded), strict=True):
        assert one.dtype == other.dtype == torch.float32, name
        assert torch.equal(one, other)


def test_counters_stay_integers() -> None:
    net = model(torch.bfloat16)
    optimizer = RuleOptimizer(net.parameters(), RULES["mixing"])
    train(net, optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    count = optimizer.state[next(net.parameters())]["shared.count"]
    assert count.dtype == torch.int64
    assert int(count) == 2


@pytest.mark.parametrize("elements", [1, 2])
def test_what_is_kept_of_each_element(elements: int) -> None:
    """Is told from what is kept of each tensor, or of all, and happens to be as long."""
    params = [torch.ones((), requires_grad=True) for _ in range(elements)]
    optimizer = RuleOptimizer(params, RULES["mixing"])
    for p in params:
        p.grad = torch.ones(())
    optimizer.step()
    assert all(s.keys() == {"step", "m", "sizes", "shared.count"} for s in optimizer.state.values())


@pytest.mark.parametrize("taken", ["step", "hessian", "shared.m"])
def test_names_of_states_that_are_taken_are_refused(taken: str) -> None:
    class Rule:
        def init(self, params):
            return {taken: torch.zeros_like(params.flat)}

        def update(self, grads, state, params, info):
            return grads, state

        def select(self, index):
            return self

    optimizer = RuleOptimizer([p := torch.ones(2, requires_grad=True)], Rule())
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=f"a state called '{taken}', expected none of step"):
        optimizer.step()


def test_loading_does_not_share_memory(subject: Subject) -> None:
    net, twin = model(), model()
    optimizer = subject.make(net.parameters())
    train(net, optimizer, range(2))
    loaded = subject.make(twin.parameters())
    loaded.load_state_dict(optimizer.state_dict())
    before = [x.clone() for _, x in states(loaded)]
    train(net, optimizer, range(2, 4))
    assert all(torch.equal(x, y) for (_, x), y in zip(states(loaded), before, strict=True))


def test_old_checkpoints_get_defaults(subject: Subject) -> None:
    net = model()
    optimizer = subject.make(net.parameters())
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["maximize"], group["capturable"]
    optimizer.load_state_dict(state)
    train(net, optimizer, range(4))
    assert torch.equal(weights(net), trained(subject))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_the_trajectory(subject: Subject, clone: Callable[[Any], Any]) -> None:
    net = model()
    optimizer = subject.make(net.parameters())
    train(net, optimizer, range(2))
    twin, copied = clone((net, optimizer))
    train(twin, copied, range(2, 4))
    assert torch.equal(weights(twin), trained(subject))


# One step -------------------------------------------------------------------------------------


def test_gradients_are_left_alone(subject: Subject) -> None:
    for settings in ({}, {"maximize": True}):
        net = model()
        optimizer = subject.make(net.parameters(), **settings)
        loss_of(net, 0).backward()
        before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        optimizer.step()
        after = [p.grad for p in net.parameters() if p.grad is not None]
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_maximize_descends_the_negative(subject: Subject) -> None:
    one, other = model(), model()
    up = subject.make(one.parameters(), maximize=True)
    down = subject.make(other.parameters())
    for step in range(3):
        for net, optimizer, sign in ((one, up, 1), (other, down, -1)):
            optimizer.zero_grad()
            (sign * loss_of(net, step)).backward()
            optimizer.step()
    assert torch.equal(weights(one), weights(other))


def test_closure(subject: Subject) -> None:
    net = model()
    optimizer = subject.make(net.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)  # type: ignore[arg-type]
    assert torch.equal(first, loss_of(model(), 0))  # type: ignore[arg-type]
    assert torch.equal(weights(net), trained(subject, 1))
    assert optimizer.step() is None


def test_parameters_without_gradient_are_skipped(subject: Subject) -> None:
    net = model()
    next(iter(net.children())).bias.requires_grad = False  # type: ignore[assignment]
    before = weights(net)[20:25]
    optimizer = subject.make(net.parameters(), weight_decay=0.1)
    train(net, optimizer, range(2))
    assert torch.equal(weights(net)[20:25], before)
    nothing = subject.make([torch.zeros(3, requires_grad=True)])
    nothing.step()


def test_frozen_parameters_cost_nothing_until_they_are_unfrozen(subject: Subject) -> None:
    net = model()
    first, *rest = net.parameters()
    first.requires_grad = False
    before, optimizer = first.detach().clone(), subject.make(net.parameters())
    train(net, optimizer, range(2))
    assert first not in optimizer.state
    assert torch.equal(first, before)
    first.requires_grad = True
    train(net, optimizer, range(2, 4))
    assert not torch.equal(first, before)
    assert float(optimizer.state[rest[0]].get("step", 4)) == 4


def test_tensor_learning_rate(subject: Subject) -> None:
    expected = trained(subject)
    actual = trained(subject, lr=torch.tensor(LR))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=2e-7)


@exported
def test_tensor_learning_rate_with_foreach(subject: Subject) -> None:
    actual = trained(subject, lr=torch.tensor([LR]), foreach=True)
    torch.testing.assert_close(actual, trained(subject), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_zero_learning_rate_moves_nothing(subject: Subject, lr: float | Tensor) -> None:
    net = model()
    before = weights(net)
    optimizer = subject.make(net.parameters(), lr=lr)
    train(net, optimizer, range(3))
    assert torch.equal(weights(net), before)
    assert all(float(s["step"]) == 3 for s in optimizer.state.values() if "step" in s)


@pytest.mark.parametrize(
    "bad", [{"lr": -1.0}, {"lr": float("nan")}, {"lr": torch.ones(2)}, {"weight_decay": -0.1}]
)
def test_bad_settings_are_refused_by_name(subject: Subject, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: got"):
        subject.make([torch.zeros(1)], **bad)


def test_sparse_gradients_are_refused_by_name(subject: Subject) -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = subject.make(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=f"{type(optimizer).__name__} does not support sparse"):
        optimizer.step()


def test_complex_is_two_real_numbers(subject: Subject) -> None:
    start = torch.randn(3, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    results = []
    for p in (start.clone(), torch.view_as_real(start).clone()):
        optimizer = subject.make([p.requires_grad_()])
        for _ in range(3):
            p.grad = (p * (0.5 + p.abs())).detach() if not p.is_complex() else None
            if p.is_complex():
                x = torch.view_as_real(p.detach())
                p.grad = torch.view_as_complex(x * (0.5 + x.abs()))
            optimizer.step()
        results.append(torch.view_as_real(p.detach()) if p.is_complex() else p.detach())
    assert torch.equal(*results)


@in_torch
def test_differentiable_gives_the_hypergradient(subject: Subject) -> None:
    """Of the loss after two steps with respect to the learning rate, by finite differences."""

    def after(lr: Tensor) -> Tensor:
        p = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64).requires_grad_().clone()
        optimizer = subject.make([p], lr=lr, differentiable=True)
        for _ in range(2):
            read = p.clone()  # as with torch's own, p itself is written over
            p.grad = 2 * read * read.cos()
            optimizer.step()
        return p.square().sum()

    lr = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(after(lr), lr)
    with torch.no_grad():
        numeric = (after(lr + 1e-6) - after(lr - 1e-6)) / 2e-6
    assert float(slope) == pytest.approx(float(numeric), rel=1e-4)


def test_hooks_fire_once(subject: Subject) -> None:
    net, calls = model(), []
    optimizer = subject.make(net.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("save"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    train(net, optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "post", "pre", "post", "save", "load"]


def test_load_hooks_see_what_will_be_used(subject: Subject) -> None:
    net = model(torch.bfloat16)
    optimizer = subject.make(net.parameters())
    train(net, optimizer, range(2))
    seen: list[bool] = []
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen.append(all(x.dtype == torch.float32 for _, x in states(o)))
    )
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [True]


def test_capturable_is_the_same_rule(subject: Subject) -> None:
    expected = trained(subject)
    actual = trained(subject, capturable=True)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@exported
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_foreach_is_the_same_rule(subject: Subject, dtype: torch.dtype) -> None:
    results = [trained(subject, dtype=dtype, foreach=flag).float() for flag in (False, True)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@exported
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("lr", [LR, torch.tensor(LR)])
def test_compiled_step_is_compiled_once(
    subject: Subject, lr: float | Tensor, foreach: bool
) -> None:
    """Neither more steps nor a tensor's new value compile it again; a number's first change does,
    as with torch's own optimizers, and no later one."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    net = model()
    optimizer = subject.make(net.parameters(), foreach=foreach, lr=lr)
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    step = torch.compile(optimizer.step, backend=counter)
    eager = model()
    plain = subject.make(eager.parameters(), foreach=foreach)
    for k in range(4):
        optimizer.zero_grad()
        loss_of(net, k).backward()
        step()
        scheduler.step()
        train(eager, plain, range(k, k + 1))
        plain.param_groups[0]["lr"] *= 0.9
    assert counter.frame_count == (1 if isinstance(lr, Tensor) else 2)
    torch.testing.assert_close(weights(net), weights(eager), rtol=1e-5, atol=1e-6)


# Fused ----------------------------------------------------------------------------------------


def with_backend(name: str, backend: Any, folder: Path) -> partial[Optimizer]:
    """An exported rule that a compiler sees for the first time, without a file's ``_compiled``."""
    torch._dynamo.reset()
    return traced(imported(write(name, folder)), backend)


def test_fused_is_compiled_for_few_counts(tmp_path: Path) -> None:
    """Of parameters: once for all shapes, whatever schedulers, new groups, no gradients do."""
    counter = torch._dynamo.testing.CompileCounter()
    make = with_backend("adam", counter, tmp_path)
    shapes = [(2, 3, 4), (5, 5), (5, 5), (7,), *((k, 3) for k in range(2, 16))]
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    optimizer = make(params[:-1])
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    for step in range(6):
        if step == 2:
            optimizer.add_param_group({"params": params[-1:], "weight_decay": 0.1})
            scheduler.base_lrs.append(LR)
            scheduler.lr_lambdas.append(lambda step: 0.8**step)
        for k, p in enumerate(params):
            p.grad = torch.ones_like(p) if (k + step) % 9 else None
        optimizer.param_groups[0]["weight_decay"] = 0.1 * step
        optimizer.step()
        scheduler.step()
    assert counter.frame_count == 3  # 16, 4 and 1


def test_fused_is_compiled_however_many_versions_it_takes(tmp_path: Path) -> None:
    """Groups that differ in a number that is compiled in; torch would give up at eight."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    make = with_backend("adam", counter, tmp_path)
    params = [torch.zeros(3, requires_grad=True) for _ in range(10)]
    for p in params:
        p.grad = torch.ones(3)
    optimizer = make([{"params": p, "beta1": 0.05 + 0.09 * k} for k, p in enumerate(params)])
    optimizer.step()
    versions = counter.frame_count
    assert versions >= len(params)
    optimizer.step()
    assert counter.frame_count == versions


@pytest.mark.parametrize(
    ("name", "block"), [("adam", 1), ("adam", 10), ("adam", 100), ("normalised", 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_is_the_same_rule(name: str, dtype: torch.dtype, block: int, tmp_path: Path) -> None:
    """Whichever of the parameters are large enough to be compiled."""
    make = with_backend(name, "eager", tmp_path)
    sys.modules[make.func.__module__].__dict__["BLOCK"] = block
    settings = {"dtype": dtype, "maximize": True, "lr": torch.tensor(LR), "capturable": True}
    plain = Subject(name, partial(make, fused=False))
    torch.testing.assert_close(
        trained(Subject(name, make), **settings), trained(plain, **settings), rtol=1e-5, atol=1e-6
    )


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_fused_by_the_real_compiler(tmp_path: Path) -> None:
    """Close to the eager rule, and whoever reads the parameters again is told that they changed."""
    make = with_backend("adam", "inductor", tmp_path)
    fused, plain = Subject("fused", make), Subject("adam", partial(make, fused=False))
    torch.testing.assert_close(trained(fused), trained(plain), rtol=1e-5, atol=1e-7)
    p = torch.ones(3, requires_grad=True)
    loss = (p**3).sum()
    loss.backward(retain_graph=True)
    make([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (3, 2)])
def test_fused_takes_every_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    make = with_backend("adam", "eager", tmp_path)
    results = []
    for fused in (False, True):
        p = torch.ones(shape[::-1]).permute(tuple(reversed(range(len(shape))))).requires_grad_()
        p.grad = torch.ones(shape)
        optimizer = make([p], fused=fused, lr=torch.tensor([LR]))
        optimizer.step()
        optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@exported
@pytest.mark.parametrize("other", ["foreach", "differentiable"])
def test_fused_excludes_others(subject: Subject, other: str) -> None:
    with pytest.raises(ValueError, match=f"fused and {other}: got True twice"):
        subject.make([torch.zeros(1)], fused=True, **{other: True})


@exported
def test_fused_says_what_it_needs(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise FileNotFoundError("g++")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    p = torch.ones(2**16, requires_grad=True)
    p.grad = torch.ones(2**16)
    optimizer = subject.make([p], fused=True)
    try:
        with pytest.raises(RuntimeError, match=r"fused: torch.compile failed, .* C\+\+ compiler"):
            optimizer.step()
    finally:
        sys.modules[type(optimizer).__module__].__dict__["_compiled"].cache_clear()
    assert torch.equal(p.detach(), torch.ones(2**16))


def test_grad_scaler_skips_steps_with_infinity(subject: Subject) -> None:
    net = model()
    optimizer = subject.make(net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if step == 2:
            next(net.parameters()).grad = torch.full((5, 4), float("inf"))
        before = weights(net)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weights(net), before) == (step == 2)
    assert weights(net).isfinite().all()


# Two processes --------------------------------------------------------------------------------

RULES_ON_TWO_RANKS = ("lion", "adam", "normalised", "reference")
PROMISES = [
    (promise, name)
    for promise in ("ddp", "fsdp2", "checkpoint", "zero")
    for name in RULES_ON_TWO_RANKS
]
PROMISES.remove(("zero", "normalised"))  # each process would clip by the norm of its own share


@pytest.fixture(scope="session")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong, by rule and property: ``two_ranks.py`` runs them all at once."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in EXPORTED:
        write(name, folder)  # beside the reference rule, which the script makes itself
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("promise", "name"), PROMISES)
def test_two_ranks(on_two_ranks: dict[str, str], promise: str, name: str) -> None:
    assert on_two_ranks[f"{promise}-{name}"] == ""
