"""What somebody sent is looked at without running anything that it names.

Every command that looks meets a run, an archive and results whose names are import paths, markup
and letters that steer a terminal; every command that goes on asks before it imports.
"""

import io
import json
import shutil
from copy import deepcopy
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

import l2o
import search
from l2o import checkpoint
from l2o.architectures.tuned_adam import TunedAdam
from l2o.cli.main import main
from l2o.meta import report, run
from l2o.meta.config import Config, Estimation, Evaluation, Outer
from l2o.meta.distribution import Distribution
from l2o.meta.ranks import Ranks
from l2o.meta.view import View
from search.fitness.settings import Funnel, Verdict
from search.run.config import Budget
from search.run.config import Config as SearchConfig
from search.run.stages import begin
from search.zoo import SEAL, seal
from tasks.checks import printable
from tasks.display.page import Page, Section, write
from tasks.display.plain import Console
from tasks.display.plots import Figure, drawing
from tasks.runs import tensors
from tasks.runs.files import SHIPPED, RunError, lock

HOSTILE = "x[/red][bold]<script>alert(1)</script>$\\frac$"
STEERING = "\x1b]0;owned\x07\u202e"
PLANTED = f"""
open("ran", "a").write("planted")
from dataclasses import dataclass
from tasks.data.loaders import breast_cancer
from tasks.families.linear import Logistic
from tasks.families.mlp import MLP

@dataclass(frozen=True)
class Named(MLP):
    name = {HOSTILE!r}

@dataclass(frozen=True)
class Family(MLP):
    name = "family"

suite = Named(width=6, depth=1, batch_size=8)
other = Logistic(data=breast_cancer(), batch_size=8)
"""
RULE = "def update(w, g, m, v):\n    update = sign(g)\n    return update, m, v\n"
CONFIG = Config(
    train=Distribution(families=("planted:Family",), widths=(4,), batch_size=8),
    held_out=Distribution(suite="planted:suite"),
    estimation=Estimation(particles=1, truncation=2, horizon=(4, 6)),
    outer=Outer(steps=2, warmup=1, save_every=1),
    evaluation=Evaluation(every=1, steps=4, seeds=1),
)
SEARCH = SearchConfig(
    (RULE,),
    budget=Budget(candidates=6),
    funnel=Funnel(suite="planted:suite", length=0.04, rungs=(0.5, 1.0)),
    verdict=Verdict(held_out="planted:other", meta_validation=None, finalists=1, trials=1, seeds=1),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A meta-training, a search that has begun, and results, whose tasks are planted."""
    folder = tmp_path_factory.mktemp("sent")
    (folder / "planted.py").write_text(PLANTED)
    (folder / f"{HOSTILE.replace('/', '')}.txt").write_text(RULE)
    optimizer = TunedAdam(lr=0.01)
    with pytest.MonkeyPatch.context() as patch, View(silent=True) as view:
        patch.chdir(folder)
        command = ["l2o", HOSTILE + STEERING]
        run.begin(folder / "learned", CONFIG, optimizer, optimizer.initial(0), command)
        run.proceed(folder / "learned", Ranks(), view)
        begin(folder / "found", SEARCH).close()
        few = ["--trials", "1", "--seeds", "1", "--length", "0.02", "--suite", "planted:suite"]
        (rule,) = folder.glob("*.txt")
        assert main(["evaluate", rule.name, *few, "--out", "results.sqlite"]) == 0
    (folder / "ran").unlink()
    return folder


@pytest.fixture
def sent(made, tmp_path, monkeypatch):
    """Somewhere else, where a module of the planted name lies, too."""
    monkeypatch.setattr(report, "WIDTHS", (4, 8))
    folder = Path(shutil.copytree(made, tmp_path / "sent"))
    monkeypatch.chdir(folder)
    return folder


LOOKS = [
    "report learned", "report found", "report results.sqlite", "watch learned --once",
    "watch found --once", "show found", "show learned", "export found --out rule.py",
    "simplify found --exact", "export learned --out rule.py",
    "coord-check --rule learned --widths [4,8] --steps 1 --seeds 1 --out check",
    "coord-check --rule learned/best --widths [4,8] --steps 1 --seeds 1 --out check",
]  # fmt: skip


@pytest.mark.parametrize("command", LOOKS)
def test_looking_runs_nothing(sent, command, capsys):
    assert main(command.split()) in (0, 1, 2)
    assert not (sent / "ran").exists()
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert "Traceback" not in said
    for page in sent.rglob("*.html"):
        assert "<script" not in page.read_text()


def test_loading_runs_nothing(sent):
    assert l2o.load("learned").architecture == TunedAdam(lr=0.01)
    with pytest.raises(ValueError, match="nothing has been evaluated"):
        search.load("found")
    assert not (sent / "ran").exists()


def test_a_report_says_what_was_recorded_and_what_it_did_not_run(sent):
    assert main(["report", "learned"]) == 0
    text = (sent / "learned" / "report.html").read_text()
    assert "was not measured again" in text
    assert "planted:suite; if you know it, add --trust" in text
    assert main(["report", "learned", "--trust"]) == 0
    assert (sent / "ran").exists()
    assert "5 seeds that did not choose it" in (sent / "learned" / "report.html").read_text()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("resume learned", "'planted:Family', 'planted:suite'"),
        ("reproduce learned", "'planted:Family', 'planted:suite'"),
        ("resume found --workers 0", "'planted:suite', 'planted:other'"),
    ],
)
def test_going_on_asks_first(sent, command, named, capsys):
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert f"names code that would be run, from here or from what is installed: {named}" in said
    assert "add --trust" in said
    assert not (sent / "ran").exists()
    assert main([*command.split(), "--trust"]) == 0
    assert f"--trust: running {named}" in capsys.readouterr().err
    assert (sent / "ran").exists()


TRUSTED = {  # what is agreed to: exit status, and what is said
    "planted:suite": (2, "--trust: got 'planted:suite', but "),
    "[planted:suite,planted:Family,planted:more]": (2, "names 'planted:Family', 'planted:suite'"),
    "os:abort": (2, "--trust: got 'os:abort', but "),
    "[planted:suite,planted:Family]": (0, "--trust: running 'planted:Family', 'planted:suite'"),
}


@pytest.mark.parametrize("names", TRUSTED)
def test_one_may_agree_to_names_alone(sent, names, capsys):
    status, said = TRUSTED[names]
    assert main(["resume", "learned", "--trust", names]) == status
    assert said in capsys.readouterr().err
    assert (sent / "ran").exists() == (status == 0)


def test_a_run_after_the_flag_is_a_run(sent, capsys):
    assert main(["resume", "--trust", "learned"]) == 0
    assert "--trust: running 'planted:Family'" in capsys.readouterr().err


def test_what_is_recorded_of_a_wrong_kind_is_named():
    """A run's files are JSON that anybody may have written; every field of every group."""
    odd = (None, [], {}, -1, 1e300, True, "", [None], [[1, 2]], [{}], {"a": 1}, 10**400)
    for config in (CONFIG, SEARCH):
        facts = json.loads(json.dumps(asdict(config)))
        for *groups, name in _places(facts):
            for value in odd:
                changed = deepcopy(facts)
                group = reduce(getitem, groups, changed)
                group[name] = value
                try:
                    names = type(config).from_dict(changed).imports()
                except ValueError as error:
                    assert "\n" not in str(error)  # noqa: PT017
                else:
                    assert all(isinstance(name, str) for name in names), (groups, name, value)


def _places(facts):
    for name, value in facts.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *inner) for inner in _places(value))


