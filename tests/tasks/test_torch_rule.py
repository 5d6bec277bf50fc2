"""Optimizers of torch as update rules: the very trajectories that torch itself makes."""

from pathlib import Path

import pytest
import torch

from tasks.mlp import MLP
from tasks.torch_rule import (
    TorchRule,
    _tried,
    optimizer_class,
    optimizer_file,
    sources,
    torch_optimizer,
)
from tasks.types import Params
from tasks.unroll import cosine, initial, unroll

TASK = MLP(width=4, batch_size=16)
STEPS, SEED = 6, 3


def by_hand(build, lr: float, decay: float) -> torch.Tensor:
    """The same training as a user of torch would write it: final parameters ``[n]``."""
    from tasks.data import draw

    views = TASK.layout.views(initial(TASK, 1, SEED)[0])
    weights = {name: torch.nn.Parameter(view.clone()) for name, view in views.items()}
    optimizer = build(weights.values(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        batch = TASK.data.batch("train", draw(SEED, step, TASK.data.size("train"), 16))
        optimizer.zero_grad()
        TASK.loss(weights, batch).backward()
        optimizer.step()
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


class Keeps(torch.optim.SGD):
    """``what(optimizer, group, weight)`` is done at each step."""

    def __init__(self, params, lr, what):
        super().__init__(params, lr)
        self.what = what

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        self.what(self, self.param_groups[0], self.param_groups[0]["params"][0])


@pytest.mark.parametrize(
    ("what", "place"),
    [
        (lambda self, group, weight: group.update(lr=group["lr"] / 2), "'lr' of group 0"),
        (lambda self, group, weight: group.update(past=[1.0]), "'past' of group 0"),
        (lambda self, group, weight: group.update(mean=weight), "'mean' of group 0"),
        (lambda self, group, weight: self.state[weight].update(past=[1]), "'past' of its state"),
        (lambda self, group, weight: self.state["all"].update(k=1), "state 'all'"),
        (lambda self, group, weight: setattr(self, "k", 1), "attribute 'k'"),
    ],
)
def test_what_would_be_forgotten_between_steps_is_refused(what, place):
    with pytest.raises(ValueError, match=f"Keeps: cannot be used here: .* {place}, expected"):
        _tried(TorchRule(Keeps, {"what": what}))


def test_what_can_be_made_anew_is_not_forgotten():
    class Lists(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.mine = [*self.param_groups[0]["params"]]

    _tried(TorchRule(Lists))


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
        ("torch.optim.LBFGS", "LBFGS: cannot be used here: .*closure"),
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
