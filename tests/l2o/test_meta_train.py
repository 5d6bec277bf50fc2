"""Meta-training runs: they learn, nothing is lost, processes agree, mistakes are one line."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from l2o import checkpoint
from l2o.architectures.small_fc import SmallFC
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from l2o.base import LearnedOptimizer
from l2o.cli import meta_train
from l2o.cli.main import main
from l2o.estimators.episodes import Estimate
from l2o.meta import run as meta_run
from l2o.meta.config import METHODS, Budget, Config, Estimation, Evaluation, Outer
from l2o.meta.distribution import Distribution, lessons
from l2o.meta.held_out import HeldOut
from l2o.meta.loop import Training, learning_rate
from l2o.meta.ranks import Ranks, join, share
from l2o.meta.view import Curves, View
from tasks.display.plain import Console

TINY = Distribution(widths=(4, 6), batch_size=8)
CONFIG = Config(
    seed=3,
    train=TINY,
    held_out=Distribution(widths=(8,), batch_size=8),
    estimation=Estimation(particles=4, truncation=2, horizon=(4, 10)),
    outer=Outer(steps=14, warmup=3, save_every=3),
    evaluation=Evaluation(every=5, steps=6, seeds=2),
)
TINY_OPTIMIZER = ("--optimizer", "TunedAdam", "--optimizer.lr", "0.01")
TINY_RUN = [
    *("--seed", "3", "--train.widths", "[4,6]", "--train.batch_size", "8"),
    *("--held_out.widths", "[8]", "--held_out.batch_size", "8", "--estimation.particles", "4"),
    *("--train.depths", "[1]", "--held_out.depths", "[1]", "--train.data", "[digits]"),
    *("--held_out.data", "[digits]", *TINY_OPTIMIZER),
    *("--estimation.truncation", "2", "--estimation.horizon", "[4,10]", "--outer.steps", "14"),
    *("--outer.warmup", "3", "--outer.save_every", "3", "--evaluation.every", "5"),
    *("--evaluation.steps", "6", "--evaluation.seeds", "2"),
]
OPTIMIZER = TunedAdam(lr=0.01)


def training(config: Config = CONFIG, optimizer: LearnedOptimizer = OPTIMIZER) -> Training:
    return Training(config, optimizer, optimizer.initial(config.seed))


def begin(folder: Path, config: Config = CONFIG) -> Path:
    meta_run.begin(folder, config, OPTIMIZER, OPTIMIZER.initial(config.seed), ["l2o"])
    return folder


def proceed(folder: Path) -> None:
    with View(silent=True) as view:
        meta_run.proceed(folder, Ranks(), view)


def contents(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """What a run has come to; the time it took is no part of it."""
    with safe_open(folder / meta_run.STATE, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
    return load_file(folder / meta_run.STATE), record


def assert_same(one: Path, other: Path) -> None:
    (a, facts_a), (b, facts_b) = contents(one), contents(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert facts_a == facts_b


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = begin(tmp_path_factory.mktemp("runs") / "whole")
    proceed(folder)
    return folder


# ------------------------------------------------------------------------------------ it learns


@dataclass(frozen=True)
class Case:
    method: str
    truncation: int | None


CASES = [
    Case("pes", 2),
    Case("es", 2),
    Case("reuse", 2),
    Case("full-es", None),
    Case("backprop", 2),
    Case("backprop", None),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.method}-{c.truncation}")
def test_every_method_lowers_the_meta_loss(case: Case) -> None:
    """From a learning rate that is far too small, on quadratics where larger ones help."""
    estimation = Estimation(case.method, 8, 0.1, case.truncation, (8, 8), stagger=False)
    suite = Distribution(suite="tasks.families.quadratic:Quadratic")
    config = replace(
        CONFIG,
        mup=False,
        train=suite,
        estimation=estimation,
        outer=Outer(steps=40, lr=0.1, final_lr=0.1, warmup=0, clip=10.0),
    )
    optimizer = TunedAdam(lr=3e-3)
    run = Training(config, optimizer, optimizer.initial())
    judge = HeldOut.of(suite.tasks(), False, Evaluation(steps=8, seeds=4))
    before = np.mean(judge.objectives(optimizer, run.theta))
    for _ in range(40):
        run.advance()
    after = np.mean(judge.objectives(optimizer, run.theta))
    assert after < 0.93 * before
    assert run.skipped == 0


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES} == set(METHODS)


# ------------------------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize(
    "optimizer", [SmallFC(step_mult=0.01), OPTIMIZER, Velo(4, 2, param_scale=False)]
)
def test_tensors_restore_a_training_bit_for_bit(optimizer: LearnedOptimizer) -> None:
    one = training(optimizer=optimizer)
    for _ in range(5):
        one.advance()
    other = training(optimizer=optimizer)
    other.restore(one.tensors())
    for _ in range(6):
        one.advance()
        other.advance()
    a, b = one.tensors(), other.tensors()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert len(one.losses) == 11


def driven(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "l2o.cli", "resume", str(folder)]
    path = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)


def wait_for_a_save(folder: Path, process: subprocess.Popen) -> None:
    state = folder / meta_run.STATE
    before = state.stat().st_mtime_ns if state.exists() else 0
    while process.poll() is None:
        if state.exists() and state.stat().st_mtime_ns > before:
            return
        time.sleep(0.002)


def test_kill_9_and_resume_end_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    """Killed after a save, or anywhere in the steps, the evaluation and the writing after it."""
    folder, chance, kills = begin(tmp_path / "run"), random.Random(0), 0
    for _ in range(3):
        process = driven(folder)
        wait_for_a_save(folder, process)
        time.sleep(chance.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    proceed(folder)
    assert kills >= 2
    assert_same(folder, finished)


@pytest.mark.parametrize(
    "left",
    ["nothing", "the one before", "another theta", f"half {checkpoint.TENSORS}", "half card.json"],
)
def test_a_best_that_a_kill_or_damage_left_is_made_again(
    left: str, finished: Path, tmp_path: Path, capsys
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    best = folder / meta_run.BEST
    card = checkpoint.read_card(best)
    if left.startswith("half"):
        path = best / left.split()[1]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        shutil.rmtree(best)
    if left == "the one before":
        checkpoint.save(best, OPTIMIZER, OPTIMIZER.initial() + 1, {"outer_steps": 1})
    if left == "another theta":
        checkpoint.save(best, OPTIMIZER, OPTIMIZER.initial() + 1, card)
    assert main(["resume", str(folder)]) == 0
    assert "held-out objective after" in capsys.readouterr().out
    wanted, found = checkpoint.load(finished / meta_run.BEST), checkpoint.load(best)
    assert torch.equal(found.theta, wanted.theta)
    assert found.card == wanted.card
    before = (best / checkpoint.TENSORS).stat().st_mtime_ns
    proceed(folder)
    assert (best / checkpoint.TENSORS).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("done", "shown"), [(0, [0, 4, 8]), (2, [0, 2, 4, 8])], ids=["before a save", "after one"]
)
def test_tensorboard_shows_steps_once(done: int, shown: list[int], tmp_path: Path) -> None:
    """Though a process that was killed has shown what comes again; the first begins with nothing
    done."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, (0, 2, 6)), (done, (0, 4, 8) if done == 0 else (4, 8))):
        curves = Curves(tmp_path, first)
        for step in steps:
            curves.evaluation(step, 0.5, {})
        curves.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("held-out/score")
    assert [event.step for event in events] == shown