def test_text_where_text_belongs_is_asked_for(sent):
    file = sent / "learned" / "run.json"
    facts = json.loads(file.read_text())
    del facts["digest"]
    for name, value in (("device", None), ("mup", "yes")):
        file.write_text(json.dumps(facts | {"config": facts["config"] | {name: value}}))
        for command in ("report learned", "resume learned --trust"):
            assert main(command.split()) == 2


# ------------------------------------------------------------------------- terminals and links


def test_a_terminal_is_not_steered():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80)
    console.print(HOSTILE + STEERING + " :smile:", soft_wrap=True)
    assert file.getvalue() == HOSTILE + r"\x1b]0;owned\x07\u202e :smile:" + "\n"
    assert printable("a\tb\nü\N{NO-BREAK SPACE}–") == "a\tb\nü\N{NO-BREAK SPACE}–"


def test_errors_do_not_steer_it(tmp_path, capsys):
    assert main(["show", str(tmp_path / STEERING)]) == 2
    assert r"\x1b]0;owned\x07\u202e: no such run" in capsys.readouterr().err


def test_links_in_what_was_sent_lead_nowhere(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "report-figures").mkdir()
    (tmp_path / "report-figures" / "a.png").symlink_to(tmp_path / "mine")
    (tmp_path / "writer.lock").symlink_to(tmp_path / "mine")
    with drawing() as (figure, _):
        page = Page("", "", [Section("", [Figure("a", figure, "")])], "")
    write(page, tmp_path / "report.html")
    with pytest.raises(RunError, match=r"writer\.lock"):
        lock(tmp_path / "writer.lock")
    assert (tmp_path / "mine").read_text() == "precious"
    (tmp_path / "other-figures").symlink_to(tmp_path / "report-figures")
    with pytest.raises(RunError, match="other-figures: a link to elsewhere"):
        write(page, tmp_path / "other.html")


