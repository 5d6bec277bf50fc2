"""Optimizers of torch as update rules: the very trajectories that torch itself makes."""

import random
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.families.mlp import MLP
from tasks.inner import unroll as inner_loop
from tasks.inner.schedules import cosine
from tasks.inner.unroll import initial, unroll
from tasks.optim.torch_rule import (
    TorchRule,
    _tried,
    optimizer_class,
    optimizer_file,
    torch_optimizer,
)
from tasks.types import Params, Unusable
from tasks.user_code.sources import sources

TASK = MLP(width=4, batch_size=16)
STEPS, SEED = 6, 3


def by_hand(build, lr: float, decay: float, constant: bool = False) -> torch.Tensor:
    """The same training as a user of torch would write it: final parameters ``[n]``."""
    from tasks.rng import draw

    views = TASK.layout.views(initial(TASK, 1, SEED)[0])
    weights = {name: torch.nn.Parameter(view.clone()) for name, view in views.items()}
    optimizer = build(weights.values(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        batch = TASK.data.batch("train", draw(SEED, step, TASK.data.size("train"), 16))

        def closure(batch=batch):
            optimizer.zero_grad()
            (loss := TASK.loss(weights, batch)).backward()
            return loss

        optimizer.step(closure) if isinstance(optimizer, Closing) else (closure(), optimizer.step())
        if not constant:
            schedule.step()
    return TASK.layout.flatten({name: weight.detach() for name, weight in weights.items()})


@pytest.mark.parametrize(
    "name",
    [
        "SGD",
        "SGD(momentum=0.9, nesterov=True)",
        "Adam",
        "Adam(amsgrad=True)",
        "AdamW(betas=(0.5, 0.9))",
        "Adagrad",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop(centered=True)",
        "Rprop",
        "ASGD",
        "Adadelta",
        "Adafactor",
    ],
)
def test_trajectories_are_those_of_torch(name):
    rule = torch_optimizer(f"torch.optim.{name}")
    lrs, decays = [0.01, 0.002, 0.003], [0.0, 0.1, 0.0]
    run = unroll(
        TASK,
        rule,
        instances=3,
        steps=STEPS,
        lr=torch.tensor(lrs),
        weight_decay=torch.tensor(decays),
        schedule=cosine,
        seed=SEED,
    )

    def build(weights, lr, weight_decay):
        given = {} if name == "Rprop" else {"weight_decay": weight_decay}
        return rule.optimizer(weights, lr=lr, **given, **rule.arguments)

    expected = torch.stack([by_hand(build, *both) for both in zip(lrs, decays, strict=True)])
    torch.testing.assert_close(run.inner.params, expected, rtol=1e-4, atol=2e-6)
    assert not torch.equal(run.inner.params[0], initial(TASK, 1, SEED)[0])


def test_state_travels_with_its_run():
    """Chunks, and runs that are dropped, leave the others bit for bit what they were."""
    rule = torch_optimizer("torch.optim.AdamW")
    lr = torch.tensor([0.01, 0.02, 0.03])
    whole = unroll(TASK, rule, instances=3, steps=4, lr=lr)
    parts = unroll(TASK, rule, instances=3, steps=4, lr=lr, chunk=2)
    torch.testing.assert_close(whole.inner.params, parts.inner.params, rtol=1e-5, atol=1e-6)
    drop = unroll(
        TASK, rule, instances=3, steps=4, lr=lr, eval_at=(2, 4), keep=lambda step, i, loss: i != 1
    )
    assert drop.alive.tolist() == [0, 2]
    torch.testing.assert_close(drop.inner.params, whole.inner.params[[0, 2]], rtol=1e-5, atol=1e-6)


class Counting(torch.optim.Optimizer):
    """Keeps its count as a Python number, as some optimizers do."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                state["steps"] = state.get("steps", 0) + 1
                weight -= group["lr"] * state["steps"]


def test_numbers_in_the_state_and_no_decay():
    params = Params(torch.zeros(2, TASK.layout.n), TASK.layout)
    rule, info = TorchRule(Counting), _info(torch.tensor([1.0, 2.0]))
    state = rule.init(params)
    seen = []
    for _ in range(3):
        updates, state = rule.update(torch.ones_like(params.flat), state, params, info)
        seen.append(updates[:, 0].tolist())
    assert seen == [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]


class InGroups(torch.optim.Optimizer):
    """Keeps its count in the groups, as schedule-free optimizers do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "k": 0, "warm": False})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for weight in group["params"]:
                weight -= group["lr"] * group["k"] * (2 if group["warm"] else 1)
            group["warm"] = True


