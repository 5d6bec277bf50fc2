"""``l2o watch`` of a meta-training run: at any time, whatever its state, without touching it."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from l2o.architectures.tuned_adam import TunedAdam
from l2o.cli.main import main
from l2o.meta import run as meta_run
from l2o.meta.config import Config, Estimation, Evaluation, Outer
from l2o.meta.distribution import Distribution
from l2o.meta.ranks import Ranks
from l2o.meta.view import View

CONFIG = Config(
    train=Distribution(widths=(4,), batch_size=8),
    held_out=Distribution(widths=(8,), batch_size=8),
    estimation=Estimation(particles=2, truncation=2, horizon=(4, 6)),
    outer=Outer(steps=4, warmup=1, save_every=2),
    evaluation=Evaluation(every=2, steps=4, seeds=2),
)


def begin(folder: Path) -> Path:
    optimizer = TunedAdam(lr=0.01)
    meta_run.begin(folder, CONFIG, optimizer, optimizer.initial(0), ["l2o", "meta-train"])
    return folder


def proceed(folder: Path) -> None:
    with View(silent=True) as view:
        meta_run.proceed(folder, Ranks(), view)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = begin(tmp_path_factory.mktemp("runs") / "learned")
    proceed(folder)
    return folder


@pytest.fixture
def half_way(finished, tmp_path, monkeypatch) -> Path:
    """A run that was killed after its first save."""
    folder, save = begin(tmp_path / "half"), meta_run.Run._save

    def save_and_die(run):
        save(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(meta_run.Run, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            proceed(folder)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_in_one_line(finished, capsys):
    before = contents(finished)
    assert main(["watch", "--every", "0.1", str(finished)]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown.startswith("outer step 4 of 4  meta-loss 0.")
    assert shown.endswith("finished")
    assert "held-out objective" in shown
    assert "nan" not in shown
    assert contents(finished) == before


def test_one_look_at_a_run_that_goes_on(half_way, capsys):
    before = contents(half_way)
    assert main(["watch", str(half_way), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "outer step 2 of 4" in shown
    assert "saved 0 s ago" in shown or "saved 1 s ago" in shown
    assert contents(half_way) == before


def test_a_run_before_its_first_save(tmp_path, capsys):
    assert main(["watch", str(begin(tmp_path / "new")), "--once"]) == 0
    assert capsys.readouterr().out == "outer step 0 of 4: nothing has been saved yet\n"


def test_following_ends_with_the_run(half_way, capsys):
    later = threading.Thread(target=lambda: (time.sleep(0.3), proceed(half_way)))
    later.start()
    assert main(["watch", str(half_way), "--every", "0.05"]) == 0
    later.join()
    shown = capsys.readouterr().out.splitlines()
    said = [line.partition(":")[0] for line in shown if ": held-out objective" in line]
    assert said == ["outer step 0", "outer step 2", "outer step 4"]
    assert "outer step 4 of 4" in shown[-1]
    assert shown[-1].endswith("finished")


@pytest.mark.parametrize("command", [["watch", "--once"], ["report"]], ids=["watch", "report"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "run"),
        ("facts", "run.json: damaged"),
        ("state", "state.safetensors: damaged"),
        ("losses", "state.safetensors: damaged: it has no losses"),
        ("version", "state.safetensors: format_version is 9, expected 2"),
    ],
)
def test_what_cannot_be_read_is_one_line(finished, tmp_path, capsys, command, damage, message):
    folder = tmp_path / "run"
    if damage != "absent":
        shutil.copytree(finished, folder)
    state = folder / meta_run.STATE
    if damage == "facts":
        (folder / meta_run.FACTS).write_text("{")
    elif damage == "state":
        state.write_bytes(state.read_bytes()[:1000])
    elif damage == "losses":
        with safe_open(state, framework="pt") as file:
            header = file.metadata()
        save_file({k: v for k, v in load_file(state).items() if k != "losses"}, state, header)
    elif damage == "version":
        save_file(load_file(state), state, {"format_version": "9"})
    assert main([*command, str(folder)]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error