SIGN = "def update(w, g):\n    update = sign(g)\n    return update\n"


@pytest.mark.parametrize("name", ["archive.sqlite", "run.json", "theta.safetensors"])
def test_a_folder_that_is_two_things_is_neither(name, tmp_path, capsys):
    """A file beside what a report shows of a run would be loaded in its place."""
    (tmp_path / "rule.txt").write_text(SIGN)
    assert search.load(tmp_path).origin
    (tmp_path / name).touch()
    for load in (search.load, l2o.load):
        with pytest.raises(ValueError, match=f"holds {name} .*and rule.txt .*expected one of them"):
            load(tmp_path)
    for command in (["evaluate", str(tmp_path)], ["export", str(tmp_path), "--out", "x.py"]):
        assert main(command) == 2
        assert "expected one of them" in capsys.readouterr().err


def test_a_rule_is_the_one_that_its_card_is_about(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED / "lion_form", folder)
    assert search.load(folder).program == search.load("lion_form").program
    commented = "# a comment\n" + (folder / "rule.txt").read_text()
    (folder / "rule.txt").write_text(commented)
    assert search.load(folder).program == search.load("lion_form").program
    (folder / "rule.txt").write_text(SIGN)
    with pytest.raises(ValueError, match=r"rule\.txt: not the program that .*card\.json is about"):
        search.load(folder)
    (folder / "card.json").write_text('{"name": "mine", "digest": "0"}')
    with pytest.raises(ValueError, match=r"card\.json: damaged: not what was written"):
        search.load(folder)
    (folder / "card.json").unlink()
    assert search.load(folder).name == "mine"


def test_every_shipped_rule_has_a_card_that_is_about_it():
    for rule in SHIPPED.glob("*/rule.txt"):
        card = json.loads(rule.with_name("card.json").read_text(encoding="utf-8"))
        assert card[SEAL] == seal(search.load(rule.parent).program)


def test_the_best_of_a_run_is_the_one_of_its_state(tmp_path, capsys):
    """Whoever sends a run may have changed one with all its digests; both would take the run."""
    run_dir = tmp_path / "run"
    found = checkpoint.load(SHIPPED / "lo_small")
    checkpoint.save(run_dir / "best", found.optimizer, found.theta, {"mup": False})
    (run_dir / "run.json").write_text("{}")
    state = {"best": found.theta}
    (run_dir / "state.safetensors").write_bytes(tensors.to_bytes(state, {}))
    assert torch.equal(l2o.load(run_dir).theta, found.theta)
    checkpoint.save(run_dir / "best", found.optimizer, found.theta + 1, {"mup": False})
    with pytest.raises(ValueError, match=r"run/best: is not the best of .*state\.safetensors"):
        l2o.load(run_dir)
    for command in (["evaluate", str(run_dir)], ["meta-train", "--start", str(run_dir)]):
        assert main([*command, "--out" if "evaluate" in command else "--run-dir", "x"]) == 2
        assert "is not the best of" in capsys.readouterr().err
    (run_dir / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"state\.safetensors: damaged"):
        l2o.load(run_dir)