def test_numbers_in_the_groups():
    params = Params(torch.zeros(2, TASK.layout.n), TASK.layout)
    rule, state = _tried(TorchRule(InGroups)), {}
    seen = []
    for lr in ([1.0, 2.0], [1.0, 2.0], [0.5, 1.0]):
        info = _info(torch.tensor(lr))
        updates, state = rule.update(torch.ones_like(params.flat), state, params, info)
        seen.append(updates[:, 0].tolist())
    assert seen == [[1.0, 2.0], [4.0, 8.0], [3.0, 6.0]]


class Odd(torch.optim.Optimizer):
    """Descends by a factor that ``kept(optimizer, group, state)`` makes of what it keeps."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, kept=lambda *where: 1.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.kept = kept

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                factor = self.kept(self, group, self.state[weight])
                weight -= group["lr"] * factor * weight.grad


def _deque(self, group, state):
    past = state.setdefault("past", deque([0.0], maxlen=2))
    past.append(past[-1] + 1)
    return past[0] + 1


def _nothing(self, group, state):
    state["k"] = None if state.get("k", 1) is not None else 1
    return 1.0 if state["k"] is None else 0.5


def _halves(self, group, state):
    group["lr"] /= 2
    return 1.0


ODD = {
    "a list": lambda self, group, state: len(_appended(state.setdefault("past", []))),
    "a list in a group": lambda self, group, state: len(_appended(group.setdefault("past", []))),
    "a dictionary": lambda self, group, state: _counted(state.setdefault("d", {"k": 0}), "k"),
    "a deque": _deque,
    "nothing": _nothing,
    "text": lambda self, group, state: len(state.update(t=state.get("t", "") + "x") or state["t"]),
    "a tuple": lambda self, group, state: len(
        state.update(t=(*state.get("t", ()), 1)) or state["t"]
    ),
    "a tensor in a group": lambda self, group, state: (
        group.update(k=group.get("k", torch.zeros(())) + 1) or float(group["k"])
    ),
    "state of no parameter": lambda self, group, state: _counted(self.state["all"], "k"),
    "an attribute": lambda self, group, state: (
        setattr(self, "k", getattr(self, "k", 0) + 1) or self.k
    ),
    "a generator": lambda self, group, state: (
        vars(self).setdefault("draws", random.Random(3)).random()
    ),
    "its own learning rate": _halves,
}


def _appended(past: list) -> list:
    past.append(1.0)
    return past


def _longer(kept: dict, empty, more):
    kept["t"] = kept.get("t", empty) + more
    return kept["t"]


def _counted(kept: dict, key: str) -> int:
    kept[key] = kept.get(key, 0) + 1
    return kept[key]


@pytest.mark.parametrize("kept", ODD.values(), ids=ODD)
def test_whatever_an_optimizer_keeps_is_there_at_its_next_step(kept):
    """Several runs, some of them dropped: each is what it would be alone."""
    rule, lrs = _tried(TorchRule(Odd, {"kept": kept})), [0.1, 0.02, 0.3]
    run = unroll(
        TASK,
        rule,
        instances=3,
        steps=STEPS,
        lr=torch.tensor(lrs),
        eval_at=(3, STEPS),
        keep=lambda step, i, loss: i != 1,
        seed=SEED,
    )
    for row, lr in zip(run.inner.params, (lrs[0], lrs[2]), strict=True):
        expected = by_hand(partial(Odd, kept=kept), lr, 0.0, constant=True)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=2e-6)


def test_what_is_drawn_belongs_to_a_run():
    """Neither neighbours nor anybody else's random numbers make a difference, nor are made one."""

    def draws(self, group, state):
        return 1 + random.random() + float(torch.rand(())) + np.random.rand()

    rule = TorchRule(Odd, {"kept": draws})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    three = unroll(TASK, rule, instances=3, steps=3, lr=torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(torch.get_rng_state(), before)
    random.seed(5)
    torch.manual_seed(5)
    two = unroll(TASK, rule, instances=2, steps=3, lr=torch.tensor([0.2, 0.3]))
    torch.testing.assert_close(three.inner.params[1:], two.inner.params, rtol=1e-5, atol=1e-6)
    assert not torch.equal(three.inner.params[0], three.inner.params[1])


class Free(torch.optim.SGD):
    """Trains away from what it has found, and will not step unless it was switched back."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, lr, weight_decay=weight_decay)
        self.training = False

    @torch.no_grad()
    def shift(self, by: float) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight += by

    def train(self):
        self.shift(0.5 * self.training - 0.5)
        self.training = True

    def eval(self):
        self.shift(0.5 * self.training)
        self.training = False

    def step(self, closure=None):  # type: ignore[override]
        assert self.training
        return super().step(closure)


def test_an_optimizer_that_switches_is_measured_where_it_says(monkeypatch):
    seen = []
    monkeypatch.setattr(
        inner_loop, "evaluate", lambda task, flat, **_: seen.append(flat) or flat[:, 0]
    )
    rule = _tried(TorchRule(Free))
    run = unroll(TASK, rule, instances=2, steps=4, lr=0.1, eval_at=(0, 2, 4))
    plain = unroll(TASK, rule, instances=2, steps=4, lr=0.1)
    torch.testing.assert_close(seen[0], initial(TASK, 2, 0))
    torch.testing.assert_close(seen[2], run.inner.params + 0.5)
    assert torch.equal(run.inner.params, plain.inner.params)


class Closing(torch.optim.SGD):
    """Needs a closure, and calls it twice."""

    def step(self, closure):  # type: ignore[override]
        with torch.enable_grad():
            closure()
        super().step()
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


@pytest.mark.parametrize("own", [False, True], ids=["one seed", "own seeds"])
def test_a_step_may_need_a_closure(own):
    """Two steps of SGD on every minibatch."""
    rule = _tried(TorchRule(Closing))
    assert rule.closure
    seed = torch.tensor([7, SEED]) if own else SEED
    run = unroll(TASK, rule, instances=2, steps=STEPS, lr=torch.tensor([0.1, 0.05]), seed=seed)
    expected = by_hand(Closing, 0.05, 0.0, constant=True)
    torch.testing.assert_close(run.inner.params[1], expected, rtol=1e-4, atol=2e-6)


def test_lbfgs_has_its_closure():
    rule = torch_optimizer("torch.optim.LBFGS(max_iter=3)")
    run = unroll(TASK, rule, instances=1, steps=3, lr=0.5)
    assert run.validation[-1].isfinite().all()


class Fails(torch.optim.SGD):
    """Raises at its third step where ``when`` holds of a weight."""

    def __init__(self, params, lr, when=lambda weight, lr: True):
        super().__init__(params, lr)
        self.count, self.when = 0, when

    def step(self, closure=None):  # type: ignore[override]
        self.count += 1
        group = self.param_groups[0]
        if self.count > 2 and self.when(group["params"][0], group["lr"]):
            raise RuntimeError("no convergence\nat all")
        return super().step(closure)


def test_a_run_whose_optimizer_raises_has_diverged():
    rule = TorchRule(Fails, {"when": lambda weight, lr: lr > 0.15})
    run = unroll(TASK, rule, instances=3, steps=5, lr=torch.tensor([0.01, 0.2, 0.1]))
    assert run.validation[-1].isfinite().tolist() == [True, False, True]


def test_an_optimizer_that_always_raises_says_why():
    with pytest.raises(Unusable, match=r"Fails: cannot be used here: no convergence$"):
        unroll(TASK, TorchRule(Fails), instances=2, steps=5, lr=0.1)


class Awkward(torch.optim.SGD):
    """Does something else at its third step; ``what``: a method of this class."""

    def __init__(self, params, lr=0.1, what=""):
        super().__init__(params, lr=lr)
        self.what, self.left = what, 2

    def step(self, closure=None):
        super().step(closure)
        self.left -= 1
        if self.left < 0:
            getattr(self, self.what)()

    def exits(self):
        raise SystemExit(3)

    def reshapes(self):
        for p in self.param_groups[0]["params"]:
            p.data = torch.zeros(1)

    def forgets_its_groups(self):
        self.param_groups = []

    def train(self):
        pass

    def eval(self):
        if self.left < 0 and self.what == "cannot_switch":
            raise RuntimeError("no way back")

    def cannot_switch(self):
        pass


@pytest.mark.parametrize(
    "what", [name for name in vars(Awkward) if name[0] != "_" and name not in "step train eval"]
)
def test_whatever_an_optimizer_does_is_said_of_it(what):
    rule = TorchRule(Awkward, {"what": what})

    def trained():
        run = unroll(TASK, rule, instances=2, steps=STEPS, lr=0.01, schedule=cosine)
        rule.evaluated(Params(run.inner.params, TASK.layout), run.inner.state)

    with pytest.raises(Unusable, match=r"^Awkward: cannot be used here: "):
        trained()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Mine:\n    def __init__(self, params, lr): pass", "got a Mine, expected a torch"),
        ("def Mine(params, lr): pass", "got a NoneType, expected a torch.optim.Optimizer"),
        ("Mine = 5", "got a int, expected a class of torch.optim.Optimizer"),
        ("def Mine(params, model, lr): pass", "missing 1 required positional argument: 'model'"),
        ("def Mine(params, lr): raise SystemExit(3)", "cannot be used here: 3"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import torch\nMine = torch.optim.Optimizer", "cannot be used here"),
    ],
)
def test_what_is_no_optimizer_is_said(tmp_path, monkeypatch, text, said):
    (tmp_path / "odd_rules.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        torch_optimizer("odd_rules:Mine")
    assert "\n" not in str(caught.value)


def test_numbers_beyond_all_bounds_are_the_end_of_a_run_and_not_of_the_rule():
    """Decompositions raise where they meet NaN."""
    rule = TorchRule(Fails, {"when": lambda weight, lr: not weight.isfinite().all()})
    run = unroll(TASK, rule, instances=2, steps=9, lr=1e38)
    assert not run.validation[-1].isfinite().any()


def test_a_second_optimizer_takes_what_is_no_matrix():
    text = "torch.optim.SGD(momentum=0.9)+torch.optim.AdamW(betas=(1e+0-1, .9))"
    with pytest.raises(ValueError, match="literals"):
        torch_optimizer(text)
    rule = torch_optimizer(text.replace("1e+0-1", "5e-1"))
    run = unroll(TASK, rule, instances=1, steps=3, lr=0.01, weight_decay=0.1, seed=SEED)
    halves = [
        unroll(TASK, torch_optimizer(half), instances=1, steps=1, lr=0.01, seed=SEED).inner.params
        for half in ("torch.optim.SGD", "torch.optim.AdamW")
    ]
    first = unroll(TASK, rule, instances=1, steps=1, lr=0.01, seed=SEED).inner.params
    views = (TASK.layout.views(params).values() for params in (first, *halves))
    for found, matrix, other in zip(*views, strict=True):
        torch.testing.assert_close(found, matrix if found.ndim == 3 else other)
    assert run.validation[-1].isfinite().all()


class Wrapped(torch.optim.AdamW):
    def __init__(self, params, *args, **kwargs):
        super().__init__(params, *args, **kwargs)


class Twice(Wrapped):
    def __init__(self, params, twice=True, **kwargs):
        super().__init__(params, **kwargs)


@pytest.mark.parametrize("wrapper", [Wrapped, Twice, lambda p, **given: Wrapped(p, **given)])
def test_what_is_handed_on_to_a_base_class_is_tuned_too(wrapper):
    lr, decay = torch.tensor([1e-3, 0.1]), torch.tensor([0.0, 1.0])
    expected, found = (
        unroll(TASK, _tried(rule), instances=2, steps=3, lr=lr, weight_decay=decay).inner.params
        for rule in (TorchRule(torch.optim.AdamW), TorchRule(wrapper))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("build", [lambda p: Wrapped(p), lambda p, lr: Wrapped(p)])
def test_a_learning_rate_that_cannot_be_tuned_is_refused(build):
    with pytest.raises(ValueError, match=r"AdamW|Wrapped: cannot be used here: it takes no lr"):
        _tried(TorchRule(build))


def _info(lr):
    from tasks.types import StepInfo

    return StepInfo(0, 3, lr, torch.zeros_like(lr), torch.zeros_like(lr))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torch.optim.Nothing", "expected torch.optim.NAME"),
        ("torch.optim.lr_scheduler", "expected torch.optim.NAME"),
        ("torch.optim.SGD(0.1)", "expected torch.optim.NAME"),
        ("torch.optim.SGD(momentum=", "expected torch.optim.NAME"),
        ("torch.optim.SGD(momentum=open('x'))", "expected torch.optim.NAME"),
        ("torch.optim.SGD(lr=0.1)", "lr is tuned"),
        ("torch.optim.SGD(moment=0.1)", "SGD: cannot be used here: .*moment"),
        ("torch.optim.SparseAdam", "SparseAdam: cannot be used here: .*dense"),
        ("torch.optim.RMSprop(capturable=True)", "RMSprop: cannot be used here: .*capturable"),
        ("torch.optim.Adam(foreach=True, fused=True)", "Adam: cannot be used here: .*foreach"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        torch_optimizer(text)


def test_a_matrix_optimizer_says_what_it_cannot_do():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch 2.9")
    with pytest.raises(ValueError, match=r"Muon: cannot be used here: .*2D"):
        unroll(TASK, torch_optimizer("torch.optim.Muon"), instances=1, steps=1, lr=0.1)


FILE = """
import torch

class Mine(torch.optim.SGD):
    pass

class Rule(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] * weight.grad.sign()
"""


def test_a_file_is_read_with_all_that_it_imports_from_beside_it(tmp_path):
    texts = {
        "mine.py": "import torch, one.two\nfrom three import four, five\nfrom seven import X\n",
        "one/__init__.py": "from . import aside\n",
        "one/aside.py": "from ..one.two import deeper\n",
        "one/two.py": "",
        "three/__init__.py": "",
        "three/four.py": "from .five import A, B\n",
        "three/five/__init__.py": "import mine\n",
        "seven.py": "X = 1\n",
        "other.py": "",
        "one/other.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    found = sources(tmp_path / "mine.py")
    assert found == {tmp_path / k: text for k, text in texts.items() if "other" not in k}


def test_a_file_is_read_with_what_it_imports_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("optim").mkdir()
    Path("optim/mine.py").write_text("import torch, lib.one\n")
    Path("lib").mkdir()
    Path("lib/one.py").write_text("X = 1\n")
    assert "X = 1\n" in sources(Path("optim/mine.py")).values()


def test_an_optimizer_may_have_another_of_the_file_for_a_base(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import torch\nclass Base(torch.optim.SGD): ...\nclass Mine(Base): ...\n")
    assert optimizer_class(file) == "Mine"


def test_an_optimizer_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    assert optimizer_class(file) == "Rule"
    run = unroll(TASK, optimizer_file(file), instances=1, steps=1, lr=0.5)
    moved = (run.inner.params - initial(TASK, 1, 0)).abs()
    assert set(moved.round(decimals=4).unique().tolist()) <= {0.0, 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "expected a Python file that defines"),
        ("def update(w, g", "expected a Python file that defines"),
        (FILE + "\nraise RuntimeError('no')", "RuntimeError: no"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        optimizer_file(file)
