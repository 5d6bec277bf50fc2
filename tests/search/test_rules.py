"""From a name to an optimizer in one call."""

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import search
import search.loading
from search.export.build import to_class
from search.record.archive import create, open_existing
from search.zoo import ZOO

ROOT = Path(__file__).parents[2]
FAST = """def update(w, g, m):
    m = interp(g, m, 0.6)
    update = sign(m)
    return update, m
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two evaluated candidates; the second is the better one."""
    with create(tmp_path / "first", {"seed": 0}) as archive, archive.transaction():
        archive.add_batch(0, {})
        for id, decay, score in ((0, "0.9", 0.0), (7, "0.6", -0.25)):
            text = FAST.replace("0.6", decay)
            program = archive.add_program(text, text, text, length=2)
            archive.add_candidate(id, 0, None, program, "start", "pending", 0.01, None)
            archive.decide(id, "evaluated", 0.01 + id, score, [])
    return tmp_path / "first"


def trained(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> Tensor:
    for step in range(steps):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_a_run_is_its_winner(run: Path) -> None:
    found = search.load(run)
    assert str(found.program) == FAST
    assert "candidate 7 of the run" in found.origin
    optimizer = found.optimizer(model().parameters(), weight_decay=0.1)
    assert type(optimizer).__name__ == "Rule7"
    assert (found.lr, optimizer.defaults["lr"]) == (7.01, 0.00028)  # not what suits its proxies
    assert optimizer.defaults["weight_decay"] == 0.1
    assert optimizer.defaults["beta"] == 0.6
    assert search.load(str(run), candidate=0).lr == 0.01


def test_a_candidate_without_a_score_is_no_rule(run: Path) -> None:
    with open_existing(run) as archive, archive.transaction():
        archive.add_candidate(8, 0, 7, None, "modify", "invalid")
    with pytest.raises(ValueError, match="candidate 8 was not evaluated"):
        search.load(run, candidate=8)


def test_names_and_files_mean_the_same_rule(tmp_path: Path) -> None:
    file = tmp_path / "2nd.txt"
    file.write_text(str(ZOO["lion"].program))
    steps = []
    for rule in (search.load("lion"), search.load(file), ZOO["lion"]):
        net = model()
        steps.append(trained(net, rule.optimizer(net.parameters(), lr=0.1, weight_decay=0.1)))
    assert torch.equal(steps[0], steps[1])
    assert torch.equal(steps[0], steps[2])
    assert ZOO["lion"].optimizer(model().parameters()).defaults["weight_decay"] == 0.1
    with pytest.raises(ValueError, match="'loin' is neither"):
        search.load("loin")


def test_a_rule_is_one_class_whose_source_can_be_read() -> None:
    made = to_class(ZOO["lion"].program, "lion", "Someone 2023")
    assert made is to_class(ZOO["lion"].program, "lion", "Someone 2023")
    assert made is not to_class(ZOO["lion"].program, "lion", "Someone else 2023")
    assert "class Lion(Optimizer)" in inspect.getsource(made)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue(clone) -> None:
    net = model()
    optimizer = ZOO["adam"].optimizer(net.parameters(), lr=0.1)
    trained(net, optimizer)
    twin, copied = clone((net, optimizer))
    assert type(copied) is type(optimizer)
    assert torch.equal(trained(twin, copied), trained(net, optimizer))


def test_pickles_are_read_where_the_class_was_never_made(tmp_path: Path) -> None:
    net = model()
    optimizer = ZOO["lion"].optimizer(net.parameters(), lr=0.1)
    trained(net, optimizer)
    (tmp_path / "saved").write_bytes(pickle.dumps(optimizer))
    code = "import pickle, sys; o = pickle.load(open(sys.argv[1], 'rb')); o.step(); print(o)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Lion (")


def test_importing_the_packages_imports_nothing_heavy() -> None:
    code = "import search, l2o, sys; print('torch' in sys.modules, search.load, l2o.load)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")


def test_shipped_rules_have_names_and_cards() -> None:
    shipped = [folder.parent for folder in (ROOT / "checkpoints").glob("*/rule.txt")]
    assert shipped
    for folder in shipped:
        entry = search.load(folder)
        assert entry.name == folder.name
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        assert card["name"] == folder.name
        assert {"command", "seed", "scores", "environment", "licence"} <= card.keys()
        trained(model(), entry.optimizer(model().parameters(), lr=1e-3))


@pytest.mark.parametrize("find", [search.load, search.loading.rule])
def test_learned_optimizers_are_sent_where_they_are_loaded(tmp_path: Path, find: Any) -> None:
    (tmp_path / "theta.safetensors").touch()
    with pytest.raises(ValueError, match=r"is no program; l2o\.load\('.*'\)\.optimizer\(\.\.\.\)"):
        find(tmp_path)
