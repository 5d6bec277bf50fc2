"""Configuration files: every command writes one, reads it, and says what is wrong with one."""

from pathlib import Path

import pytest
import yaml

from l2o.cli.main import COMMANDS, main

GIVEN = {
    "search": "--run-dir new --seed 3 --start [lion,adamw] --budget.minutes 2 "
    "--evolution.mutation.copy 1 --funnel.rungs [0.5,1.0] --verdict.meta_validation null",
    "meta-train": "--run-dir new --optimizer Velo --train.widths [4,8] "
    "--estimation.truncation null --start lo_small",
    "resume": "runs/first --workers 2",
    "watch": "runs/first --once",
    "show": "runs/first --id 3 --json",
    "export": "lion --out new.py --name Mine",
    "simplify": "lion --exact",
    "zoo": "lion",
    "evaluate": "lion torch.optim.SGD(momentum=0.9) --trials 4 --out new.sqlite",
    "reproduce": "runs/first --workers 0",
    "report": "runs/first --out new.html",
    "coord-check": "--out new --widths [4,8] --lr 0.5 --base-width 4",
    "suites": "held_out --json",
    "data": "fetch mnist",
}
NUMBERS = {
    "search": "seed", "meta-train": "seed", "resume": "workers", "watch": "every", "show": "top",
    "simplify": "trials", "evaluate": "trials", "reproduce": "workers", "coord-check": "steps",
}  # fmt: skip
GROUPS = {
    "search": {
        "budget": "minutes: 7.0", "funnel": "seeds: 7", "evolution": "population: 77",
        "evolution.mutation": "max_length: 7", "verdict": "finalists: 7",
    },
    "meta-train": {
        "train": "widths: [7]", "held_out": "widths: [7]", "estimation": "particles: 7",
        "outer": "steps: 7", "evaluation": "steps: 7",
    },
}  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n"
    for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG = {
    "unknown key": (b"runs_dir: x\nno_such: 1\n", "runs_dir"),
    "a tag": (b"seed: !!python/object/apply:os.mkdir [made]\n", "tag"),
    "an object": (b"!!python/object/apply:os.mkdir [made]\n", "tag"),
    "aliases": (BOMB.encode(), "alias"),
    "deep": (b"a: " + b"[" * 5000, "levels"),
    "a list": (b"- 1\n- 2\n", "config"),
    "a key twice": (b"a: {seed: 1, seed: 2}\n", "seed twice"),
    "a word": (b"hello\n", "config"),
    "not YAML": (b"a: [1, 2\nb: }", "config"),
    "empty": (b"", "empty"),
    "blank": (b"\n\n", "empty"),
    "a comment": (b"# nothing\n", "config"),
    "binary": (bytes(range(256)), "no text"),
    "long": (b"a" * 2_000_000, "characters"),
    "itself": (b"config: wrong.yaml\n", "config"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def printed(capsys, name: str, *arguments: str) -> str:
    """What ``--print_config`` prints."""
    with pytest.raises(SystemExit) as end:
        main([name, *arguments, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


def refused(capsys, name: str, *arguments: str) -> str:
    assert main([name, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith(f"l2o {name}: ")
    assert len(err) < 1000
    assert not Path("made").exists()
    return err


def test_every_command_is_tried():
    assert GIVEN.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_printed_says_the_same_again(capsys, name):
    given = GIVEN[name].split()
    text = printed(capsys, name, *given)
    assert yaml.safe_load(text)
    Path("run.yaml").write_text(text)
    assert printed(capsys, name, "--config", "run.yaml") == text
    assert printed(capsys, name, "--config=run.yaml", *given) == text


@pytest.mark.parametrize("name", NUMBERS)
def test_the_later_wins(capsys, name):
    field, given = NUMBERS[name], GIVEN[name].split()
    Path("run.yaml").write_text(f"{field}: 7")
    Path("more.yaml").write_text(f"{field}: 8")
    for arguments, number in [
        (["--config", "run.yaml"], 7),
        (["--config", "run.yaml", "--config", "more.yaml"], 8),
        (["--config", "run.yaml", f"--{field}", "9"], 9),
        ([f"--{field}", "9", "--config", "run.yaml"], 7),
    ]:
        assert yaml.safe_load(printed(capsys, name, *given, *arguments))[field] == number


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_is_wrong_costs_one_line(capsys, name):
    for what in WRONG if name in ("zoo", "data") else ("unknown key", "a tag", "binary", "empty"):
        content, word = WRONG[what]
        Path("wrong.yaml").write_bytes(content)
        line = refused(capsys, name, "--config", "wrong.yaml")
        assert word in line, f"{what}: {line}"
    Path("folder").mkdir()
    assert "nope.yaml" in refused(capsys, name, "--config", "nope.yaml")
    assert "folder" in refused(capsys, name, "--config", "folder")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_field_of_another_kind_is_named(capsys, name):
    for value in ("many", "[1, 2]", "{a: 1}"):
        Path("wrong.yaml").write_text(f"{NUMBERS[name]}: {value}\n")
        line = refused(capsys, name, *GIVEN[name].split(), "--config", "wrong.yaml")
        assert f"--{NUMBERS[name]}: got" in line, line


@pytest.mark.parametrize(
    ("name", "group"), [(name, group) for name, groups in GROUPS.items() for group in groups]
)
def test_a_group_has_a_file_of_its_own(capsys, name, group):
    Path("group.yaml").write_text(GROUPS[name][group])
    ((field, value),) = yaml.safe_load(GROUPS[name][group]).items()
    found = yaml.safe_load(printed(capsys, name, f"--{group}", "group.yaml"))
    for part in group.split("."):
        found = found[part]
    assert found[field] == value
    assert "--run-dir" in refused(capsys, name, f"--{group}", "group.yaml")
    for what in ("unknown key", "an object", "aliases", "binary"):
        Path("group.yaml").write_bytes(WRONG[what][0])
        line = refused(capsys, name, "--run-dir", "new", f"--{group}", "group.yaml")
        assert ("group.yaml" if what == "binary" else group) in line, f"{what}: {line}"
    assert not Path("new").exists()


@pytest.mark.parametrize("name", GROUPS)
def test_a_preset_stands_below_a_file(capsys, name):
    Path("run.yaml").write_text("seed: 5\n")
    usual = yaml.safe_load(printed(capsys, name))
    assert usual | {"seed": 5} == yaml.safe_load(printed(capsys, name, "--config", "run.yaml"))
    other = {"search": "standard", "meta-train": "lo_small"}[name]
    Path("run.yaml").write_text(f"preset: {other}\nseed: 5\n")
    assert printed(capsys, name, "--config", "run.yaml") == printed(
        capsys, name, "--seed", "5", "--preset", other
    )
    Path("run.yaml").write_text("preset: quik\n")
    assert "did you mean quick?" in refused(capsys, name, "--config", "run.yaml")


def test_a_command_does_what_a_file_says(capsys):
    Path("run.yaml").write_text("name: lion\n")
    assert main(["zoo", "--config", "run.yaml"]) == 0
    text = capsys.readouterr().out
    assert main(["zoo", "lion"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("value", ["theirs.Rule", "{class_path: theirs.Rule}", "os.abort"])
def test_a_file_imports_nothing(capsys, monkeypatch, value):
    Path("theirs.py").write_text("import os\nos.mkdir('made')\nclass Rule: pass\n")
    monkeypatch.syspath_prepend(".")
    Path("run.yaml").write_text(f"optimizer: {value}\nrun_dir: new\n")
    line = refused(capsys, "meta-train", "--config", "run.yaml")
    assert "optimizer" in line
    assert "expected a class of l2o's" in line
