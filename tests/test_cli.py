"""The command line: help for everything, and one line for every mistake."""

import os
import subprocess
import sys

import pytest
import torch

from l2o.cli.main import COMMANDS, command, main
from tasks.runs.interrupt import Interrupted


def refused(capsys, *arguments: str) -> str:
    """The one line that a mistake costs."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_overview_names_every_command(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(capsys, name):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"l2o {name} " in text.split("\n\n", 1)[1]
    assert command(name).__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flags_are_named(capsys, name):
    line = refused(capsys, name, "--no-such-flag", "1")
    assert line.startswith(f"l2o {name}: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serch"], ["no command 'serch'; did you mean search?", "search", "resume"]),
        (["search"], ["--run-dir", "required"]),
        (["search", "--run-dir", "{new}", "--bogus", "3"], ["--bogus", "--help"]),
        (["search", "--run-dir", "{new}", "--preset", "slow"], ["'slow'", "standard", "gpu"]),
        (["search", "--run-dir", "{new}", "--preset", "gpu", "--device", "cuda:9"], ["cuda:9"]),
        (["search", "--run-dir", "{new}", "--budget.candidates", "-5"], ["candidates", "-5"]),
        (["search", "--run-dir", "{new}", "--budget.candidates", "many"], ["candidates", "many"]),
        (["search", "--run-dir", "{new}", "--budget.minutes", "0"], ["minutes", "got 0"]),
        (["search", "--run-dir", "{new}", "--budget.hours", "1"], ["--budget.hours"]),
        (["search", "--run-dir", "{new}", "--funnel.suite", "nope"], ["funnel.suite", "'nope'"]),
        (["search", "--run-dir", "{new}", "--start", "adamv"], ["did you mean adam", "l2o zoo"]),
        (["search", "--run-dir", "{new}", "--start", "{bad}"], ["bad.txt:2:13", "one operation"]),
        (["search", "--run-dir", "{new}", "--start", "{array}"], ["array.txt: 'update' is ARRAY"]),
        (["evaluate", "{array}"], ["array.txt: 'update' is ARRAY"]),
        (["evaluate", "{deaf}"], ["deaf.txt: update does not depend on the gradient"]),
        (["export", "{deaf}", "--out", "{new}"], ["deaf.txt: update does not depend"]),
        (["search", "--run-dir", "{new}", "--states", "-1"], ["--states: got -1"]),
        (["search", "--run-dir", "{new}", "--states", "101"], ["--states: got 101, expected 0 to"]),
        (["search", "--run-dir", "{new}", "--workers", "-1"], ["workers", "-1"]),
        (["search", "--run-dir", "{old}"], ["never overwritten", "l2o resume"]),
        (["resume", "{new}"], ["no such run"]),
        (["show", "{old}"], ["not a run"]),
        (["export", "nope", "--out", "{new}"], ["nope", "l2o zoo lists"]),
        (["simplify", "lion", "--length", "1e300"], ["length: got 1e+300, expected above 0"]),
        (["search", "--run-dir", "{new}", "--funnel.length", "1e9"], ["length: got 1000000000.0"]),
        (["export", "lion", "--out", "{bad}"], ["exists", "not overwritten"]),
        (["export", "lion", "--id", "7", "--out", "{new}"], ["candidate: got 7", "no run"]),
        (["show", "{old}", "--top", "-1"], ["--top: got -1"]),
        (["zoo", "liom"], ["liom", "did you mean lion", "l2o zoo lists"]),
        (["evaluate", "mulo_smal"], ["mulo_small or lo_small?"]),
        (["evaluate", "torch.optim.AdmW"], ["did you mean AdamW?"]),
        (["evaluate", "lion", "--suite", "held_ot"], ["did you mean held_out?"]),
        (["data", "fetch", "fashon_mnist"], ["did you mean fashion_mnist?"]),
        (["meta-train", "--run-dir", "{new}", "--optimizer", "Vello"], ["did you mean Velo?"]),
        (["meta-train", "--run-dir", "{new}", "--train.data", "[digit]"], ["did you mean digits?"]),
        (["search", "--run-dir", "{new}", "--funnel.schedule", "cosin"], ["did you mean cosine?"]),
        (["data", "destroy"], ["'destroy'", "list", "fetch"]),
        (["data", "fech", "mnist"], ["did you mean fetch?"]),
        (["data", "fetch"], ["got no name", "mnist"]),
        (["data", "fetch", "digits"], ["data fetch: got digits, expected", "mnist"]),
        (["meta-train", "--run-dir", "{new}", "--train.data", "digits"], ["values in brackets"]),
        (["search", "--run-dir", "{new}", "--evolution.restart", "a"], ["restart: got a, "]),
        (["meta-train", "--run-dir", "{new}", "--optimizer.x", "4"], ["optimizer.x: no such"]),
        (["search", "--run-di", "{new}"], ["unrecognized arguments: --run-di", "mean --run-dir?"]),
        (["meta-train", "--run-dir", "{new}", "--optimizer.hiden_size", "4"], ["mean hidden_size"]),
        (["search", "--run-dir", "{bad}"], ["--run-dir: got", "a file; expected a directory"]),
        (["meta-train", "--run-dir", "{new}", "--start", "{old}"], ["--start: got", "no theta"]),
        (["show", "{old}", "--id", "many"], ["--id: got many, expected a whole number"]),
        (["search", "--run-dir", "{new}", "--evolution.mutation.insert", "-1"], ["insert: got -1"]),
        (["search", "--run-dir", "{new}", "--evolution.mutation.fresh", "2"], ["mutation.fresh: "]),
        (["search", "--run-dir", "{new}", "--evolution.batch", "0"], ["--evolution.batch: got 0"]),
        (["search", "--run-dir", "{new}", "--verdict.held_out", "no"], ["verdict.held_out: suite"]),
        (["meta-train", "--run-dir", "{new}", "--outer.lr", ".inf"], ["lr: got inf"]),
        (["meta-train", "--run-dir", "{new}", "--optimizer.step_mult", ".nan"], ["step_mult: got"]),
        (["meta-train", "--run-dir", "{new}", "--optimizer.hidden_size", "0"], ["hidden_size: go"]),
        (["data", "fetch", "imagenet"], ["imagenet", "mnist"]),
    ],
)  # fmt: skip
def test_mistakes_cost_one_line(capsys, tmp_path, arguments, words):
    (tmp_path / "old").mkdir()
    bad = tmp_path / "bad.txt"
    bad.write_text("def update(w, g):\n    x = exp(open('a'))\n    return update\n")
    places = {"new": tmp_path / "new", "old": tmp_path / "old", "bad": bad}
    for name, update in (("array", "norm(g)"), ("deaf", "2.0 * w")):
        places[name] = tmp_path / f"{name}.txt"
        places[name].write_text(f"def update(w, g):\n    update = {update}\n    return update\n")
    line = refused(capsys, *(argument.format(**places) for argument in arguments))
    assert all(word in line for word in words), line
    assert not (tmp_path / "new").exists()


def test_a_terminal_of_few_letters_gets_what_it_can_show(tmp_path):
    command = [sys.executable, "-m", "l2o.cli", "suites", "held_out"]
    said = subprocess.run(
        command,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        text=True,
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert "?" in said.stdout


ON_A_DEVICE = {
    "search": ("--run-dir", "{new}"),
    "meta-train": ("--run-dir", "{new}"),
    "evaluate": ("lion", "--out", "{new}"),
    "coord-check": ("--out", "{new}"),
}


@pytest.mark.parametrize("name", ON_A_DEVICE)
@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:99", ["device: got 'cuda:99'"]),
        ("toaster", ["device: got 'toaster', expected cpu, cuda or cuda:N"]),
        ("mps", ["device: got 'mps', expected cpu, cuda or cuda:N"]),
        ("broken", ["device: got 'cuda', which does not work: CUDA error: no luck"]),
    ],
)
def test_a_device_that_is_no_use_costs_one_line(capsys, tmp_path, monkeypatch, name, device, words):
    def zeros(*_, **__):
        raise RuntimeError("CUDA error: no luck\nCompile with TORCH_USE_CUDA_DSA.")

    if device == "broken":
        device = "cuda"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "zeros", zeros)
    new = tmp_path / "new"
    arguments = (argument.format(new=new) for argument in ON_A_DEVICE[name])
    line = refused(capsys, name, *arguments, "--device", device)
    assert all(word in line for word in words), line
    assert not new.exists()


def test_every_command_with_a_device_is_tried(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert ("--device " in capsys.readouterr().out) == (name in ON_A_DEVICE), name


@pytest.mark.parametrize("error", [torch.AcceleratorError, torch.OutOfMemoryError])
def test_a_device_that_breaks_in_between_costs_one_line(capsys, monkeypatch, error):
    def breaks(_):
        raise error("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr("l2o.cli.main.command", lambda name: breaks)
    assert refused(capsys, "zoo") == "l2o zoo: CUDA error: unspecified launch failure\n"


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 19200 bytes.",
            "not enough memory: end other programs, ask for less at a time, or raise the limit "
            "(ulimit -v)",
        ),
        (GLOO, GLOO),
    ],
)
def test_what_the_computer_does_to_us_costs_one_line(capsys, monkeypatch, said, told):
    """Too little memory; a process of a meta-training that was killed."""

    def breaks(_):
        raise RuntimeError(said)

    monkeypatch.setattr("l2o.cli.main.command", lambda name: breaks)
    assert refused(capsys, "zoo") == f"l2o zoo: {told}\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_ctrl_c_costs_one_line(capsys, monkeypatch, error):
    def stopped(_):
        raise error

    monkeypatch.setattr("l2o.cli.main.command", lambda name: stopped)
    assert main(["reproduce", "runs/first"]) == 130
    assert capsys.readouterr().err == "l2o reproduce: stopped by Ctrl-C\n"


def test_other_errors_of_ours_are_not_hidden(monkeypatch):
    def breaks(_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("l2o.cli.main.command", lambda name: breaks)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["zoo"])


HEAVY = ("torch", "numba", "scipy.stats", "sklearn", "deap", "matplotlib", "tensorboard", "triton")


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ("--help", ()),
        ("zoo", ()),
        ("zoo lion", ()),
        ("search --help", ()),
        ("evaluate --help", ()),
        ("meta-train --help", ("torch",)),
    ],
)
def test_what_is_only_looked_at_imports_little(tmp_path, arguments, allowed):
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('!', *[m for m in {HEAVY} if m in sys.modules]))\n"
        f"from l2o.cli.main import main\nmain({arguments.split()})"
    )
    said = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert set(said.stdout.rpartition("!")[2].split()) <= set(allowed)
