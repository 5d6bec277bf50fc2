"""``l2o reproduce`` of a meta-training run: identical, or where it first differs."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from l2o.architectures.tuned_adam import TunedAdam
from l2o.cli.main import main
from l2o.meta import run
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder, optimizer = tmp_path_factory.mktemp("runs") / "learned", TunedAdam(lr=0.01)
    run.begin(folder, CONFIG, optimizer, optimizer.initial(0), ["l2o", "meta-train"])
    with View(silent=True) as view:
        run.proceed(folder, Ranks(), view)
    return folder


def change(folder: Path, name: str, place: int) -> None:
    """Another number in a save."""
    path = folder / run.STATE
    with safe_open(path, framework="pt") as file:
        header = {k: v for k, v in file.metadata().items() if k != "digests"}
    tensors = load_file(path)
    tensors[name].view(-1)[place] += 1
    save_file(tensors, path, header)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (None, "identical: 4 outer steps and 3 held-out evaluations"),
        (("losses", 2), "different from outer step 3 on: its meta-loss was 1."),
        (("theta", 0), "different: the tensor theta at the end"),
    ],
)
def test_a_run_is_repeated_and_compared(finished, tmp_path, capsys, changed, said):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    if changed is not None:
        change(folder, *changed)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["reproduce", str(folder)]) == (0 if changed is None else 1)
    assert said in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_threads_that_a_process_had_before_are_no_change(finished, capsys):
    torch.set_num_threads(2)
    assert main(["reproduce", str(finished)]) == 0
    assert "threads" not in capsys.readouterr().out


def test_only_a_finished_run_can_be(finished, tmp_path, capsys):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / run.STATE).unlink()
    assert main(["reproduce", str(folder)]) == 2
    assert "not finished; go on with: l2o resume" in capsys.readouterr().err