def test_ctrl_c_finishes_the_step_and_saves(finished: Path, tmp_path: Path) -> None:
    long = replace(CONFIG, outer=replace(CONFIG.outer, steps=10_000, save_every=10_000))
    folder = begin(tmp_path / "run", long)
    command = [sys.executable, "-m", "l2o.cli", "resume", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    while "outer step 5:" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() == 130
    assert f"l2o resume {folder}" in rest
    done = contents(folder)[0]["step"]
    assert 5 <= done < 10_000
    proceeding = meta_run.Run(folder, Ranks(), View(silent=True))
    assert proceeding.training.step == done


def test_a_finished_run_is_left_alone_and_never_overwritten(finished: Path, capsys) -> None:
    before = (finished / meta_run.STATE).read_bytes()
    proceed(finished)
    assert (finished / meta_run.STATE).read_bytes() == before
    assert main(["meta-train", "--run-dir", str(finished)]) == 2
    assert "never overwritten" in capsys.readouterr().err


# ----------------------------------------------------------------------------- processes agree


def test_particles_are_shared_out_and_joined_again() -> None:
    run = training()
    run.advance()
    whole = run.runs[0]
    parts = [share(whole, Ranks(rank, 2).own(4)) for rank in range(2)]
    assert parts[1].number.tolist() == [2, 3]
    again = join(parts)
    assert torch.equal(again.inner.params, whole.inner.params)
    assert torch.equal(again.noise, whole.noise)
    assert all(torch.equal(again.inner.state[n], t) for n, t in whole.inner.state.items())


def two_processes(*command: str, status: int = 0, limit: int | None = None) -> list[str]:
    """What each of two processes that find one another prints, or says that is wrong where they
    are to fail; no file of theirs is longer than the ``limit``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | common | {"RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if status else None,
            preexec_fn=None if limit is None else partial(limited, limit),
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[bool(status)] for process in processes]
    assert [process.returncode for process in processes] == [status, status]
    return said


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


ENDING = """
import os
import torch
from l2o.meta.ranks import joined

with joined() as ranks:
    import torch._dynamo
    ranks.mean(torch.ones(1))
print([t for t in os.listdir("/proc/self/task")
       if "gloo" in open(f"/proc/self/task/{t}/comm").read()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """Those that do make a process abort now and then when it ends."""
    assert two_processes("-c", ENDING) == ["[]\n", "[]\n"]


def test_two_processes_equal_one(finished: Path, tmp_path: Path) -> None:
    """To the rounding of the mean of their gradients, which the runs then amplify a little."""
    folder = tmp_path / "run"
    two_processes("-m", "l2o.cli", "meta-train", "--run-dir", str(folder), *TINY_RUN)
    (one, facts_one), (two, facts_two) = contents(finished), contents(folder)
    assert one.keys() == two.keys()
    for name in ("0.number", "1.episode", "0.horizon", "1.seed", "step"):
        assert torch.equal(one[name], two[name])
    torch.testing.assert_close(two["theta"], one["theta"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two["1.params"], one["1.params"], rtol=1e-3, atol=1e-4)
    scores = [[past["score"] for past in facts["history"]] for facts in (facts_one, facts_two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_save_that_fails_stops_both_processes(tmp_path: Path) -> None:
    """The first says why, the other nothing."""
    command = ("-m", "l2o.cli", "meta-train", "--run-dir", str(tmp_path / "run"), *TINY_RUN)
    said = two_processes(*command, status=2, limit=16_384)
    assert [text.count("File too large") for text in said] == [1, 0]
    assert "Traceback" not in "".join(said)


def test_particles_must_divide() -> None:
    with pytest.raises(ValueError, match="particles: got 4, expected a multiple of the 3"):
        Ranks(0, 3).own(4)


# -------------------------------------------------------------------------------- what is kept


def test_the_best_on_held_out_tasks_is_kept(finished: Path) -> None:
    tensors, record = contents(finished)
    assert [past["step"] for past in record["history"]] == [0, 5, 10, 14]
    loaded = checkpoint.load(finished / meta_run.BEST)
    assert torch.equal(loaded.theta, tensors["best"])
    best = min(record["history"], key=lambda past: past["score"])
    assert loaded.card["outer_steps"] == best["step"]
    judge = HeldOut.of(CONFIG.held_out.tasks(), True, CONFIG.evaluation, record["adam"])
    assert judge.score(judge.objectives(loaded.optimizer, loaded.theta)) == best["score"]
    for name in ("command", "environment", "config", "seed", "held_out", "licence"):
        assert name in loaded.card
    assert list((finished / "tensorboard").iterdir())


class Poisoned:
    """An estimator whose gradients are NaN wherever ``bad`` says so."""

    def __init__(self, run: Training, bad: Mapping[int, set[int]]) -> None:
        self.run, self.inner, self.bad = run, run.estimator, bad

    def step(self, optimizer, theta, lesson, runs) -> Estimate:
        found = self.inner.step(optimizer, theta, lesson, runs)
        which = self.run.lessons.index(lesson)
        bad = which in self.bad.get(self.run.step, ())
        return found._replace(gradient=found.gradient * torch.nan) if bad else found


def test_nan_gradients_are_skipped_and_counted() -> None:
    run = training()
    run.estimator = Poisoned(run, {1: {0}, 2: {0, 1}})  # type: ignore[assignment]
    thetas = []
    for _ in range(4):
        run.advance()
        thetas.append(run.theta.clone())
    assert run.skipped == 3
    assert not torch.equal(thetas[0], thetas[1])  # the other task had something to say
    assert torch.equal(thetas[1], thetas[2])
    assert torch.isfinite(thetas[3]).all()


def test_learning_rate_rises_and_falls() -> None:
    outer = Outer(steps=100, lr=1.0, final_lr=0.1, warmup=10)
    rates = [learning_rate(outer, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("norm", [0.1, 30.0])
def test_long_gradients_are_shortened(norm: float) -> None:
    run = training(replace(CONFIG, outer=replace(CONFIG.outer, clip=1.0)))
    gradient = torch.ones_like(run.theta)
    run._descend(gradient * norm / gradient.norm())
    assert run.theta.grad is not None
    assert float(run.theta.grad.norm()) == pytest.approx(min(norm, 1.0), rel=1e-5)
    assert run.norm == pytest.approx(norm, rel=1e-5)


# ------------------------------------------------------------------------------------ the tasks


def test_a_distribution_is_a_product() -> None:
    distribution = Distribution(("mlp", "tasks.families.conv:Conv"), (4, 8), (1, 2))
    tasks = distribution.tasks()
    assert len(tasks) == 8
    assert len({task.name for task in tasks}) == 8
    assert {task.batch_size for task in tasks} == {64}


@pytest.mark.parametrize("in_mup", [True, False])
def test_objectives_are_in_units_of_learning_nothing(in_mup: bool) -> None:
    (lesson,) = lessons([TINY.tasks()[0]], in_mup)
    chance = torch.full((3, 2), 10.0).log()
    assert lesson.objective(chance).tolist() == pytest.approx([1 / 1.5] * 2)
    worse = torch.tensor([[torch.nan], [1e9]])
    assert lesson.objective(worse).tolist() == [1.0]
    assert (lesson.scale is not None) == in_mup


def test_config_survives_json() -> None:
    assert Config.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


def test_minutes_stop_a_run_that_goes_on_as_if_they_had_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, finished: Path
) -> None:
    folder = begin(tmp_path / "run", replace(CONFIG, budget=Budget(minutes=1e-9)))
    for step in range(1, CONFIG.outer.steps):
        with View() as view:
            meta_run.proceed(folder, Ranks(), view)
        assert (
            f"time was up at outer step {step}; go on with: l2o resume" in capsys.readouterr().out
        )
    proceed(folder)
    assert_same(folder, finished)


@pytest.mark.parametrize(
    ("start", "train", "expected"),
    [
        (None, TINY, True),
        (None, Distribution(suite="meta_train"), False),
        (Path("lo_small"), TINY, False),
        (Path("mulo_small"), TINY, True),
    ],
)
def test_mup_where_nobody_says(start: Path | None, train: Distribution, expected: bool) -> None:
    found = None if start is None else meta_train._start(start, trusted=False)
    assert meta_train._in_mup(found, {"train": train, "held_out": TINY}) is expected


def test_it_says_what_to_do_next() -> None:
    suite = replace(CONFIG, mup=False, held_out=Distribution(suite="my_tasks:suite"))
    said = meta_train._next(Path("my runs/one"), suite.to_dict())
    assert "l2o.load('my runs/one').optimizer(model) " in said
    assert "l2o evaluate 'my runs/one' adamw --suite my_tasks:suite " in said
    assert "base=narrower, inputs=(x,)" in meta_train._next(Path("one"), CONFIG.to_dict())


# ------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.widths", "[0]"], "--train.widths: got 0, expected a positive integer"),
        (["--train.data", "[nothing]"], "data: got 'nothing', expected one of"),
        (
            ["--train.families", "[nothing]"],
            "families: got 'nothing', expected autoencoder, conv, mlp",
        ),
        (["--train.families", "[nothing:Task]"], "cannot be imported: ModuleNotFoundError: No mod"),
        (["--train.families", "[tasks.families.mlp:mlp]"], "cannot be imported: AttributeError"),
        (
            ["--train.families", "[os:sep]"],
            "families: got 'os:sep', expected autoencoder, conv, mlp",
        ),
        (["--train.families", "[transformer]"], "no transformer of width 8 on digits: 'Arrays'"),
        (["--train.families=[autoencoder]", "--train.data=[help_text]"], "no autoencoder of width"),
        (
            ["--train.families", "[tasks.families.linear:Linear]"],
            "tasks.families.linear:Linear has no field depth",
        ),
        (
            ["--train.families=[transformer]", "--train.widths=[7]", "--train.data=[help_text]"],
            "no transformer of width 7 on help_text: heads: got 2",
        ),
        (["--train.families", "[conv]", "--train.data", "[diabetes]"], "no conv of width"),
        (["--train.suite", "meta_train", "--mup", "true"], "whose family has no field width"),
        (["--budget.minutes", "0"], "--budget.minutes: got 0.0, expected a number above 0"),
        (["--estimation.truncation", "500"], "truncation: got 500, expected at most the horizon"),
        (["--estimation.method", "magic"], "method: got 'magic', expected one of backprop"),
        (["--estimation.method", "full-es"], "truncation: got 20, expected None for full noise"),
        (["--estimation.sigma", "0"], "sigma: got 0"),
        (["--outer.lr", "-1"], "--outer.lr: got -1"),
        (["--evaluation.seeds", "0"], "--evaluation.seeds: got 0, expected a positive integer"),
        (
            ["--optimizer", "Nope"],
            "--optimizer: got 'Nope', expected one of l2o_pa, small_fc, tuned_adam, velo",
        ),
        (["--preset", "huge"], "--preset: got 'huge', expected one of quick"),
        (["--device", "abacus"], "device: got 'abacus'"),
        (["--optimizer", "L2OPA"], "task: got mlp-digits-w8-d2-mup, expected a Composite"),
        (["--held_out.widths", "[8,8]"], "held_out: got mlp-digits-w8-d3 2 times, expected tasks"),
        (["--held_out.suite=scale", "--mup=false"], "held_out: got mlp-digits-w32-d2 3 times"),
        (["--evaluation.adam_lr", "0"], "adam_lr: got 0.0, expected a positive number"),
        (["--seed", str(2**64)], "seed: got 18446744073709551616, expected at most"),
        (["--start", "nowhere"], "--start: got nowhere, where nothing is; expected the folder of"),
        (
            ["--start", "lo_small", "--mup", "true"],
            "--mup: got true, but lo_small is not for muP; expected --mup fa",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    run_dir = tmp_path / "run"
    assert main(["meta-train", "--run-dir", str(run_dir), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not run_dir.exists()


OWN = """
from l2o.architectures.tuned_adam import TunedAdam
from tasks.families.mlp import MLP

class Mine(TunedAdam):
    pass

class Odd(MLP):
    def loss(self, params, batch):
        size = params["w0"].norm()
        return super().loss(params, batch) * size / size
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "my_own.Mine"], "--optimizer: got my_own.Mine, expected a class"),
        (["--train.families=[my_own:Odd]", "--mup=false"], "task: mlp-digits-w8-d2 has a loss of"),
        (["--train.families=[my_own:Odd]"], "nan where all its parameters are 0, expected a posit"),
    ],
)
def test_mistakes_of_your_own_module_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "my_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    test_mistakes_are_one_line(arguments, message, tmp_path, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda theta: (theta * torch.nan, 1), "got NaN or infinity in"),
        (lambda theta: (theta, 7), "format_version is 7, expected 1"),
    ],
    ids=["nan", "version"],
)
def test_bad_checkpoints_are_no_start(change, message: str, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "start"
    checkpoint.save(folder, OPTIMIZER, OPTIMIZER.initial())
    path = folder / checkpoint.TENSORS
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    header.pop("digests")  # as older versions wrote it
    named = load_file(path)
    theta, version = change(named["log_lr"])
    save_file(named | {"log_lr": theta}, path, header | {"format_version": str(version)})
    run_dir = tmp_path / "run"
    assert main(["meta-train", "--run-dir", str(run_dir), "--start", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "format_version is None, expected 1"),
        ('{"format_version": 1, "command": []}', "damaged: it has no config, environment"),
    ],
)
def test_what_is_json_but_no_run_is_one_line(content: str, message: str, tmp_path, capsys) -> None:
    folder = begin(tmp_path / "run")
    (folder / meta_run.FACTS).write_text(content)
    for command in ("resume", "report", "reproduce", "watch"):
        assert main([command, str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"{meta_run.FACTS}: {message}" in error
        assert error.count("\n") == 1


def test_what_a_run_on_another_device_came_to_can_be_read() -> None:
    """Without that device; to go on with it one is needed."""
    elsewhere = json.loads(json.dumps(CONFIG.to_dict())) | {"device": "cuda:7"}
    assert Config.from_dict(elsewhere).device == "cuda:7"


@pytest.mark.parametrize("damage", ["version", "state version", "cut short", "empty"])
def test_damaged_runs_are_one_line(damage: str, finished: Path, tmp_path: Path, capsys) -> None:
    folder = begin(tmp_path / "run")
    state = folder / meta_run.STATE
    state.write_bytes((finished / meta_run.STATE).read_bytes())
    if damage == "version":
        facts = folder / meta_run.FACTS
        facts.write_text(facts.read_text().replace('"format_version": 1', '"format_version": 9'))
    elif damage == "state version":
        save_file(load_file(state), state, {"format_version": "9"})
    else:
        state.write_bytes(state.read_bytes()[: 1000 if damage == "cut short" else 0])
    assert main(["resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error


INCOMPLETE = [
    ("theta", torch.zeros(1), r"theta is torch.float32 of shape \[1\], expected .* of shape \[4\]"),
    ("adam.exp_avg", None, r"adam.exp_avg is nothing, expected torch.float32 of shape \[4\]"),
    ("by_lesson", torch.zeros(3, 2), r"by_lesson is .* \[3, 2\], expected .* of shape \[14, 2\]"),
    ("step", None, "step is nothing, expected"),
    ("0.state.m", None, "0.state.m is nothing, expected"),
    ("more", torch.zeros(1), r"more is torch.float32 of shape \[1\], expected nothing"),
    ("best", torch.zeros(4).double(), "best is torch.float64 of"),
    ("record", '{"history": []}', r"no record of a run \(KeyError: 'adam'\)"),
    ("record", "[1]", "no record of a run .TypeError"),
    ("record", '{"history": [], "adam": []}', "no record of a run .ValueError: expected evaluati"),
    ("record", "[" * 100_000, "recursion"),
    ("config", None, "it has no config"),
]


@pytest.mark.parametrize(("name", "value", "message"), INCOMPLETE)
def test_incomplete_saves_are_one_line(
    name: str, value: Tensor | str | None, message: str, finished: Path, tmp_path: Path, capsys
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    state = folder / meta_run.STATE
    with safe_open(state, framework="pt") as file:
        header = dict(file.metadata())
    header.pop("digests")  # as older versions wrote it
    tensors = load_file(state)
    for kept in (tensors, header):
        kept.pop(name, None)
    if isinstance(value, Tensor):
        tensors[name] = value
    elif value is not None:
        header[name] = value
    save_file(tensors, state, header)
    assert main(["resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(f"{meta_run.STATE}: damaged.*{message}", error)


def test_a_run_goes_on_as_it_began_or_not_at_all(finished: Path, tmp_path: Path, capsys) -> None:
    folder = begin(tmp_path / "run")
    (folder / meta_run.STATE).write_bytes((finished / meta_run.STATE).read_bytes())
    facts = json.loads((folder / meta_run.FACTS).read_text())
    facts["config"]["train"]["widths"] = [4, 6, 8]
    (folder / meta_run.FACTS).write_text(json.dumps(facts))
    assert main(["resume", str(folder)]) == 2
    assert "run.json: damaged: not what was written; whoever" in capsys.readouterr().err
    del facts["digest"]
    (folder / meta_run.FACTS).write_text(json.dumps(facts))
    assert main(["resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "run.json: train.widths: got [4, 6, 8], but state.safetensors was made with [4, 6]" in (
        error
    )


def test_a_start_can_be_another_runs_best(finished: Path, tmp_path: Path, capsys) -> None:
    run_dir = tmp_path / "more"
    command = ["meta-train", "--run-dir", str(run_dir), "--start", str(finished)]
    assert main([*command, *TINY_RUN, "--outer.steps", "1"]) == 2
    assert "--start: got it beside --optimizer" in capsys.readouterr().err
    rest = [word for word in TINY_RUN if word not in TINY_OPTIMIZER]
    assert main([*command, *rest, "--outer.steps", "1"]) == 0
    begun = checkpoint.load(run_dir / meta_run.START)
    assert begun.card["mup"]
    assert torch.equal(begun.theta, checkpoint.load(finished / meta_run.BEST).theta)
    said = capsys.readouterr().out
    assert "untrained" in said
    assert "adam at 0.001" in said


@pytest.mark.parametrize("mup", [False, True])
def test_a_start_that_says_nothing_of_mup_is_for_either(mup: bool, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, SmallFC(), SmallFC().initial())
    tensors = load_file(tmp_path / checkpoint.TENSORS)
    with safe_open(tmp_path / checkpoint.TENSORS, framework="pt") as file:
        header = {k: v for k, v in file.metadata().items() if k not in ("mup", "digests")}
    save_file(tensors, tmp_path / checkpoint.TENSORS, header)
    (tmp_path / checkpoint.CARD).write_text('{"name": "mine"}')
    assert meta_train._beginning(checkpoint.load(tmp_path), None, seed=0, mup=mup)[0] == SmallFC()


def test_a_start_can_be_shipped() -> None:
    found = meta_train._start(Path("mulo_small"), trusted=False)
    optimizer, theta = meta_train._beginning(found, None, seed=0, mup=True)
    assert isinstance(optimizer, SmallFC)
    assert len(theta) == optimizer.size


def test_a_log_has_plain_lines(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file, View(Console(file=file)) as view:
        meta_run.proceed(begin(tmp_path / "run"), Ranks(), view)
    assert "\x1b" not in path.read_text()
    assert "outer step 14: held-out objective" in path.read_text()
