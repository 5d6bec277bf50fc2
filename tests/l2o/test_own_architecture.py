"""An architecture of one's own: trained, saved, gone on with, judged, used with consent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import l2o
from l2o import checkpoint
from l2o.architectures.named import architectures, name_of
from l2o.cli.entrants import entrant
from l2o.cli.main import main
from l2o.loading import load

MINE = '''
from dataclasses import dataclass
import torch
from l2o import LearnedOptimizer

open("ran", "a").write("x")

@dataclass(frozen=True)
class Rule:
    theta: torch.Tensor
    power: float

    def init(self, params):
        return {"m": torch.zeros_like(params.flat)}

    def update(self, grads, state, params, info):
        rate, decay = self.theta[..., :1].exp(), self.theta[..., 1:2].sigmoid()
        m = decay * state["m"] + (1 - decay) * grads
        return info.lr[:, None] * rate * m.sign() * m.abs() ** self.power, {"m": m}

    def select(self, index):
        return Rule(self.theta[index] if self.theta.ndim == 2 else self.theta, self.power)


@dataclass(frozen=True)
class Mine(LearnedOptimizer):
    """A power of a momentum."""

    power: float = 0.5

    def init_theta(self, generator):
        return {"log_rate": torch.tensor([-4.0]), "decay": torch.tensor([2.0])}

    def rule(self, theta, scale=None):
        self.named(theta)
        return Rule(theta, self.power)


class Bare(LearnedOptimizer):
    pass
'''
TINY = (
    *("--train.families", "[mlp]", "--train.widths", "[4]", "--train.depths", "[2]"),
    *("--held_out.widths", "[6]", "--held_out.depths", "[2]", "--held_out.data", "[digits]"),
    *("--train.data", "[digits]", "--estimation.particles", "2", "--estimation.truncation", "2"),
    *("--estimation.horizon", "[4,6]", "--outer.steps", "3", "--outer.warmup", "1"),
    *("--evaluation.every", "3", "--evaluation.steps", "4", "--evaluation.seeds", "1"),
    *("--mup", "false"),
)
NAMES = "'mine:Mine'; if you know it, add --trust"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user is: with ``mine.py``, and ``run``, trained."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        own = ["--optimizer", "mine:Mine", "--optimizer.power", "0.75"]
        assert main(["meta-train", "--run-dir", "run", *own, *TINY]) == 0
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    (trained / "ran").unlink(missing_ok=True)
    return trained


def test_what_a_run_keeps_begins_another(here: Path) -> None:
    kept = yaml.safe_load((here / "run/config.yaml").read_text())
    assert kept["optimizer"] == {"class_path": "mine:Mine", "init_args": {"power": 0.75}}
    again = ["meta-train", "--config", "run/config.yaml", "--run-dir", "again"]
    assert main(again) == 0
    first, second = (load_file(here / run / "best/theta.safetensors") for run in ("run", "again"))
    assert first.keys() == second.keys() == {"log_rate", "decay"}
    assert all(first[name].equal(second[name]) for name in first)


COMMANDS = {
    "resume": ["resume", "run"],
    "reproduce": ["reproduce", "run"],
    "evaluate": [
        *("evaluate", "run", "--suite", "quick:suite", "--trials", "1", "--seeds", "1"),
        *("--out", "r.sqlite", "--workers", "0"),
    ],
    "start": ["meta-train", "--start", "run", "--run-dir", "more", *TINY],
}
QUICK = "from tasks import MLP, Entry\nsuite = Entry(MLP(width=4, depth=2, batch_size=8), 4)\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_its_code_is_run_with_consent_alone(here: Path, command: str, capsys) -> None:
    (here / "quick.py").write_text(QUICK)
    assert main(COMMANDS[command]) == 2
    said = capsys.readouterr().err
    assert NAMES in said
    assert said.count("\n") == 1
    assert main([*COMMANDS[command], "--trust"]) == 0, capsys.readouterr().err


def test_a_report_measures_with_consent_alone(here: Path) -> None:
    assert main(["report", "run"]) == 0
    assert not (here / "ran").exists()
    assert "It was not measured again" in (here / "run/report.html").read_text()
    assert main(["report", "run", "--trust"]) == 0
    assert "It was not measured again" not in (here / "run/report.html").read_text()


def test_in_a_training_script(here: Path) -> None:
    with pytest.raises(ValueError, match=NAMES):
        l2o.load("run")
    with pytest.raises(ValueError, match=r"got 'other:Mine', but .* names 'mine:Mine'"):
        load("run", trusted="other:Mine")
    learned = l2o.load("run", trusted=True)
    assert learned.architecture.arguments() == {"power": 0.75}
    assert name_of(type(learned.architecture)) == "mine:Mine"
    model = torch.nn.Linear(3, 2)
    optimizer = learned.optimizer(model)
    before = model.weight.detach().clone()
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert not model.weight.equal(before)
    named = load_file(here / "run/best/theta.safetensors")
    assert learned.architecture.flatten(named).equal(learned.theta)


def test_results_are_of_the_code_that_made_them(here: Path) -> None:
    before = entrant("run", trusted=True).identity
    text = (here / "mine.py").read_text()
    (here / "mine.py").write_text(text + "# changed\n")
    assert entrant("run", trusted=True).identity != before
    (here / "mine.py").write_text(text)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("mine:Bare", "got 'mine:Bare', expected package.module:Class, a frozen dataclass"),
        ("mine:Rule", "got 'mine:Rule', expected package.module:Class, a frozen dataclass"),
        ("mine:Nothing", "got 'mine:Nothing', which cannot be imported: AttributeError"),
        ("nowhere:Mine", "got 'nowhere:Mine', which cannot be imported: ModuleNotFoundError"),
        ("small_fx", "expected one of l2o_pa, small_fc, tuned_adam, velo, or package.module:Class"),
    ],
)
def test_what_is_no_architecture(here: Path, optimizer: str, said: str, capsys) -> None:
    assert main(["meta-train", "--run-dir", "no", "--optimizer", optimizer, *TINY]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "no").exists()


def test_a_field_of_ones_own_is_checked(here: Path, capsys) -> None:
    own = ["--optimizer", "mine:Mine", "--optimizer.power", "much"]
    assert main(["meta-train", "--run-dir", "no", *own, *TINY]) == 2
    assert "--optimizer.power: got much, expected a finite number" in capsys.readouterr().err


def test_architectures_of_the_room_go_by_their_files(here: Path) -> None:
    assert set(architectures()) == {"l2o_pa", "small_fc", "tuned_adam", "velo"}
    for number, optimizer in enumerate(("velo", "Velo")):
        small = [
            "--optimizer",
            optimizer,
            "--optimizer.lstm_size",
            "4",
            "--optimizer.bank_size",
            "2",
        ]
        run = f"velo{number}"
        assert main(["meta-train", "--run-dir", run, *small, *TINY]) == 0
    first, second = (load(f"velo{number}").theta for number in range(2))
    assert first.equal(second)
    fields = json.dumps({"optimizer": {"class_path": "tuned_adam", "init_args": {"lr": 0.2}}})
    assert main(["meta-train", "--run-dir", "adam", "--config", fields, *TINY]) == 0
    assert checkpoint.load("adam/best").optimizer.arguments()["lr"] == 0.2
